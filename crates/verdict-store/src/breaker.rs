//! Leaves a dead store alone: after some failures nobody waits for it any more, and one caller in
//! a while tries it again. No clock: `now` comes in.

use std::time::{Duration, Instant};

/// When to leave a store alone, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row before it is left alone.
    pub failures_max: u32,
    /// The first rest; each that follows is twice as long.
    pub rest_min: Duration,
    /// The longest rest.
    pub rest_max: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failures_max: 3,
            rest_min: Duration::from_secs(1),
            rest_max: Duration::from_secs(30),
        }
    }
}

/// The state of a circuit breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    settings: BreakerSettings,
    failures: u32,
    rest: Duration,
    resting_until: Option<Instant>,
    /// Somebody tries whether the store is back, until then at most.
    trying_until: Option<Instant>,
}

impl Breaker {
    /// A closed one: everybody may ask.
    #[must_use]
    pub fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            failures: 0,
            rest: settings.rest_min,
            resting_until: None,
            trying_until: None,
        }
    }

    /// True if the store may be asked now. At the end of a rest it is true for one caller, and for
    /// the next one only after that one reported or [`BreakerSettings::rest_max`] passed.
    pub fn allow(&mut self, now: Instant) -> bool {
        let Some(until) = self.resting_until else {
            return true;
        };
        if now < until || self.trying_until.is_some_and(|until| now < until) {
            return false;
        }
        self.trying_until = Some(now + self.settings.rest_max);
        true
    }

    /// The store answered. True if it had been left alone.
    pub fn succeeded(&mut self) -> bool {
        let was_resting = self.resting_until.is_some();
        *self = Self::new(self.settings);
        was_resting
    }

    /// The store failed. True if it is left alone from now on.
    pub fn failed(&mut self, now: Instant) -> bool {
        let was_resting = self.resting_until.is_some();
        // Calls that were under way when the rest began say nothing new.
        if was_resting && self.trying_until.is_none() {
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        if !was_resting && self.failures < self.settings.failures_max {
            return false;
        }
        self.trying_until = None;
        self.resting_until = Some(now + self.rest);
        self.rest = (self.rest * 2).min(self.settings.rest_max);
        !was_resting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(BreakerSettings::default()), Instant::now())
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn it_rests_after_failures_in_a_row_and_then_lets_one_try() {
        let (mut breaker, t) = breaker();
        assert!(!breaker.failed(t) && !breaker.failed(t));
        assert!(!breaker.succeeded(), "failures are no longer in a row");
        assert!(!breaker.failed(t) && !breaker.failed(t));
        assert!(breaker.failed(t));
        assert!(!breaker.allow(after(t, 999)));
        assert!(breaker.allow(after(t, 1000)), "one tries");
        assert!(!breaker.allow(after(t, 1001)), "one only");
        assert!(breaker.succeeded());
        assert!(breaker.allow(after(t, 1002)));
    }

    #[test]
    fn rests_grow_to_a_limit() {
        let (mut breaker, mut t) = breaker();
        for _ in 0..3 {
            breaker.failed(t);
        }
        for rest_ms in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            assert!(!breaker.allow(after(t, rest_ms - 1)));
            t = after(t, rest_ms);
            assert!(breaker.allow(t));
            assert!(!breaker.failed(t));
        }
    }

    #[test]
    fn late_failures_of_others_do_not_prolong_a_rest() {
        let (mut breaker, t) = breaker();
        for _ in 0..50 {
            breaker.failed(t);
        }
        assert!(breaker.allow(after(t, 1000)));
    }

    #[test]
    fn a_lost_try_does_not_rest_for_ever() {
        let (mut breaker, t) = breaker();
        for _ in 0..3 {
            breaker.failed(t);
        }
        assert!(breaker.allow(after(t, 1000)));
        assert!(!breaker.allow(after(t, 30_000)));
        assert!(breaker.allow(after(t, 31_000)));
    }
}
