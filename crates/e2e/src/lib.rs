//! What the end-to-end tests share: a whole system with one guarded file system, and openers that
//! are other processes (the gate never judges its own).

mod opens;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testbed::{Agent, AgentOptions, FileSystem, LoopMount, Netns, Server, ServerOptions};

pub use opens::Opens;

/// A server, an agent and the file system that it guards. Fields drop in this order: the agent
/// goes before its file system, or the last openers would wait for it.
#[derive(Debug)]
pub struct System {
    /// The agent.
    pub agent: Agent,
    /// The server.
    pub server: Server,
    /// Its own network namespace where the test asked for one.
    pub netns: Option<Netns>,
    /// The guarded file system.
    pub mount: LoopMount,
    /// Folder of the daemons' files, not guarded.
    pub scratch: TempDir,
}

/// How to set a [`System`] up.
#[derive(Debug, Default)]
pub struct Setup {
    /// The server's options.
    pub server: ServerOptions,
    /// Further configuration of the agent.
    pub agent_extra: String,
    /// Give the agent a network namespace of that index.
    pub netns: Option<u8>,
    /// Files to copy onto the file system before it is guarded.
    pub files: Vec<PathBuf>,
    /// An agent without a supervisor.
    pub unsupervised: bool,
    /// An agent in a mount namespace of its own, as a unit with private mounts has.
    pub private_mounts: bool,
}

impl System {
    /// Starts everything and waits until the agent guards and has its link.
    ///
    /// # Errors
    /// Without root, or where a daemon is not ready; the message holds the end of its log.
    pub fn start(setup: Setup) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "this test needs root: fanotify permission events, loop mounts"
        );
        let scratch = scratch("e2e")?;
        let mount = LoopMount::new(FileSystem::Ext4, 2 << 30)?;
        for file in &setup.files {
            let name = file.file_name().context("a file without a name")?;
            std::fs::copy(file, mount.path().join(name))?;
        }
        let netns = setup.netns.map(Netns::new).transpose()?;
        let mut server_options = setup.server;
        if let Some(net) = &netns {
            server_options.address = net.host_address().to_owned();
        }
        let server = Server::start(&scratch.path().join("server"), &server_options)?;
        let agent_options = AgentOptions {
            guard: vec![mount.path().to_owned()],
            extra: setup.agent_extra,
            unsupervised: setup.unsupervised,
            private_mounts: setup.private_mounts,
            ..AgentOptions::default()
        };
        let dir = scratch.path().join("agent");
        let agent = Agent::start(&dir, &server, &agent_options, netns.as_ref())?;
        Ok(Self {
            agent,
            server,
            netns,
            mount,
            scratch,
        })
    }

    /// A path on the guarded file system.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    /// Writes a file onto the guarded file system, from another process.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        let source = self.scratch.path().join("outbox");
        std::fs::write(&source, content)?;
        testbed::run(Command::new("cp").arg(&source).arg(&path))?;
        Ok(path)
    }

    /// A value of the agent's metrics; a family is summed over the labels that `filter` accepts.
    ///
    /// # Errors
    /// Where the metrics cannot be fetched.
    pub fn agent_metric(&self, name: &str, filter: &str) -> Result<f64> {
        metric(&fetch(&self.agent.metrics)?, name, filter)
    }

    /// A value of the server's metrics.
    ///
    /// # Errors
    /// Where the metrics cannot be fetched.
    pub fn server_metric(&self, name: &str, filter: &str) -> Result<f64> {
        server_metric(&self.server, name, filter)
    }

    /// What the server has detected, newest first.
    ///
    /// # Errors
    /// Where the command fails.
    pub fn detections(&self) -> Result<Vec<serde_json::Value>> {
        let text = self.server.cli(&["detections", "--json"])?;
        let parsed: serde_json::Value = serde_json::from_str(&text)?;
        Ok(parsed.as_array().cloned().unwrap_or_default())
    }
}

/// A value of a server's metrics; a family is summed over the labels that `filter` accepts.
///
/// # Errors
/// Where the metrics cannot be fetched, or there is none of that name yet.
pub fn server_metric(server: &Server, name: &str, filter: &str) -> Result<f64> {
    metric(&fetch(&server.metrics)?, name, filter)
}

/// What `lazaret fleet …` says.
///
/// # Errors
/// Where the command fails.
pub fn fleet(server: &Server, args: &[&str]) -> Result<serde_json::Value> {
    let mut all = vec!["fleet"];
    all.extend(args);
    all.push("--json");
    Ok(serde_json::from_str(&server.cli(&all)?)?)
}

/// What an opener got, and how long it took.
#[derive(Debug, Clone)]
pub struct Opened {
    /// It could open and read the file.
    pub allowed: bool,
    /// It was refused with EPERM.
    pub denied: bool,
    /// Wall time from the process's start to its end.
    pub took: Duration,
    /// What the process said.
    pub said: String,
}

/// Opens and reads a file from another process.
///
/// # Errors
/// Where the process cannot be started.
pub fn open(path: &Path) -> Result<Opened> {
    Opener::start(path)?.finish()
}

/// A process that opens and reads a file, and may be waiting for that.
#[derive(Debug)]
pub struct Opener {
    child: std::process::Child,
    start: Instant,
}

impl Opener {
    /// Starts one.
    ///
    /// # Errors
    /// Where the process cannot be started.
    pub fn start(path: &Path) -> Result<Self> {
        let start = Instant::now();
        let child = Command::new("cat")
            .arg("--")
            .arg(path)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { child, start })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True while it has no answer.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn waits(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until it has ended; what it got.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn finish(self) -> Result<Opened> {
        let out = self.child.wait_with_output()?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        Ok(Opened {
            allowed: out.status.success(),
            denied: said.contains("Operation not permitted"),
            took: self.start.elapsed(),
            said,
        })
    }
}

/// A folder that goes away with the guard.
///
/// # Errors
/// Where it cannot be made.
pub fn scratch(name: &str) -> Result<TempDir> {
    let prefix = format!("lazaret-{name}-");
    Ok(tempfile::Builder::new().prefix(&prefix).tempdir()?)
}

/// Regular, readable files below these folders in a stable order, at most `max` of at most
/// `size_max_bytes` and at least one byte.
///
/// # Errors
/// Where `find` fails.
pub fn corpus(folders: &[&str], max: usize, size_max_bytes: u64) -> Result<Vec<PathBuf>> {
    let size = format!("-{}c", size_max_bytes + 1);
    let mut find = Command::new("find");
    find.args(folders)
        .args(["-xdev", "-type", "f", "-size", "+0", "-size", &size]);
    let listed = testbed::run(&mut find)?;
    let mut files: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
    files.sort();
    // Spread over the whole list rather than the first letters of it.
    let step = (files.len() / max.max(1)).max(1);
    Ok(files.into_iter().step_by(step).take(max).collect())
}

fn fetch(address: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.starts_with("HTTP/1.1 200"), "metrics: {text}");
    Ok(text)
}

fn metric(text: &str, name: &str, filter: &str) -> Result<f64> {
    let mut sum = None;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        let Some((labels, value)) = rest.rsplit_once(' ') else {
            continue;
        };
        if (labels.is_empty() || labels.starts_with('{')) && labels.contains(filter) {
            *sum.get_or_insert(0.0) += value.parse::<f64>()?;
        }
    }
    sum.with_context(|| format!("no metric {name} with {filter:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_labels() {
        let text = "# HELP a\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\"} 4\na_total_more 9\n";
        assert_eq!(metric(text, "a_total", "").unwrap(), 7.0);
        assert_eq!(metric(text, "a_total", "x=\"2\"").unwrap(), 4.0);
        assert!(metric(text, "b", "").is_err());
    }
}
