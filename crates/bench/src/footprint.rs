//! `bench footprint`: what the agent takes from its guest when nothing happens and in a storm,
//! beside clamonacc. Both processes of the agent count.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;
use testbed::{
    Agent, AgentOptions, Clamd, ClamdListen, Clamonacc, FileSystem, LoopMount, Pin, Server,
    ServerOptions, Usage, samples,
};

use crate::open::stage::clamav_signatures;
use crate::report::Report;

/// Openers at once in a storm.
const OPENERS: usize = 64;
/// A moment that is quiet or is not.
const MOMENT: Duration = Duration::from_millis(250);
/// How long quiet moments are waited for.
const QUIET_WITHIN: Duration = Duration::from_secs(120);

/// How to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A shorter idle time.
    #[arg(long)]
    quick: bool,
    /// Copies the figures to docs/bench/.
    #[arg(long)]
    publish: bool,
}

/// What processes hold and do.
#[derive(Debug, Clone, Copy, Default)]
struct Footprint {
    rss_mb: f64,
    pss_mb: f64,
    cpu_s: f64,
    wakeups: u64,
}

impl Footprint {
    fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let field = |name: &str| -> Result<f64> {
                let line = rollup.lines().find_map(|line| line.strip_prefix(name));
                let kilobytes = line.and_then(|line| line.split_whitespace().next());
                Ok(kilobytes.context("smaps_rollup")?.parse::<f64>()? * 1024.0 / 1e6)
            };
            sum.rss_mb += field("Rss:")?;
            sum.pss_mb += field("Pss:")?;
            sum.cpu_s += Usage::of(*pid).cpu_s;
            for task in Path::new(&format!("/proc/{pid}/task")).read_dir()? {
                let status = std::fs::read_to_string(task?.path().join("status"))?;
                let switches = |name: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(name));
                    line.and_then(|line| line.trim().parse::<u64>().ok())
                };
                // A thread that slept and ran again: it was woken.
                sum.wakeups += switches("voluntary_ctxt_switches:").unwrap_or(0);
            }
        }
        Ok(sum)
    }
}

/// What is measured: the agent's processes, or a peer's.
trait Guard {
    fn pids(&self) -> Result<Vec<u32>>;
}

impl Guard for Agent {
    fn pids(&self) -> Result<Vec<u32>> {
        let pids = Agent::pids(self)?;
        let numbers = [pids.supervisor, pids.worker].map(|pid| pid.as_raw_nonzero().get());
        Ok(numbers.map(i32::unsigned_abs).to_vec())
    }
}

impl Guard for Clamonacc {
    fn pids(&self) -> Result<Vec<u32>> {
        Ok(vec![self.process().pid()])
    }
}

/// Idle, and in a storm of opens of files that nobody has seen.
struct Measured {
    idle: Footprint,
    quiet: Quiet,
    storm: Footprint,
    storm_cpu_us_per_open: f64,
}

fn measure(guard: &impl Guard, storm: &[PathBuf], quiet: Duration) -> Result<Measured> {
    let pids = guard.pids()?;
    // What the start left to do is done: the agent's last is to give memory back.
    std::thread::sleep(Duration::from_secs(5));
    let quiet = Quiet::of(&pids, quiet)?;
    let idle = Footprint::of(&pids)?;
    let (peak, after) = storm_of(&pids, storm)?;
    Ok(Measured {
        idle,
        quiet,
        storm: peak,
        storm_cpu_us_per_open: (after.cpu_s - idle.cpu_s) * 1e6 / storm.len() as f64,
    })
}

/// What a guard did while no program started anywhere on the machine: a machine with other work
/// is idle only for moments.
#[derive(Default)]
struct Quiet {
    seconds: f64,
    wakeups: u64,
    cpu_s: f64,
}

impl Quiet {
    /// Moments of so much time together.
    fn of(pids: &[u32], enough: Duration) -> Result<Self> {
        let give_up = Instant::now() + QUIET_WITHIN;
        let mut quiet = Self::default();
        while quiet.seconds < enough.as_secs_f64() && Instant::now() < give_up {
            let started = programs_started()?;
            let before = Footprint::of(pids)?;
            let start = Instant::now();
            std::thread::sleep(MOMENT);
            let seconds = start.elapsed().as_secs_f64();
            let after = Footprint::of(pids)?;
            if programs_started()? == started {
                quiet.seconds += seconds;
                quiet.wakeups += after.wakeups - before.wakeups;
                quiet.cpu_s += after.cpu_s - before.cpu_s;
            }
        }
        ensure!(quiet.seconds > 0.0, "the machine was never quiet");
        Ok(quiet)
    }

    fn wakeups_per_s(&self) -> f64 {
        self.wakeups as f64 / self.seconds
    }

    fn cpu_ms_per_s(&self) -> f64 {
        self.cpu_s * 1e3 / self.seconds
    }
}

/// Processes and threads that the machine has started since its boot.
fn programs_started() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("processes "));
    Ok(line.context("/proc/stat")?.trim().parse()?)
}

/// Opens every file once, with many threads; the greatest footprint meanwhile and the last.
fn storm_of(pids: &[u32], files: &[PathBuf]) -> Result<(Footprint, Footprint)> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let watch = threads.spawn(|| -> Result<Footprint> {
            let mut peak = Footprint::default();
            while !is_over.load(Ordering::Relaxed) {
                let now = Footprint::of(pids)?;
                peak.rss_mb = peak.rss_mb.max(now.rss_mb);
                peak.pss_mb = peak.pss_mb.max(now.pss_mb);
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(peak)
        });
        let share = |number| files.iter().skip(number).step_by(OPENERS);
        let openers: Vec<_> = (0..OPENERS)
            .map(|number| {
                threads.spawn(move || -> Result<()> {
                    for file in share(number) {
                        std::fs::read(file)?;
                    }
                    Ok(())
                })
            })
            .collect();
        for opener in openers {
            let read = opener.join();
            read.map_err(|_| anyhow::anyhow!("an opener panicked"))??;
        }
        is_over.store(true, Ordering::Relaxed);
        let peak = watch.join();
        let peak = peak.map_err(|_| anyhow::anyhow!("the watch panicked"))??;
        Ok((peak, Footprint::of(pids)?))
    })
}

/// Files of 256 KiB, each different.
fn files(at: &Path, count: usize) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(at)?;
    (0..count)
        .map(|number| {
            let path = at.join(format!("file-{number}"));
            let line = format!("{number} of many lines in a storm\n");
            std::fs::write(&path, line.repeat(256 * 1024 / line.len()))?;
            Ok(path)
        })
        .collect()
}

/// The program's size in MB, its symbols taken off as in the package.
fn stripped_mb(program: &Path, scratch: &Path) -> Result<f64> {
    let stripped = scratch.join("stripped");
    testbed::run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    Ok(stripped.metadata()?.len() as f64 / 1e6)
}

/// Measures and writes the report.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (quiet, count) = if options.quick {
        (Duration::from_secs(5), 256)
    } else {
        (Duration::from_secs(60), 2_000)
    };
    let mount = LoopMount::new(FileSystem::Ext4, 2 << 30)?;
    let scratch = tempfile::tempdir()?;
    let guarded = mount.path().join("guarded");
    let storm = files(&guarded, count)?;

    let extra = "[removal]\non_malicious = \"deny\"\n".to_owned();
    let server = ServerOptions {
        extra,
        ..ServerOptions::default()
    };
    let server = Server::start(&scratch.path().join("server"), &server)?;
    let agent_options = AgentOptions {
        guard: vec![guarded.clone()],
        extra: "[limits]\nfilter_fetch_spread_s = 0\n".to_owned(),
        ..AgentOptions::default()
    };
    let agent = Agent::start(&scratch.path().join("agent"), &server, &agent_options, None)?;
    agent.until_filtered()?;
    let ours = measure(&agent, &storm, quiet)?;
    ensure!(
        agent.status()?["ledger"]["entries_total"] == 0,
        "some opens had no verdict"
    );
    drop(agent);
    drop(server);

    let probe = guarded.join("probe");
    std::fs::write(&probe, samples::marked("ONE"))?;
    let (name, signatures) = clamav_signatures();
    let dir = scratch.path().join("clam");
    let clamd = Clamd::start(&dir, &[(name, &signatures)], ClamdListen::Tcp, Pin::Free)?;
    let at = clamd.tcp().context("clamd has no port")?;
    let peer = Clamonacc::start(&dir, at, &guarded, &probe, Pin::Free)?;
    let theirs = measure(&peer, &storm, quiet).context("clamonacc")?;
    report(options, &ours, &theirs, scratch.path())
}

fn report(options: &Options, ours: &Measured, theirs: &Measured, scratch: &Path) -> Result<()> {
    let mut report = Report::new("footprint");
    let binary_mb = stripped_mb(&testbed::binary("lazaret-agent")?, scratch)?;
    report.figure("idle_rss_mb", ours.idle.rss_mb);
    report.figure("storm_rss_mb", ours.storm.rss_mb);
    report.figure("idle_wakeups_per_s", ours.quiet.wakeups_per_s());
    report.figure("binary_mb", binary_mb);
    for (name, measured) in [("lazaret", ours), ("clamonacc", theirs)] {
        let figures = json!({
            "idle_rss_mb": measured.idle.rss_mb,
            "idle_pss_mb": measured.idle.pss_mb,
            "idle_wakeups_per_s": measured.quiet.wakeups_per_s(),
            "idle_cpu_ms_per_s": measured.quiet.cpu_ms_per_s(),
            "quiet_s": measured.quiet.seconds,
            "storm_rss_mb": measured.storm.rss_mb,
            "storm_pss_mb": measured.storm.pss_mb,
            "storm_cpu_us_per_open": measured.storm_cpu_us_per_open,
        });
        report.figure(name, figures);
    }
    let ratio = ours.idle.pss_mb / theirs.idle.pss_mb;
    report.ratio("idle_pss_vs_clamonacc", ratio);
    report.note(
        "processes",
        "supervisor and worker; the peer is clamonacc alone, its clamd not counted",
    );
    report.note(
        "idle",
        "moments of 250 ms in which no program started on the machine; `quiet_s` of them",
    );
    report.note("idle_rss_mb", "after the start, before the storm");
    report.note("wakeups", "voluntary context switches of all threads");
    report.write(None, options.publish)?;
    println!(
        "idle {:.1} MB RSS ({:.1} PSS), {:.2} wake-ups/s; storm {:.1} MB; binary {binary_mb:.1} MB",
        ours.idle.rss_mb,
        ours.idle.pss_mb,
        ours.quiet.wakeups_per_s(),
        ours.storm.rss_mb
    );
    println!("idle_pss_vs_clamonacc {ratio:.2}");
    Ok(())
}
