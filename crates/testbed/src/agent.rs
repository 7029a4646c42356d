//! `lazaret-agent run`, with the configuration an operator would write.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::daemons::PATIENCE;
use crate::{Netns, Process, Server, Spawn, binary, free_port_on, run, wait_until};

/// A filter is fetched within a minute after it was offered; compiling rules may come before that.
const FILTER_PATIENCE: Duration = Duration::from_secs(900);

/// How to run an agent.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Folders to guard. Their whole file systems are marked: never the machine's root.
    pub guard: Vec<PathBuf>,
    /// Further configuration, TOML; its tables must not repeat `[guard]`, `[appliance]`.
    pub extra: String,
    /// Further lines of the `[guard]` table.
    pub guard_extra: String,
    /// Further lines of the `[appliance]` table.
    pub appliance_extra: String,
    /// One process instead of two: what a supervisor prevents, and what it costs.
    pub unsupervised: bool,
    /// In a mount namespace of its own, as `PrivateTmp=yes` makes one.
    pub private_mounts: bool,
    /// What the firmware of its VM says the VM is, as a hypervisor would have it. Empty: whatever
    /// this machine's says.
    pub system_uuid: String,
}

/// Runs the rest of its arguments where the firmware has the uuid of the first.
const WITH_UUID: &str = "mount -t tmpfs none /sys/class && mkdir -p /sys/class/dmi/id && \
                         echo \"$1\" > /sys/class/dmi/id/product_uuid && shift && exec \"$@\"";

/// A running `lazaret-agent run`.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    dir: PathBuf,
    unsupervised: bool,
    private_mounts: bool,
    system_uuid: String,
    /// A process that we did not start has taken over.
    is_adopted: bool,
    /// Where metrics are served, host:port, in the agent's network namespace.
    pub metrics: String,
}

impl Agent {
    /// Enrols and starts an agent in `dir` (made where it is missing), inside `netns` where given.
    ///
    /// # Errors
    /// Where it cannot enrol or is not ready and connected within a minute.
    pub fn start(
        dir: &Path,
        server: &Server,
        options: &AgentOptions,
        netns: Option<&Netns>,
    ) -> Result<Self> {
        let mut agent = Self::enrol(dir, server, options, netns)?;
        agent.restart(netns)?;
        Ok(agent)
    }

    /// Enrols an agent and leaves it at that: enough for on-demand scans.
    ///
    /// # Errors
    /// Where it cannot enrol.
    pub fn enrol(
        dir: &Path,
        server: &Server,
        options: &AgentOptions,
        netns: Option<&Netns>,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let agent = Self {
            process: None,
            dir: dir.to_owned(),
            unsupervised: options.unsupervised,
            private_mounts: options.private_mounts,
            system_uuid: options.system_uuid.clone(),
            is_adopted: false,
            metrics: format!("127.0.0.1:{}", free_port_on("127.0.0.1")?),
        };
        let text = format!(
            "state_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n\n\
             [appliance]\naddresses = [\"{}\"]\n{}\n\n[guard]\ninclude = {:?}\nstanding_filesystems = {:?}\n{}\n\n\
             [metrics]\nlisten = \"{}\"\n\n{}",
            server.link,
            options.appliance_extra,
            options.guard,
            options.guard,
            options.guard_extra,
            agent.metrics,
            options.extra,
            dir = dir.display(),
        );
        std::fs::write(agent.config(), text)?;
        let program = binary("lazaret-agent")?;
        let mut enrol = enrolling(&program, &options.system_uuid, netns);
        enrol
            .args(["enrol", "--controller", &server.enrol, "--token"])
            .arg(server.token()?)
            .arg("--config")
            .arg(agent.config());
        run(&mut enrol)?;
        Ok(agent)
    }

    /// Starts it again with the same state, and waits for its link.
    ///
    /// # Errors
    /// Where it is not ready and connected within a minute.
    pub fn restart(&mut self, netns: Option<&Netns>) -> Result<()> {
        let program = binary("lazaret-agent")?;
        let log = self.dir.join("agent.log");
        let uuid = &self.system_uuid;
        let under = |spawn: Spawn| match uuid.as_str() {
            "" => spawn.args(["--mount", "--propagation", "slave", "--"]),
            uuid => spawn.args(with_uuid(uuid)),
        };
        let has_own_mounts = self.private_mounts || !uuid.is_empty();
        let spawn = match netns {
            Some(net) if has_own_mounts => {
                under(net.spawn("agent", Path::new("unshare"), &log)).arg(&program)
            }
            Some(net) => net.spawn("agent", &program, &log),
            None if has_own_mounts => under(Spawn::new("agent", "unshare", &log)).arg(&program),
            None => Spawn::new("agent", &program, &log),
        };
        let process = spawn
            // As its systemd unit does: its memory is measured as it ships.
            .env("MALLOC_ARENA_MAX", "2")
            .arg("run")
            .args(self.unsupervised.then_some("--unsupervised"))
            .arg("--config")
            .arg(self.config())
            .start_ready(PATIENCE)?;
        self.process = Some(process);
        let is_up = wait_until(PATIENCE, || {
            self.status().is_ok_and(|status| status["link"] == "up")
        });
        ensure!(is_up, "the agent has no link after {PATIENCE:?}");
        Ok(())
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Where its state is kept.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The process.
    ///
    /// # Panics
    /// Where it does not run.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent runs")
    }

    /// What `lazaret-agent status --json` says.
    ///
    /// # Errors
    /// Where the agent does not answer.
    pub fn status(&self) -> Result<serde_json::Value> {
        let text = self.cli(&["status", "--json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until it has the appliance's filter.
    ///
    /// # Errors
    /// It does not fetch it.
    pub fn until_filtered(&self) -> Result<()> {
        let is_there = wait_until(FILTER_PATIENCE, || {
            let status = self.status();
            status.is_ok_and(|status| status["reports"]["in_force"] == true)
        });
        ensure!(is_there, "no filter was fetched in {FILTER_PATIENCE:?}");
        Ok(())
    }

    /// Runs a `lazaret-agent` command with its configuration and gives its standard output.
    ///
    /// # Errors
    /// Where the command fails.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("lazaret-agent")?);
        command.args(args).arg("--config").arg(self.config());
        run(&mut command)
    }

    /// Ends both its processes by SIGKILL: nobody guards any more.
    ///
    /// # Errors
    /// Where they cannot be found or waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            // Stopped first, so that neither brings the other back.
            process.freeze()?;
            for worker in children_of(process.pid())? {
                kill_process(worker, Signal::KILL)?;
            }
            process.kill()?;
        }
        Ok(())
    }

    /// The processes of the agent now: supervisor and worker.
    ///
    /// # Errors
    /// Where the agent does not answer.
    pub fn pids(&self) -> Result<AgentPids> {
        let status = self.status()?;
        let pid = |key: &str| {
            let number = status["supervisor"][key]
                .as_i64()
                .context("no supervisor")?;
            Pid::from_raw(i32::try_from(number)?).context("no process")
        };
        Ok(AgentPids {
            supervisor: pid("pid")?,
            worker: pid("worker_pid")?,
        })
    }

    /// Kills the supervisor alone. Its worker goes on, and another supervisor takes over, which
    /// is no child of ours.
    ///
    /// # Errors
    /// Where it cannot be killed.
    pub fn kill_supervisor(&mut self) -> Result<()> {
        let supervisor = self.pids()?.supervisor;
        if let Some(process) = self.process.take() {
            process.kill()?;
        } else {
            kill_process(supervisor, Signal::KILL)?;
        }
        self.is_adopted = true;
        Ok(())
    }

    fn stop_adopted(&mut self) -> Result<()> {
        self.is_adopted = false;
        let mut pids = None;
        // One that is just starting answers soon.
        wait_until(PATIENCE, || {
            pids = self.pids().ok();
            pids.is_some()
        });
        let pids = pids.context("the agent does not answer")?;
        kill_process(pids.supervisor, Signal::TERM)?;
        let is_gone = |pid: Pid| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
        let gone = wait_until(PATIENCE, || {
            is_gone(pids.supervisor) && is_gone(pids.worker)
        });
        ensure!(gone, "the agent does not end");
        Ok(())
    }

    /// Ends it by SIGTERM and checks that it calls that a success.
    ///
    /// # Errors
    /// Where it ends otherwise.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            let status = process.stop()?;
            ensure!(status.success(), "lazaret-agent ended with {status}");
        }
        if self.is_adopted {
            self.stop_adopted()?;
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.is_adopted
            && let Err(error) = self.stop_adopted()
        {
            eprintln!("{error}");
        }
    }
}

/// What `unshare` is to do before the program that follows.
fn with_uuid(system_uuid: &str) -> [&str; 8] {
    [
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-ec",
        WITH_UUID,
        "sh",
        system_uuid,
    ]
}

/// The program where it is to enrol.
fn enrolling(program: &Path, system_uuid: &str, netns: Option<&Netns>) -> Command {
    let command = |program: &Path| match netns {
        Some(net) => net.command(program),
        None => Command::new(program),
    };
    if system_uuid.is_empty() {
        return command(program);
    }
    let mut command = command(Path::new("unshare"));
    command.args(with_uuid(system_uuid)).arg(program);
    command
}

/// The two processes of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentPids {
    /// Holds the group.
    pub supervisor: Pid,
    /// Judges.
    pub worker: Pid,
}

fn children_of(pid: u32) -> Result<Vec<Pid>> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let pids = children.split_whitespace().map(str::parse);
    let pids: Vec<i32> = pids.collect::<Result<_, _>>()?;
    Ok(pids.into_iter().filter_map(Pid::from_raw).collect())
}
