//! The agent's processes killed, stopped, upgraded while openers wait. Trap 2: the kernel lets
//! every waiting opener through when the last holder of the group dies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Opener, Setup, System, open};
use rustix::process::{Signal, kill_process};
use testbed::{ServerOptions, samples, wait_until};

/// Time for what takes milliseconds on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn setup(budget_ms: u32, on_unscanned: &str) -> Setup {
    Setup {
        server: ServerOptions {
            extra: format!(
                "[removal]\non_malicious = \"deny\"\n\
                 [policy]\nopen_budget_ms = {budget_ms}\nexec_budget_ms = {budget_ms}\n\
                 on_unscanned = \"{on_unscanned}\"\nscan_on_close = false\n"
            ),
            ..ServerOptions::default()
        },
        // A worker that has just begun waits for the appliance as long as openers do.
        agent_extra: "[limits]\nlink_grace_ms = 60000\n".to_owned(),
        ..Setup::default()
    }
}

/// An opener that is known to wait: the agent has its event.
fn waiting(system: &System, path: &std::path::Path) -> Result<Opener> {
    let openers = || -> Result<u64> {
        let status = system.agent.status()?;
        status["openers"].as_u64().context("no number of openers")
    };
    let before = openers()?;
    let mut opener = Opener::start(path)?;
    let waits = wait_until(PATIENCE, || openers().is_ok_and(|now| now > before));
    ensure!(waits && opener.waits()?, "the opener does not wait");
    Ok(opener)
}

fn replaced(system: &System, before: testbed::AgentPids) -> bool {
    wait_until(PATIENCE, || {
        system
            .agent
            .pids()
            .is_ok_and(|pids| pids.worker != before.worker)
    })
}

/// Openers of a good and a bad file wait while the appliance says nothing; `harm` is done to the
/// agent; then the appliance speaks, and both are judged all the same.
fn judged_after(harm: impl FnOnce(&mut System) -> Result<()>) -> Result<()> {
    let mut system = System::start(setup(60_000, "allow"))?;
    let good = system.write("good.txt", b"nobody has seen this\n")?;
    let bad = system.write("bad.com", &samples::eicar())?;
    let before = system.agent.pids()?;
    system.server.process().freeze()?;
    let mut good = waiting(&system, &good)?;
    let mut bad = waiting(&system, &bad)?;
    harm(&mut system)?;
    ensure!(replaced(&system, before), "the worker is not replaced");
    ensure!(good.waits()? && bad.waits()?, "an opener was let through");
    system.server.process().signal(Signal::CONT)?;
    let (good, bad) = (good.finish()?, bad.finish()?);
    ensure!(good.allowed, "the good file: {}", good.said);
    ensure!(bad.denied, "the bad file: {}", bad.said);
    // Everything else goes on as well.
    let late = system.write("late.com", &samples::eicar())?;
    ensure!(open(&late)?.denied);
    Ok(())
}

#[test]
fn trap_2_worker_killed() -> Result<()> {
    judged_after(|system| Ok(kill_process(system.agent.pids()?.worker, Signal::KILL)?))
}

/// What the supervisor is for: without it the kernel lets the bad file through.
#[test]
fn trap_2_without_a_supervisor() -> Result<()> {
    let mut system = System::start(Setup {
        unsupervised: true,
        ..setup(60_000, "deny")
    })?;
    let bad = system.write("bad.com", &samples::eicar())?;
    system.server.process().freeze()?;
    let bad = waiting(&system, &bad)?;
    system.agent.kill()?;
    ensure!(bad.finish()?.allowed, "the kernel has learnt to keep it");
    Ok(())
}

#[test]
fn worker_stopped() -> Result<()> {
    judged_after(|system| Ok(kill_process(system.agent.pids()?.worker, Signal::STOP)?))
}

#[test]
fn worker_killed_three_times() -> Result<()> {
    judged_after(|system| {
        for _ in 0..3 {
            let before = system.agent.pids()?;
            kill_process(before.worker, Signal::KILL)?;
            ensure!(replaced(system, before), "the worker is not replaced");
        }
        kill_process(system.agent.pids()?.worker, Signal::KILL)?;
        Ok(())
    })
}

#[test]
fn upgraded() -> Result<()> {
    judged_after(|system| {
        let said = system.agent.cli(&["upgrade"])?;
        ensure!(said.contains("has taken over"), "{said}");
        Ok(())
    })
}

/// The worker goes on alone, and brings a supervisor back, which replaces it.
#[test]
fn supervisor_killed() -> Result<()> {
    judged_after(|system| {
        let before = system.agent.pids()?;
        system.agent.kill_supervisor()?;
        let takes_over = wait_until(PATIENCE, || {
            system
                .agent
                .pids()
                .is_ok_and(|pids| pids.supervisor != before.supervisor)
        });
        ensure!(takes_over, "no new supervisor");
        Ok(())
    })
}

/// Nobody judges in time: policy's answer, at the deadline, an entry in the ledger, paid back.
fn answered_at_the_deadline(on_unscanned: &str) -> Result<()> {
    let mut system = System::start(setup(5_000, on_unscanned))?;
    let path = system.write("good.txt", b"nobody has seen this\n")?;
    system.server.process().freeze()?;
    let opener = waiting(&system, &path)?;
    let before = system.agent.pids()?;
    kill_process(before.worker, Signal::KILL)?;
    let opened = opener.finish()?;
    ensure!(
        opened.allowed == (on_unscanned == "allow"),
        "{}",
        opened.said
    );
    ensure!(opened.took < Duration::from_secs(30), "{:?}", opened.took);
    let entered = wait_until(PATIENCE, || {
        let status = system.agent.status().unwrap_or_default();
        status["ledger"]["entries_total"].as_u64() >= Some(1)
    });
    ensure!(entered, "no entry: {}", system.agent.status()?);
    system.server.process().signal(Signal::CONT)?;
    let paid = wait_until(PATIENCE, || {
        let status = system.agent.status().unwrap_or_default();
        status["ledger"]["open_entries"] == 0
    });
    ensure!(paid, "not paid back: {}", system.agent.status()?);
    ensure!(open(&path)?.allowed);
    Ok(())
}

#[test]
fn allowed_at_the_deadline() -> Result<()> {
    answered_at_the_deadline("allow")
}

#[test]
fn denied_at_the_deadline() -> Result<()> {
    answered_at_the_deadline("deny")
}
