//! Child processes that end with their guard.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Usage;

/// Time a process has to end by itself when its guard is dropped.
const STOP_TIME: Duration = Duration::from_secs(60);

/// Where a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// Wherever the scheduler puts it.
    Free,
    /// On this processor alone, with all its children.
    Cpu(usize),
}

impl Pin {
    /// Runs `what` with this thread, and whatever it starts, pinned.
    ///
    /// # Errors
    /// The processor does not exist, or `what` failed.
    pub fn apply<T>(self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        let Self::Cpu(cpu) = self else {
            return what();
        };
        let before = sched_getaffinity(None)?;
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set).with_context(|| format!("cannot run on processor {cpu}"))?;
        let result = what();
        sched_setaffinity(None, &before)?;
        result
    }
}

/// How to start a process.
#[derive(Debug)]
pub struct Spawn {
    name: String,
    command: Command,
    log: PathBuf,
    pin: Pin,
}

impl Spawn {
    /// `name` is for messages; standard output and error go to `log`.
    pub fn new(name: &str, program: impl AsRef<OsStr>, log: impl Into<PathBuf>) -> Self {
        // The kernel ends it when we are killed and cannot. (It forgets that for a program that
        // changes its user.)
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(program);
        Self {
            name: name.to_owned(),
            command,
            log: log.into(),
            pin: Pin::Free,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Where it runs.
    #[must_use]
    pub fn pin(mut self, pin: Pin) -> Self {
        self.pin = pin;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(mut self) -> Result<Process> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        // A group of its own: Ctrl-C reaches us alone, and we stop it in order.
        self.command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let (name, pin) = (&self.name, self.pin);
        let child = pin.apply(|| {
            self.command
                .spawn()
                .with_context(|| format!("cannot start {name}"))
        })?;
        Ok(Process {
            name: self.name,
            child,
            log: self.log,
        })
    }

    /// Starts it and waits until it says READY as to a service manager.
    ///
    /// # Errors
    /// It cannot be started, ends, or is not ready in time; with the end of its log.
    pub fn start_ready(mut self, give_up: Duration) -> Result<Process> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("notify");
        let listener = UnixDatagram::bind(&socket)?;
        listener.set_read_timeout(Some(Duration::from_millis(20)))?;
        self.command.env("NOTIFY_SOCKET", &socket);
        let mut process = self.start()?;
        let deadline = Instant::now() + give_up;
        let mut message = [0; 4096];
        loop {
            if let Ok(n) = listener.recv(&mut message)
                && message[..n]
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"READY=1")
            {
                let _closed = listener.shutdown(Shutdown::Both);
                return Ok(process);
            }
            if let Some(status) = process.child.try_wait()? {
                bail!("{} ended: {status}\n{}", process.name, process.log_tail());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} is not ready after {give_up:?}\n{}",
                    process.name,
                    process.log_tail()
                );
            }
        }
    }
}

/// A running process. Dropped, it is asked to end, and killed if it does not.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its output.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// True while it runs.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it and all its descendants have used until now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage::of_tree(self.pid())
    }

    /// Sends it a signal; one that has ended is left alone.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Not reaped yet, so the number is still its own.
        if self.is_running()? {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal)?;
        }
        Ok(())
    }

    /// Stops it as a debugger would: on return none of its threads runs any more. The signal alone
    /// takes effect some time later on a busy machine.
    ///
    /// # Errors
    /// It has ended, or does not stop within ten seconds.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let tasks = format!("/proc/{}/task", self.child.id());
        let stopped = crate::wait_until(Duration::from_secs(10), || all_stopped(Path::new(&tasks)));
        ensure!(stopped, "{tasks}: a thread still runs after SIGSTOP");
        Ok(())
    }

    /// Asks it to end and waits; kills it where it takes longer than ten seconds.
    ///
    /// # Errors
    /// It had to be killed.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.end()
    }

    /// Kills it at once, as a crash would.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    fn end(&mut self) -> Result<ExitStatus> {
        // A stopped process takes no other signal before this one.
        self.signal(Signal::CONT)?;
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIME;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("{} did not end in {STOP_TIME:?} and was killed", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error}");
        }
    }
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// It cannot start or it fails; the message holds what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !out.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Asks every few milliseconds until it is true; false when time is up.
pub fn wait_until(give_up: Duration, mut is_true: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + give_up;
    loop {
        if is_true() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Every thread of this folder of /proc is in state T.
fn all_stopped(tasks: &Path) -> bool {
    let Ok(tasks) = std::fs::read_dir(tasks) else {
        return false;
    };
    let stopped = |stat: String| stat.rsplit(')').next().is_some_and(|s| s.starts_with(" T"));
    let mut threads = tasks.flatten().map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat"));
        stat.is_ok_and(stopped)
    });
    threads.all(|is_stopped| is_stopped)
}
