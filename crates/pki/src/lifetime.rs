//! How long certificates live and when they are renewed. No clock: `now` comes in.

use std::time::{Duration, SystemTime};

/// Life of a guest's and of an appliance's certificate.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Certificates begin this long before they are signed, for guests whose clocks are behind.
pub const BACK_DATE: Duration = Duration::from_secs(5 * 60);
/// Life of a CA.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// For so long an expired certificate still gets a new one: a guest that was switched off for a
/// season comes back by itself, a key from an old backup does not work for ever.
pub const RENEW_GRACE: Duration = Duration::from_secs(90 * 24 * 3600);

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: SystemTime,
    /// Last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// From `now`, back-dated by [`BACK_DATE`], for `lifetime`.
    #[must_use]
    pub fn starting(now: SystemTime, lifetime: Duration) -> Self {
        Self {
            not_before: now - BACK_DATE,
            not_after: now + lifetime,
        }
    }

    /// Whether the last moment has passed.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}

/// When to renew: two thirds of life ± 10 % of life. `seed` (any number that differs between
/// guests) spreads a fleet that was born at once.
#[must_use]
pub fn renew_after(not_before: SystemTime, not_after: SystemTime, seed: u64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    // splitmix64's finisher: neighbouring seeds give unrelated results.
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let unit = ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
    let share = 2.0 / 3.0 - 0.1 + 0.2 * unit;
    not_before + life.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_spread_between_57_and_77_percent_of_life() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let life = Duration::from_secs(100_000);
        let mut buckets = [0; 4];
        for seed in 0..10_000 {
            let after = renew_after(start, start + life, seed);
            let share = after.duration_since(start).unwrap().as_secs_f64() / 1e5;
            assert!((0.566..=0.767).contains(&share), "{share}");
            buckets[(((share - 0.5666) / 0.05) as usize).min(3)] += 1;
        }
        assert!(buckets.iter().all(|n| *n > 2_000), "{buckets:?}");
    }

    #[test]
    fn a_certificate_that_never_lived_is_renewed_at_once() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(renew_after(start, start - BACK_DATE, 1), start);
    }
}
