//! Content that guests hold, judged again when rules change.

use std::time::Duration;

use serde::Deserialize;

use super::Ranged;

/// How much guests are asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecheckConfig {
    /// Bytes of content a second, of all guests together. 0: no guest is asked. 4 MiB.
    pub bytes_per_s: Ranged<0>,
    /// Contents that are asked for at once. 32.
    pub asked_max: Ranged<1, 4096>,
    /// Of those, of one guest. 4.
    pub guest_asked_max: Ranged<1, 64>,
    /// Guests that are asked for one content, one after the other. 8.
    pub guests_max: Ranged<1, 1000>,
    /// Seconds that a guest has until another one is asked. 120.
    pub answer_s: Ranged<1, 3600>,
    /// Contents that nobody could give are asked for again after so many seconds. 6 hours.
    pub again_s: Ranged<1, 2_678_400>,
    /// So many of them are remembered; the rest waits until it is opened. 65,536.
    pub left_max: Ranged<0, 16_777_216>,
}

impl Default for RecheckConfig {
    fn default() -> Self {
        Self {
            bytes_per_s: Ranged::new(4 << 20),
            asked_max: Ranged::new(32),
            guest_asked_max: Ranged::new(4),
            guests_max: Ranged::new(8),
            answer_s: Ranged::new(120),
            again_s: Ranged::new(21_600),
            left_max: Ranged::new(65_536),
        }
    }
}

impl RecheckConfig {
    pub(crate) fn answer(&self) -> Duration {
        Duration::from_secs(self.answer_s.get())
    }

    pub(crate) fn again(&self) -> Duration {
        Duration::from_secs(self.again_s.get())
    }
}
