//! The command line of `lazaret-agent`.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use daemon::log::escape;
use daemon::signal::Stop;
use link::enrol::EnrolError;
use pki::JoinToken;
use quarantine::Listed;
use rustix::fs::{FileType, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use supervisor::Worker;

use crate::credentials::{Credentials, CredentialsError, make_private_dir};
use crate::gate::fallback_of;
use crate::gate::trace;
use crate::guard::probe;
use crate::{Agent, AgentConfig, CONFIG_PATH, control, orders, scan, status};

/// Guards a machine's files: every open is judged by an appliance first.
#[derive(Debug, Parser)]
#[command(name = "lazaret-agent", version)]
pub struct Cli {
    /// The configuration.
    #[arg(long, global = true, default_value = CONFIG_PATH, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Guard what the configuration names, until stopped.
    Run {
        /// One process only, as a measure of what the second costs and prevents: when it dies,
        /// the kernel lets every waiting opener through.
        #[arg(long, hide = true)]
        unsupervised: bool,
    },
    /// Say whether the configuration can be used, and change nothing.
    CheckConfig,
    /// Exchange a join token for this guest's certificate.
    Enrol {
        /// The join token, as `lazaret token` prints it.
        #[arg(long)]
        token: String,
        /// The controller, as host:port.
        #[arg(long)]
        controller: String,
    },
    /// Ask the running agent how it is.
    Status {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Have the running agent become the program that is installed now, without an unguarded
    /// moment. The configuration is read anew.
    Upgrade,
    /// Ask the running agent where the time of the last opens went.
    Trace {
        /// One JSON object for each open, one a line.
        #[arg(long)]
        json: bool,
    },
    /// Try out what this kernel and its file systems really do, and which fast paths of the gate
    /// that bears out. Makes, and removes, a folder on each file system.
    Probe {
        /// One JSON object for each file system, one a line.
        #[arg(long)]
        json: bool,
        /// Only the file systems of these paths; otherwise all that are guarded.
        #[arg(value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Scan files and folders now.
    Scan(scan::ScanArgs),
    /// Look into the quarantine. Only the appliance decides what happens to its items.
    Quarantine {
        #[command(subcommand)]
        command: QuarantineCommand,
    },
    /// Write this program's manual pages into a folder.
    #[command(hide = true)]
    Manual {
        /// Where to.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum QuarantineCommand {
    /// List the items.
    List {
        /// One JSON object for each item, one a line.
        #[arg(long)]
        json: bool,
    },
}

impl Cli {
    /// The exit code where [`run`](Self::run) fails. A scan's 1 says that something was found.
    #[must_use]
    pub fn failure(&self) -> ExitCode {
        match self.command {
            Command::Scan(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// Does what was asked for.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn run(self) -> Result<ExitCode> {
        let Self {
            config: path,
            command,
        } = self;
        let config = || load(&path);
        match command {
            Command::Run { unsupervised: true } => {
                let config = config()?;
                prepare(&config)?;
                guard_here(config, None)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Run { .. } => guard(config()?, &path),
            Command::CheckConfig => {
                config()?;
                say(&format!("{} is good\n", path.display()))
            }
            Command::Enrol { token, controller } => enrol(&config()?, &token, &controller),
            Command::Status { json } => tell_status(&config()?, json),
            Command::Upgrade => upgrade(&config()?),
            Command::Trace { json } => tell_trace(&config()?, json),
            Command::Probe { json, paths } => {
                let told = probe::tell(&config()?, &paths, json).context("the table of mounts")?;
                say(&told)
            }
            Command::Scan(args) => Ok(scan::run(&args, &config()?)),
            Command::Quarantine {
                command: QuarantineCommand::List { json },
            } => list_quarantine(&config()?, json),
            // Made where packages are, which need have no configuration.
            Command::Manual { folder } => {
                daemon::manual::write(Self::command(), &folder)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// The file that was named must exist; the usual place may be empty, for the defaults are usable.
fn load(path: &Path) -> Result<AgentConfig> {
    let config: AgentConfig = if path == Path::new(CONFIG_PATH) && !path.exists() {
        AgentConfig::default()
    } else {
        AgentConfig::load(path)?
    };
    config
        .validate()
        .with_context(|| path.display().to_string())?;
    Ok(config)
}

/// Becomes the supervisor; the worker, which is all the rest, is a clone of it.
fn guard(config: AgentConfig, config_path: &Path) -> Result<ExitCode> {
    prepare(&config)?;
    fanotify::limits::bound_nofile(supervisor::SLOTS as u64).context("descriptors")?;
    make_private_dir(&config.runtime_dir)?;
    let options = supervisor::Options {
        dir: config.runtime_dir.clone(),
        policy: fallback_of(&model::Policy::default()),
        program: std::env::current_exe().context("this program's path")?,
        arguments: std::env::args_os().skip(1).collect(),
        check_arguments: ["check-config".into(), "--config".into(), config_path.into()].into(),
        hooks: supervisor::Hooks {
            ready: daemon::notify::ready,
            stopping: daemon::notify::stopping,
        },
    };
    let code = supervisor::run(options, move |worker| work(config.clone(), worker))?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The worker's life; its exit code.
fn work(config: AgentConfig, worker: Worker) -> i32 {
    match guard_here(config, Some(Arc::new(worker))) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("lazaret-agent: {error:#}");
            1
        }
    }
}

fn prepare(config: &AgentConfig) -> Result<()> {
    never_block(std::io::stderr()).context("standard error")?;
    daemon::log::init(config.log.format, &config.log.filter)?;
    Ok(())
}

fn guard_here(config: AgentConfig, worker: Option<Arc<Worker>>) -> Result<()> {
    let stop = Stop::install().context("cannot catch signals")?;
    let is_alone = worker.is_none();
    let agent = Agent::start_under(config, stop, worker)?;
    if is_alone {
        daemon::notify::ready();
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "guarding");
    agent.wait()?;
    Ok(())
}

/// Has lines be lost where nobody takes them. Whoever takes our log (journald, say) opens files
/// itself: would the thread that reads the kernel's events wait for it, both would wait for ever.
/// A terminal stays as it is, for it is shared with a shell.
fn never_block(log: impl AsFd) -> std::io::Result<()> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&log)?.st_mode);
    if matches!(kind, FileType::Socket | FileType::Fifo) {
        let flags = rustix::fs::fcntl_getfl(&log)?;
        rustix::fs::fcntl_setfl(&log, flags | OFlags::NONBLOCK)?;
    }
    Ok(())
}

fn enrol(config: &AgentConfig, token: &str, controller: &str) -> Result<ExitCode> {
    let token: JoinToken = token.parse()?;
    let enrolled = match Credentials::enrol(config, controller, &token) {
        Err(CredentialsError::Enrol(EnrolError::Pending { .. })) => {
            anyhow::bail!("a person has to approve this guest; once that is done, run this again")
        }
        enrolled => enrolled?,
    };
    say(&format!("enrolled as guest {}\n", enrolled.guest))
}

fn tell_status(config: &AgentConfig, json: bool) -> Result<ExitCode> {
    let told = control::status(&config.control_socket())?;
    if json {
        return say(&format!("{told}\n"));
    }
    say(&status::render(&told))
}

/// How long an upgrade may take.
const UPGRADE_WITHIN: Duration = Duration::from_secs(60);

fn upgrade(config: &AgentConfig) -> Result<ExitCode> {
    let socket = config.control_socket();
    let told = control::status(&socket)?;
    let supervisor = |told: &serde_json::Value, key: &str| told["supervisor"][key].as_i64();
    let pid = supervisor(&told, "pid").context("the running agent has no supervisor")?;
    let before = supervisor(&told, "takeovers");
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.context("the running agent names no process")?;
    kill_process(pid, Signal::HUP).context("the supervisor")?;
    let give_up = Instant::now() + UPGRADE_WITHIN;
    while Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(50));
        // Between the old and the new worker nobody answers.
        let told = control::status(&socket).unwrap_or_default();
        if supervisor(&told, "takeovers") > before {
            let version = told["version"].as_str().unwrap_or_default();
            return say(&format!("version {version} has taken over\n"));
        }
    }
    anyhow::bail!("nothing took over in {UPGRADE_WITHIN:?}; the agent's log says why")
}

fn tell_trace(config: &AgentConfig, json: bool) -> Result<ExitCode> {
    let told = control::trace(&config.control_socket())?;
    if !json {
        return say(&trace::render(&told));
    }
    for open in told.as_array().into_iter().flatten() {
        say(&format!("{open}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list_quarantine(config: &AgentConfig, json: bool) -> Result<ExitCode> {
    let dir = config.quarantine_dir();
    if !dir.exists() {
        return Ok(ExitCode::SUCCESS);
    }
    let vault = orders::open_vault(dir, config.limits.quarantine_bytes_max)?;
    for listed in vault.list()? {
        say(&if json {
            format!("{}\n", item_json(&listed))
        } else {
            item_line(&listed)
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn item_json(listed: &Listed) -> serde_json::Value {
    match listed {
        Listed::Item(item) => {
            let names = item.detections.iter().map(|d| d.name.as_str());
            serde_json::json!({
                "item_id": item.id.to_string(),
                "path": escape(item.path.as_os_str().as_bytes()).to_string(),
                "blake3": item.digest.to_string(),
                "size": item.size,
                "taken_at_s": item.taken.s,
                "detections": names.collect::<Vec<_>>(),
            })
        }
        Listed::Damaged { id, why } => serde_json::json!({
            "item_id": id.to_string(),
            "damaged": why.to_string(),
        }),
    }
}

fn item_line(listed: &Listed) -> String {
    match listed {
        Listed::Item(item) => {
            let name = item.detections.first().map_or("", |d| d.name.as_str());
            let path = escape(item.path.as_os_str().as_bytes());
            format!("{}  {}  {path}\n", item.id, escape(name.as_bytes()))
        }
        Listed::Damaged { id, why } => format!("{id}  damaged: {why}\n"),
    }
}

/// A reader that went away is no failure of ours.
fn say(text: &str) -> Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_log_that_nobody_takes_does_not_stop_us() {
        let (_reader, mut pipe) = std::io::pipe().unwrap();
        let (_peer, mut socket) = std::os::unix::net::UnixStream::pair().unwrap();
        never_block(&pipe).unwrap();
        never_block(&socket).unwrap();
        let line = [b'x'; 1000];
        for log in [&mut pipe as &mut dyn Write, &mut socket] {
            let full = loop {
                if let Err(error) = log.write_all(&line) {
                    break error.kind();
                }
            };
            assert_eq!(full, std::io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_named_configuration_must_exist() {
        assert!(load(Path::new("/nonexistent/agent.toml")).is_err());
    }
}
