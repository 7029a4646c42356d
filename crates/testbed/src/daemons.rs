//! `lazaret up` and `lazaret appliance`, with the configuration an operator would write.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Process, Spawn, free_port_on, run};

/// No daemon takes longer to be ready: a test hangs otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

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

/// The project's own rules.
#[must_use]
pub fn rules_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rules")
}
