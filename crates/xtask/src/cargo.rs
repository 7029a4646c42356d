//! Calls of cargo and of what it built.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

/// A cargo command; always with the one profile.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.arg(subcommand);
    // `cargo run` tells a program whose it is. ring's build script watches these: with them, `./x`
    // and plain cargo would build ring, and all that needs it, again at each turn.
    const OF_RUN: [&str; 4] = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ];
    for (name, _) in std::env::vars_os() {
        let told = name
            .to_str()
            .is_some_and(|name| OF_RUN.iter().any(|start| name.starts_with(start)));
        if told {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command with its output shown; true where it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    Ok(status.success())
}

/// Where cargo puts programs: beside this one.
pub(crate) fn bin_dir() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("no folder")?.to_owned())
}

/// Builds all programs. The whole workspace at once, as tests do: what cargo unifies for one crate
/// alone differs, and YARA-X would be built again.
pub(crate) fn build_programs() -> Result<bool> {
    succeeds(cargo("build").args(["--release", "--workspace", "--bins"]))
}

/// Builds everything and runs one bench.
pub(crate) fn bench(name: &str, quick: bool, publish: bool) -> Result<bool> {
    if !build_programs()? {
        return Ok(false);
    }
    let mut bench = Command::new(bin_dir()?.join("lazaret-bench"));
    bench.arg(name);
    bench.args(quick.then_some("--quick"));
    bench.args(publish.then_some("--publish"));
    succeeds(&mut bench)
}

/// Builds everything and compares verdicts by read plan with those of YARA-X.
pub(crate) fn differential(arguments: &[String]) -> Result<bool> {
    let program = bin_dir()?.join("lazaret-bench");
    Ok(build_programs()? && succeeds(Command::new(program).arg("differential").args(arguments))?)
}

/// Builds everything and plays the fleet.
pub(crate) fn sim(seeds: u64, from: u64) -> Result<bool> {
    if !build_programs()? {
        return Ok(false);
    }
    let mut sim = Command::new(bin_dir()?.join("lazaret-sim"));
    sim.args(["--seeds", &seeds.to_string(), "--from", &from.to_string()]);
    succeeds(&mut sim)
}
