//! PostgreSQL and Redis, each with nothing but what a test puts there, on unix sockets of their
//! own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{Process, Spawn, run, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// PostgreSQL refuses to run as root.
const USER: &str = "postgres";
const AS_USER: [&str; 6] = ["--reuid", USER, "--regid", USER, "--clear-groups", "--"];

/// A running PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    dir: TempDir,
    programs: PathBuf,
}

impl Postgres {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// Not root, PostgreSQL is not installed, or it does not answer within a minute.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lazaret-pg-").tempdir()?;
        let programs = newest_programs()?;
        run(Command::new("chown").arg(USER).arg(dir.path()))?;
        let mut initdb = Command::new("setpriv");
        initdb.args(AS_USER).arg(programs.join("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        run(initdb
            .args(["--username=lazaret", "--pgdata"])
            .arg(dir.path().join("data")))?;
        let mut server = Self {
            process: None,
            dir,
            programs,
        };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again after [`stop`](Self::stop).
    ///
    /// # Errors
    /// It does not answer within a minute.
    pub fn restart(&mut self) -> Result<()> {
        let dir = self.dir.path();
        let mut process = Spawn::new("postgres", "setpriv", dir.join("postgres.log"))
            .args(AS_USER)
            .arg(self.programs.join("postgres"))
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"])
            .arg(dir)
            .arg("-D")
            .arg(dir.join("data"))
            .start()?;
        let is_up = wait_until(PATIENCE, || {
            self.sql("SELECT 1").is_ok() || !process.is_running().unwrap_or(false)
        });
        ensure!(
            is_up && process.is_running()?,
            "postgres does not answer\n{}",
            process.log_tail()
        );
        self.process = Some(process);
        Ok(())
    }

    /// Ends it; clients are thrown out.
    ///
    /// # Errors
    /// It had to be killed.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::INT)?;
            process.stop()?;
        }
        Ok(())
    }

    /// The process.
    ///
    /// # Panics
    /// Where it does not run.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("postgres runs")
    }

    /// How to connect.
    #[must_use]
    pub fn url(&self) -> String {
        let socket = self.dir.path().display();
        format!("postgres://lazaret@localhost/postgres?host={socket}")
    }

    /// Runs statements and gives what they print, columns apart by `|`.
    ///
    /// # Errors
    /// It fails.
    pub fn sql(&self, statements: &str) -> Result<String> {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-U", "lazaret", "-d", "postgres", "-X", "-q", "-A", "-t"]);
        psql.args(["-v", "ON_ERROR_STOP=1", "-h"])
            .arg(self.dir.path());
        run(psql.arg("-c").arg(statements))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error}");
        }
    }
}

/// Debian's folder of the newest version installed.
fn newest_programs() -> Result<PathBuf> {
    let root = "/usr/lib/postgresql";
    let versions =
        std::fs::read_dir(root).with_context(|| format!("{root}: is PostgreSQL installed?"))?;
    let newest = versions
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max();
    let newest = newest.with_context(|| format!("{root}: no version in it"))?;
    Ok(PathBuf::from(format!("{root}/{newest}/bin")))
}

/// A running Redis (or Valkey, where `redis-server` is one).
#[derive(Debug)]
pub struct Redis {
    process: Option<Process>,
    dir: TempDir,
}

impl Redis {
    /// Starts an empty one that keeps nothing on disk.
    ///
    /// # Errors
    /// `redis-server` is not installed, or does not answer within a minute.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("lazaret-redis-")
            .tempdir()?;
        let mut server = Self { process: None, dir };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again, empty.
    ///
    /// # Errors
    /// It does not answer within a minute.
    pub fn restart(&mut self) -> Result<()> {
        let dir = self.dir.path();
        let mut process = Spawn::new("redis", "redis-server", dir.join("redis.log"))
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--unixsocket")
            .arg(self.socket())
            .arg("--dir")
            .arg(dir)
            .start()?;
        let is_up = wait_until(PATIENCE, || {
            self.command("PING").is_ok() || !process.is_running().unwrap_or(false)
        });
        ensure!(
            is_up && process.is_running()?,
            "redis does not answer\n{}",
            process.log_tail()
        );
        self.process = Some(process);
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// It had to be killed.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.stop()?;
        }
        Ok(())
    }

    /// How to connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// Runs an inline command and gives the first line of the answer.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn command(&self, line: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{line}\r\n").as_bytes())?;
        let mut answer = [0; 512];
        let n = stream.read(&mut answer)?;
        ensure!(n > 0, "redis said nothing");
        let text = String::from_utf8_lossy(&answer[..n]).into_owned();
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}
