//! Policy: what each outcome does to the opener, budgets and limits.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Outcome, UnscannedReason};

/// What an opener gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// The open goes on.
    Allow,
    /// The open fails with EPERM.
    Deny,
}

/// What is done about an opener that policy let through before the verdict, and the verdict is
/// malicious. The file itself is removed, or not, as removal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LateAction {
    /// It is told.
    Report,
    /// It is told, and the process that opened the file is killed.
    Kill,
}

/// What an appliance tells its agents to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Changes whenever any other field does.
    pub revision: [u8; 16],
    /// Budget of an execution; policy answers at 80 % of it.
    pub exec_budget: Duration,
    /// Budget of an open; policy answers at 80 % of it.
    pub open_budget: Duration,
    /// Larger files are unscanned(too_large) and not sent.
    pub size_max_bytes: u64,
    /// Files up to this size ride along with their check.
    pub ride_along_max_bytes: u32,
    /// For malicious content.
    pub on_malicious: Disposition,
    /// For malicious content whose opener is no longer waiting.
    pub on_late_malicious: LateAction,
    /// For unscanned content, where `unscanned_rules` has no entry.
    pub on_unscanned: Disposition,
    /// Exceptions to `on_unscanned`.
    pub unscanned_rules: BTreeMap<UnscannedReason, Disposition>,
    /// After an error.
    pub on_error: Disposition,
    /// Verdicts hold for (content, context), not for the content alone.
    pub context_sensitive: bool,
    /// Scan when a writer closes a file.
    pub scan_on_close: bool,
    /// Agents compress content where that pays.
    pub compress: bool,
}

/// A policy that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A budget of no time would answer every open without looking.
    #[error("policy: {0} must be between 10 ms and 10 minutes")]
    Budget(&'static str),
    /// A limit of nothing would leave every file unscanned.
    #[error("policy: {0} must not be 0")]
    Zero(&'static str),
    /// Larger than a frame can carry.
    #[error("policy: ride_along_max_bytes must be at most {max}")]
    RideAlong {
        /// The most a frame carries.
        max: u32,
    },
}

/// The most content that rides along with a check: it must fit one frame with room to spare.
pub const RIDE_ALONG_MAX: u32 = 512 * 1024;

impl Default for Policy {
    /// 10 s to open, 5 s to execute, 256 MiB, deny malicious, allow the rest.
    fn default() -> Self {
        Self {
            revision: [0; 16],
            exec_budget: Duration::from_secs(5),
            open_budget: Duration::from_secs(10),
            size_max_bytes: 256 << 20,
            ride_along_max_bytes: 64 << 10,
            on_malicious: Disposition::Deny,
            on_late_malicious: LateAction::Report,
            on_unscanned: Disposition::Allow,
            unscanned_rules: BTreeMap::new(),
            on_error: Disposition::Allow,
            context_sensitive: false,
            scan_on_close: true,
            compress: true,
        }
    }
}

impl Policy {
    /// What an opener gets for this outcome.
    #[must_use]
    pub fn disposition(&self, outcome: &Outcome) -> Disposition {
        match outcome {
            Outcome::Clean => Disposition::Allow,
            Outcome::Malicious { .. } => self.on_malicious,
            Outcome::Unscanned { reason, .. } => self
                .unscanned_rules
                .get(reason)
                .copied()
                .unwrap_or(self.on_unscanned),
            Outcome::Error { .. } => self.on_error,
        }
    }

    /// Checks what an appliance sends or an administrator writes.
    ///
    /// # Errors
    /// Names the first field out of its range.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let sane = Duration::from_millis(10)..=Duration::from_secs(600);
        for (name, budget) in [
            ("exec_budget", self.exec_budget),
            ("open_budget", self.open_budget),
        ] {
            if !sane.contains(&budget) {
                return Err(PolicyError::Budget(name));
            }
        }
        if self.size_max_bytes == 0 {
            return Err(PolicyError::Zero("size_max_bytes"));
        }
        if self.ride_along_max_bytes > RIDE_ALONG_MAX {
            return Err(PolicyError::RideAlong {
                max: RIDE_ALONG_MAX,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_own_answer() {
        let mut policy = Policy {
            on_unscanned: Disposition::Deny,
            ..Policy::default()
        };
        policy
            .unscanned_rules
            .insert(UnscannedReason::Encrypted, Disposition::Allow);
        let of = |outcome| policy.disposition(&outcome);
        assert_eq!(of(Outcome::Clean), Disposition::Allow);
        assert_eq!(
            of(Outcome::unscanned(UnscannedReason::Deadline)),
            Disposition::Deny
        );
        assert_eq!(
            of(Outcome::unscanned(UnscannedReason::Encrypted)),
            Disposition::Allow
        );
        let error = Outcome::Error {
            message: "x".into(),
        };
        assert_eq!(of(error), Disposition::Allow);
    }

    #[test]
    fn nonsense_is_refused() {
        let zero = Policy {
            size_max_bytes: 0,
            ..Policy::default()
        };
        assert_eq!(zero.validate(), Err(PolicyError::Zero("size_max_bytes")));
        let instant = Policy {
            open_budget: Duration::ZERO,
            ..Policy::default()
        };
        assert!(instant.validate().is_err());
        assert_eq!(Policy::default().validate(), Ok(()));
    }
}
