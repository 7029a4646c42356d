//! `lazaret up` and `lazaret-agent run`, with the configuration an operator would write.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Netns, Process, Spawn, free_port_on, run, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// The path of one of our binaries: beside the running one (tests run from `deps/` below), or in
/// the folder that `LAZARET_BIN_DIR` names.
///
/// # Errors
/// Where it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("LAZARET_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let here = std::env::current_exe()?;
            let dir = here.parent().context("no folder")?;
            let below = dir.file_name().is_some_and(|name| name == "deps");
            let dir = if below { dir.parent() } else { Some(dir) };
            dir.context("no folder")?.to_owned()
        }
    };
    let path = dir.join(name);
    ensure!(
        path.is_file(),
        "{} is not built: run `cargo build --release --bins`",
        path.display()
    );
    Ok(path)
}

/// How to run the server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The address to listen on.
    pub address: String,
    /// Rule files or folders for YARA-X; empty: no YARA-X.
    pub rules: Vec<PathBuf>,
    /// A clamd's unix socket.
    pub clamd: Option<PathBuf>,
    /// Further lines of `[engine.yara]`.
    pub yara_extra: String,
    /// Further configuration, TOML. Its tables must not repeat `[listen]` and `[engine]`.
    pub extra: String,
    /// Runs in this network namespace, on ports of its own choice.
    pub netns: Option<String>,
    /// How long it may take to be ready; large rule sets are compiled first.
    pub patience: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: "127.0.0.1".to_owned(),
            rules: vec![rules_dir()],
            clamd: None,
            yara_extra: String::new(),
            extra: String::new(),
            netns: None,
            patience: PATIENCE,
        }
    }
}

/// A running `lazaret up`.
#[derive(Debug)]
pub struct Server {
    process: Option<Process>,
    patience: Duration,
    dir: PathBuf,
    netns: Option<String>,
    /// Where agents connect, host:port.
    pub link: String,
    /// Where agents enrol, host:port.
    pub enrol: String,
    /// Where metrics are served, host:port.
    pub metrics: String,
}

impl Server {
    /// Configures and starts a server in `dir` (made where it is missing).
    ///
    /// # Errors
    /// Where it is not ready within a minute; the message holds the end of its log.
    pub fn start(dir: &Path, options: &ServerOptions) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let [link, enrol, metrics] = match &options.netns {
            // A namespace made for it: nobody else listens there.
            Some(_) => [7443, 7444, 9640],
            None => [
                free_port_on(&options.address)?,
                free_port_on(&options.address)?,
                free_port_on("127.0.0.1")?,
            ],
        };
        let address = |port| format!("{}:{port}", options.address);
        let mut server = Self {
            process: None,
            patience: options.patience,
            dir: dir.to_owned(),
            netns: options.netns.clone(),
            link: address(link),
            enrol: address(enrol),
            metrics: format!("127.0.0.1:{metrics}"),
        };
        server.configure(options)?;
        server.restart()?;
        Ok(server)
    }

    /// Writes its configuration anew; [`restart`](Self::restart) or a reload makes it count.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn configure(&self, options: &ServerOptions) -> Result<()> {
        let dir = self.dir.display();
        let mut text = format!(
            "state_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n\n\
             [listen]\nlink = \"{}\"\nenrol = \"{}\"\nmetrics = \"{}\"\n",
            self.link, self.enrol, self.metrics
        );
        if !options.rules.is_empty() {
            let more = &options.yara_extra;
            writeln!(text, "\n[engine.yara]\nrules = {:?}\n{more}", options.rules)?;
        }
        if let Some(socket) = &options.clamd {
            writeln!(text, "\n[engine.clamd]\nsocket = {socket:?}")?;
            // Beside its socket, as `Clamd` of this crate has it.
            let database = socket.with_file_name("db");
            if database.is_dir() {
                writeln!(text, "database = [{database:?}]")?;
            }
        }
        write!(text, "\n{}", options.extra)?;
        std::fs::write(self.config(), text)?;
        Ok(())
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop), same addresses and state.
    ///
    /// # Errors
    /// Where it is not ready within a minute.
    pub fn restart(&mut self) -> Result<()> {
        let log = self.dir.join("lazaret.log");
        let program = binary("lazaret")?;
        let process = spawn_in(self.netns.as_deref(), "lazaret", &program, &log)
            .args(["up", "--config"])
            .arg(self.config())
            .start_ready(self.patience)?;
        self.process = Some(process);
        Ok(())
    }

    /// The process.
    ///
    /// # Panics
    /// Where it does not run.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server runs")
    }

    /// Ends it by SIGKILL.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// Ends it by SIGTERM and checks that it calls that a success.
    ///
    /// # Errors
    /// Where it ends otherwise.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            let status = process.stop()?;
            ensure!(status.success(), "lazaret ended with {status}");
        }
        Ok(())
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("lazaret.toml")
    }

    /// The socket that it answers administrators on.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.join("run/admin.sock")
    }

    /// Runs a `lazaret` command against it and gives its standard output.
    ///
    /// # Errors
    /// Where the command fails.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("lazaret")?);
        command.args(args).arg("--config").arg(self.config());
        run(&mut command)
    }

    /// A fresh join token.
    ///
    /// # Errors
    /// Where the command fails.
    pub fn token(&self) -> Result<String> {
        Ok(self.cli(&["token"])?.trim().to_owned())
    }
}

/// How to run an appliance apart.
#[derive(Debug, Clone)]
pub struct ApartOptions {
    /// The address to listen on.
    pub address: String,
    /// Where the controller listens for appliances, host:port.
    pub controller: String,
    /// Runs in this network namespace, on ports of its own choice.
    pub netns: Option<String>,
    /// Further lines of the `[fleet]` table.
    pub fleet_extra: String,
}

impl ApartOptions {
    /// On this machine, for the controller at that address.
    #[must_use]
    pub fn of(controller: &str) -> Self {
        Self {
            address: "127.0.0.1".to_owned(),
            controller: controller.to_owned(),
            netns: None,
            fleet_extra: String::new(),
        }
    }
}

/// A running `lazaret appliance`, whose controller is a [`Server`] with `controller.listen`.
#[derive(Debug)]
pub struct Apart {
    process: Option<Process>,
    dir: PathBuf,
    netns: Option<String>,
    /// Where agents connect, host:port.
    pub link: String,
}

impl Apart {
    /// Makes an identity at the controller, configures and starts an appliance in `dir` (made
    /// where it is missing).
    ///
    /// # Errors
    /// Where it is not ready within a minute; the message holds the end of its log.
    pub fn start(dir: &Path, name: &str, server: &Server, options: &ApartOptions) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let identity = server.cli(&["fleet", "identity", name])?;
        let path = dir.join("identity.pem");
        std::fs::write(&path, identity)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let address = &options.address;
        let [link, metrics] = match &options.netns {
            // A namespace made for it: nobody else listens there.
            Some(_) => [7443, 9640],
            None => [free_port_on(address)?, free_port_on("127.0.0.1")?],
        };
        let link = format!("{address}:{link}");
        let text = format!(
            "state_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n\n\
             [listen]\nlink = \"{link}\"\nmetrics = \"127.0.0.1:{metrics}\"\n\n\
             [engine.yara]\nrules = {:?}\n\n\
             [fleet]\ncontrollers = [\"{}\"]\nidentity = {path:?}\n{}",
            [rules_dir()],
            options.controller,
            options.fleet_extra,
            dir = dir.display(),
        );
        std::fs::write(dir.join("lazaret.toml"), text)?;
        let mut apart = Self {
            process: None,
            dir: dir.to_owned(),
            netns: options.netns.clone(),
            link,
        };
        apart.restart()?;
        Ok(apart)
    }

    /// Starts it again after [`kill`](Self::kill), same address and state.
    ///
    /// # Errors
    /// Where it is not ready within a minute.
    pub fn restart(&mut self) -> Result<()> {
        let (program, log) = (binary("lazaret")?, self.dir.join("appliance.log"));
        let process = spawn_in(self.netns.as_deref(), "appliance", &program, &log)
            .args(["appliance", "--config"])
            .arg(self.dir.join("lazaret.toml"))
            .start_ready(PATIENCE)?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it by SIGKILL.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }
}

/// A program in a network namespace, where one is named.
fn spawn_in(netns: Option<&str>, name: &str, program: &Path, log: &Path) -> Spawn {
    match netns {
        Some(netns) => Spawn::new(name, "ip", log)
            .args(["netns", "exec", netns])
            .arg(program),
        None => Spawn::new(name, program, log),
    }
}

/// How to run an agent.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Folders to guard. Their whole file systems are marked: never the machine's root.
    pub guard: Vec<PathBuf>,
    /// Further configuration, TOML; its tables must not repeat `[guard]`, `[appliance]`.
    pub extra: String,
    /// Further lines of the `[guard]` table.
    pub guard_extra: String,
    /// One process instead of two: what a supervisor prevents, and what it costs.
    pub unsupervised: bool,
    /// In a mount namespace of its own, as `PrivateTmp=yes` makes one.
    pub private_mounts: bool,
}

/// A running `lazaret-agent run`.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    dir: PathBuf,
    unsupervised: bool,
    private_mounts: bool,
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
            is_adopted: false,
            metrics: format!("127.0.0.1:{}", free_port_on("127.0.0.1")?),
        };
        let text = format!(
            "state_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n\n\
             [appliance]\naddresses = [\"{}\"]\n\n[guard]\ninclude = {:?}\nstanding_filesystems = {:?}\n{}\n\n\
             [metrics]\nlisten = \"{}\"\n\n{}",
            server.link,
            options.guard,
            options.guard,
            options.guard_extra,
            agent.metrics,
            options.extra,
            dir = dir.display(),
        );
        std::fs::write(agent.config(), text)?;
        let program = binary("lazaret-agent")?;
        let mut enrol = netns.map_or_else(|| Command::new(&program), |net| net.command(&program));
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
        let spawn = match netns {
            Some(net) => net.spawn("agent", &program, &log),
            None if self.private_mounts => Spawn::new("agent", "unshare", &log)
                .args(["--mount", "--propagation", "slave", "--"])
                .arg(&program),
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

/// The project's own rules.
#[must_use]
pub fn rules_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rules")
}
