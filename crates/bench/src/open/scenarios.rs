//! One function for each peer: start it fresh, let files be opened, end it.

use anyhow::{Context, Result};
use tempfile::TempDir;
use testbed::{
    Agent, AgentOptions, Clamd, ClamdListen, Clamonacc, Process, Relay, Server, ServerOptions,
    Spawn, wait_until,
};

use super::outcome::{Outcome, Peer, State};
use super::stage::{Stage, clamav_signatures, yara_rules};
use crate::measure::Pass;

/// Threads of the passes for opens a second.
const MANY: usize = 4;

type Scenario = fn(&Stage, &mut Outcome) -> Result<()>;

/// All scenarios, by name.
pub(crate) const ALL: [(&str, Scenario); 7] = [
    ("unguarded", unguarded),
    ("no-op handler", noop),
    ("clamonacc", clamonacc),
    ("lazaret", lazaret),
    ("lazaret, four threads", lazaret_many),
    ("lazaret that sends", lazaret_sends),
    ("lazaret with clamd", lazaret_clamd),
];

fn unguarded(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    outcome.pass(stage, (Peer::Unguarded, State::Plain, 1))?;
    outcome.pass(stage, (Peer::Unguarded, State::Plain, MANY))
}

fn noop(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    let (handler, _scratch) = start_noop(stage, false)?;
    let parts = [("noop", handler.pid())];
    outcome.pass_with_cost(stage, (Peer::Noop, State::Plain, 1), &parts)?;
    outcome.pass(stage, (Peer::Noop, State::Plain, MANY))?;
    drop(handler);
    // What no agent can be below: a verdict of the kernel's own, with its lease.
    let (_handler, _scratch) = start_noop(stage, true)?;
    Pass::run(&stage.corpus.files, 1, stage.guest)?;
    outcome.pass(stage, (Peer::Noop, State::Warm, 1))?;
    outcome.pass(stage, (Peer::Noop, State::Warm, MANY))
}

fn start_noop(stage: &Stage, stand: bool) -> Result<(Process, TempDir)> {
    let scratch = stage.scratch()?;
    let log = scratch.path().join("noop.log");
    let mut process = Spawn::new("noop", std::env::current_exe()?, log)
        .arg("noop")
        .arg(stage.guarded())
        .args(stand.then_some("--stand"))
        .pin(stage.guest)
        .start()?;
    // It marks within a few milliseconds; the kernel tells through its descriptors.
    let fdinfo = format!("/proc/{}/fdinfo", process.pid());
    let marked = wait_until(std::time::Duration::from_secs(10), || {
        holds_a_mark(&fdinfo) || !process.is_running().unwrap_or(false)
    });
    let running = marked && process.is_running()?;
    anyhow::ensure!(running, "no-op handler\n{}", process.log_tail());
    Ok((process, scratch))
}

fn holds_a_mark(fdinfo: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(fdinfo) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        text.lines().any(|line| line.starts_with("fanotify sdev:"))
    })
}

fn clamonacc(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    for threads in [1, MANY] {
        // Fresh ones: clamd remembers what was clean, and clamonacc is known to abort after some
        // thousands of opens.
        let mut peer = ClamPeer::start(stage, false)?;
        let parts = [
            ("clamonacc", peer.clamonacc.process().pid()),
            ("clamd", peer.clamd.process().pid()),
        ];
        let kind = |state| (Peer::Clamonacc, state, threads);
        if threads == 1 {
            outcome.pass_with_cost(stage, kind(State::Cold), &parts)?;
        } else {
            outcome.pass(stage, kind(State::Cold))?;
        }
        outcome.pass(stage, kind(State::Warm))?;
        peer.check(stage)?;
    }
    Ok(())
}

/// clamonacc and its clamd.
pub(crate) struct ClamPeer {
    clamonacc: Clamonacc,
    clamd: Clamd,
    /// What counts the bytes, where asked for.
    pub(crate) relay: Option<Relay>,
    _scratch: TempDir,
}

impl ClamPeer {
    /// Starts both; they guard when this returns.
    pub(crate) fn start(stage: &Stage, relayed: bool) -> Result<Self> {
        let scratch = stage.scratch()?;
        let (file, signatures) = clamav_signatures();
        let database = [(file, signatures.as_str())];
        let dir = scratch.path();
        let clamd = Clamd::start(dir, &database, ClamdListen::Tcp, stage.appliance)?;
        let clamd_at = clamd.tcp().context("clamd has no port")?;
        let relay = relayed.then(|| Relay::start(clamd_at)).transpose()?;
        let at = relay.as_ref().map_or(clamd_at, Relay::addr);
        let (guarded, probe) = (stage.guarded(), &stage.probe);
        let clamonacc = Clamonacc::start(dir, at, &guarded, probe, stage.guest)?;
        Ok(Self {
            clamonacc,
            clamd,
            relay,
            _scratch: scratch,
        })
    }

    /// It still runs and still denies: it is known to fail open.
    pub(crate) fn check(&mut self, stage: &Stage) -> Result<()> {
        anyhow::ensure!(self.clamonacc.is_running()?, "clamonacc ended");
        stage.check_denied()
    }
}

fn lazaret(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    let mut peer = LazaretPeer::start(stage, Judge::Yara, false)?;
    let parts = peer.parts();
    let kind = |state, threads| (Peer::Lazaret, state, threads);
    outcome.pass_with_cost(stage, kind(State::Cold, 1), &parts)?;
    outcome.pass(stage, kind(State::Warm, 1))?;
    peer.restart_agent(stage)?;
    outcome.pass(stage, kind(State::Known, 1))?;
    peer.check(stage)
}

fn lazaret_many(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    let kind = |state, threads| (Peer::Lazaret, state, threads);
    let mut peer = LazaretPeer::start(stage, Judge::Yara, false)?;
    outcome.pass(stage, kind(State::Cold, MANY))?;
    outcome.pass(stage, kind(State::Warm, MANY))?;
    peer.check(stage)
}

fn lazaret_sends(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    cold(stage, outcome, Peer::LazaretSends, Judge::YaraOfAll)
}

fn lazaret_clamd(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    cold(stage, outcome, Peer::LazaretClamd, Judge::Clamd)
}

/// Files that nobody has seen, with one thread and with many.
fn cold(stage: &Stage, outcome: &mut Outcome, name: Peer, judge: Judge) -> Result<()> {
    for threads in [1, MANY] {
        let mut peer = LazaretPeer::start(stage, judge, false)?;
        let parts = peer.parts();
        let kind = (name, State::Cold, threads);
        if threads == 1 {
            outcome.pass_with_cost(stage, kind, &parts)?;
        } else {
            outcome.pass(stage, kind)?;
        }
        peer.check(stage)?;
    }
    Ok(())
}

/// What judges behind Lazaret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judge {
    /// By what the agent's filter finds.
    Yara,
    /// Of all that is in a file.
    YaraOfAll,
    Clamd,
}

/// An appliance and an agent, with a clamd where that judges.
pub(crate) struct LazaretPeer {
    agent: Agent,
    server: Server,
    clamd: Option<Clamd>,
    /// What counts the bytes, where asked for.
    pub(crate) relay: Option<Relay>,
    _scratch: TempDir,
}

impl LazaretPeer {
    /// Starts them with empty state; they guard when this returns.
    pub(crate) fn start(stage: &Stage, judge: Judge, relayed: bool) -> Result<Self> {
        let scratch = stage.scratch()?;
        let dir = scratch.path();
        let mut options = ServerOptions {
            rules: Vec::new(),
            ..ServerOptions::default()
        };
        let mut clamd = None;
        match judge {
            Judge::Yara | Judge::YaraOfAll => {
                let rules = dir.join("planted.yar");
                std::fs::write(&rules, yara_rules())?;
                options.rules.push(rules);
            }
            Judge::Clamd => {
                let (file, signatures) = clamav_signatures();
                let database = [(file, signatures.as_str())];
                let folder = dir.join("clamd");
                std::fs::create_dir(&folder)?;
                let unix = ClamdListen::Unix;
                let started = Clamd::start(&folder, &database, unix, stage.appliance)?;
                options.clamd = Some(started.socket().to_owned());
                clamd = Some(started);
            }
        }
        // The measured appliance denies; it removes nothing, as clamonacc.
        options.extra = "[removal]\non_malicious = \"deny\"\n".to_owned();
        options.extra += &format!("[policy]\n{}\n", stage.policy.join("\n"));
        if judge == Judge::YaraOfAll {
            options.extra += "report_min_bytes = 0\n";
        }
        let start = || Server::start(&dir.join("server"), &options);
        let mut server = stage.appliance.apply(start)?;
        let relay = relayed
            .then(|| Relay::start(server.link.parse()?))
            .transpose()?;
        if let Some(relay) = &relay {
            server.link = relay.addr().to_string();
        }
        let options = AgentOptions {
            guard: vec![stage.guarded()],
            extra: "[limits]\nfilter_fetch_spread_s = 0\n".to_owned(),
            ..AgentOptions::default()
        };
        let start = || Agent::start(&dir.join("agent"), &server, &options, None);
        let agent = stage.guest.apply(start)?;
        if judge == Judge::Yara {
            agent.until_filtered()?;
        }
        stage.check_denied()?;
        Ok(Self {
            agent,
            server,
            clamd,
            relay,
            _scratch: scratch,
        })
    }

    /// A new agent with the same state: it knows nothing, the appliance everything.
    pub(crate) fn restart_agent(&mut self, stage: &Stage) -> Result<()> {
        self.agent.stop()?;
        stage.guest.apply(|| self.agent.restart(None))
    }

    /// Every open got a real verdict, and the guard still works.
    pub(crate) fn check(&mut self, stage: &Stage) -> Result<()> {
        let unjudged = &self.agent.status()?["ledger"]["entries_total"];
        anyhow::ensure!(unjudged == 0, "{unjudged} opens had no verdict");
        stage.check_denied()
    }

    fn parts(&mut self) -> Vec<(&'static str, u32)> {
        let mut parts = vec![
            ("agent", self.agent.process().pid()),
            ("appliance", self.server.process().pid()),
        ];
        parts.extend(
            self.clamd
                .as_ref()
                .map(|clamd| ("clamd", clamd.process().pid())),
        );
        parts
    }
}
