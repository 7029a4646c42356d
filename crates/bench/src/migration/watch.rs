//! What becomes of each migration: when libvirt itself says that the guest has switched, when the
//! controller's connector says so, and when the guest is connected to the appliance beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use proto::v1;
use proto::v1::admin_reply::Body as Reply;
use proto::v1::admin_request::Body as Request;
use proto::v1::fleet_request::Ask;
use testbed::{LibvirtHost, Process, Spawn, run, wait_until};

use super::guest::NAME;
use super::hosts::Hosts;

/// Between two looks at where the guest is connected: what is measured is late by up to this.
const LOOK: Duration = Duration::from_millis(10);

/// An appliance that the guest came to, and when.
type Arrival = (SystemTime, String);

/// Watches both hosts through virsh, and the guest's connection through the controller.
pub(super) struct Lookout {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    stop: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
    /// They end with this.
    _virsh: [Process; 2],
    logs: [PathBuf; 2],
}

/// Milliseconds from libvirt's own time of each switch.
pub(super) struct Lags {
    /// To the controller's knowledge of it.
    pub(super) event_ms: Vec<f64>,
    /// To the guest's session with the other appliance, as the controller sees it.
    pub(super) redirect_ms: Vec<f64>,
}

impl Lookout {
    pub(super) fn start(dir: &Path, hosts: &Hosts) -> Result<Self> {
        let logs = [dir.join("events0.log"), dir.join("events1.log")];
        let listen = |i: usize| listen(&hosts.machines[i], &logs[i]);
        let virsh = [listen(0)?, listen(1)?];
        let (arrivals, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let socket = hosts.server.admin_socket();
        let (seen, told) = (Arc::clone(&arrivals), Arc::clone(&stop));
        let looking = std::thread::spawn(move || look(&socket, &seen, &told));
        Ok(Self {
            arrivals,
            stop,
            looking: Some(looking),
            _virsh: virsh,
            logs,
        })
    }

    /// Waits until the guest is connected to this appliance.
    pub(super) fn arrives(&self, hosts: &Hosts, to: usize, patience: Duration) -> Result<()> {
        let name = &hosts.appliances[to];
        let arrived = wait_until(patience, || {
            let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.last().is_some_and(|(_, at)| at == name)
        });
        ensure!(
            arrived,
            "the guest is not at {name}: {}\n{}",
            hosts.fleet(&["vms"])?,
            hosts.fleet(&["events"])?
        );
        Ok(())
    }

    /// Since when the guest is connected to this appliance without a break.
    pub(super) fn arrived_at(&self, hosts: &Hosts, at: usize) -> Option<SystemTime> {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, last) = arrivals.last()?;
        (*last == hosts.appliances[at]).then_some(*since)
    }

    /// When the guest last switched to another host, as libvirt itself says; waits until it says so of
    /// `switches` in all.
    pub(super) fn last_switch(&self, switches: usize) -> Result<SystemTime> {
        let all = self.switches(switches)?;
        ensure!(
            all.len() == switches,
            "libvirt tells of {} switches rather than {switches}",
            all.len()
        );
        all.last().copied().context("no switch")
    }

    /// What was measured, one of each for each migration.
    pub(super) fn lags(&self, hosts: &Hosts, migrations: usize) -> Result<Lags> {
        let happened_at = self.switches(migrations)?;
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        // The first was to where it started.
        let redirected_at = arrivals.iter().skip(1).map(|(at, _)| *at);
        Ok(Lags {
            event_ms: lags_ms(&happened_at, &told_at(hosts)?)?,
            redirect_ms: lags_ms(&happened_at, &redirected_at.collect::<Vec<_>>())?,
        })
    }

    /// When libvirt says that the guest has switched.
    fn switches(&self, migrations: usize) -> Result<Vec<SystemTime>> {
        let all = || -> Result<Vec<SystemTime>> {
            let mut all = [switches(&self.logs[0])?, switches(&self.logs[1])?].concat();
            all.sort();
            Ok(all)
        };
        wait_until(Duration::from_secs(10), || {
            all().is_ok_and(|all| all.len() >= migrations)
        });
        all()
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.looking.take().map(JoinHandle::join) {
            eprintln!("the lookout panicked");
        }
    }
}

fn lags_ms(happened_at: &[SystemTime], seen_at: &[SystemTime]) -> Result<Vec<f64>> {
    ensure!(
        happened_at.len() == seen_at.len(),
        "libvirt tells of {} switches, {} were seen",
        happened_at.len(),
        seen_at.len()
    );
    let lag = |(happened, seen): (&SystemTime, &SystemTime)| {
        // Clocks are one; who is quicker than virsh has no lag.
        let lag = seen.duration_since(*happened).unwrap_or_default();
        lag.as_secs_f64() * 1000.0
    };
    Ok(happened_at.iter().zip(seen_at).map(lag).collect())
}

/// When the controller says that the guest has moved.
fn told_at(hosts: &Hosts) -> Result<Vec<SystemTime>> {
    let events = hosts.fleet(&["events", "--limit", "5000"])?;
    let events = events.as_array().context("no list of events")?;
    let moved = events.iter().filter(|event| event["kind"] == "vm_moved");
    moved
        .map(|event| {
            let at_ms = event["at_ms"].as_u64().context("an event without a time")?;
            Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms))
        })
        .collect()
}

/// Notes each appliance that the guest comes to.
fn look(socket: &Path, arrivals: &Mutex<Vec<Arrival>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Some(at) = connected_to(socket) {
            let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            if arrivals.last().is_none_or(|(_, last)| *last != at) {
                arrivals.push((SystemTime::now(), at));
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// The appliance that the guest is connected to, as the controller sees it; `None`: to none now.
fn connected_to(socket: &Path) -> Option<String> {
    let vms = Ask::Vms(v1::FleetList::default());
    let request = Request::Fleet(v1::FleetRequest { ask: Some(vms) });
    let Ok(Reply::Fleet(reply)) = appliance::admin_call(socket, request) else {
        return None;
    };
    let guest = reply.vms.into_iter().find(|vm| vm.name == NAME)?;
    (!guest.connected_to.is_empty()).then_some(guest.connected_to)
}

/// A virsh that prints this host's lifecycle events with their times.
fn listen(host: &LibvirtHost, log: &PathBuf) -> Result<Process> {
    let command = host.virsh_command("qemu:///system");
    // Line by line: into a file, virsh would keep its words for a while.
    Spawn::new("virsh", "stdbuf", log)
        .arg("-oL")
        .arg(command.get_program())
        .args(command.get_args())
        .args(["event", "--event", "lifecycle", "--loop", "--timestamp"])
        .start()
}

/// When the guest was resumed at the end of a migration, by a log of virsh.
fn switches(log: &PathBuf) -> Result<Vec<SystemTime>> {
    let text = std::fs::read_to_string(log)?;
    let wanted = format!("for domain '{NAME}': Resumed Migrated");
    let lines = text.lines().filter(|line| line.contains(&wanted));
    lines.map(time_of).collect()
}

/// `2026-11-26 12:00:00.123+0000: event …`
fn time_of(line: &str) -> Result<SystemTime> {
    let (stamp, _) = line.split_once(": ").context("a line without a time")?;
    let seconds = run(Command::new("date").args(["+%s.%N", "-d", stamp]))?;
    let since = Duration::try_from_secs_f64(seconds.trim().parse()?)?;
    Ok(SystemTime::UNIX_EPOCH + since)
}
