//! Two appliances and a guest that opens files all the time: it is sent from one to the other and
//! back, and one is killed. Nothing goes unscanned, nothing fails.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Opens, Setup, System, fleet};
use serde_json::Value;
use testbed::{Apart, ApartOptions, ServerOptions, free_address, wait_until};

const PATIENCE: Duration = Duration::from_secs(90);
/// Times that the guest is sent to the other appliance.
const REDIRECTS: usize = 4;

fn connected_to(system: &System) -> Option<String> {
    let status = system.agent.status().ok()?;
    Some(status["connected_to"].as_str()?.to_owned())
}

/// Until the agent is connected there.
fn arrives(system: &System, address: &str) -> Result<()> {
    let arrived = wait_until(PATIENCE, || {
        connected_to(system).as_deref() == Some(address)
    });
    ensure!(
        arrived,
        "the agent is not at {address}: {}\n{}",
        system.agent.status()?,
        fleet(&system.server, &["events"])?
    );
    Ok(())
}

/// Its addresses are configured: it is to follow the placer's lists all the same.
fn follow_lists(system: &mut System) -> Result<()> {
    let path = system.agent.config();
    let text = std::fs::read_to_string(&path)?;
    let text = text.replace("[appliance]\n", "[appliance]\nfollow_lists = true\n");
    std::fs::write(&path, text)?;
    system.agent.stop()?;
    system.agent.restart(None)
}

#[test]
fn a_guest_is_redirected_while_it_opens_files() -> Result<()> {
    let streams = free_address()?;
    let mut system = System::start(Setup {
        server: ServerOptions {
            extra: format!(
                "[controller]\nlisten = \"{streams}\"\n\
                 [policy]\nopen_budget_ms = 60000\nexec_budget_ms = 60000\non_unscanned = \"deny\"\n"
            ),
            ..ServerOptions::default()
        },
        ..Setup::default()
    })?;
    follow_lists(&mut system)?;
    let own = fleet(&system.server, &["appliances"])?[0]["name"].clone();
    let own = own
        .as_str()
        .context("the server's own appliance has a name")?
        .to_owned();
    let dir = system.scratch.path().join("second");
    let mut second = Apart::start(&dir, "second", &system.server, &ApartOptions::of(&streams))?;
    let both_up = wait_until(PATIENCE, || {
        fleet(&system.server, &["appliances"]).is_ok_and(|all| {
            let up = all.as_array().into_iter().flatten();
            up.filter(|it| it["availability"] == "up" && it["connected"] == true)
                .count()
                == 2
        })
    });
    ensure!(both_up, "{}", fleet(&system.server, &["appliances"])?);

    let opens = Opens::start(system.mount.path());
    let (first_link, second_link) = (system.server.link.clone(), second.link.clone());
    for number in 0..REDIRECTS {
        let (from, to) = if number.is_multiple_of(2) {
            (own.as_str(), &second_link)
        } else {
            ("second", &first_link)
        };
        system.server.cli(&["fleet", "drain", from])?;
        arrives(&system, to)?;
        opens.some_more(5)?;
        system.server.cli(&["fleet", "drain", from, "--undo"])?;
    }
    let moves = system.agent.status()?["moves"].as_u64().unwrap_or(0);
    ensure!(moves >= REDIRECTS as u64, "only {moves} moves");

    // It fails over by itself when its appliance dies.
    system.server.cli(&["fleet", "drain", &own])?;
    arrives(&system, &second_link)?;
    system.server.cli(&["fleet", "drain", &own, "--undo"])?;
    second.kill()?;
    arrives(&system, &first_link)?;
    opens.some_more(5)?;
    let opened = opens.finish()?;

    let ledger = system.agent.status()?["ledger"]["entries_total"].as_u64();
    ensure!(
        ledger == Some(0),
        "of {opened} opens {ledger:?} were not scanned"
    );
    let vms = fleet(&system.server, &["vms"])?;
    ensure!(vms[0]["connected_to"] == own.as_str(), "{vms}");
    let number = vms[0]["number"].to_string();
    let why = fleet(&system.server, &["why", &number])?;
    ensure!(why["considered"][0]["standing"].is_string(), "{why}");

    // What was open before the agent started was judged in its turn: no connector knows its host, so
    // that it had not to wait.
    let turns = system.server_metric("lazaret_turns_total", "begin")?;
    ensure!(turns >= 1.0, "nobody asked for a turn");
    ensure!(fleet(&system.server, &["turns"])? == Value::Array(Vec::new()));

    // The controller goes on from what it wrote down.
    let epoch = vms[0]["epoch"].as_u64();
    system.server.kill()?;
    system.server.restart()?;
    arrives(&system, &first_link)?;
    let again = fleet(&system.server, &["vms"])?;
    ensure!(again[0]["number"] == vms[0]["number"], "{again}");
    ensure!(again[0]["epoch"].as_u64() >= epoch, "{again}");
    Ok(())
}
