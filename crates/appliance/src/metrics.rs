//! What Prometheus sees. Counters are bumped where things happen; gauges are set by the tick.

use daemon::metrics::{Counter, Counters, Gauge, Gauges, Histograms, LATENCY_BUCKETS_S, Registry};
use model::{AccessClass, Outcome, Verdict};

/// All metrics of an appliance.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) guests: GuestMetrics,
    pub(crate) scans: ScanMetrics,
    pub(crate) kept: KeptMetrics,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            guests: GuestMetrics::new(registry),
            scans: ScanMetrics::new(registry),
            kept: KeptMetrics::new(registry),
        }
    }

    pub(crate) fn answered(&self, class: AccessClass, verdict: &Verdict, cached: bool) {
        let cached = if cached { "yes" } else { "no" };
        self.guests
            .checks
            .with([class_name(class), verdict.outcome.name(), cached])
            .inc();
        let reason = match verdict.outcome {
            Outcome::Unscanned { reason, .. } => reason.name(),
            _ => "",
        };
        self.guests
            .verdicts
            .with([verdict.outcome.name(), reason])
            .inc();
    }
}

/// What guests do.
#[derive(Debug)]
pub(crate) struct GuestMetrics {
    pub(crate) sessions: Gauges<1>,
    pub(crate) sessions_ended: Counters<1>,
    checks: Counters<3>,
    verdicts: Counters<2>,
    pub(crate) content_bytes: Counters<1>,
    pub(crate) manifests: Counters<1>,
    pub(crate) reports: Counters<1>,
    pub(crate) chunk_bytes_held: Counter,
    pub(crate) chunk_store_bytes: Gauge,
    pub(crate) chunk_store_guests: Gauge,
    pub(crate) refusals: Counters<1>,
    pub(crate) alerts: Counters<1>,
    pub(crate) turns: Counters<1>,
    pub(crate) ledger_open: Gauges<1>,
    pub(crate) ledger_overflow: Gauges<1>,
    pub(crate) fast_paths: Gauges<2>,
    pub(crate) frames_ignored: Counter,
}

impl GuestMetrics {
    fn new(r: &Registry) -> Self {
        Self {
            sessions: r.gauges("lazaret_sessions", "Sessions open.", ["role"]),
            sessions_ended: r.counters(
                "lazaret_sessions_ended",
                "Sessions ended, by cause.",
                ["cause"],
            ),
            checks: r.counters(
                "lazaret_checks",
                "Checks answered.",
                ["class", "outcome", "cached"],
            ),
            verdicts: r.counters(
                "lazaret_verdicts",
                "Checks answered, by outcome; unscanned with its reason.",
                ["outcome", "reason"],
            ),
            content_bytes: r.counters(
                "lazaret_content_bytes",
                "Content received, with its check or after it.",
                ["how"],
            ),
            manifests: r.counters(
                "lazaret_manifests",
                "Lists of chunks that were asked for, by what came of them.",
                ["result"],
            ),
            reports: r.counters(
                "lazaret_reports",
                "Reports of agents' filters that were asked for or came along, by what came of them: report and ranges are clean, of the others the whole content was asked for.",
                ["result"],
            ),
            chunk_bytes_held: r.counter(
                "lazaret_chunk_bytes_held",
                "Bytes of content that guests did not send, since their chunks were here.",
            ),
            chunk_store_bytes: r.gauge("lazaret_chunk_store_bytes", "Size of kept chunks."),
            chunk_store_guests: r.gauge(
                "lazaret_chunk_store_guests",
                "Guests of which chunks are kept.",
            ),
            refusals: r.counters(
                "lazaret_refusals",
                "Contents not taken, by the limit that was reached.",
                ["limit"],
            ),
            alerts: r.counters("lazaret_alerts", "Alerts of agents.", ["kind"]),
            turns: r.counters(
                "lazaret_turns",
                "Turns of guests for background work, by what they were told.",
                ["answer"],
            ),
            ledger_open: r.gauges(
                "lazaret_guest_ledger_open",
                "Opens answered without a verdict and not paid back, as last reported.",
                ["guest"],
            ),
            ledger_overflow: r.gauges(
                "lazaret_guest_ledger_overflow",
                "Ledger entries that a guest lost, as last reported.",
                ["guest"],
            ),
            fast_paths: r.gauges(
                "lazaret_guest_fast_paths",
                "File systems of a guest on which its agent has seen a fast path to be sound.",
                ["guest", "path"],
            ),
            frames_ignored: r.counter(
                "lazaret_frames_ignored",
                "Frames without a body that we know, or about nothing that is open.",
            ),
        }
    }
}

/// What is judged, and what waits for it.
#[derive(Debug)]
pub(crate) struct ScanMetrics {
    pub(crate) joined: Counter,
    pub(crate) scans: Counters<2>,
    pub(crate) scan_seconds: Histograms<1>,
    pub(crate) partial_seconds: Histograms<1>,
    pub(crate) queue_waiting: Gauges<1>,
    pub(crate) running: Gauge,
    pub(crate) memory_bytes: Gauge,
    pub(crate) spool_bytes: Gauge,
    pub(crate) engine_workers: Gauges<1>,
    pub(crate) engine_killed: Gauges<1>,
}

impl ScanMetrics {
    fn new(r: &Registry) -> Self {
        Self {
            joined: r.counter(
                "lazaret_scans_joined",
                "Checks that waited for a scan already under way.",
            ),
            scans: r.counters(
                "lazaret_scans",
                "Files judged by an engine.",
                ["engine", "outcome"],
            ),
            scan_seconds: r.histograms(
                "lazaret_scan_seconds",
                "Time from handing a file to an engine to its report.",
                ["engine"],
                &LATENCY_BUCKETS_S,
            ),
            partial_seconds: r.histograms(
                "lazaret_partial_scan_seconds",
                "Time from handing what is known of a file to an engine to its answer.",
                ["engine"],
                &LATENCY_BUCKETS_S,
            ),
            queue_waiting: r.gauges(
                "lazaret_queue_waiting",
                "Scans that wait for an engine.",
                ["priority"],
            ),
            running: r.gauge("lazaret_scans_running", "Scans that run."),
            memory_bytes: r.gauge("lazaret_upload_memory_bytes", "Content held in memory."),
            spool_bytes: r.gauge("lazaret_spool_bytes", "Content held on disk."),
            engine_workers: r.gauges(
                "lazaret_engine_workers",
                "Workers alive, by engine.",
                ["engine"],
            ),
            engine_killed: r.gauges(
                "lazaret_engine_killed",
                "Workers that crashed or were killed, by engine.",
                ["engine"],
            ),
        }
    }
}

/// What is kept and what follows from it.
#[derive(Debug)]
pub(crate) struct KeptMetrics {
    pub(crate) verdict_entries: Gauges<1>,
    pub(crate) verdict_bytes: Gauges<1>,
    pub(crate) retained_bytes: Gauge,
    pub(crate) rejudged: Counters<2>,
    pub(crate) detections: Counters<1>,
    pub(crate) detection_lines_lost: Gauge,
    pub(crate) orders: Counters<1>,
    pub(crate) order_results: Counters<1>,
    pub(crate) reloads: Counters<1>,
    pub(crate) allowlist_serial: Gauges<1>,
    pub(crate) allowlist_recalled: Gauge,
    pub(crate) allowlists_refused: Counter,
}

impl KeptMetrics {
    fn new(r: &Registry) -> Self {
        Self {
            verdict_entries: r.gauges("lazaret_verdict_entries", "Verdicts kept here.", ["tier"]),
            verdict_bytes: r.gauges("lazaret_verdict_bytes", "Size of kept verdicts.", ["tier"]),
            retained_bytes: r.gauge(
                "lazaret_retained_bytes",
                "Content kept to be judged again when rules change.",
            ),
            rejudged: r.counters(
                "lazaret_rejudged",
                "Verdicts of the rules before: kept, rerun (by the new rules alone), dropped (all rules must run); when: asked, background.",
                ["when", "how"],
            ),
            detections: r.counters(
                "lazaret_detections",
                "Malicious verdicts on guests' files: new, known, suppressed.",
                ["kind"],
            ),
            detection_lines_lost: r.gauge(
                "lazaret_detection_lines_lost",
                "Lines of the detection log that did not reach the disk.",
            ),
            orders: r.counters("lazaret_orders", "Orders given to agents.", ["action"]),
            order_results: r.counters("lazaret_order_results", "How orders ended.", ["status"]),
            reloads: r.counters("lazaret_reloads", "Reloads, by result.", ["result"]),
            allowlist_serial: r.gauges(
                "lazaret_allowlist_serial",
                "Serial of the allowlist in force, by its file; 0: none is.",
                ["file"],
            ),
            allowlist_recalled: r.gauge(
                "lazaret_allowlist_recalled",
                "Allowlisted contents that were found malicious.",
            ),
            allowlists_refused: r.counter(
                "lazaret_allowlists_refused",
                "Files of allowlists that were refused: bad, unsigned, older or unreadable.",
            ),
        }
    }
}

pub(crate) fn class_name(class: AccessClass) -> &'static str {
    match class {
        AccessClass::Exec => "exec",
        AccessClass::Open => "open",
        AccessClass::CloseWrite => "close_write",
        AccessClass::OnDemand => "on_demand",
        AccessClass::Ledger => "ledger",
    }
}

/// A gauge holds signed numbers.
pub(crate) fn gauge_of(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
