//! Giving way to those who wait for the gate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::halt::Halt;

/// Longest pause in one go: a gate that is never idle slows a scan down, it does not stop it.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a paused thread looks whether it may go on.
const GLANCE: Duration = Duration::from_millis(10);

/// Whether openers wait, as last heard from the agent.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    busy: AtomicBool,
}

impl Pace {
    /// Openers wait, or do no more.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Returns when no opener waits, after [`PAUSE_MAX`], or when the scan is halted.
    pub(crate) fn give_way(&self, halt: &Halt) {
        if !self.is_busy() {
            return;
        }
        let since = Instant::now();
        while self.is_busy() && since.elapsed() < PAUSE_MAX && !halt.is_set() {
            std::thread::sleep(GLANCE);
        }
    }
}
