//! Worker, supervisor and appliance killed at random moments while files are opened: no opener
//! hangs, none gets what policy forbids, and whatever went unjudged is in the ledger.
//!
//! `LAZARET_CHAOS_SEED` chooses the moments, `LAZARET_CHAOS_ROUNDS` how many there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Setup, System};
use rustix::process::{Signal, kill_process};
use testbed::{ServerOptions, samples, wait_until};

const BUDGET: Duration = Duration::from_secs(4);
/// The budget, and time for a loaded machine to run a process.
const OPEN_MAX: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(120);
const FILES: usize = 40;
const OPENERS: usize = 4;

fn number(variable: &str, default: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn setup(on_unscanned: &str) -> Setup {
    let budget = BUDGET.as_millis();
    Setup {
        server: ServerOptions {
            extra: format!(
                "[removal]\non_malicious = \"deny\"\n\
                 [policy]\nopen_budget_ms = {budget}\nexec_budget_ms = {budget}\n\
                 on_unscanned = \"{on_unscanned}\"\nscan_on_close = false\n"
            ),
            ..ServerOptions::default()
        },
        ..Setup::default()
    }
}

/// What openers got, by file.
#[derive(Debug, Default)]
struct Seen {
    allowed: BTreeMap<PathBuf, usize>,
    slowest: Duration,
    opens: usize,
    problems: Vec<String>,
}

/// Opens files at random until told to end; a new process each time.
fn open_at_random(files: &[PathBuf], mut random: Random, is_over: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen::default();
    while !is_over.load(Ordering::Relaxed) {
        let file = &files[random.below(files.len() as u64) as usize];
        let start = Instant::now();
        let out = Command::new("cat")
            .arg(file)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()?;
        let took = start.elapsed();
        seen.slowest = seen.slowest.max(took);
        seen.opens += 1;
        let said = String::from_utf8_lossy(&out.stderr);
        if out.status.success() {
            *seen.allowed.entry(file.clone()).or_default() += 1;
        } else if !said.contains("Operation not permitted") {
            seen.problems.push(said.into_owned());
        }
    }
    Ok(seen)
}

/// One death, at random; then a pause, at random.
fn harm(system: &mut System, random: &mut Random) -> Result<&'static str> {
    // While one is being replaced nobody answers: then there is nobody to kill.
    let pids = system.agent.pids();
    let what = match (random.below(4), pids) {
        (0 | 1, Ok(pids)) => {
            let _ = kill_process(pids.worker, Signal::KILL);
            "worker"
        }
        (2, Ok(before)) => {
            system.agent.kill_supervisor()?;
            // There is no service manager here: were the worker killed too before its successor
            // comes, nobody would bring the agent back.
            let taken_over = || {
                let pids = system.agent.pids();
                pids.is_ok_and(|pids| pids.supervisor != before.supervisor)
            };
            ensure!(wait_until(PATIENCE, taken_over), "no new supervisor");
            "supervisor"
        }
        _ => {
            system.server.kill()?;
            std::thread::sleep(Duration::from_millis(random.below(1_500)));
            system.server.restart()?;
            "appliance"
        }
    };
    std::thread::sleep(Duration::from_millis(random.below(2_500)));
    Ok(what)
}

fn is_bad(file: &Path) -> bool {
    file.extension().is_some_and(|it| it == "com")
}

fn storm(on_unscanned: &str) -> Result<()> {
    let seed = number("LAZARET_CHAOS_SEED", 7);
    let rounds = number("LAZARET_CHAOS_ROUNDS", 8);
    let mut random = Random(seed);
    let mut system = System::start(setup(on_unscanned))?;
    let mut files = Vec::new();
    for number in 0..FILES {
        let bad = number % 4 == 0;
        let (content, ending) = if bad {
            let mut content = samples::eicar();
            content.extend_from_slice(b"\n");
            (content, "com")
        } else {
            (
                format!("file {number} of seed {seed}\n").into_bytes(),
                "txt",
            )
        };
        files.push(system.write(&format!("f{number}.{ending}"), &content)?);
    }
    let is_over = AtomicBool::new(false);
    let seen = std::thread::scope(|threads| -> Result<Vec<Seen>> {
        let openers: Vec<_> = (0..OPENERS as u64)
            .map(|number| {
                let random = Random(seed ^ (number + 1) << 32);
                let (files, is_over) = (&files, &is_over);
                threads.spawn(move || open_at_random(files, random, is_over))
            })
            .collect();
        let mut done = Ok(());
        for round in 0..rounds {
            match harm(&mut system, &mut random) {
                Ok(what) => eprintln!("round {round}: killed the {what}"),
                Err(error) => {
                    done = Err(error);
                    break;
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let mut seen = Vec::new();
        for opener in openers {
            seen.push(opener.join().map_err(|_| anyhow::anyhow!("panicked"))??);
        }
        done.map(|()| seen)
    })?;
    let opens: usize = seen.iter().map(|seen| seen.opens).sum();
    let slowest = seen.iter().map(|seen| seen.slowest).max();
    let slowest = slowest.unwrap_or_default();
    eprintln!("seed {seed}: {opens} opens, the slowest took {slowest:?}");
    ensure!(slowest < OPEN_MAX, "an opener waited {slowest:?}");
    let problems: Vec<_> = seen.iter().flat_map(|seen| &seen.problems).collect();
    ensure!(problems.is_empty(), "strange answers: {problems:?}");
    let bad_allowed: Vec<_> = seen
        .iter()
        .flat_map(|seen| seen.allowed.keys())
        .filter(|file| is_bad(file))
        .collect();
    if on_unscanned == "deny" {
        ensure!(bad_allowed.is_empty(), "let through: {bad_allowed:?}");
    }
    accounted_for(&system, &bad_allowed)
}

/// Everything is judged in the end, and a bad file that was let through had an entry.
fn accounted_for(system: &System, bad_allowed: &[&PathBuf]) -> Result<()> {
    let ledger = || -> Result<serde_json::Value> { Ok(system.agent.status()?["ledger"].clone()) };
    let paid = wait_until(PATIENCE, || {
        ledger().is_ok_and(|ledger| ledger["open_entries"] == 0)
    });
    let ledger = ledger().context("the agent does not answer")?;
    ensure!(paid, "the ledger is not paid back: {ledger}");
    let entries = ledger["entries_total"].as_u64().unwrap_or(0);
    let unnamed = ledger["overflow_total"].as_u64().unwrap_or(0);
    let mut bad: Vec<_> = bad_allowed.to_vec();
    bad.sort();
    bad.dedup();
    eprintln!(
        "{entries} entries, {unnamed} unnamed, {} bad files",
        bad.len()
    );
    ensure!(
        unnamed > 0 || entries >= bad.len() as u64,
        "{} bad files were let through, with {entries} entries",
        bad.len()
    );
    Ok(())
}

#[test]
#[ignore = "long: minutes on a loaded machine"]
fn deaths_where_the_unjudged_is_denied() -> Result<()> {
    storm("deny")
}

#[test]
#[ignore = "long: minutes on a loaded machine"]
fn deaths_where_the_unjudged_is_allowed() -> Result<()> {
    storm("allow")
}
