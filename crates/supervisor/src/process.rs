//! Processes by number and start: a number alone may be another's by now.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that may have ended, but is never mistaken for another.
#[derive(Debug)]
pub struct Process(OwnedFd);

/// Clock ticks a second in `/proc/PID/stat`, the same on every Linux.
const TICKS_PER_S: u64 = 100;

impl Process {
    /// Whoever has this number now. Opens no file.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(Self)
    }

    /// True if it, whose number is `pid` as long as it has not been waited for, started no later
    /// than so long after the boot, to a clock tick. Within one tick no number comes twice.
    #[must_use]
    pub fn started_before(&self, pid: i32, since_boot: Duration) -> bool {
        let start = Pid::from_raw(pid).and_then(start_of);
        let tick_ms = 1000 / TICKS_PER_S;
        let latest = u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX) / tick_ms;
        // In this order: a number passes on only after the end.
        start.is_some_and(|start| start <= latest) && !self.has_ended(Duration::ZERO)
    }

    /// The process with this number, if it is the one that started then.
    pub(crate) fn find(pid: i32, start: u64) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let found = Self(pidfd);
        // In this order: the number cannot have passed to another between the two. One that nobody
        // has waited for yet still has its number.
        (start_of(pid) == Some(start) && !found.has_ended(Duration::ZERO)).then_some(found)
    }

    /// Kills it.
    pub fn kill(&self) {
        // One that has ended needs no signal.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Stops it, like a terminal's Ctrl-Z that cannot be caught.
    pub(crate) fn stop(&self) {
        // One that has ended runs no more anyway.
        let _ = pidfd_send_signal(&self.0, Signal::STOP);
    }

    /// True once it has ended; waits for that for so long.
    #[must_use]
    pub fn has_ended(&self, within: Duration) -> bool {
        let mut sources = [PollFd::new(&self.0, PollFlags::IN)];
        let within = Timespec::try_from(within).unwrap_or_default();
        let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, Some(&within)));
        polled.is_ok_and(|ready| ready > 0)
    }

    /// Sleeps until it has ended.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut sources = [PollFd::new(&self.0, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None))?;
        Ok(())
    }

    /// A duplicate of a descriptor of its table.
    pub(crate) fn descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        let flags = rustix::process::PidfdGetfdFlags::empty();
        Ok(rustix::process::pidfd_getfd(self.0.as_fd(), number, flags)?)
    }
}

/// How long ago the boot was.
#[must_use]
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

/// When a process started, in clock ticks since the boot.
pub(crate) fn start_of(pid: Pid) -> Option<u64> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let stat = std::fs::read_to_string(path).ok()?;
    // The name may hold anything, parentheses too.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

/// True if every thread of this process is stopped.
pub(crate) fn rests(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    let is_stopped = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
        let (_, after) = stat.rsplit_once(')')?;
        Some(after.trim_start().starts_with('T'))
    };
    // A thread that cannot be read has ended; one that did not see the stop yet is told by its state.
    threads
        .into_iter()
        .all(|thread| is_stopped(thread).unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_of_the_same_number_is_not_found() {
        let pid = rustix::process::getpid();
        let start = start_of(pid).unwrap();
        let number = pid.as_raw_nonzero().get();
        let own = Process::find(number, start).unwrap();
        assert!(!own.has_ended(Duration::ZERO));
        assert!(Process::find(number, start + 1).is_none());
        assert!(Process::find(0, start).is_none());
    }

    #[test]
    fn a_stopped_process_rests() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let number = Pid::from_child(&child).as_raw_nonzero().get();
        let found = Process::of(number).unwrap();
        assert!(!rests(number));
        found.stop();
        while !rests(number) {
            std::thread::yield_now();
        }
        assert!(!found.has_ended(Duration::ZERO));
        found.kill();
        child.wait().unwrap();
        assert!(!rests(number), "there is none");
    }

    #[test]
    fn the_end_is_seen() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let found = Process::find(pid.as_raw_nonzero().get(), start_of(pid).unwrap()).unwrap();
        found.kill();
        assert!(found.has_ended(Duration::from_secs(10)));
        child.wait().unwrap();
    }
}
