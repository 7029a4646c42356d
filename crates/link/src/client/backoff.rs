//! When to try again: exponential, jittered, from a seed. No clock, no randomness of its own.

use std::time::Duration;

/// The delays between attempts, such as rounds over the list of appliances.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// Between `min` and `max`; `seed` differs between guests.
    #[must_use]
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self {
            min,
            max,
            failures: 0,
            random: seed,
        }
    }

    /// A session was up and useful.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The delay after one more failed round: `min` doubled for each, at most `max`, and of that
    /// between a half and the whole, so that a fleet does not come back in step.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 1u32 << self.failures.min(20);
        self.failures = self.failures.saturating_add(1);
        let whole = self.min.saturating_mul(factor).min(self.max);
        whole.mul_f64(0.5 + 0.5 * self.unit())
    }

    /// splitmix64 as a number in 0..1.
    fn unit(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(200);
    const MAX: Duration = Duration::from_secs(10);

    #[test]
    fn delays_grow_to_the_limit_and_stay_within_their_jitter() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(MIN, MAX, seed);
            for round in 0..80 {
                let whole = MIN.saturating_mul(1 << round.min(20)).min(MAX);
                let delay = backoff.next_delay();
                assert!(delay >= whole / 2 && delay <= whole, "{round}: {delay:?}");
            }
            backoff.reset();
            assert!(backoff.next_delay() <= MIN);
        }
    }

    #[test]
    fn seeds_differ_and_repeat() {
        let delays = |seed| {
            let mut backoff = Backoff::new(MIN, MAX, seed);
            [(); 4].map(|()| backoff.next_delay())
        };
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }
}
