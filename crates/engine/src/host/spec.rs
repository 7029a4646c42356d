//! What an engine is started with, what it is asked, what it answers.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{Detection, FilterId, Generation, Ranges, UnscannedReason};
use proto::{REPORT_MAX_BYTES, v1};

use crate::sparse::CONTENT_MAX_BYTES;

/// Content up to this many bytes travels inside the job's packet; larger content is passed as a
/// sealed descriptor.
pub const INLINE_MAX_BYTES: usize = 64 * 1024;

/// Known ranges of a partial job: with a report, more would not fit into its packet.
pub const KNOWN_RANGES_MAX: usize = 8192;

/// Workers an engine may have at most.
pub const WORKERS_MAX: usize = 256;

/// What to do where the kernel lacks a part of the sandbox (landlock before Linux 5.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sandboxing {
    /// The engine does not start.
    #[default]
    Required,
    /// The engine starts; [`v1::EngineReady::warnings`] says what is missing.
    BestEffort,
}

/// How to start and limit an engine.
#[derive(Debug, Clone)]
pub struct EngineSpec {
    /// For logs and metrics, such as `yara`.
    pub name: String,
    /// The engine's program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Worker processes, 1 to [`WORKERS_MAX`]: files scanned at the same time.
    pub workers: usize,
    /// A worker that takes longer over one file is killed. The engine's own limit, where it has
    /// one, is three quarters of it.
    pub job_timeout: Duration,
    /// Address space in bytes that a worker may add to the rules it shares: content (mapped),
    /// unpacked members and scan state together. 0: unlimited.
    pub memory_max_bytes: u64,
    /// What to do where the kernel lacks a part of the sandbox.
    pub sandbox: Sandboxing,
    /// The template is given up when it has not loaded its rules by then.
    pub load_timeout: Duration,
    /// A scan that got no worker by then is unscanned (engine unavailable).
    pub wait_max: Duration,
}

impl EngineSpec {
    /// Defaults: one worker for each core, 30 s for a file, 2 GiB of memory, sandbox required,
    /// 120 s to load, 30 s to wait for a worker.
    #[must_use]
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            workers: cores.min(WORKERS_MAX),
            job_timeout: Duration::from_secs(30),
            memory_max_bytes: 2 << 30,
            sandbox: Sandboxing::Required,
            load_timeout: Duration::from_secs(120),
            wait_max: Duration::from_secs(30),
        }
    }
}

/// Why an engine could not be started, or reloaded (then the old one goes on).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A field of the spec cannot be used.
    #[error("engine {name}: {what}")]
    Spec {
        /// The engine.
        name: String,
        /// Which field, and why.
        what: &'static str,
    },
    /// The program could not be run.
    #[error("engine {name}: cannot run {}", program.display())]
    Spawn {
        /// The engine.
        name: String,
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The engine said why it cannot work: rules that do not compile, a sandbox that cannot be had.
    #[error("engine {name}: {}", errors.join("; "))]
    Failed {
        /// The engine.
        name: String,
        /// What and where, one for each mistake; at most 100.
        errors: Vec<String>,
    },
    /// The engine ended or talked nonsense before it was ready.
    #[error("engine {name}: {what} before it was ready")]
    Died {
        /// The engine.
        name: String,
        /// What happened.
        what: String,
    },
    /// Rules were not loaded in time.
    #[error("engine {name}: not ready after {} s", limit.as_secs())]
    Timeout {
        /// The engine.
        name: String,
        /// The limit.
        limit: Duration,
    },
    /// The engine is being stopped.
    #[error("engine {name}: is stopped")]
    Stopped {
        /// The engine.
        name: String,
    },
}

/// Bytes to be scanned.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory; at most [`INLINE_MAX_BYTES`].
    Inline(Bytes),
    /// Behind a descriptor that nobody can write to any more: a sealed memfd, or an unlinked spool
    /// file of ours opened read-only. The worker maps it.
    Sealed {
        /// The descriptor.
        fd: Arc<OwnedFd>,
        /// Size in bytes.
        size: u64,
    },
}

/// One file to scan.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its bytes.
    pub content: Content,
    /// For rules that read names; `None`: unknown.
    pub context: Option<v1::FileContext>,
    /// `None`: containers are not unpacked (clamd always unpacks, by its own limits).
    pub unpack: Option<v1::UnpackLimits>,
}

/// One file to judge by what is known of it.
#[derive(Debug, Clone)]
pub struct PartialJob {
    /// What is known, as [`pack`](crate::sparse::pack) or [`lay_out`](crate::sparse::lay_out) made it.
    pub content: Content,
    /// Size of the whole in bytes.
    pub size: u64,
    /// Which bytes are known.
    pub known: Ranges,
    /// The filter that reported.
    pub filter: FilterId,
    /// What it found in the whole, as it came; hostile.
    pub report: Bytes,
    /// For rules that read names; `None`: unknown.
    pub context: Option<v1::FileContext>,
    /// `None`: the whole would not be unpacked either.
    pub unpack: Option<v1::UnpackLimits>,
}

impl PartialJob {
    /// Why it is too large for a worker.
    pub(super) fn too_large(&self) -> Option<String> {
        if self.size > CONTENT_MAX_BYTES {
            Some(format!("{} bytes are too many", self.size))
        } else if self.known.len() > KNOWN_RANGES_MAX {
            Some(format!("{} known ranges are too many", self.known.len()))
        } else if self.report.len() > REPORT_MAX_BYTES {
            let len = self.report.len();
            Some(format!("a report of {len} bytes is too large"))
        } else {
            None
        }
    }
}

/// How far partial content led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartialResult {
    /// What is found here is all that a scan of the whole would find.
    Judged(JobResult),
    /// These bytes could change the verdict: not empty, none of them known.
    Ask(Ranges),
    /// No ranges are known to suffice: why, for people.
    Whole(String),
    /// It could not be judged, as the result says.
    Failed(JobResult),
}

/// What an engine says about one file. All counts and texts are capped here, whatever it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobResult {
    /// Everything that matched, in the order found; at most [`model::DETECTIONS_MAX`].
    pub detections: Vec<Detection>,
    /// Matches beyond those.
    pub omitted: u32,
    /// The first thing that kept the engine from judging all, and for people: which limit, which
    /// member. `None`: all was judged.
    pub incomplete: Option<(UnscannedReason, String)>,
    /// The engine itself is broken (not the file): what failed.
    pub error: Option<String>,
    /// Members unpacked and judged.
    pub members_judged: u32,
    /// Bytes of those members.
    pub member_bytes_judged: u64,
    /// The engine and rules that judged: around a reload not always the newest.
    pub generation: Generation,
}

impl JobResult {
    /// Nothing was judged, for this reason.
    pub(super) fn unscanned(
        generation: Generation,
        reason: UnscannedReason,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            detections: Vec::new(),
            omitted: 0,
            incomplete: Some((reason, detail.into())),
            error: None,
            members_judged: 0,
            member_bytes_judged: 0,
            generation,
        }
    }
}

/// Counters since the start of the engine, and workers now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// Workers that are idle or busy now.
    pub workers: usize,
    /// Of these, idle.
    pub workers_idle: usize,
    /// Files for which a worker gave a report.
    pub scanned_total: u64,
    /// Partial jobs for which a worker gave a report.
    pub partial_total: u64,
    /// Workers killed by the host: timeouts, cancelled scans, nonsense on the socket.
    pub killed_total: u64,
    /// Workers that the kernel did not let the host kill.
    pub kills_failed_total: u64,
    /// Files on which a worker crashed or answered nonsense.
    pub crashed_total: u64,
    /// Files on which a worker was killed for its time.
    pub timeouts_total: u64,
    /// Files for which no worker was to be had in time.
    pub unavailable_total: u64,
    /// Templates that ended by themselves and were started again.
    pub restarts_total: u64,
    /// Reloads that were swapped in.
    pub reloads_total: u64,
    /// Reloads that failed, so that the old rules stayed.
    pub reloads_failed_total: u64,
}
