//! How often a hypervisor's management is asked: it serves people and backups too.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use daemon::metrics::Counter;
use serde::Deserialize;
use tokio::time::Instant;

/// Requests that a connector may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// On average.
    pub requests_per_s: u32,
    /// At once, after a quiet time.
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            requests_per_s: 20,
            burst: 40,
        }
    }
}

/// Makes callers wait until the next request may be made, in order.
#[derive(Debug)]
pub struct Pace {
    limit: RateLimit,
    interval: Duration,
    burst: u32,
    /// When the budget will be whole again, by the requests already let through.
    whole_at: Mutex<Option<Instant>>,
    requests: Counter,
}

impl Pace {
    /// A pace that counts the requests it lets through in `requests`. A rate of zero counts as
    /// one.
    #[must_use]
    pub fn new(limit: RateLimit, requests: Counter) -> Self {
        Self {
            limit,
            interval: Duration::from_secs(1) / limit.requests_per_s.max(1),
            burst: limit.burst.max(1),
            whole_at: Mutex::new(None),
            requests,
        }
    }

    /// A pace of its own with the same limit, which counts in the same counter: for connectors that
    /// speak to many servers.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::new(self.limit, self.requests.clone())
    }

    /// Returns when one request may be made.
    pub async fn next(&self) {
        let wait_until = self.reserve(Instant::now());
        if let Some(at) = wait_until {
            tokio::time::sleep_until(at).await;
        }
        self.requests.inc();
    }

    /// Requests let through until now.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Takes one request of the budget; `Some` where it must wait.
    fn reserve(&self, now: Instant) -> Option<Instant> {
        let mut whole_at = self.whole_at.lock().unwrap_or_else(PoisonError::into_inner);
        let from = whole_at.unwrap_or(now).max(now);
        let next = from + self.interval;
        *whole_at = Some(next);
        let slack = self.interval * self.burst;
        let may_at = next.checked_sub(slack)?;
        (may_at > now).then_some(may_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let limit = RateLimit {
            requests_per_s: 10,
            burst: 3,
        };
        let pace = Pace::new(limit, Counter::default());
        let now = Instant::now();
        let waits: Vec<u128> = (0..6)
            .map(|_| pace.reserve(now).map_or(0, |at| (at - now).as_millis()))
            .collect();
        assert_eq!(waits, [0, 0, 0, 100, 200, 300]);
        // After a quiet time the burst is whole again, and no larger.
        let later = now + Duration::from_secs(60);
        let waits: Vec<u128> = (0..4)
            .map(|_| pace.reserve(later).map_or(0, |at| (at - later).as_millis()))
            .collect();
        assert_eq!(waits, [0, 0, 0, 100]);
    }
}
