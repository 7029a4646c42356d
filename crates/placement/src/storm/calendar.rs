//! What of one resource is reserved when.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Resources;

/// Reservations by step; steps without any are not there.
#[derive(Debug, Default)]
pub(crate) struct Calendar {
    steps: BTreeMap<u64, Resources>,
}

impl Calendar {
    pub(crate) fn used(&self, step: u64) -> Resources {
        self.steps.get(&step).copied().unwrap_or_default()
    }

    /// The last step in `range` where `needs` would go over `limit`.
    pub(crate) fn last_blocked(
        &self,
        range: Range<u64>,
        needs: Resources,
        limit: Resources,
    ) -> Option<u64> {
        self.blocked(range, needs, limit).next_back()
    }

    /// The first one.
    pub(crate) fn first_blocked(
        &self,
        range: Range<u64>,
        needs: Resources,
        limit: Resources,
    ) -> Option<u64> {
        self.blocked(range, needs, limit).next()
    }

    fn blocked(
        &self,
        range: Range<u64>,
        needs: Resources,
        limit: Resources,
    ) -> impl DoubleEndedIterator<Item = u64> {
        let steps = self.steps.range(range);
        let blocked = steps.filter(move |(_, used)| !used.plus(needs).fits(limit));
        blocked.map(|(step, _)| *step)
    }

    /// Takes or gives back.
    pub(crate) fn book(&mut self, range: Range<u64>, needs: Resources, takes: bool) {
        for step in range {
            let used = self.used(step);
            let now = if takes {
                used.plus(needs)
            } else {
                used.minus(needs)
            };
            if now == Resources::default() {
                self.steps.remove(&step);
            } else {
                self.steps.insert(step, now);
            }
        }
    }

    pub(crate) fn forget_before(&mut self, step: u64) {
        while self
            .steps
            .first_key_value()
            .is_some_and(|(first, _)| *first < step)
        {
            self.steps.pop_first();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}
