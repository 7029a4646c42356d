//! `bench workload`: ordinary work inside the guarded root of a Debian, and what guarding adds to
//! its time. Any error of the work fails the bench; opens that were answered before there was a
//! verdict are counted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use testbed::{Agent, AgentOptions, FileSystem, LoopMount, Server, ServerOptions, debian_root};

use crate::report::Report;

/// How to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One pass of each.
    #[arg(long)]
    quick: bool,
    /// Copies the figures to docs/bench/.
    #[arg(long)]
    publish: bool,
}

/// Needed in the root beside a minimal Debian.
const PACKAGES: [&str; 4] = ["git", "postgresql", "cargo", "libc6-dev"];

/// Work and its script, run by a shell in the root.
const WORK: [(&str, &str); 5] = [
    (
        "apt_get",
        "cd /var/cache/apt/archives
         apt-get install --reinstall --no-download -y -qq ./base-files_*.deb ./tar_*.deb \
           ./grep_*.deb ./perl-base_*.deb ./libc-bin_*.deb >/dev/null",
    ),
    (
        "tar",
        "rm -rf /work/tar; mkdir -p /work/tar
         tar -C / -cf /work/usr.tar usr/share usr/lib/postgresql
         tar -C /work/tar -xf /work/usr.tar
         diff -r --no-dereference /usr/share /work/tar/usr/share
         rm -rf /work/tar /work/usr.tar",
    ),
    (
        "git",
        "rm -rf /work/git; mkdir -p /work/git; cd /work/git
         export HOME=/work GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t \
           GIT_COMMITTER_EMAIL=t@t
         git init -q origin; cp -r /usr/share/perl5 origin/; cd origin; git add .
         git commit -qm one; cd ..; git clone -q origin clone; cd clone; git fsck --full
         git gc -q; test -z \"$(git status --porcelain)\"",
    ),
    (
        "cargo",
        "rm -rf /work/cargo; mkdir -p /work/cargo; cd /work/cargo
         export HOME=/work CARGO_HOME=/work/cargo/home USER=t
         cargo new -q --vcs none app; cd app; cargo build -q --offline
         test \"$(target/debug/app)\" = 'Hello, world!'
         cargo build -q --offline --release; cargo test -q --offline >/dev/null",
    ),
    (
        "postgresql",
        "rm -rf /work/pg; mkdir -p /work/pg; chown postgres /work/pg; bin=/usr/lib/postgresql/15/bin
         su postgres -s /bin/sh -c \"set -e
           $bin/initdb -D /work/pg/data >/dev/null
           $bin/pg_ctl -D /work/pg/data -w -l /work/pg/log \
             -o '-k /work/pg -c listen_addresses=' start >/dev/null
           $bin/pgbench -h /work/pg -i -s 2 -q postgres >/dev/null 2>&1
           $bin/pgbench -h /work/pg -c 4 -t 500 postgres >/dev/null 2>&1
           $bin/pg_ctl -D /work/pg/data -w stop >/dev/null\"",
    ),
];

/// A Debian on a file system of its own.
struct Root {
    path: PathBuf,
    mounted: Vec<PathBuf>,
    _mount: LoopMount,
}

impl Root {
    fn new() -> Result<Self> {
        let base = debian_root(&PACKAGES)?;
        let mount = LoopMount::new(FileSystem::Ext4, 6 << 30)?;
        let path = mount.path().join("root");
        testbed::run(Command::new("cp").arg("-a").arg(&base).arg(&path))?;
        std::fs::create_dir_all(path.join("work"))?;
        let mut root = Self {
            path,
            mounted: Vec::new(),
            _mount: mount,
        };
        for (kind, at) in [("proc", "proc"), ("devtmpfs", "dev"), ("tmpfs", "dev/shm")] {
            let at = root.path.join(at);
            testbed::run(Command::new("mount").args(["-t", kind, kind]).arg(&at))?;
            root.mounted.push(at);
        }
        Ok(root)
    }

    /// Seconds that the script takes.
    fn time(&self, script: &str) -> Result<f64> {
        let mut chroot = Command::new("chroot");
        chroot
            .arg(&self.path)
            .args(["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
            .args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"])
            .args(["sh", "-euc", script]);
        let start = Instant::now();
        testbed::run(&mut chroot)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for at in self.mounted.iter().rev() {
            if let Err(error) = testbed::run(Command::new("umount").arg("-l").arg(at)) {
                eprintln!("{error}");
            }
        }
    }
}

/// Measures and writes the report.
pub(crate) fn run(options: &Options) -> Result<()> {
    let passes = if options.quick { 1 } else { 3 };
    let root = Root::new()?;
    let times = |what: &str| -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for (name, script) in WORK {
            let times: Vec<f64> = (0..passes)
                .map(|_| root.time(script))
                .collect::<Result<_>>()
                .with_context(|| format!("{name}, {what}"))?;
            all.push(median(times));
        }
        Ok(all)
    };
    times("to warm up")?;
    let unguarded = times("unguarded")?;
    let (guarded, unpaid) = guarded(&root.path, || times("guarded"))?;
    let mut report = Report::new("workload");
    report.figure("ledger_entries", unpaid);
    let mut product = 1.0;
    for (((name, _), without), with) in WORK.iter().zip(&unguarded).zip(&guarded) {
        let ratio = with / without;
        product *= ratio;
        report.figure(name, json!({ "unguarded_s": without, "guarded_s": with }));
        report.ratio(&format!("{name}_vs_unguarded"), ratio);
        println!("{name}: {without:.2} s unguarded, {with:.2} s guarded, {ratio:.2}");
    }
    let mean = product.powf(1.0 / WORK.len() as f64);
    report.ratio("all_vs_unguarded", mean);
    report.note(
        "where",
        "in the root of a debootstrapped Debian on ext4, all of it guarded",
    );
    report.note("all", "the geometric mean");
    report.write(None, options.publish)?;
    println!("all_vs_unguarded {mean:.2}");
    Ok(())
}

/// The same with an agent, and how many opens were answered before there was a verdict.
fn guarded(root: &Path, work: impl FnOnce() -> Result<Vec<f64>>) -> Result<(Vec<f64>, u64)> {
    let scratch = tempfile::tempdir()?;
    let options = ServerOptions {
        extra: "[removal]\non_malicious = \"deny\"\n".into(),
        ..ServerOptions::default()
    };
    let server = Server::start(&scratch.path().join("server"), &options)?;
    let options = AgentOptions {
        guard: vec![root.to_owned()],
        ..AgentOptions::default()
    };
    let agent = Agent::start(&scratch.path().join("agent"), &server, &options, None)?;
    let times = work()?;
    let status = agent.status()?;
    let entries = status["ledger"]["entries_total"].as_u64();
    Ok((times, entries.context("status without a ledger")?))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
