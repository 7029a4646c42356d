//! When something that failed is tried again.

use std::time::{Duration, Instant};

/// Pauses that double.
#[derive(Debug)]
pub(crate) struct Again {
    next: Instant,
    pause: Duration,
}

impl Again {
    /// Due at once; the first pause after a failure.
    pub(crate) fn at_once(first_pause: Duration) -> Self {
        Self {
            next: Instant::now(),
            pause: first_pause,
        }
    }

    pub(crate) fn is_due(&self) -> bool {
        self.left().is_zero()
    }

    pub(crate) fn left(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Not before this has passed: an answer is waited for.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.next = Instant::now() + time;
    }

    /// It failed.
    pub(crate) fn put_off(&mut self, longest: Duration) {
        self.wait(self.pause.min(longest));
        self.pause = self.pause.saturating_mul(2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest() {
        const HOUR: Duration = Duration::from_secs(3600);
        let mut again = Again::at_once(HOUR);
        assert!(again.is_due());
        again.put_off(3 * HOUR);
        assert!(!again.is_due() && again.left() <= HOUR);
        again.put_off(3 * HOUR);
        assert!(again.left() > HOUR && again.left() <= 2 * HOUR);
        for _ in 0..3 {
            again.put_off(3 * HOUR);
            assert!(again.left() > 2 * HOUR && again.left() <= 3 * HOUR);
        }
        again.put_off(HOUR);
        assert!(again.left() <= HOUR);
    }
}
