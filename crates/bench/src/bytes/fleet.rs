//! A server and enrolled clones: what they send while they have files judged.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{Agent, AgentOptions, FileSystem, LoopMount, Relay, Server, ServerOptions, binary};

/// Exit codes of a scan that came to its end: nothing found, something found. Public rules find
/// something in most systems.
const DONE: [i32; 2] = [0, 1];

/// Thousands of rules are compiled on a machine that may have other things to do.
const PATIENCE: Duration = Duration::from_secs(900);

/// All clones join from this machine's address.
const JOINS: &str = "[controller]\njoins_burst = 1000000\n\n";

/// The file system that agents guard.
const GUARDED_BYTES: u64 = 64 << 20;
/// Where an agent keeps its filter, in its state folder.
const FILTER: &str = "filter.pack";

/// How a fleet is set up.
pub(crate) struct Setup<'a> {
    pub(crate) rules: &'a Path,
    /// Further configuration of the server and of the agents, TOML.
    pub(crate) server: &'a str,
    pub(crate) agents: &'a str,
    pub(crate) clones: usize,
    /// The image has the appliance's filter: the first clone's agent fetches it, the others were
    /// made with it.
    pub(crate) filter: bool,
}

/// A running server and its clones, whose link is counted.
pub(crate) struct Fleet {
    server: Server,
    relay: Relay,
    agents: Vec<Agent>,
    /// What the agents that run guard: nothing else is on it.
    _guarded: LoopMount,
}

/// What something took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// On the link in both directions, TLS and handshakes included.
    pub(crate) wire_bytes: u64,
    /// Of the server and all its engines.
    pub(crate) cpu_s: f64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.wire_bytes += other.wire_bytes;
        self.cpu_s += other.cpu_s;
    }
}

impl Fleet {
    pub(crate) fn start(dir: &Path, setup: &Setup<'_>) -> Result<Self> {
        let options = ServerOptions {
            rules: vec![setup.rules.to_owned()],
            extra: format!("{JOINS}{}", setup.server),
            patience: PATIENCE,
            ..ServerOptions::default()
        };
        let mut server = Server::start(&dir.join("server"), &options)?;
        let relay = Relay::start(server.link.parse()?)?;
        server.link = relay.addr().to_string();
        let guarded = LoopMount::new(FileSystem::Ext4, GUARDED_BYTES)?;
        let options = AgentOptions {
            guard: vec![guarded.path().to_owned()],
            extra: setup.agents.to_owned(),
            ..AgentOptions::default()
        };
        let enrol =
            |clone| Agent::enrol(&dir.join(format!("clone{clone}")), &server, &options, None);
        let agents = (0..setup.clones).map(enrol).collect::<Result<_>>()?;
        Ok(Self {
            server,
            relay,
            agents,
            _guarded: guarded,
        })
    }

    /// Has the first clone's agent fetch the filter, and gives it to all.
    pub(crate) fn fetch_filter(&mut self) -> Result<Cost> {
        let before = self.now();
        let [first, others @ ..] = &mut self.agents[..] else {
            return Ok(Cost::default());
        };
        first.restart(None)?;
        first.until_filtered()?;
        first.stop()?;
        let kept = first.state_dir().join(FILTER);
        for other in others {
            std::fs::copy(&kept, other.state_dir().join(FILTER))?;
        }
        Ok(self.since(before))
    }

    /// A clone has all files in a folder judged. `files`: how many there must be.
    pub(crate) fn scan(&mut self, clone: usize, folder: &Path, files: usize) -> Result<Cost> {
        let before = self.now();
        let agent = self.agents.get(clone).context("no such clone")?;
        let output = Command::new(binary("lazaret-agent")?)
            .args(["scan", "--json", "--no-removal", "--progress", "never"])
            .arg("--config")
            .arg(agent.config())
            .arg(folder)
            .output()?;
        let code = output.status.code().unwrap_or(-1);
        let text = String::from_utf8_lossy(&output.stdout);
        let said = || format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        ensure!(DONE.contains(&code), "a scan ended with {code}: {}", said());
        let summary: Value = serde_json::from_str(text.lines().last().context("no summary")?)?;
        ensure!(
            summary["files"] == files,
            "{files} files to judge: {summary}"
        );
        Ok(self.since(before))
    }

    fn since(&mut self, (bytes, cpu_s): (u64, f64)) -> Cost {
        let (bytes_after, cpu_s_after) = self.now();
        Cost {
            wire_bytes: bytes_after - bytes,
            cpu_s: cpu_s_after - cpu_s,
        }
    }

    fn now(&mut self) -> (u64, f64) {
        let cpu_s = self.server.process().usage().cpu_s;
        (self.relay.bytes().total(), cpu_s)
    }
}

/// Configuration that has the chunks of a folder used by appliances.
pub(crate) fn images(dir: &Path, folder: &Path) -> Result<String> {
    let made = dir.join("golden.chunks");
    let mut build = Command::new(binary("lazaret")?);
    build.args(["chunks", "build", "--directory"]).arg(folder);
    testbed::run(build.arg("-o").arg(&made))?;
    Ok(format!("[chunks]\nimages = [{made:?}]\n"))
}

/// Configuration that has an allowlist of a folder used by agents.
pub(crate) fn allowlist(dir: &Path, folder: &Path) -> Result<String> {
    let (key, list) = (dir.join("allowlist.key"), dir.join("golden.list"));
    let lazaret = |args: &[&str], paths: &[&Path]| -> Result<String> {
        testbed::run(Command::new(binary("lazaret")?).args(args).args(paths))
    };
    let public = lazaret(&["allowlist", "key"], &[&key])?;
    let public = public.split_whitespace().find(|word| word.len() == 64);
    let public = public.context("no public key")?;
    let of: [&Path; 6] = [
        folder,
        "--name".as_ref(),
        "golden".as_ref(),
        "--key".as_ref(),
        &key,
        "-o".as_ref(),
    ];
    let of: Vec<&Path> = of.into_iter().chain([list.as_path()]).collect();
    lazaret(&["allowlist", "build", "--directory"], &of)?;
    let files: [PathBuf; 1] = [list];
    Ok(format!(
        "[allowlist]\nfiles = {files:?}\ntrusted_keys = [\"{public}\"]\n"
    ))
}
