//! The service manager: readiness, status, and a watchdog fed by progress. Without one
//! (`NOTIFY_SOCKET` unset) everything here does nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

/// Says that the daemon does its work from now on.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// Says that the daemon is about to end.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Says in a line for people what the daemon does; `systemctl status` shows it.
pub fn status(text: &str) {
    let line = crate::log::escape(text.as_bytes()).to_string();
    send(&[NotifyState::Status(&line)]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "service manager");
    }
}

/// What a daemon has done, counted where the work happens. Never blocks.
#[derive(Debug, Default)]
pub struct Progress {
    beats: AtomicU64,
    begun: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    /// Nothing done, nothing to do.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The main loop went round. A loop that waits for work wakes up at least once in
    /// [`Watchdog::beat_within`] to say so: that is the proof that an idle daemon is alive.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// A piece of work begins; it is done when the guard is dropped, however it ended.
    pub fn work(self: &Arc<Self>) -> Work {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Work(self.clone())
    }

    fn seen(&self) -> Seen {
        // `done` first: read the other way round, work that ends in between looks like more
        // done than begun.
        let done = self.done.load(Ordering::Acquire);
        Seen {
            beats: self.beats.load(Ordering::Acquire),
            begun: self.begun.load(Ordering::Acquire),
            done,
        }
    }
}

/// A piece of work under way.
#[derive(Debug)]
pub struct Work(Arc<Progress>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.done.fetch_add(1, Ordering::Release);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    beats: u64,
    begun: u64,
    done: u64,
}

impl Seen {
    /// Alive: the main loop went round, and some work ended or none waits.
    fn alive_since(self, before: Self) -> bool {
        self.beats != before.beats && (self.done != before.done || self.begun == self.done)
    }
}

/// The service manager's watchdog: unless it hears from us in time it restarts the daemon.
#[derive(Debug)]
pub struct Watchdog {
    timeout: Duration,
}

impl Watchdog {
    /// The watchdog that the service manager set for this process, if any.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        sd_notify::watchdog_enabled().map(|timeout| Self { timeout })
    }

    /// A loop must call [`Progress::beat`] at least this often.
    #[must_use]
    pub fn beat_within(&self) -> Duration {
        self.timeout / 4
    }

    /// Pings as long as there is progress: never by a timer alone, so that a daemon whose loop
    /// hangs or whose work does not end is restarted.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn fed_by(self, progress: Arc<Progress>) -> io::Result<()> {
        std::thread::Builder::new()
            .name("watchdog".into())
            .stack_size(64 * 1024)
            .spawn(move || {
                let mut before = progress.seen();
                loop {
                    std::thread::sleep(self.timeout / 3);
                    let now = progress.seen();
                    if now.alive_since(before) {
                        send(&[NotifyState::Watchdog]);
                    } else {
                        tracing::warn!(?before, ?now, "no progress; the watchdog is not fed");
                    }
                    before = now;
                }
            })
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_is_idle_or_moving() {
        let progress = Progress::new();
        let start = progress.seen();
        assert!(!progress.seen().alive_since(start), "no beat");
        progress.beat();
        assert!(
            progress.seen().alive_since(start),
            "idle, and the loop runs"
        );

        let slow = progress.work();
        let before = progress.seen();
        progress.beat();
        assert!(
            !progress.seen().alive_since(before),
            "work waits, none ends"
        );
        drop(progress.work());
        assert!(progress.seen().alive_since(before), "some work ends");
        drop(slow);
        let before = progress.seen();
        assert!(!progress.seen().alive_since(before), "the loop hangs");
    }
}
