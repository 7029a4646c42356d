//! All agents come back at once: a real `lazaret up` is killed and started again, and appliances
//! that are played here, each behind a real stream, tell it of their guests.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use controller::fleet::Store;
use fleet_core::{
    HostRecord, Power, Row, StoredAppliance, StoredHost, StoredVm, VmRecord, VmState,
};
use serde_json::{Value, json};
use testbed::{Server, ServerOptions, Usage, free_address, wait_until};

use super::crowd::{Crowd, guest_id};
use crate::report::Report;

/// How long the whole may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Ids below are those of what `lazaret up` wrote down itself.
const FIRST_ID: u64 = 1000;
/// Rows in one transaction.
const ROWS_AT_ONCE: usize = 20_000;
const LEASE: Duration = Duration::from_secs(60);
const CONNECTOR: &str = "vcenter";

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) hosts: usize,
    pub(crate) vms: usize,
    /// VMs with an agent.
    pub(crate) agents: usize,
    /// Appliances, each with a stream.
    pub(crate) appliances: usize,
}

/// Runs it and reports.
pub(super) fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let streams = free_address()?;
    let options = ServerOptions {
        extra: format!("[controller]\nlisten = \"{streams}\"\n"),
        patience: PATIENCE,
        ..ServerOptions::default()
    };
    let mut server = Server::start(dir.path(), &options)?;
    withdraw_own(&server)?;
    let identities = identities(dir.path(), &server, scale.appliances)?;
    server.stop()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(fill(&dir.path().join("state"), scale))?;

    server.restart()?;
    let crowd = Arc::new(Crowd::new(streams, identities, scale));
    let begun = Instant::now();
    crowd.begin(&runtime);
    crowd.until(PATIENCE, "not every agent has a list", Crowd::all_placed)?;
    let first_s = begun.elapsed().as_secs_f64();

    server.kill()?;
    crowd.until(
        PATIENCE,
        "streams outlive the controller",
        Crowd::none_confirmed,
    )?;
    let begun = Instant::now();
    server.restart()?;
    let ready_s = begun.elapsed().as_secs_f64();
    crowd.until(
        PATIENCE,
        "not every appliance has come back",
        Crowd::all_confirmed,
    )?;
    let reconnect_s = begun.elapsed().as_secs_f64();
    let usage = Usage::of(server.process().pid());
    patiently(|| all_known(&server, scale))?;
    crowd.end();

    let rss_mb = usage.rss_bytes as f64 / (1 << 20) as f64;
    report.note(
        "reconnect_s",
        "from the start of a controller that was killed until it knows of every agent again; the \
         appliances' streams are real, the agents behind them and their TLS with appliances are not \
         part of it; both sides on this machine",
    );
    report.note(
        "controller_rss_mb",
        "resident memory of `lazaret up` after that, with the appliance in it",
    );
    report.figure(
        "reconnect",
        json!({
            "hosts": scale.hosts, "vms": scale.vms, "agents": scale.agents,
            "streams": scale.appliances, "ready_s": ready_s, "cpu_s": usage.cpu_s,
            "first_lists_s": first_s,
        }),
    );
    report.figure("reconnect_s", reconnect_s);
    report.figure("controller_rss_mb", rss_mb);
    println!(
        "reconnect_s {reconnect_s:.1} (ready after {ready_s:.1}, {:.1} s of processor); first \
         lists {first_s:.1} s; controller_rss_mb {rss_mb:.0}",
        usage.cpu_s
    );
    Ok(())
}

/// The appliance beside the controller takes no part: nobody plays its guests.
fn withdraw_own(server: &Server) -> Result<()> {
    // Its stream comes up after the controller.
    let own = patiently(|| {
        let all: Value = serde_json::from_str(&server.cli(&["fleet", "appliances", "--json"])?)?;
        let name = all[0]["name"].as_str();
        Ok(name.context("no appliance")?.to_owned())
    })?;
    server.cli(&["fleet", "drain", &own]).map(drop)
}

/// What comes true within the patience; else the last failure.
fn patiently<T>(mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = ask();
    wait_until(PATIENCE, || {
        if last.is_err() {
            last = ask();
        }
        last.is_ok()
    });
    last
}

pub(super) fn appliance_name(number: usize) -> String {
    format!("appliance-{number}")
}

pub(super) fn address(number: usize) -> String {
    format!("{}:7443", appliance_name(number))
}

fn host_name(number: usize) -> String {
    format!("host-{number}")
}

fn identities(dir: &Path, server: &Server, count: usize) -> Result<Vec<pki::Identity>> {
    let path = dir.join("identity.pem");
    let one = |number| {
        let pem = server.cli(&["fleet", "identity", &appliance_name(number)])?;
        let mut file = std::fs::OpenOptions::new();
        let file = file.write(true).create(true).truncate(true).mode(0o600);
        std::io::Write::write_all(&mut file.open(&path)?, pem.as_bytes())?;
        Ok(pki::Identity::load(&path)?)
    };
    (0..count).map(one).collect()
}

/// Writes the inventory down, as a controller that has a connector would have.
async fn fill(state: &Path, scale: Scale) -> Result<()> {
    let store = Store::embedded(state).await?;
    let lease = store.lead("embedded", "", LEASE).await?;
    let lease = lease.context("somebody places")?;
    let ids = FIRST_ID..;
    let rows: Vec<Row> = things(scale).zip(ids).map(|(row, id)| row(id)).collect();
    for rows in rows.chunks(ROWS_AT_ONCE) {
        store.commit(&lease, LEASE, rows, usize::MAX).await?;
    }
    store.resign(&lease).await?;
    store.close().await;
    Ok(())
}

type MakeRow = Box<dyn FnOnce(u64) -> Row>;

fn things(scale: Scale) -> impl Iterator<Item = MakeRow> {
    let hosts = (0..scale.hosts)
        .map(|number| -> MakeRow { Box::new(move |id| Row::Host(host(id, number))) });
    let appliances = (0..scale.appliances).map(move |number| -> MakeRow {
        let on = number * scale.hosts / scale.appliances;
        Box::new(move |id| Row::Appliance(appliance(id, number, on, scale)))
    });
    let vms = (0..scale.vms)
        .map(move |number| -> MakeRow { Box::new(move |id| Row::Vm(vm(id, number, scale))) });
    hosts.chain(appliances).chain(vms)
}

fn host(id: u64, number: usize) -> StoredHost {
    StoredHost {
        id,
        connector: CONNECTOR.to_owned(),
        record: HostRecord {
            id: host_name(number),
            name: host_name(number),
            cluster: Some(format!("cluster-{}", number / 20)),
            maintenance: false,
            reachable: true,
        },
        site: Some(CONNECTOR.to_owned()),
        ordered_maintenance: false,
    }
}

fn appliance(id: u64, number: usize, on: usize, scale: Scale) -> StoredAppliance {
    StoredAppliance {
        id,
        name: appliance_name(number),
        address: address(number),
        host_name: Some(host_name(on)),
        cluster: None,
        site: None,
        capacity: capacity(scale),
        labels: Vec::new(),
        draining: false,
    }
}

/// At 60 % use.
pub(super) fn capacity(scale: Scale) -> u64 {
    (scale.vms * 10 / 6 / scale.appliances) as u64
}

/// The host an appliance runs on.
pub(super) fn host_of(number: usize, scale: Scale) -> String {
    host_name(number * scale.hosts / scale.appliances)
}

fn vm(id: u64, number: usize, scale: Scale) -> StoredVm {
    let octets = u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    let mut uuid = [0; 16];
    uuid[..4].copy_from_slice(&octets);
    StoredVm {
        in_session: None,
        id,
        connector: CONNECTOR.to_owned(),
        record: VmRecord {
            id: format!("vm-{number}"),
            name: format!("desktop-{number}"),
            host: Some(host_name(number % scale.hosts)),
            power: Power::Running,
            migrating: false,
            uuid: Some(uuid),
            addresses: [std::net::IpAddr::from([
                10, octets[1], octets[2], octets[3],
            ])]
            .into(),
            tags: ["vdi".to_owned()].into(),
            pool: None,
        },
        state: VmState::Running,
        guest: (number < scale.agents).then(|| guest_id(number)),
    }
}

/// What the controller itself says: every agent is connected, to the first of its list.
fn all_known(server: &Server, scale: Scale) -> Result<()> {
    let vms: Value = serde_json::from_str(&server.cli(&["fleet", "vms", "--json"])?)?;
    let vms = vms.as_array().context("no list")?;
    ensure!(vms.len() == scale.vms, "{} VMs", vms.len());
    let connected = vms.iter().filter(|vm| vm["connected_to"] != "");
    let placed = connected.filter(|vm| vm["connected_to"] == vm["appliances"][0]);
    let placed = placed.count();
    ensure!(
        placed == scale.agents,
        "{placed} agents of {} are where they belong",
        scale.agents
    );
    Ok(())
}
