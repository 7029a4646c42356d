//! Worker, supervisor and appliance killed at random moments while files are opened and changed:
//! no opener hangs, none gets what policy forbids, and whatever went unjudged is in the ledger.
//!
//! The oracle: nobody changes a file while a reader has it open, so a reader that gets in gets
//! exactly the file's bytes; where policy denies what nobody judged, these are never bad ones.
//!
//! `LAZARET_CHAOS_SEED` chooses the moments, `LAZARET_CHAOS_ROUNDS` how many there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::{Setup, System, open};
use rustix::process::{Pid, Signal, kill_process};
use testbed::{ServerOptions, samples, wait_until};

/// An opener's.
const BUDGET: Duration = Duration::from_secs(4);
/// Whoever is not done by then hangs.
const PATIENCE: Duration = Duration::from_secs(120);
const FILES: usize = 24;
const READERS: u64 = 3;
/// Opens between two deaths, at most.
const BETWEEN_MAX: u64 = 60;

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

/// A file on the guarded file system, and what it holds. Read-locked by whoever has it open.
struct Target {
    path: PathBuf,
    holds: RwLock<Vec<u8>>,
}

fn is_bad(content: &[u8]) -> bool {
    content.starts_with(&samples::eicar())
}

/// Never the same twice; one of three is bad. What follows EICAR may only be white space.
fn content(random: &mut Random) -> Vec<u8> {
    let mut content = match random.below(3) {
        0 => samples::eicar(),
        _ => b"harmless".to_vec(),
    };
    content.extend((0..24).map(|_| b" \t\n\r"[random.below(4) as usize]));
    content
}

/// What all threads share.
struct Storm {
    targets: Vec<Target>,
    scratch: PathBuf,
    denies: bool,
    is_over: AtomicBool,
    /// Opens that have ended, whatever they got.
    opens: AtomicU64,
    changes: AtomicU64,
}

impl Storm {
    fn any<'a>(&'a self, random: &mut Random) -> &'a Target {
        &self.targets[random.below(self.targets.len() as u64) as usize]
    }

    /// Runs a process that opens guarded files. One that hangs is an error.
    fn process(&self, program: &str, arguments: &[&Path]) -> Result<Output> {
        let mut child = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let has_ended = wait_until(PATIENCE, || !matches!(child.try_wait(), Ok(None)));
        if !has_ended {
            child.kill()?;
        }
        let out = child.wait_with_output()?;
        self.opens.fetch_add(1, Ordering::Relaxed);
        ensure!(has_ended, "{program} {arguments:?} hung for {PATIENCE:?}");
        let said = String::from_utf8_lossy(&out.stderr);
        let is_refused = said.contains("Operation not permitted");
        ensure!(out.status.success() || is_refused, "{program}: {said}");
        Ok(out)
    }

    /// Whoever ends, ends it for all: by an error, if it was not over.
    fn ends_it<T>(&self, result: T) -> T {
        self.is_over.store(true, Ordering::Relaxed);
        result
    }

    /// Reads files until it is over; the bad ones that it got.
    fn read(&self, mut random: Random) -> Result<BTreeSet<PathBuf>> {
        let mut got = BTreeSet::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let target = self.any(&mut random);
            let holds = target.holds.read().unwrap_or_else(PoisonError::into_inner);
            let out = self.process("cat", &[&target.path])?;
            if !out.status.success() {
                continue;
            }
            ensure!(
                out.stdout == *holds,
                "{} has other bytes",
                target.path.display()
            );
            if is_bad(&holds) {
                let path = &target.path;
                ensure!(!self.denies, "let through: {}", path.display());
                got.insert(path.clone());
            }
        }
        Ok(got)
    }

    /// Changes files until it is over, in place or by another in the same place.
    fn change(&self, mut random: Random) -> Result<()> {
        let source = self.scratch.join("next");
        while !self.is_over.load(Ordering::Relaxed) {
            let target = self.any(&mut random);
            let content = content(&mut random);
            std::fs::write(&source, &content)?;
            let mut holds = target.holds.write().unwrap_or_else(PoisonError::into_inner);
            let changed = if random.below(2) == 0 {
                self.process("cp", &[&source, &target.path])?
            } else {
                let beside = target.path.with_extension("beside");
                let copied = self.process("cp", &[&source, &beside])?;
                if copied.status.success() {
                    self.process("mv", &[Path::new("-f"), &beside, &target.path])?
                } else {
                    copied
                }
            };
            // Refused: the old content is bad, or was not judged, and nothing has changed.
            if changed.status.success() {
                *holds = content;
                self.changes.fetch_add(1, Ordering::Relaxed);
            }
            drop(holds);
            // Mostly read.
            self.let_pass(10)?;
        }
        Ok(())
    }

    /// Waits for so many further opens.
    fn let_pass(&self, count: u64) -> Result<()> {
        let until = self.opens.load(Ordering::Relaxed) + count;
        let passed = wait_until(PATIENCE, || {
            self.opens.load(Ordering::Relaxed) >= until || self.is_over.load(Ordering::Relaxed)
        });
        ensure!(passed, "no opens go on");
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Death {
    Worker,
    /// And its successor, which may not guard yet.
    Workers,
    Supervisor,
    Appliance,
}

/// Each kind of death, in an order of the seed's.
fn deaths(random: &mut Random) -> Vec<Death> {
    let mut deaths = vec![
        Death::Worker,
        Death::Workers,
        Death::Supervisor,
        Death::Appliance,
        Death::Worker,
        Death::Supervisor,
    ];
    for last in (1..deaths.len()).rev() {
        deaths.swap(last, random.below(last as u64 + 1) as usize);
    }
    let rounds = number("LAZARET_CHAOS_ROUNDS", deaths.len() as u64);
    deaths.into_iter().cycle().take(rounds as usize).collect()
}

/// The supervisor's child.
fn worker_of(supervisor: Pid) -> Option<Pid> {
    let pid = supervisor.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

fn harm(system: &mut System, death: Death, storm: &Storm, random: &mut Random) -> Result<()> {
    let mut before = None;
    // Who is being replaced does not answer.
    wait_until(PATIENCE, || {
        before = system.agent.pids().ok();
        before.is_some()
    });
    let before = before.context("the agent does not answer")?;
    match death {
        Death::Worker => kill_process(before.worker, Signal::KILL)?,
        Death::Workers => {
            kill_process(before.worker, Signal::KILL)?;
            let mut next = None;
            wait_until(PATIENCE, || {
                next = worker_of(before.supervisor).filter(|next| *next != before.worker);
                next.is_some()
            });
            std::thread::sleep(Duration::from_millis(random.below(150)));
            kill_process(next.context("no further worker")?, Signal::KILL)?;
        }
        Death::Supervisor => {
            system.agent.kill_supervisor()?;
            // There is no service manager here: were the worker killed too before its successor
            // comes, nobody would bring the agent back.
            let taken_over = || {
                let pids = system.agent.pids();
                pids.is_ok_and(|pids| pids.supervisor != before.supervisor)
            };
            ensure!(wait_until(PATIENCE, taken_over), "no new supervisor");
        }
        Death::Appliance => {
            system.server.kill()?;
            storm.let_pass(random.below(BETWEEN_MAX))?;
            system.server.restart()?;
        }
    }
    storm.let_pass(1 + random.below(BETWEEN_MAX))
}

fn targets(system: &System, random: &mut Random) -> Result<Vec<Target>> {
    let target = |number| {
        let holds = content(random);
        Ok(Target {
            path: system.write(&format!("f{number}"), &holds)?,
            holds: RwLock::new(holds),
        })
    };
    (0..FILES).map(target).collect()
}

fn storm(on_unscanned: &str) -> Result<()> {
    let seed = number("LAZARET_CHAOS_SEED", 7);
    let mut random = Random(seed);
    let mut system = System::start(setup(on_unscanned))?;
    let storm = Storm {
        targets: targets(&system, &mut random)?,
        scratch: system.scratch.path().to_owned(),
        denies: on_unscanned == "deny",
        is_over: AtomicBool::new(false),
        opens: AtomicU64::new(0),
        changes: AtomicU64::new(0),
    };
    let bad_read = std::thread::scope(|threads| -> Result<BTreeSet<PathBuf>> {
        let storm = &storm;
        let of = |number: u64| Random(seed ^ (number + 1) << 32);
        let readers: Vec<_> = (0..READERS)
            .map(|number| threads.spawn(move || storm.ends_it(storm.read(of(number)))))
            .collect();
        let changer = threads.spawn(move || storm.ends_it(storm.change(of(READERS))));
        let mut done = Ok(());
        for death in deaths(&mut random) {
            done = harm(&mut system, death, storm, &mut random)
                .with_context(|| format!("seed {seed}, {death:?}"));
            eprintln!("killed: {death:?}");
            if done.is_err() || storm.is_over.load(Ordering::Relaxed) {
                break;
            }
        }
        storm.is_over.store(true, Ordering::Relaxed);
        let mut bad_read = BTreeSet::new();
        for reader in readers {
            let Ok(read) = reader.join() else {
                bail!("a reader panicked");
            };
            bad_read.extend(read.with_context(|| format!("seed {seed}"))?);
        }
        let Ok(changed) = changer.join() else {
            bail!("the writer panicked");
        };
        changed.and(done).map(|()| bad_read)
    })?;
    let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
    let (opens, changes) = (count(&storm.opens), count(&storm.changes));
    let bad = bad_read.len();
    eprintln!("seed {seed}: {opens} opens, {changes} changes, {bad} bad files read");
    ensure!(changes > 0, "nothing changed");
    accounted_for(&system, bad)?;
    judged_in_the_end(&storm)
}

/// Everything is judged in the end, and a bad file that was let through had an entry.
fn accounted_for(system: &System, bad_read: usize) -> Result<()> {
    let ledger = || -> Result<serde_json::Value> { Ok(system.agent.status()?["ledger"].clone()) };
    let paid = wait_until(PATIENCE, || {
        ledger().is_ok_and(|ledger| ledger["open_entries"] == 0)
    });
    let ledger = ledger().context("the agent does not answer")?;
    ensure!(paid, "the ledger is not paid back: {ledger}");
    let entries = ledger["entries_total"].as_u64().unwrap_or(0);
    let unnamed = ledger["overflow_total"].as_u64().unwrap_or(0);
    eprintln!("{entries} entries, {unnamed} unnamed");
    ensure!(
        unnamed > 0 || entries >= bad_read as u64,
        "{bad_read} bad files were let through, with {entries} entries"
    );
    Ok(())
}

/// With everybody back, each file gets what it deserves.
fn judged_in_the_end(storm: &Storm) -> Result<()> {
    for target in &storm.targets {
        let holds = target.holds.read().unwrap_or_else(PoisonError::into_inner);
        let is_judged = || open(&target.path).is_ok_and(|opened| opened.allowed != is_bad(&holds));
        let path = target.path.display();
        ensure!(wait_until(PATIENCE, is_judged), "{path} is misjudged");
    }
    Ok(())
}

#[test]
fn deaths_where_the_unjudged_is_denied() -> Result<()> {
    storm("deny")
}

#[test]
fn deaths_where_the_unjudged_is_allowed() -> Result<()> {
    storm("allow")
}
