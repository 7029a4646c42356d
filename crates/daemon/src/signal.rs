//! Signals: SIGTERM and SIGINT stop, SIGHUP asks for a reload.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Tells whether, and lets threads wait until, the daemon is asked to stop or to reload. Cheap to
/// clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Has a byte to read once the daemon is asked to stop.
    readable: UnixStream,
    closer: UnixStream,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    stop: bool,
    reloads: u64,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// End cleanly.
    Stop,
    /// Load the configuration again.
    Reload,
}

impl Stop {
    /// Catches SIGTERM, SIGINT and SIGHUP from now on, in a thread of its own.
    ///
    /// # Errors
    /// The handlers or the thread cannot be installed.
    pub fn install() -> io::Result<Self> {
        let stop = Self::manual()?;
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let told = stop.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .stack_size(64 * 1024)
            .spawn(move || {
                for signal in signals.forever() {
                    if signal == SIGHUP {
                        told.reload();
                    } else {
                        told.stop();
                    }
                }
            })?;
        Ok(stop)
    }

    /// One that no signal reaches: for tests and for daemons inside another process.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn manual() -> io::Result<Self> {
        let (readable, closer) = UnixStream::pair()?;
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                readable,
                closer,
            }),
        })
    }

    /// Stops, as a signal would.
    pub fn stop(&self) {
        self.change(|state| state.stop = true);
        // One byte that nobody reads: the descriptor stays readable for every poller.
        let _already = (&self.shared.closer).write(&[0]);
    }

    /// Asks for a reload, as SIGHUP would.
    pub fn reload(&self) {
        self.change(|state| state.reloads += 1);
    }

    /// True once the daemon is asked to stop.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.state().stop
    }

    /// How often a reload was asked for.
    #[must_use]
    pub fn reloads(&self) -> u64 {
        self.state().reloads
    }

    /// Returns when the daemon is asked to stop.
    pub fn wait(&self) {
        let state = self.state();
        let _stopped = self
            .shared
            .changed
            .wait_while(state, |state| !state.stop)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Returns when the daemon is asked to stop, or to reload more often than `reloads_seen`.
    pub fn wait_change(&self, reloads_seen: u64) -> Wake {
        let state = self.state();
        let state = self
            .shared
            .changed
            .wait_while(state, |state| !state.stop && state.reloads <= reloads_seen)
            .unwrap_or_else(PoisonError::into_inner);
        if state.stop { Wake::Stop } else { Wake::Reload }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.changed.notify_all();
    }
}

impl AsFd for Stop {
    /// Readable once the daemon is asked to stop; for `poll`, never to be read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.readable.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Signal, getpid, kill_process};

    fn readable(stop: &Stop) -> bool {
        let mut fds = [PollFd::new(stop, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).expect("poll") == 1
    }

    #[test]
    fn signals_reach_waiters() {
        let stop = Stop::install().expect("install");
        assert!(!stop.is_set() && !readable(&stop));
        kill_process(getpid(), Signal::HUP).expect("kill");
        assert_eq!(stop.wait_change(0), Wake::Reload);
        assert_eq!(stop.reloads(), 1);
        let waiter = std::thread::spawn({
            let stop = stop.clone();
            move || stop.wait()
        });
        kill_process(getpid(), Signal::TERM).expect("kill");
        waiter.join().expect("join");
        assert!(stop.is_set());
        assert_eq!(stop.wait_change(1), Wake::Stop);
    }

    #[test]
    fn the_descriptor_stays_readable() {
        let stop = Stop::manual().expect("manual");
        assert!(!readable(&stop));
        stop.stop();
        stop.stop();
        assert!(readable(&stop) && readable(&stop));
    }
}
