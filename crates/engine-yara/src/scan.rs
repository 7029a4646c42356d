//! One worker's scanner: the file itself, then each member of whatever containers it is made of.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use engine::worker::{Input, Worker};
use model::DETECTIONS_MAX;
use proto::v1;
use unpack::{Budget, End, IncompleteKind, Limits, Member};
use yara_x::ScanResults;

use crate::context::Names;
use crate::planned::{Planned, PlannedScanner, Stopped, Telling};
use crate::rules::RuleSet;

/// The name in detections.
pub(crate) const ENGINE: &str = "yara";

/// Address space that a worker reserves and does not use, for each part of the rule set:
/// wasmtime's memory with its guard regions. Measured: 84 MB.
const RESERVED_SHARD_BYTES: u64 = 96 << 20;
/// The same for all else: the allocator's arena for the heartbeat thread, and the like.
const RESERVED_BYTES: u64 = 256 << 20;

/// Address space that a worker of these rules reserves and does not use.
pub(crate) fn reserved_bytes(planned: &Planned) -> u64 {
    let scanners = planned.scanners() as u64;
    RESERVED_BYTES + scanners * RESERVED_SHARD_BYTES
}

/// Matches kept for one pattern (YARA-X's own default): stops a file of millions of matches from
/// eating the memory. YARA-X stops looking for a pattern that has as many and says nothing, so a
/// file could push the match that counts beyond them: see [`beyond_matches`].
pub(crate) const MATCHES_MAX: usize = 1_000_000;

/// A worker's own limit, for jobs that come without one.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

pub(crate) struct YaraWorker {
    planned: &'static Planned,
    // One for the life of the worker: fresh ones cost half a millisecond each.
    scanner: PlannedScanner<'static>,
}

impl YaraWorker {
    /// Makes the scanner.
    pub(crate) fn new(set: &RuleSet) -> Result<Self, String> {
        Ok(Self {
            planned: set.planned,
            scanner: set.planned.scanner()?,
        })
    }
}

impl Worker for YaraWorker {
    fn scan(&mut self, job: &v1::ScanJob, input: &Input<'_>, report: &mut v1::ScanReport) {
        let bytes = match input.bytes() {
            Ok(bytes) => bytes,
            Err(error) => {
                report.error = error;
                return;
            }
        };
        let mut file = FileScan {
            worker: self,
            names: Names::of(job.context.as_ref()),
            ends_at: Instant::now() + timeout(job),
            seen: HashSet::new(),
            report,
        };
        let wanted = job.unpack.filter(|limits| limits.depth_max > 0);
        if file.judge(&[], bytes).is_continue()
            && let Some(limits) = wanted
        {
            file.judge_members(bytes, &limits);
        }
    }
}

fn timeout(job: &v1::ScanJob) -> Duration {
    match job.timeout_ms {
        0 => TIMEOUT_DEFAULT,
        ms => Duration::from_millis(ms.into()),
    }
}

/// One file under way.
struct FileScan<'a> {
    worker: &'a mut YaraWorker,
    names: Names,
    ends_at: Instant,
    /// Detections told already: rules of the same name may come in several files.
    seen: HashSet<(String, Vec<Vec<u8>>)>,
    report: &'a mut v1::ScanReport,
}

impl FileScan<'_> {
    /// Runs the rules over the file, or its member at `path`. `Break`: there is no use in going on.
    fn judge(&mut self, path: &[Vec<u8>], bytes: &[u8]) -> ControlFlow<()> {
        let ends_at = self.ends_at;
        let left = || {
            let left = ends_at.saturating_duration_since(Instant::now());
            (!left.is_zero()).then_some(left)
        };
        let planned = self.worker.planned;
        let (mut found, mut beyond) = (Vec::new(), None);
        let mut take = |results: &ScanResults<'_, '_>| {
            found.extend(results.matching_rules().map(|rule| {
                let order = planned.order_of(rule.namespace(), rule.identifier());
                (order, rule.identifier().to_owned())
            }));
            // A pattern matches once at most at each offset.
            if bytes.len() >= MATCHES_MAX {
                beyond = beyond.take().or_else(|| beyond_matches(results));
            }
        };
        let telling = Telling {
            bytes,
            names: &self.names,
            inside: path,
            left: &left,
        };
        let stopped = self.worker.scanner.run(&telling, &mut take).err();
        found.sort();
        for (_, name) in found {
            self.detect(name, path);
        }
        match stopped {
            Some(Stopped::Timeout) => {
                self.incomplete(v1::UnscannedReason::EngineTimeout, "time is up".to_owned());
                return ControlFlow::Break(());
            }
            Some(Stopped::Failed(error)) => {
                self.report.error = error;
                return ControlFlow::Break(());
            }
            None => {}
        }
        if let Some(detail) = beyond {
            self.incomplete(v1::UnscannedReason::EngineLimit, detail);
        }
        // Enough to call it malicious; unpacking on would only count.
        if self.report.detections.len() >= DETECTIONS_MAX {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn detect(&mut self, name: String, path: &[Vec<u8>]) {
        if !self.seen.insert((name.clone(), path.to_vec())) {
            return;
        }
        if self.report.detections.len() < DETECTIONS_MAX {
            self.report.detections.push(v1::Detection {
                name,
                engine: ENGINE.to_owned(),
                path_inside: path.to_vec(),
            });
        } else {
            self.report.omitted = self.report.omitted.saturating_add(1);
        }
    }

    fn judge_members(&mut self, bytes: &[u8], wanted: &v1::UnpackLimits) {
        let limits = Limits {
            depth_max: wanted.depth_max,
            entries_max: wanted.entries_max,
            entry_bytes_max: wanted.entry_bytes_max,
            total_bytes_max: wanted.total_bytes_max,
            ratio_max: wanted.ratio_max,
            ..Limits::default()
        };
        let ends_at = self.ends_at;
        let should_stop = || Instant::now() >= ends_at;
        let mut budget = Budget::new(&should_stop);
        let name = self.names.name().map(<[u8]>::to_vec);
        let mut visit = |member: &Member<'_>| self.judge(member.path, member.bytes);
        let summary = unpack::walk(bytes, name.as_deref(), &limits, &mut budget, &mut visit);
        self.report.members_judged = u32::try_from(summary.members).unwrap_or(u32::MAX);
        self.report.member_bytes_judged = summary.bytes;
        if let Some(incomplete) = summary.incomplete {
            let path = incomplete
                .path
                .iter()
                .map(|name| String::from_utf8_lossy(name));
            let path = path.collect::<Vec<_>>().join("/");
            let detail = match path.as_str() {
                "" => incomplete.detail,
                path => format!("{path}: {}", incomplete.detail),
            };
            self.incomplete(reason(incomplete.kind), detail);
        } else if summary.end == End::Budget {
            self.incomplete(v1::UnscannedReason::EngineTimeout, "time is up".to_owned());
        }
    }

    fn incomplete(&mut self, reason: v1::UnscannedReason, detail: String) {
        incomplete(self.report, reason, detail);
    }
}

/// Only the first reason counts.
fn incomplete(report: &mut v1::ScanReport, reason: v1::UnscannedReason, detail: String) {
    report.incomplete.get_or_insert(v1::Unscanned {
        reason: reason.into(),
        detail,
    });
}

/// A rule that did not match, though it might have with the matches beyond [`MATCHES_MAX`] that
/// were not looked for. Private rules and patterns decide like all others.
fn beyond_matches(results: &ScanResults<'_, '_>) -> Option<String> {
    results
        .non_matching_rules()
        .include_private(true)
        .find_map(|rule| {
            let mut patterns = rule.patterns().include_private(true);
            let full = patterns.find(|pattern| pattern.matches().len() >= MATCHES_MAX)?;
            let (rule, pattern) = (rule.identifier(), full.identifier());
            Some(format!(
                "rule {rule}: {pattern} matches {MATCHES_MAX} times or more"
            ))
        })
}

fn reason(kind: IncompleteKind) -> v1::UnscannedReason {
    match kind {
        IncompleteKind::Depth => v1::UnscannedReason::UnpackDepth,
        IncompleteKind::Entries => v1::UnscannedReason::UnpackEntries,
        IncompleteKind::Ratio => v1::UnscannedReason::UnpackRatio,
        IncompleteKind::EntryBytes => v1::UnscannedReason::UnpackEntryBytes,
        IncompleteKind::TotalBytes => v1::UnscannedReason::UnpackTotalBytes,
        IncompleteKind::Malformed => v1::UnscannedReason::UnpackMalformed,
        IncompleteKind::Unsupported => v1::UnscannedReason::UnpackUnsupported,
        IncompleteKind::Encrypted => v1::UnscannedReason::Encrypted,
    }
}
