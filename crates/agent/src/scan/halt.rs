//! When a scan ends before its end.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use daemon::signal::Stop;

/// Set by a signal, or by the scan itself with a reason.
pub(crate) struct Halt {
    stop: Stop,
    reason: Mutex<Option<String>>,
}

impl Halt {
    pub(crate) fn new(stop: Stop) -> Self {
        Self {
            stop,
            reason: Mutex::new(None),
        }
    }

    /// Ends the scan. The first reason counts.
    pub(crate) fn halt(&self, reason: String) {
        self.lock().get_or_insert(reason);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.stop.is_set() || self.lock().is_some()
    }

    /// Why; `None`: the scan was not halted.
    pub(crate) fn reason(&self) -> Option<String> {
        let reason = self.lock().clone();
        reason.or_else(|| self.stop.is_set().then(|| "stopped".to_owned()))
    }

    /// Sleeps, but not much longer than until the scan is halted.
    pub(crate) fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_set() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
