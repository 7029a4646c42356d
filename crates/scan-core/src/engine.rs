//! What an appliance needs of engines.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use model::{Detection, FilterId, FilterPack, Generation, Ranges, UnscannedReason};

use crate::Context;

/// What an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// Its name, such as "yara".
    pub name: String,
    /// Its version, for people.
    pub version: String,
    /// Identity of its version and rules.
    pub generation: Generation,
    /// Rules loaded.
    pub rules: u64,
    /// Its rules read names, paths or owners.
    pub context_sensitive: bool,
    /// Files it can judge at once.
    pub workers: usize,
}

/// What an engine has counted since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineCounts {
    /// Workers alive.
    pub workers_alive: usize,
    /// Files judged.
    pub scanned_total: u64,
    /// Workers that crashed or were killed.
    pub killed_total: u64,
}

/// Something to scan.
#[derive(Debug, Clone)]
pub struct Task<C> {
    /// The bytes, in whatever form the engine takes them.
    pub content: C,
    /// Name and owner; given only to engines that say they read them, so that a verdict can never
    /// depend on what its key leaves out.
    pub context: Option<Context>,
}

/// Content of which a part is known, and of which an agent told what its filter found.
#[derive(Debug, Clone)]
pub struct PartialTask<C> {
    /// What is known, in whatever form the engine takes it.
    pub content: C,
    /// Size of the whole, in bytes.
    pub size: u64,
    /// Which bytes are known.
    pub known: Ranges,
    /// The filter that reported.
    pub filter: FilterId,
    /// What it found, as it came; hostile.
    pub report: Bytes,
    /// As in [`Task`].
    pub context: Option<Context>,
}

/// How far partial content led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartialStep {
    /// What these rules say of the part holds for the whole; one that matches nothing is clean.
    Judged(Finding),
    /// These bytes could change the verdict; never empty, never known.
    Ask(Ranges),
    /// No ranges are known to suffice: why, for people.
    Whole(String),
    /// It could not be judged, as the finding says.
    Failed(Finding),
}

/// What one engine says of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Finding {
    /// Matches, in the order found.
    pub detections: Vec<Detection>,
    /// Matches beyond those.
    pub omitted: u32,
    /// The first thing that kept it from judging all, with a detail for people.
    pub incomplete: Option<(UnscannedReason, String)>,
    /// The engine itself failed: what and where.
    pub error: Option<String>,
    /// Members unpacked and judged.
    pub members_judged: u32,
    /// Bytes of those members.
    pub member_bytes_judged: u64,
    /// The version and rules that judged: around a reload not always those of the facts.
    pub generation: Generation,
}

impl Finding {
    /// The file could not be judged for this reason.
    #[must_use]
    pub fn incomplete(
        generation: Generation,
        reason: UnscannedReason,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            incomplete: Some((reason, detail.into())),
            generation,
            ..Self::default()
        }
    }

    /// `malicious`, `unscanned`, `error` or `clean`; for metrics.
    #[must_use]
    pub fn outcome_name(&self) -> &'static str {
        if !self.detections.is_empty() {
            "malicious"
        } else if self.incomplete.is_some() {
            "unscanned"
        } else if self.error.is_some() {
            "error"
        } else {
            "clean"
        }
    }
}

/// What [`Engine::scan`] returns: always completes, whatever happens to the engine.
pub type ScanFuture<'a> = Pin<Box<dyn Future<Output = Finding> + Send + 'a>>;

/// What [`Engine::judge_partial`] returns.
pub type PartialFuture<'a> = Pin<Box<dyn Future<Output = PartialStep> + Send + 'a>>;

/// An engine. A crash, a timeout or an absent process is a [`Finding`], never a panic or a hang.
pub trait Engine<C>: Send + Sync {
    /// What it is, as of now: rules may be reloaded under it.
    fn facts(&self) -> EngineFacts;
    /// What it has counted.
    fn counts(&self) -> EngineCounts;
    /// Judges one file.
    fn scan(&self, task: Task<C>) -> ScanFuture<'_>;

    /// What agents can look for, as of now. `None`: it judges whole content only.
    fn filter(&self) -> Option<Arc<FilterPack>> {
        None
    }

    /// Judges one file by what is known of it.
    fn judge_partial(&self, _task: PartialTask<C>) -> PartialFuture<'_> {
        let why = "the engine judges whole content only".to_owned();
        Box::pin(std::future::ready(PartialStep::Whole(why)))
    }
}
