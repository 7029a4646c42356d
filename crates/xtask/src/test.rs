//! `./x test` and `./x ci`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::{bench, build_programs, cargo, differential};
use crate::tally::Tally;
use crate::{check, demo, fuzz, generate, package};

/// The suites of `./x test`, in order: what fails fast comes first.
const SUITES: [&str; 6] = ["lint", "gen", "deny", "tests", "traps", "doc"];
/// Seconds for each fuzz target in `./x ci`: enough to see that it runs.
const FUZZ_S: u32 = 5;
/// Operations of the long hunt for races; a short one is among the agent's tests.
const RACES_OPS: &str = "2000000";

/// Runs these suites, or all.
pub(crate) fn run(suites: &[String]) -> Result<Tally> {
    let mut tally = Tally::default();
    if suites.is_empty() {
        SUITES
            .iter()
            .try_for_each(|suite| run_one(suite, &mut tally))?;
    }
    suites
        .iter()
        .try_for_each(|suite| run_one(suite, &mut tally))?;
    Ok(tally)
}

/// Everything a submission must pass.
pub(crate) fn ci() -> Result<Tally> {
    let mut tally = run(&[])?;
    for target in fuzz::targets()? {
        tally.step(&format!("fuzz {target}"), || fuzz::run(&target, FUZZ_S));
    }
    tally.step("demo --exit", || {
        Ok(build_programs()? && demo::run(true).map(|()| true)?)
    });
    tally.step("differential", || differential(&[]));
    tally.step("bench open --quick", || bench("open", true, false));
    tally.step("bench engine --quick", || bench("engine", true, false));
    tally.step("bench holders --quick", || bench("holders", true, false));
    tally.step("bench bytes --quick", || bench("bytes", true, false));
    tally.step("bench fleet --quick", || bench("fleet", true, false));
    tally.step("bench migration --quick", || {
        bench("migration", true, false)
    });
    tally.step("bench footprint --quick", || {
        bench("footprint", true, false)
    });
    tally.step("package --test", || package::package(true));
    Ok(tally)
}

fn run_one(suite: &str, tally: &mut Tally) -> Result<()> {
    match suite {
        "lint" => check::lint(tally),
        "gen" => {
            tally.step("gen", || generate::run(true).map(|()| true));
            Ok(())
        }
        "deny" => {
            tally.step("deny", || check::deny(false));
            Ok(())
        }
        "doc" => {
            tally.step("doc", check::doc);
            Ok(())
        }
        "tests" => {
            // The end-to-end tests start the programs themselves.
            tally.step("programs", build_programs);
            let mut all = cargo("test");
            all.args(["--release", "--workspace", "--no-fail-fast"]);
            tally.tests("tests", &mut [all])
        }
        "traps" => {
            // By itself: no program is built with what switches mitigations off.
            let mut traps = cargo("test");
            traps.args([
                "--release",
                "--package",
                "fanotify",
                "--features",
                "without",
            ]);
            tally.tests("traps", &mut [traps])
        }
        "races" => {
            let mut races = cargo("test");
            races
                .args([
                    "--release",
                    "--workspace",
                    "--package",
                    "agent",
                    "--test",
                    "it",
                ])
                .args(["--", "--nocapture", "races"])
                .env("LAZARET_RACES_OPS", RACES_OPS);
            tally.tests("races", &mut [races])
        }
        package => {
            tally.step("programs", build_programs);
            tests_of(tally, package)
        }
    }
}

/// Runs the tests of one crate, built with the whole workspace: what cargo unifies for one crate
/// alone differs, and YARA-X would be built again.
fn tests_of(tally: &mut Tally, package: &str) -> Result<()> {
    let built = cargo("test")
        .args(["--release", "--workspace", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(built.status.success(), "the tests do not build");
    let folder = format!("/crates/{package}/Cargo.toml");
    let mut programs = Vec::new();
    for line in built.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        let manifest = message["manifest_path"].as_str().unwrap_or_default();
        let is_test = message["profile"]["test"] == true && manifest.ends_with(&folder);
        let Some(program) = message["executable"].as_str().filter(|_| is_test) else {
            continue;
        };
        let mut command = Command::new(program);
        command.current_dir(Path::new(manifest).parent().context("no folder")?);
        programs.push(command);
    }
    ensure!(
        !programs.is_empty(),
        "there is no crate {package} with tests"
    );
    tally.tests(package, &mut programs)
}
