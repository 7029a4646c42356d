//! Guests of one host take turns with their scans.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::fleet;
use serde_json::Value;
use tempfile::TempDir;
use testbed::{
    Agent, AgentOptions, FileSystem, LoopMount, Server, ServerOptions, TestDriver, binary,
    wait_until,
};

use crate::{PATIENCE, connector, wait_for};

/// One scan at a time fits this: a scan is taken to use as much.
const HOST_CPU_MILLI: u64 = 500;
/// Each guest may send so much in a second, and each file has as much: a scan takes a second for each,
/// since nothing is reported on in place of being sent.
const BYTES_PER_SECOND: usize = 128 << 10;
/// Files of a scan that is done in one turn.
const FEW: usize = 15;
/// Files of a scan that takes several turns of 60 s.
const MANY: usize = 400;
/// A scan is to be done within.
const WITHIN: Duration = Duration::from_secs(300);
/// … or within this, a turn's 60 s included.
const SOON: Duration = Duration::from_secs(150);
/// Whoever may begin at any time has begun by half of what is left of that.
const SOONER: Duration = Duration::from_secs(105);

/// More than a move takes.
const MOVE_TIME: Duration = Duration::from_secs(20);
/// How the scan says that it waits.
const WAITS: &str = "other guests of this host first";

/// A guest, its agent, and files to scan.
struct Guest {
    name: &'static str,
    agent: Agent,
    tree: PathBuf,
    _mount: LoopMount,
}

impl Guest {
    fn start(
        dir: &Path,
        server: &Server,
        (name, uuid): (&'static str, &str),
        files: usize,
    ) -> Result<Self> {
        let mount = LoopMount::new(FileSystem::Ext4, 64 << 20)?;
        let options = AgentOptions {
            guard: vec![mount.path().to_owned()],
            system_uuid: uuid.to_owned(),
            ..AgentOptions::default()
        };
        let agent = Agent::start(&dir.join(name), server, &options, None)?;
        let tree = dir.join(format!("{name}-files"));
        std::fs::create_dir(&tree)?;
        let tree_of = tree.display();
        // Nothing that could be sent in fewer bytes, or that anybody knows.
        let script = format!(
            "head -c {} /dev/urandom | split -b {BYTES_PER_SECOND} -a 4 - {tree_of}/f",
            files * BYTES_PER_SECOND
        );
        testbed::run(Command::new("sh").args(["-ec", &script]))?;
        Ok(Self {
            name,
            agent,
            tree,
            _mount: mount,
        })
    }

    fn scan(&self, within: Duration) -> Result<Scan> {
        let log = self.tree.with_extension("log");
        let mut command = Command::new(binary("lazaret-agent")?);
        let within = format!("{}s", within.as_secs());
        command
            .args([
                "scan",
                "--within",
                &within,
                "--progress",
                "always",
                "--config",
            ])
            .arg(self.agent.config())
            .arg(&self.tree)
            .stdin(Stdio::null())
            .stdout(File::create(log.with_extension("found"))?)
            .stderr(File::create(&log)?);
        Ok(Scan {
            name: self.name,
            child: command.spawn()?,
            began: Instant::now(),
            took: None,
            log,
        })
    }
}

/// A scan that runs, ended with the guard.
struct Scan {
    name: &'static str,
    child: Child,
    began: Instant,
    took: Option<Duration>,
    log: PathBuf,
}

impl Scan {
    /// Whether it is over; how it ended is checked.
    fn is_over(&mut self) -> Result<bool> {
        if self.took.is_none()
            && let Some(status) = self.child.try_wait()?
        {
            let found = std::fs::read_to_string(self.log.with_extension("found"))?;
            ensure!(status.success(), "{}: {status}\n{found}", self.name);
            self.took = Some(self.began.elapsed());
        }
        Ok(self.took.is_some())
    }

    fn said(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last whole line of its progress.
    fn line(&self) -> String {
        let said = self.said();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.rsplit('\n').next().unwrap_or_default().to_owned()
    }

    fn waits(&self) -> bool {
        self.line().contains(WAITS)
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Hosts, a controller with small budgets, and two guests that the connector knows.
struct Scene {
    guests: [Guest; 2],
    server: Server,
    drivers: Vec<TestDriver>,
    uuids: [String; 2],
    _dir: TempDir,
}

impl Scene {
    /// `second_on`: the host of the second guest; the first is on host 0.
    fn start(second_on: usize, files: usize) -> Result<Self> {
        let dir = e2e::scratch("turns")?;
        let driver = |host| TestDriver::start(&dir.path().join(format!("host{host}")), host + 1);
        let drivers = (0..=second_on as u8)
            .map(driver)
            .collect::<Result<Vec<_>>>()?;
        // Each test has machines of its own.
        let uuid = |number| format!("5d1c7a52-8f0e-4a5a-9d0b-3f6f2b7e1{second_on}0{number}");
        let (first, second) = (uuid(1), uuid(2));
        drivers[0].run("first", &first)?;
        drivers[second_on].run("second", &second)?;
        let options = ServerOptions {
            extra: format!(
                "[policy]\nreport_min_bytes = 0\n\n\
                 [controller.storm]\nhost_cpu_milli = {HOST_CPU_MILLI}\n\n\
                 [limits]\nguest_bytes_per_second = {BYTES_PER_SECOND}\n\
                 guest_burst_bytes = {BYTES_PER_SECOND}\n\
                 in_flight_max = 1\n{}",
                connector(&drivers)?
            ),
            ..ServerOptions::default()
        };
        let server = Server::start(&dir.path().join("server"), &options)?;
        let guests = [
            Guest::start(dir.path(), &server, ("first", &first), files)?,
            Guest::start(dir.path(), &server, ("second", &second), files)?,
        ];
        for guest in &guests {
            wait_for(&server, guest.name, |vm| {
                vm["connected_to"].as_str().is_some_and(|it| !it.is_empty())
            })?;
        }
        Ok(Self {
            guests,
            server,
            drivers,
            uuids: [first, second],
            _dir: dir,
        })
    }

    /// Turns as they are now; no host's budget is exceeded.
    fn turns(&self) -> Result<Vec<Value>> {
        let turns = fleet(&self.server, &["turns"])?;
        let turns = turns.as_array().context("no list of turns")?.clone();
        for host in ["host0", "host1"] {
            let begun = turns
                .iter()
                .filter(|turn| turn["host"] == host && turn["begins_in_ms"] == 0);
            let used: u64 = begun.map(|turn| cpu_milli(&turn["kind"])).sum();
            ensure!(used <= HOST_CPU_MILLI, "{used} of {host}: {turns:?}");
        }
        Ok(turns)
    }
}

/// What a kind of work is taken to use (docs/operators/fleet.md).
fn cpu_milli(kind: &Value) -> u64 {
    match kind.as_str() {
        Some("scan") => 500,
        Some("sweep") => 250,
        _ => 50,
    }
}

/// How long this guest's scan may still work; `None`: it may not now.
fn time_left(turns: &[Value], name: &str) -> Option<Duration> {
    let is_own = |it: &&Value| it["vm"] == name && it["kind"] == "scan" && it["begins_in_ms"] == 0;
    let own = turns.iter().find(is_own)?;
    Some(Duration::from_millis(own["ends_in_ms"].as_u64()?))
}

fn has_begun(turns: &[Value], name: &str) -> bool {
    time_left(turns, name).is_some()
}

#[test]
fn the_second_scan_of_a_host_waits_until_the_first_is_done() -> Result<()> {
    let scene = Scene::start(0, FEW)?;
    let mut scans = [scene.guests[0].scan(WITHIN)?, scene.guests[1].scan(WITHIN)?];
    let mut worked = [false; 2];
    let mut one_waited = false;
    let over = wait_until(WITHIN + PATIENCE, || {
        let mut look = || -> Result<bool> {
            let turns = scene.turns()?;
            for (i, scan) in scans.iter().enumerate() {
                let begun = has_begun(&turns, scan.name);
                let other = has_begun(&turns, scans[1 - i].name);
                worked[i] |= begun;
                ensure!(!(begun && other), "both work: {turns:?}");
                // Who has not begun has scanned nothing.
                let line = scan.line();
                let is_idle = line.is_empty() || line.starts_with("0 files, 0 B");
                ensure!(worked[i] || is_idle, "{}: {line}", scan.name);
                one_waited |= other && scan.waits();
            }
            Ok(scans[0].is_over()? & scans[1].is_over()?)
        };
        look().unwrap_or_else(|error| panic!("{error:#}"))
    });
    ensure!(over, "{}\n{}", scans[0].said(), scans[1].said());
    ensure!(worked == [true; 2], "one was never given a turn");
    ensure!(one_waited, "nobody waited");
    for scan in &scans {
        let took = scan.took.context("not over")?;
        ensure!(took <= WITHIN, "{} took {took:?}", scan.name);
    }
    Ok(())
}

#[test]
fn a_scan_stops_where_its_guest_moves_to_a_host_that_is_full() -> Result<()> {
    let scene = Scene::start(1, MANY)?;
    let scans = [scene.guests[0].scan(WITHIN)?, scene.guests[1].scan(WITHIN)?];
    // Each is alone on its host; in one of their turns they work at once for a while.
    let both = wait_until(WITHIN, || {
        let turns = scene.turns().unwrap_or_else(|error| panic!("{error:#}"));
        let goes_on = |scan: &Scan| time_left(&turns, scan.name) > Some(MOVE_TIME);
        scans.iter().all(goes_on) && !scans[1].waits()
    });
    ensure!(both, "they never work at once: {:?}", scene.turns()?);
    let left = time_left(&scene.turns()?, "second").context("its turn is over")?;
    let turn_ends = Instant::now() + left;
    scene.drivers[0].run("second", &scene.uuids[1])?;
    scene.drivers[1].end("second")?;
    wait_for(&scene.server, "second", |vm| vm["host"] == "host0")?;
    let stopped = wait_until(PATIENCE, || scans[1].waits());
    ensure!(stopped, "it goes on: {}", scans[1].said());
    // It was told to; nothing else ends a turn before its time.
    ensure!(
        Instant::now() < turn_ends,
        "it went on until its time was over"
    );
    // Later it has a turn there, and no budget is exceeded until then.
    let again = wait_until(WITHIN + PATIENCE, || {
        let turns = scene.turns().unwrap_or_else(|error| panic!("{error:#}"));
        has_begun(&turns, "second") && !scans[1].waits()
    });
    ensure!(again, "{:?}\n{}", scene.turns()?, scans[1].said());
    Ok(())
}

#[test]
fn the_scan_of_a_desktop_in_session_begins_late_and_is_done_in_time() -> Result<()> {
    let scene = Scene::start(1, FEW)?;
    let [idle, used] = &scene.guests;
    scene.server.cli(&["fleet", "session", used.name, "--on"])?;
    wait_for(&scene.server, used.name, |vm| vm["session"] == "in_session")?;
    // Each is alone on its host: none waits for the other.
    let mut scans = [used.scan(SOON)?, idle.scan(SOONER)?];
    let mut is_held = false;
    let over = wait_until(SOON + PATIENCE, || {
        let mut look = || -> Result<bool> {
            let turns = scene.turns()?;
            is_held |= has_begun(&turns, idle.name) && scans[0].waits();
            Ok(scans[0].is_over()? & scans[1].is_over()?)
        };
        look().unwrap_or_else(|error| panic!("{error:#}"))
    });
    ensure!(over, "{}\n{}", scans[0].said(), scans[1].said());
    ensure!(is_held, "the desktop's scan did not wait");
    let took = scans[0].took.context("not over")?;
    // One that may begin at any time is done by then in most runs.
    ensure!(took > SOON / 3, "it took {took:?}");
    ensure!(took <= SOON, "it took {took:?}");
    Ok(())
}
