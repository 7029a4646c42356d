//! Whether the appliance will know what it is asked about, by what it knew of late: in a storm of
//! clones it knows everything, and content that rides along is sent for nothing.

use std::sync::atomic::{AtomicU32, Ordering};

/// All of late was known.
const ALL: u32 = 1 << 16;
/// Beyond this share content stays here until it is asked for: what is not known then costs one
/// round trip more.
const LIKELY: u32 = ALL / 4 * 3;
/// How slowly an answer is forgotten.
const MEMORY: u32 = 16;
/// So little rides along in any case: the question itself is as long.
const ALWAYS_BYTES: u64 = 512;

/// What the appliance knew of late.
#[derive(Debug, Default)]
pub(crate) struct Foresight {
    known: AtomicU32,
}

impl Foresight {
    /// An answer came; `known`: from what the appliance had, no engine ran. Threads that learn at
    /// once may forget each other's answer.
    pub(crate) fn learn(&self, known: bool) {
        let before = self.known.load(Ordering::Relaxed);
        let target = if known { ALL } else { 0 };
        let now = before - before / MEMORY + target / MEMORY;
        self.known.store(now.min(ALL), Ordering::Relaxed);
    }

    /// The appliance will probably know what it is asked.
    pub(crate) fn expects_known(&self) -> bool {
        self.known.load(Ordering::Relaxed) > LIKELY
    }

    /// Content of at most so many bytes rides along, where policy allows `policy_max`.
    pub(crate) fn ride_along_max(&self, policy_max: u64) -> u64 {
        if self.expects_known() {
            policy_max.min(ALWAYS_BYTES)
        } else {
            policy_max
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_not_sent_along() {
        let foresight = Foresight::default();
        let learn = |known, times| (0..times).for_each(|_| foresight.learn(known));
        assert_eq!(foresight.ride_along_max(65_536), 65_536);
        learn(true, 10);
        assert_eq!(foresight.ride_along_max(65_536), 65_536, "not yet");
        assert!(!foresight.expects_known());
        learn(true, 20);
        assert_eq!(foresight.ride_along_max(65_536), 512);
        assert!(foresight.expects_known());
        assert_eq!(foresight.ride_along_max(0), 0);
        learn(true, 1000);
        learn(false, 6);
        assert_eq!(foresight.ride_along_max(65_536), 65_536, "soon again");
        learn(false, 1000);
        assert_eq!(foresight.ride_along_max(65_536), 65_536);
    }
}
