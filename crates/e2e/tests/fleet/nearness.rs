//! A guest moves, and nobody tells: what its agent measures brings it to the appliance beside it.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Opens, fleet};
use testbed::{
    Agent, AgentOptions, Apart, ApartOptions, FileSystem, HostNet, LoopMount, Server,
    ServerOptions, TestDriver, wait_until,
};

use crate::{PATIENCE, connector, wait_for};

const UUID: &str = "5d1c7a52-8f0e-4a5a-9d0b-3f6f2b7e0001";
const STREAMS: &str = "10.77.0.1:7445";
/// From one host to the other.
const DISTANCE: Duration = Duration::from_millis(5);

#[test]
fn a_move_that_nobody_tells_of_is_found_by_measuring() -> Result<()> {
    let scratch = e2e::scratch("nearness")?;
    let dir = scratch.path();
    let net = HostNet::new()?;
    net.set_distance(DISTANCE);
    let drivers = [
        TestDriver::start(&dir.join("host0"), 1)?,
        TestDriver::start(&dir.join("host1"), 2)?,
    ];
    drivers[0].run("desk", UUID)?;
    let server = first(dir, &net, &drivers)?;
    let second = ApartOptions {
        address: net.address(1),
        netns: Some(net.host(1).to_owned()),
        fleet_extra: "host = \"host1\"\n".to_owned(),
        ..ApartOptions::of(STREAMS)
    };
    let _second = Apart::start(&dir.join("appliance1"), "second", &server, &second)?;
    let names = both_in_place(&server)?;

    let mut guest = net.guest()?;
    let mount = LoopMount::new(FileSystem::Ext4, 256 << 20)?;
    let options = AgentOptions {
        guard: vec![mount.path().to_owned()],
        appliance_extra: "follow_lists = true\nmeasure_s = 1".to_owned(),
        system_uuid: UUID.to_owned(),
        ..AgentOptions::default()
    };
    let agent = Agent::start(&dir.join("agent"), &server, &options, Some(guest.net()))?;
    wait_for(&server, "desk", |vm| {
        vm["host"] == "host0" && vm["connected_to"] == names[0].as_str()
    })?;

    let opens = Opens::start(mount.path());
    opens.some_more(5)?;
    for to in [1, 0, 1] {
        net.move_guest(&mut guest, to)?;
        let found = wait_for(&server, "desk", |vm| {
            vm["connected_to"] == names[to].as_str()
        })?;
        ensure!(found["host"] == "host0", "somebody told: {found}");
        opens.some_more(5)?;
    }
    let why = fleet(&server, &["why", "desk"])?;
    ensure!(why["measured_host"] == "host1", "{why}");

    // Told at last, it stays where it is.
    let moves = agent.status()?["moves"].clone();
    drivers[1].run("desk", UUID)?;
    drivers[0].end("desk")?;
    let told = wait_for(&server, "desk", |vm| vm["host"] == "host1")?;
    ensure!(told["tier"] == 0, "{told}");
    opens.some_more(5)?;
    let opened = opens.finish()?;
    let status = agent.status()?;
    ensure!(status["moves"] == moves, "{moves} moves, then {status}");
    let ledger = &status["ledger"]["entries_total"];
    ensure!(*ledger == 0, "of {opened} opens {ledger} were not scanned");
    Ok(())
}

/// The controller, and the appliance on the first host.
fn first(dir: &std::path::Path, net: &HostNet, drivers: &[TestDriver]) -> Result<Server> {
    let options = ServerOptions {
        address: net.address(0),
        netns: Some(net.host(0).to_owned()),
        extra: format!(
            "[controller]\nlisten = \"{STREAMS}\"\n\n[fleet]\nhost = \"host0\"\n\n\
             [policy]\nopen_budget_ms = 60000\nexec_budget_ms = 60000\non_unscanned = \"deny\"\n{}",
            connector(drivers)?
        ),
        ..ServerOptions::default()
    };
    Server::start(&dir.join("appliance0"), &options)
}

/// Waits until there is an appliance on each host; their names.
fn both_in_place(server: &Server) -> Result<[String; 2]> {
    let named = |host: &str| -> Option<String> {
        let all = fleet(server, &["appliances"]).ok()?;
        let mut all = all.as_array()?.iter();
        let there = all.find(|it| it["host"] == host && it["availability"] == "up")?;
        Some(there["name"].as_str()?.to_owned())
    };
    let mut names = [None, None];
    wait_until(PATIENCE, || {
        names = [named("host0"), named("host1")];
        names.iter().all(Option::is_some)
    });
    let [Some(first), Some(second)] = names else {
        anyhow::bail!("{}", fleet(server, &["appliances"])?);
    };
    Ok([first, second])
}
