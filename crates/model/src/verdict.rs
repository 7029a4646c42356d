//! Outcomes and verdicts.

use crate::{Digest, FilterId, Generation, Sha256};

/// Detections kept in one verdict; the rest is counted.
pub const DETECTIONS_MAX: usize = 64;

/// Why content is looked at; decides deadline and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AccessClass {
    /// A process waits to execute the file.
    Exec,
    /// A process waits to open the file.
    Open,
    /// A writer closed the file; nobody waits.
    CloseWrite,
    /// A person or a task asked for a scan.
    OnDemand,
    /// An open answered without a verdict is paid back.
    Ledger,
}

impl AccessClass {
    /// 0 is served first: opens, then closed writes, then on-demand work.
    #[must_use]
    pub fn priority(self) -> u8 {
        match self {
            Self::Exec | Self::Open => 0,
            Self::CloseWrite => 1,
            Self::OnDemand | Self::Ledger => 2,
        }
    }

    /// True where a process waits for the answer.
    #[must_use]
    pub fn has_opener(self) -> bool {
        matches!(self, Self::Exec | Self::Open)
    }
}

/// Why content was not (fully) scanned; `proto/lazaret/v1/types.proto` says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "documented once, in types.proto")]
pub enum UnscannedReason {
    TooLarge,
    Deadline,
    Unreachable,
    Truncated,
    Changed,
    EngineCrashed,
    EngineTimeout,
    EngineUnavailable,
    EngineLimit,
    Encrypted,
    UnpackDepth,
    UnpackEntries,
    UnpackRatio,
    UnpackEntryBytes,
    UnpackTotalBytes,
    UnpackMalformed,
    UnpackUnsupported,
    Quota,
    Overloaded,
    ReadFailed,
    QueueOverflow,
    NoSpace,
    Cancelled,
    Other,
}

impl UnscannedReason {
    /// Every reason, in the order of the contract.
    pub const ALL: [Self; 24] = [
        Self::TooLarge,
        Self::Deadline,
        Self::Unreachable,
        Self::Truncated,
        Self::Changed,
        Self::EngineCrashed,
        Self::EngineTimeout,
        Self::EngineUnavailable,
        Self::EngineLimit,
        Self::Encrypted,
        Self::UnpackDepth,
        Self::UnpackEntries,
        Self::UnpackRatio,
        Self::UnpackEntryBytes,
        Self::UnpackTotalBytes,
        Self::UnpackMalformed,
        Self::UnpackUnsupported,
        Self::Quota,
        Self::Overloaded,
        Self::ReadFailed,
        Self::QueueOverflow,
        Self::NoSpace,
        Self::Cancelled,
        Self::Other,
    ];

    /// The stable name used in configuration, metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Deadline => "deadline",
            Self::Unreachable => "unreachable",
            Self::Truncated => "truncated",
            Self::Changed => "changed",
            Self::EngineCrashed => "engine_crashed",
            Self::EngineTimeout => "engine_timeout",
            Self::EngineUnavailable => "engine_unavailable",
            Self::EngineLimit => "engine_limit",
            Self::Encrypted => "encrypted",
            Self::UnpackDepth => "unpack_depth",
            Self::UnpackEntries => "unpack_entries",
            Self::UnpackRatio => "unpack_ratio",
            Self::UnpackEntryBytes => "unpack_entry_bytes",
            Self::UnpackTotalBytes => "unpack_total_bytes",
            Self::UnpackMalformed => "unpack_malformed",
            Self::UnpackUnsupported => "unpack_unsupported",
            Self::Quota => "quota",
            Self::Overloaded => "overloaded",
            Self::ReadFailed => "read_failed",
            Self::QueueOverflow => "queue_overflow",
            Self::NoSpace => "no_space",
            Self::Cancelled => "cancelled",
            Self::Other => "other",
        }
    }

    /// The reason of that [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// True for a property of the content under its generation (a limit, an encrypted member):
    /// asking again gives the same answer. False for circumstances, which are never remembered.
    #[must_use]
    pub fn is_about_content(self) -> bool {
        matches!(
            self,
            Self::TooLarge
                | Self::EngineLimit
                | Self::Encrypted
                | Self::UnpackDepth
                | Self::UnpackEntries
                | Self::UnpackRatio
                | Self::UnpackEntryBytes
                | Self::UnpackTotalBytes
                | Self::UnpackMalformed
                | Self::UnpackUnsupported
        )
    }
}

/// One match of one engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Detection {
    /// The engine's name for what it found.
    pub name: String,
    /// The engine.
    pub engine: String,
    /// Where inside the file, outermost container first; empty: the file itself. Hostile bytes.
    pub path_inside: Vec<Vec<u8>>,
}

/// The four outcomes. Nothing that went wrong is ever `Clean` or `Malicious`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Judged as the coverage says, and nothing matched.
    Clean,
    /// At least one engine calls it malicious.
    Malicious {
        /// Never empty, at most [`DETECTIONS_MAX`].
        detections: Vec<Detection>,
        /// Detections beyond those.
        omitted: u32,
    },
    /// Could not be judged fully, and nothing bad was found in what was.
    Unscanned {
        /// The first reason met.
        reason: UnscannedReason,
        /// For people; may be empty.
        detail: String,
    },
    /// Something of ours is broken.
    Error {
        /// For people: what and where.
        message: String,
    },
}

impl Outcome {
    /// An unscanned outcome without detail.
    #[must_use]
    pub fn unscanned(reason: UnscannedReason) -> Self {
        Self::Unscanned {
            reason,
            detail: String::new(),
        }
    }

    /// Only clean and malicious may be cached.
    #[must_use]
    pub fn is_cacheable(&self) -> bool {
        matches!(self, Self::Clean | Self::Malicious { .. })
    }

    /// The stable name used in metrics and logs: `clean`, `malicious`, `unscanned`, `error`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Malicious { .. } => "malicious",
            Self::Unscanned { .. } => "unscanned",
            Self::Error { .. } => "error",
        }
    }
}

/// Which bytes were judged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    /// The file's size in bytes.
    pub bytes_total: u64,
    /// Bytes of it that engines could see.
    pub bytes_judged: u64,
    /// Ranges (offset, length) judged, in order; empty with all bytes judged: the whole.
    pub ranges: Vec<(u64, u64)>,
    /// Members unpacked from it and judged too.
    pub members_judged: u32,
    /// Bytes of those members.
    pub member_bytes_judged: u64,
    /// The other bytes were looked at by whoever has the content, with this filter, and its report
    /// left nothing open; `None`: nobody did.
    pub filter: Option<FilterId>,
}

impl Coverage {
    /// Nothing of `bytes_total` bytes was judged.
    #[must_use]
    pub fn none(bytes_total: u64) -> Self {
        Self {
            bytes_total,
            ..Self::default()
        }
    }

    /// All of `bytes_total` bytes was judged, no members.
    #[must_use]
    pub fn whole(bytes_total: u64) -> Self {
        Self {
            bytes_total,
            bytes_judged: bytes_total,
            ..Self::default()
        }
    }
}

/// What an appliance says about content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// One of the four.
    pub outcome: Outcome,
    /// Which bytes were judged.
    pub coverage: Coverage,
    /// Engines and rules that judged.
    pub generation: Generation,
    /// The judged content's identity; `None` where it never arrived whole.
    pub digest: Option<Digest>,
    /// For people and feeds; `None` where it was not computed.
    pub sha256: Option<Sha256>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_names_are_unique_and_reversible() {
        for reason in UnscannedReason::ALL {
            assert_eq!(UnscannedReason::from_name(reason.name()), Some(reason));
        }
        assert_eq!(UnscannedReason::from_name("clean"), None);
    }

    #[test]
    fn only_clean_and_malicious_are_cacheable() {
        assert!(Outcome::Clean.is_cacheable());
        for reason in UnscannedReason::ALL {
            assert!(!Outcome::unscanned(reason).is_cacheable());
        }
        let error = Outcome::Error {
            message: "x".into(),
        };
        assert!(!error.is_cacheable());
    }
}
