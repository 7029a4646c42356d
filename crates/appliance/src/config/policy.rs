//! Policy and removal, as an administrator writes them.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Disposition, LateAction, Policy, RIDE_ALONG_MAX, UnscannedReason};
use prost::Message;
use proto::v1;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::{Ranged, RemovalByName};

/// What agents are told to do with openers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Budget of an execution. 5 s.
    pub exec_budget_ms: Ranged<10, 600_000>,
    /// Budget of an open. 10 s.
    pub open_budget_ms: Ranged<10, 600_000>,
    /// Larger files are unscanned(too_large). 256 MiB.
    pub size_max_bytes: Ranged<1>,
    /// Files up to this size ride along with their check. 64 KiB.
    pub ride_along_max_bytes: Ranged<0, { RIDE_ALONG_MAX as u64 }>,
    /// `deny` or `allow`. `deny`.
    pub on_malicious: Answer,
    /// `report` or `kill`: about an opener that was let through before the verdict. `report`.
    pub on_late_malicious: Late,
    /// `deny` or `allow`, where `unscanned` has no entry. `allow`.
    pub on_unscanned: Answer,
    /// `deny` or `allow`. `allow`.
    pub on_error: Answer,
    /// Exceptions to `on_unscanned`, by the reason's name.
    pub unscanned: BTreeMap<Reason, Answer>,
    /// Scan when a writer closes a file. `true`.
    pub scan_on_close: bool,
    /// Agents compress content where that pays. `true`.
    pub compress: bool,
    /// Content of so many bytes and more is reported on by the agent's filter, where all engines can
    /// judge by that, and only what may matter is sent. `4096`. 0: all of it is.
    pub report_min_bytes: Ranged<0>,
}

/// Less is sent: to ask about it may take as many bytes.
const REPORT_MIN_BYTES: u64 = 4096;

/// What an opener gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The open goes on.
    Allow,
    /// The open fails with EPERM.
    Deny,
}

/// What is done about an opener that was let through before a malicious verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Late {
    /// It is told.
    Report,
    /// It is told, and the process is killed.
    Kill,
}

impl From<Late> for LateAction {
    fn from(late: Late) -> Self {
        match late {
            Late::Report => Self::Report,
            Late::Kill => Self::Kill,
        }
    }
}

impl From<Answer> for Disposition {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Allow => Self::Allow,
            Answer::Deny => Self::Deny,
        }
    }
}

/// A reason for unscanned, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason(pub UnscannedReason);

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        UnscannedReason::from_name(&name).map(Self).ok_or_else(|| {
            let names: Vec<_> = UnscannedReason::ALL.iter().map(|r| r.name()).collect();
            let names = names.join(", ");
            D::Error::custom(format_args!(
                "unknown reason `{name}`, expected one of {names}"
            ))
        })
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        let policy = Policy::default();
        let millis = |budget: Duration| u64::try_from(budget.as_millis()).unwrap_or(u64::MAX);
        Self {
            exec_budget_ms: Ranged::new(millis(policy.exec_budget)),
            open_budget_ms: Ranged::new(millis(policy.open_budget)),
            size_max_bytes: Ranged::new(policy.size_max_bytes),
            ride_along_max_bytes: Ranged::new(policy.ride_along_max_bytes.into()),
            on_malicious: Answer::Deny,
            on_late_malicious: Late::Report,
            on_unscanned: Answer::Allow,
            on_error: Answer::Allow,
            unscanned: BTreeMap::new(),
            scan_on_close: policy.scan_on_close,
            compress: policy.compress,
            report_min_bytes: Ranged::new(REPORT_MIN_BYTES),
        }
    }
}

impl PolicyConfig {
    /// The policy as agents get it, with its revision.
    #[must_use]
    pub fn to_policy(&self, context_sensitive: bool) -> Policy {
        let mut policy = Policy {
            revision: [0; 16],
            exec_budget: Duration::from_millis(self.exec_budget_ms.get()),
            open_budget: Duration::from_millis(self.open_budget_ms.get()),
            size_max_bytes: self.size_max_bytes.get(),
            ride_along_max_bytes: self.ride_along_max_bytes.u32(),
            on_malicious: self.on_malicious.into(),
            on_late_malicious: self.on_late_malicious.into(),
            on_unscanned: self.on_unscanned.into(),
            unscanned_rules: self
                .unscanned
                .iter()
                .map(|(reason, answer)| (reason.0, (*answer).into()))
                .collect(),
            on_error: self.on_error.into(),
            context_sensitive,
            scan_on_close: self.scan_on_close,
            compress: self.compress,
            report_min_bytes: Some(self.report_min_bytes.get()).filter(|least| *least > 0),
        };
        let mut hasher = blake3::Hasher::new_derive_key("lazaret 1 policy revision");
        hasher.update(&v1::Policy::from(&policy).encode_to_vec());
        hasher.finalize_xof().fill(&mut policy.revision);
        policy
    }
}

/// What is done with a malicious file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemovalAction {
    /// Nothing: the opener is answered by policy and the file stays.
    Deny,
    /// The agent seals it away; it can be restored.
    Quarantine,
    /// The agent deletes it, no copy kept.
    Delete,
}

/// What is done with malicious files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemovalConfig {
    /// Where `by_name` has no entry. `quarantine`.
    pub on_malicious: RemovalAction,
    /// Exceptions by the name of a detection; a trailing `*` stands for anything, the longest entry
    /// that fits counts. Of several detections in a file quarantine wins over delete (it can be
    /// undone) and both over deny.
    pub by_name: RemovalByName,
}

impl Default for RemovalConfig {
    fn default() -> Self {
        Self {
            on_malicious: RemovalAction::Quarantine,
            by_name: RemovalByName::new(),
        }
    }
}
