//! Which guests were seen with which content.

use std::time::Duration;

use serde::Deserialize;

use super::Ranged;

/// Limits of sightings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SightingsConfig {
    /// On our own disk: bytes. 2 GiB.
    pub bytes_max: Ranged<65_536>,
    /// In PostgreSQL: rows. 100 million.
    pub rows_max: Ranged<1>,
    /// In PostgreSQL: they go so many days after they were last seen. 400.
    pub keep_days: Ranged<1, 36_500>,
    /// Seen again within so many seconds is no news. 3600.
    pub again_s: Ranged<0, 2_678_400>,
    /// Those remembered for that. 65,536.
    pub recent_max: Ranged<1, 100_000_000>,
    /// Those that wait to be recorded. 100,000.
    pub pending_max: Ranged<1, 100_000_000>,
    /// How often they are recorded. 5 s.
    pub flush_ms: Ranged<100, 600_000>,
}

impl Default for SightingsConfig {
    fn default() -> Self {
        Self {
            bytes_max: Ranged::new(2 << 30),
            rows_max: Ranged::new(100_000_000),
            keep_days: Ranged::new(400),
            again_s: Ranged::new(3600),
            recent_max: Ranged::new(65_536),
            pending_max: Ranged::new(100_000),
            flush_ms: Ranged::new(5000),
        }
    }
}

impl SightingsConfig {
    pub(crate) fn keep(&self) -> Duration {
        Duration::from_secs(self.keep_days.get() * 86_400)
    }

    pub(crate) fn flush_every(&self) -> Duration {
        Duration::from_millis(self.flush_ms.get())
    }
}
