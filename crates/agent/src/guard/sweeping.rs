//! The turn of the sweep over what was open before the start: its thread works, the keeper asks.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daemon::signal::Stop;

use crate::bell::Bell;

/// How often one that waits for its turn looks whether the agent stops.
const GLANCE: Duration = Duration::from_secs(1);

/// What the two tell each other.
#[derive(Debug, Default)]
pub(crate) struct Sweeping {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_under_way: bool,
    may: bool,
}

/// A sweep that is under way, until this is dropped.
pub(crate) struct UnderWay<'a> {
    sweeping: &'a Sweeping,
    bell: &'a Bell,
}

impl Sweeping {
    /// A sweep begins: the keeper hears of it, and when it is over.
    pub(crate) fn begin<'a>(&'a self, bell: &'a Bell) -> UnderWay<'a> {
        self.lock().is_under_way = true;
        bell.ring();
        let sweeping = self;
        UnderWay { sweeping, bell }
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.lock().is_under_way
    }

    /// Whether it is its turn.
    pub(crate) fn allow(&self, may: bool) {
        let mut state = self.lock();
        // One that is over leaves nothing to the next.
        state.may = may && state.is_under_way;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay<'_> {
    /// Returns when it is its turn, or the agent stops.
    pub(crate) fn wait(&self, stop: &Stop) {
        let mut state = self.sweeping.lock();
        while !state.may && !stop.is_set() {
            let woken = self.sweeping.changed.wait_timeout(state, GLANCE);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.sweeping.lock() = State::default();
        self.bell.ring();
    }
}
