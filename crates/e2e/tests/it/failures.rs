//! The appliance killed, stopped, unreachable, slow, out of disk: no opener waits beyond its
//! deadline, the ledger and the metrics tell the truth, nothing unscanned is called clean.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Opened, Setup, System, open};
use rustix::process::Signal;
use testbed::{ServerOptions, run, samples, wait_until};

/// Budget of an open in these tests; policy answers at 80 % of it.
const BUDGET: Duration = Duration::from_millis(2_500);
/// An opener that waits longer hangs: much more than the budget, for a loaded machine runs a process
/// when it can.
const PATIENCE: Duration = Duration::from_secs(60);

fn setup(on_unscanned: &str, netns: Option<u8>) -> Setup {
    let budget = BUDGET.as_millis();
    Setup {
        server: ServerOptions {
            extra: format!(
                "[removal]\non_malicious = \"deny\"\n\
                 [policy]\nopen_budget_ms = {budget}\nexec_budget_ms = {budget}\n\
                 on_unscanned = \"{on_unscanned}\"\n"
            ),
            ..ServerOptions::default()
        },
        netns,
        ..Setup::default()
    }
}

/// Writes a file. While an appliance is there, the close is enough to have it judged.
fn write(system: &System, name: &str, content: &[u8]) -> Result<std::path::PathBuf> {
    let path = system.path(name);
    std::fs::write(&path, content)?;
    Ok(path)
}

fn in_time(opened: &Opened) -> Result<()> {
    ensure!(opened.took < PATIENCE, "an opener waited {:?}", opened.took);
    Ok(())
}

fn open_entries(system: &System) -> u64 {
    let status = system.agent.status().unwrap_or_default();
    status["ledger"]["open_entries"]
        .as_u64()
        .unwrap_or(u64::MAX)
}

fn entries_total(system: &System) -> Result<u64> {
    let status = system.agent.status()?;
    Ok(status["ledger"]["entries_total"].as_u64().unwrap_or(0))
}

/// While it is away: allowed by policy and entered in the ledger. When it is back: paid, and the
/// bad file found although its open had been allowed.
fn away_and_back(
    system: &mut System,
    leave: impl FnOnce(&mut System) -> Result<()>,
    come_back: impl FnOnce(&mut System) -> Result<()>,
) -> Result<()> {
    let known = write(system, "known.txt", b"judged while the appliance was up\n")?;
    ensure!(open(&known)?.allowed);
    let before = entries_total(system)?;
    let detected_before = system.detections()?.len();
    leave(system)?;
    let good = write(system, "good.txt", b"nobody has seen this\n")?;
    let bad = write(system, "bad.com", &samples::eicar())?;
    for path in [&good, &bad] {
        let opened = open(path)?;
        in_time(&opened)?;
        ensure!(opened.allowed, "policy says allow: {}", opened.said);
    }
    ensure!(entries_total(system)? > before, "no ledger entry");
    come_back(system)?;
    let paid = wait_until(Duration::from_secs(60), || open_entries(system) == 0);
    ensure!(
        paid,
        "the ledger is not paid back: {}",
        system.agent.status()?
    );
    let found = wait_until(Duration::from_secs(60), || {
        system
            .detections()
            .is_ok_and(|all| all.len() > detected_before)
    });
    ensure!(found, "EICAR was let through and never found");
    let again = open(&bad)?;
    ensure!(again.denied, "EICAR is allowed although it is known by now");
    ensure!(open(&good)?.allowed);
    Ok(())
}

#[test]
fn killed_and_restarted() -> Result<()> {
    let mut system = System::start(setup("allow", None))?;
    away_and_back(
        &mut system,
        |system| system.server.kill(),
        |system| system.server.restart(),
    )
}

#[test]
fn stopped_and_continued() -> Result<()> {
    let mut system = System::start(setup("allow", None))?;
    away_and_back(
        &mut system,
        |system| system.server.process().freeze(),
        |system| system.server.process().signal(Signal::CONT),
    )
}

#[test]
fn packets_dropped() -> Result<()> {
    let mut system = System::start(setup("allow", Some(1)))?;
    away_and_back(
        &mut system,
        |system| system.netns.as_ref().map_or(Ok(()), |net| net.cut()),
        |system| system.netns.as_ref().map_or(Ok(()), |net| net.mend()),
    )
}

#[test]
fn policy_can_deny_what_nobody_scanned() -> Result<()> {
    let mut system = System::start(setup("deny", None))?;
    let known = write(&system, "known.txt", b"judged while the appliance was up\n")?;
    ensure!(open(&known)?.allowed);
    system.server.kill()?;
    let fresh = write(&system, "fresh.txt", b"nobody has seen this\n")?;
    let opened = open(&fresh)?;
    in_time(&opened)?;
    ensure!(opened.denied, "an unscanned file was opened");
    // A verdict that is there needs no appliance.
    ensure!(open(&known)?.allowed, "a known file was denied");
    system.server.restart()?;
    let allowed = wait_until(Duration::from_secs(60), || {
        open(&fresh).is_ok_and(|opened| opened.allowed)
    });
    ensure!(allowed, "still denied though the appliance is back");
    Ok(())
}

/// Engine processes that do not answer: the file is unscanned, never clean, and the appliance
/// replaces them.
#[test]
fn an_engine_that_hangs_is_replaced() -> Result<()> {
    let mut setup = setup("deny", None);
    setup.server.yara_extra.push_str("job_timeout_ms = 1000\n");
    let system = System::start(setup)?;
    let engines = run(Command::new("pgrep").args(["-f", "lazaret-engine-yara"]))?;
    let mine: Vec<&str> = engines
        .lines()
        .filter(|pid| descends(pid, &system))
        .collect();
    ensure!(!mine.is_empty(), "no engine process found");
    for pid in &mine {
        run(Command::new("kill").args(["-STOP", pid]))?;
    }
    let fresh = write(&system, "fresh.txt", b"nobody has seen this\n")?;
    let opened = open(&fresh)?;
    in_time(&opened)?;
    ensure!(opened.denied, "opened though no engine looked at it");
    for pid in &mine {
        // The ones that were replaced are gone.
        let _gone = Command::new("kill").args(["-CONT", pid]).output();
    }
    let allowed = wait_until(Duration::from_secs(60), || {
        open(&fresh).is_ok_and(|opened| opened.allowed)
    });
    ensure!(allowed, "no engine came back");
    Ok(())
}

fn descends(pid: &str, system: &System) -> bool {
    let marker = system.scratch.path().to_string_lossy().into_owned();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut parent = pid.to_owned();
    for _ in 0..4 {
        let status = std::fs::read_to_string(format!("/proc/{parent}/status")).unwrap_or_default();
        let up = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parent = up.unwrap_or("").trim().to_owned();
        let line = std::fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
        if contains(&line, marker.as_bytes()) {
            return true;
        }
    }
    contains(&environment, marker.as_bytes()) || contains(&command, marker.as_bytes())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The spool has no room for a large upload: unscanned(no_space), not clean.
#[test]
fn out_of_disk() -> Result<()> {
    let mut setup = setup("deny", None);
    setup
        .server
        .extra
        .push_str("[limits]\nupload_memory_max_bytes = 1048576\n");
    let mut system = System::start(setup)?;
    let state = system.scratch.path().join("server/state");
    system.server.stop()?;
    // The same state on a file system with hardly any room.
    let small = system.scratch.path().join("small");
    std::fs::create_dir(&small)?;
    run(Command::new("cp").arg("-a").arg(&state).arg(&small))?;
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
        .arg(&state))?;
    let _unmount = Unmount(state.clone());
    run(Command::new("cp")
        .arg("-a")
        .arg(small.join("state/."))
        .arg(&state))?;
    system.server.restart()?;
    let up = wait_until(Duration::from_secs(60), || {
        system
            .agent
            .status()
            .is_ok_and(|status| status["link"] == "up")
    });
    ensure!(up, "no link");
    let large: Vec<u8> = (0..64_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let path = write(&system, "large.bin", &large)?;
    let opened = open(&path)?;
    in_time(&opened)?;
    ensure!(opened.denied, "a file that did not fit was called clean");
    let small_file = write(&system, "small.txt", b"this one fits\n")?;
    ensure!(open(&small_file)?.allowed, "small files are denied too");
    let refused = system.server_metric("lazaret_verdicts_total", "no_space")?;
    ensure!(refused >= 1.0, "metrics do not tell");
    system.server.stop()
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
