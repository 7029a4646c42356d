//! Which files are done: they end out of order, a position needs them in order.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::totals::Totals;
use super::walk::Position;

/// Numbers what the walk meets and finds the last thing before which all is done.
#[derive(Debug)]
pub(crate) struct Tracker {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What was met and does not yet count, oldest first.
    open: VecDeque<Slot>,
    /// Number of the first of them.
    first: u64,
    /// Counts of all before them.
    totals: Totals,
    /// The last thing before them.
    position: Position,
}

#[derive(Debug)]
struct Slot {
    position: Position,
    done: Option<Totals>,
}

/// What is done for good, and what is done at all.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) position: Position,
    /// Up to the position.
    pub(crate) totals: Totals,
    /// With what is done beyond it.
    pub(crate) totals_now: Totals,
}

impl Tracker {
    /// Goes on from there.
    pub(crate) fn new(position: Position, totals: Totals) -> Self {
        Self {
            state: Mutex::new(State {
                open: VecDeque::new(),
                first: 0,
                totals,
                position,
            }),
        }
    }

    /// Something was met; the number names it.
    pub(crate) fn met(&self, position: Position) -> u64 {
        let mut state = self.lock();
        let done = None;
        state.open.push_back(Slot { position, done });
        state.first + state.open.len() as u64 - 1
    }

    /// It is done, and counts so much.
    pub(crate) fn done(&self, number: u64, counts: Totals) {
        let mut state = self.lock();
        let index = number.checked_sub(state.first);
        let index = index.and_then(|index| usize::try_from(index).ok());
        if let Some(slot) = index.and_then(|index| state.open.get_mut(index)) {
            slot.done = Some(counts);
        }
        while let Some(counts) = state.open.front().and_then(|slot| slot.done) {
            state.totals.add(&counts);
            state.first += 1;
            if let Some(slot) = state.open.pop_front() {
                state.position = slot.position;
            }
        }
    }

    /// How far things are.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let mut totals_now = state.totals;
        for counts in state.open.iter().filter_map(|slot| slot.done.as_ref()) {
            totals_now.add(counts);
        }
        Snapshot {
            position: state.position.clone(),
            totals: state.totals,
            totals_now,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_only_passes_what_is_done() {
        let position = |n: u64| Position {
            root: 0,
            path: n.to_string().into(),
        };
        let one = Totals {
            files: 1,
            ..Totals::default()
        };
        let tracker = Tracker::new(Position::default(), Totals::default());
        for number in 0..4 {
            assert_eq!(tracker.met(position(number)), number);
        }
        let state = || {
            let now = tracker.snapshot();
            (now.position, now.totals.files, now.totals_now.files)
        };
        tracker.done(1, one);
        tracker.done(2, one);
        assert_eq!(state(), (Position::default(), 0, 2));
        tracker.done(0, one);
        assert_eq!(state(), (position(2), 3, 3));
        assert_eq!(tracker.met(position(4)), 4);
        tracker.done(4, one);
        tracker.done(3, one);
        assert_eq!(state(), (position(4), 5, 5));
    }
}
