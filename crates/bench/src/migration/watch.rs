//! What the connector tells of the migrations, beside what libvirt itself says.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use daemon::metrics::{Counter, Registry};
use hypervisor::{
    Change, HostId, MovePhase, Pace, RateLimit, WatchMetrics, WatchOptions, Watcher, watch,
};
use hypervisor_libvirt::{HostConfig, LibvirtConfig, LibvirtConnector};
use hypervisor_transport::Trust;
use testbed::{LibvirtHost, Process, Spawn, run, wait_until};
use tokio::runtime::Runtime;

use super::guest::NAME;
use super::hosts::Hosts;

/// libvirtd answers thousands of requests a second.
const LIMIT: RateLimit = RateLimit {
    requests_per_s: 200,
    burst: 400,
};

/// Watches both hosts through the connector, and through virsh.
pub(super) struct Lookout {
    runtime: Runtime,
    watcher: Watcher,
    /// When the connector told of each switch.
    told_at: Vec<SystemTime>,
    virsh: [Process; 2],
    logs: [PathBuf; 2],
}

impl Lookout {
    pub(super) fn start(hosts: &Hosts) -> Result<Self> {
        let dir = hosts.agent_state.parent().context("no folder")?;
        let logs = [dir.join("events0.log"), dir.join("events1.log")];
        let listen = |i: usize| listen(&hosts.machines[i], &logs[i]);
        let virsh = [listen(0)?, listen(1)?];
        let host = |i: usize| -> Result<HostConfig> {
            let socket = hosts.machines[i].socket();
            Ok(HostConfig {
                uri: format!("qemu+unix:///system?socket={}", socket.display()).parse()?,
                name: Some(host_name(i)),
                cluster: None,
            })
        };
        let config = LibvirtConfig {
            hosts: vec![host(0)?, host(1)?],
            trust: Trust::System,
            client_certificate: None,
            user: None,
            password: None,
            allow_tags: false,
        };
        let pace = Arc::new(Pace::new(LIMIT, Counter::default()));
        let connector = LibvirtConnector::new(config, pace)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let metrics = WatchMetrics::new(&Registry::new());
        let watcher = {
            let _inside = runtime.enter();
            watch(
                "bench",
                Arc::new(connector),
                WatchOptions::default(),
                metrics,
            )
        };
        let mut lookout = Self {
            runtime,
            watcher,
            told_at: Vec::new(),
            virsh,
            logs,
        };
        lookout.until(Duration::from_secs(60), |change| *change == Change::Synced)?;
        Ok(lookout)
    }

    /// Waits until the connector has told that the guest runs on this host now.
    pub(super) fn switched(&mut self, to: usize, patience: Duration) -> Result<()> {
        let to = HostId::new(&host_name(to))?;
        let seen_at = self.until(patience, |change| {
            matches!(
                change,
                Change::VmMoved { to: Some(host), phase: MovePhase::Switched, .. } if *host == to
            )
        })?;
        self.told_at.push(seen_at);
        Ok(())
    }

    fn until(&mut self, patience: Duration, is_it: impl Fn(&Change) -> bool) -> Result<SystemTime> {
        let watcher = &mut self.watcher;
        let found = async {
            loop {
                let event = watcher.next().await?;
                if is_it(&event.change) {
                    return Some(SystemTime::now() - event.seen_at.elapsed());
                }
            }
        };
        let found = self
            .runtime
            .block_on(async { tokio::time::timeout(patience, found).await });
        found.ok().flatten().context("the connector does not tell")
    }

    /// Milliseconds from libvirt's own time of each switch to the connector's word.
    pub(super) fn lags_ms(self, migrations: usize) -> Result<Vec<f64>> {
        let all = || -> Result<Vec<SystemTime>> {
            let mut all = [switches(&self.logs[0])?, switches(&self.logs[1])?].concat();
            all.sort();
            Ok(all)
        };
        wait_until(Duration::from_secs(10), || {
            all().is_ok_and(|all| all.len() >= migrations)
        });
        let happened_at = all()?;
        ensure!(
            happened_at.len() == migrations && self.told_at.len() == migrations,
            "libvirt tells of {} switches, the connector of {}",
            happened_at.len(),
            self.told_at.len()
        );
        for process in self.virsh {
            process.kill()?;
        }
        let lag = |(happened, told): (&SystemTime, &SystemTime)| {
            // Clocks are one; a connector that is quicker than virsh has no lag.
            let lag = told.duration_since(*happened).unwrap_or_default();
            lag.as_secs_f64() * 1000.0
        };
        Ok(happened_at.iter().zip(&self.told_at).map(lag).collect())
    }
}

fn host_name(index: usize) -> String {
    format!("host{index}")
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
