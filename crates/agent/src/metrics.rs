//! What the gate counts, as Prometheus metrics. Copied there when somebody asks, so that the paths
//! of opens touch nothing but their own atomics.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use agent_core::LedgerTotals;
use daemon::metrics::{Counter, Counters, Gauge, Gauges, LATENCY_BUCKETS_S, Registry};
use fanotify::probe::{FastPath, Finding};
use link::client::Stats;

use crate::gate::tally::Tally;
use crate::gate::{Gate, Snapshot};

/// A counter and where its value comes from.
type Reading<T> = (Counter, fn(&T) -> u64);
type GaugeReading<T> = (Gauge, fn(&T) -> u64);

/// The agent's metrics.
pub(crate) struct Published {
    events: Counters<1>,
    passed: Counters<1>,
    answers: Counters<4>,
    tally: Vec<Reading<Tally>>,
    core: Vec<Reading<agent_core::Counters>>,
    link: Vec<Reading<Stats>>,
    ledger: Vec<Reading<LedgerTotals>>,
    gauges: Vec<GaugeReading<Snapshot>>,
    fast_path: Gauges<3>,
    allowlist_serial: Gauges<1>,
    allowlist_entries: Gauge,
    allowlist_recalled: Gauge,
    filter_entries: Gauge,
    ledger_open: Gauge,
    supervisor: Vec<Reading<supervisor::Tally>>,
    unguarded_ms: Gauge,
}

impl Published {
    pub(crate) fn new(registry: &Registry, tally: &Tally) -> Self {
        let waits = registry.histogram(
            "lazaret_agent_answer_seconds",
            "Time from reading an opener's event to answering it, where it was not in the cache.",
            &LATENCY_BUCKETS_S,
        );
        tally.publish_waits(waits);
        Self {
            events: registry.counters(
                "lazaret_agent_events_total",
                "Events read from the kernel.",
                ["class"],
            ),
            passed: registry.counters(
                "lazaret_agent_passed_total",
                "Openers let through unseen, by why.",
                ["why"],
            ),
            answers: registry.counters(
                "lazaret_agent_answers_total",
                "Openers answered.",
                ["answer", "outcome", "reason", "source"],
            ),
            tally: tally_counters(registry),
            core: core_counters(registry),
            link: link_counters(registry),
            ledger: ledger_counters(registry),
            gauges: gauges(registry),
            fast_path: registry.gauges(
                "lazaret_agent_fast_path",
                "Whether a fast path was seen to work on a file system: 1 sound, 0 unsound, \
                 -1 unknown. Only sound ones are used.",
                ["mount", "filesystem", "path"],
            ),
            allowlist_serial: registry.gauges(
                "lazaret_agent_allowlist_serial",
                "Serial of the allowlist in force, by its file; 0: none is.",
                ["file"],
            ),
            allowlist_entries: registry.gauge(
                "lazaret_agent_allowlist_entries",
                "Contents listed, those of several lists counted in each.",
            ),
            allowlist_recalled: registry.gauge(
                "lazaret_agent_allowlist_recalled",
                "Contents that no list allows any more.",
            ),
            filter_entries: registry.gauge(
                "lazaret_agent_filter_entries",
                "Literals and needles of the appliance's filter; 0: content is not reported on.",
            ),
            ledger_open: registry.gauge(
                "lazaret_agent_ledger_open",
                "Ledger entries not paid back yet.",
            ),
            supervisor: supervisor_counters(registry),
            unguarded_ms: registry.gauge(
                "lazaret_agent_unguarded_ms",
                "Milliseconds without a guard before this agent started; 0: there were none.",
            ),
        }
    }

    /// Copies everything.
    pub(crate) fn update(&self, gate: &Gate) {
        let tally = &gate.tally;
        for (class, count) in [
            ("open", &tally.events_open),
            ("exec", &tally.events_exec),
            ("close_write", &tally.events_close),
            ("overflow", &tally.events_overflow),
        ] {
            set(&self.events.with([class]), count.value());
        }
        for (why, count) in [
            ("process", &tally.passed_process),
            ("path", &tally.passed_path),
            ("kind", &tally.passed_kind),
            ("empty", &tally.passed_empty),
        ] {
            set(&self.passed.with([why]), count.value());
        }
        for count in tally.answers() {
            let labels = [count.disposition, count.outcome, count.reason, count.source];
            set(&self.answers.with(labels), count.count);
        }
        set_all(&self.tally, tally);
        let snapshot = gate.snapshot();
        set_all(&self.core, &snapshot.counters);
        for (gauge, read) in &self.gauges {
            set_gauge(gauge, read(&snapshot));
        }
        self.update_fast_paths(gate);
        self.update_allowlists(gate);
        let filter = gate.looking.in_force();
        set_gauge(&self.filter_entries, filter.map_or(0, |it| it.len() as u64));
        let link = gate.client().map(link::client::Client::stats);
        set_all(&self.link, &link.unwrap_or_default());
        let ledger = gate.books.totals();
        set_all(&self.ledger, &ledger);
        set_gauge(&self.ledger_open, ledger.open_entries);
        let beside = gate.worker().map(supervisor::Worker::tally);
        set_all(&self.supervisor, &beside.unwrap_or_default());
        set_gauge(&self.unguarded_ms, gate.gap.length_ms());
    }

    fn update_fast_paths(&self, gate: &Gate) {
        let probes = gate.probes.lock().unwrap_or_else(PoisonError::into_inner);
        for probed in probes.all() {
            let (filesystem, mount) = probed.place();
            for path in FastPath::ALL {
                let labels = [&*mount.to_string_lossy(), filesystem, path.name()];
                self.fast_path
                    .with(labels)
                    .set(match probed.finding_of(path) {
                        Finding::Sound => 1,
                        Finding::Unsound(_) => 0,
                        Finding::Unknown(_) => -1,
                    });
            }
        }
    }

    fn update_allowlists(&self, gate: &Gate) {
        let (lists, recalled) = gate.allowlists();
        for file in gate.allowlist_files() {
            let list = lists.iter().find(|list| list.path == *file);
            let serial = self.allowlist_serial.with([&file.to_string_lossy()]);
            set_gauge(&serial, list.map_or(0, |list| list.serial));
        }
        let listed = lists.iter().map(|list| list.listed as u64).sum();
        set_gauge(&self.allowlist_entries, listed);
        set_gauge(&self.allowlist_recalled, recalled as u64);
    }
}

fn set(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}

fn set_all<T>(readings: &[Reading<T>], from: &T) {
    for (counter, read) in readings {
        set(counter, read(from));
    }
}

fn set_gauge(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn supervisor_counters(registry: &Registry) -> Vec<Reading<supervisor::Tally>> {
    let counter = |name: &str, help: &str| registry.counter(&full(name), help);
    vec![
        (
            counter(
                "supervisor_answers",
                "Openers answered by policy because no worker did in time.",
            ),
            |t| t.answered,
        ),
        (counter("worker_starts", "Workers started."), |t| {
            t.worker_starts
        }),
        (
            counter("worker_hangs", "Workers killed for doing nothing."),
            |t| t.worker_hangs,
        ),
        (
            counter("takeovers", "Times a new supervisor took over."),
            |t| t.takeovers,
        ),
    ]
}

/// What the appliance's filter is good for.
fn report_counters(registry: &Registry) -> Vec<Reading<Tally>> {
    let counter = |name: &str, help: &str| registry.counter(&full(name), help);
    vec![
        (
            counter("reports_sent", "Reports sent in place of content."),
            |t| t.reports_sent.value(),
        ),
        (
            counter("report_bytes_sent", "Bytes of those reports."),
            |t| t.report_bytes_sent.value(),
        ),
        (
            counter(
                "range_bytes_sent",
                "Bytes of content that were asked for because of a report.",
            ),
            |t| t.range_bytes_sent.value(),
        ),
        (
            counter(
                "reports_declined",
                "Reports that were not made: no filter any more, or more than one can tell.",
            ),
            |t| t.reports_declined.value(),
        ),
        (counter("filter_bytes", "Bytes of filters fetched."), |t| {
            t.filter_bytes.value()
        }),
        (
            counter(
                "filters_refused",
                "Filters, fetched or kept, that could not be used.",
            ),
            |t| t.filters_refused.value(),
        ),
    ]
}

fn tally_counters(registry: &Registry) -> Vec<Reading<Tally>> {
    let counter = |name: &str, help: &str| registry.counter(&full(name), help);
    let mut counters: Vec<Reading<Tally>> = vec![
        (counter("hashed_files", "Files hashed."), |t| {
            t.hashed_files.value()
        }),
        (counter("hashed_bytes", "Bytes hashed."), |t| {
            t.hashed_bytes.value()
        }),
        (
            counter("content_bytes_sent", "Bytes of file content sent."),
            |t| t.content_bytes_sent.value(),
        ),
        (
            counter(
                "openers_killed",
                "Processes killed for what they had opened before a malicious verdict.",
            ),
            |t| t.openers_killed.value(),
        ),
        (counter("orders_done", "Removal orders carried out."), |t| {
            t.orders_done.value()
        }),
        (
            counter("orders_refused", "Removal orders refused or failed."),
            |t| t.orders_refused.value(),
        ),
        (
            counter("answers_refused", "Answers that the kernel refused."),
            |t| t.answers_refused.value(),
        ),
        (
            counter(
                "unopenable",
                "Opens denied by the kernel because it could not open the file for the gate.",
            ),
            |t| t.unopenable.value(),
        ),
        (
            counter(
                "descriptors_exhausted",
                "Events lost for want of a descriptor.",
            ),
            |t| t.descriptors_exhausted.value(),
        ),
        (
            counter("memfd_execs", "Programs that were run from memory."),
            |t| t.memfd_execs.value(),
        ),
        (
            counter(
                "execs_lost",
                "Times that the kernel could not tell of all programs that started.",
            ),
            |t| t.execs_lost.value(),
        ),
        (
            counter(
                "swept",
                "Files that were open before the start, and judged after it.",
            ),
            |t| t.swept.value(),
        ),
        (
            counter(
                "rechecked",
                "Files judged again because rules changed, though nobody opened them.",
            ),
            |t| t.rechecked.value(),
        ),
        (
            counter(
                "not_held",
                "Contents that were to be judged again and of which no file was found.",
            ),
            |t| t.not_held.value(),
        ),
        (
            counter(
                "allowlists_refused",
                "Files of allowlists that were refused: bad, unsigned, older or unreadable.",
            ),
            |t| t.allowlists_refused.value(),
        ),
        (
            counter(
                "lists_refused",
                "Lists of appliances that were refused: stale, or no lists.",
            ),
            |t| t.lists_refused.value(),
        ),
        (
            counter("panics", "Panics caught, each of which failed one file."),
            |t| t.panics.value(),
        ),
    ];
    counters.extend(report_counters(registry));
    counters
}

fn core_counters(registry: &Registry) -> Vec<Reading<agent_core::Counters>> {
    let counter = |name: &str, help: &str| registry.counter(&full(name), help);
    vec![
        (
            counter("cache_hits", "Answers from the verdict cache."),
            |c| c.cache_hits,
        ),
        (
            counter("cache_misses", "Openers whose file was not in the cache."),
            |c| c.cache_misses,
        ),
        (
            counter("coalesced", "Files that waited on a question under way."),
            |c| c.coalesced,
        ),
        (
            counter("deadlines", "Openers answered by policy at their deadline."),
            |c| c.deadlines,
        ),
        (
            counter(
                "writer_held",
                "Files with a writer: judged, not remembered.",
            ),
            |c| c.writer_held,
        ),
        (
            counter(
                "allowlisted",
                "Files allowed because their content is listed.",
            ),
            |c| c.allowlisted,
        ),
        (counter("checks", "Questions asked."), |c| c.checks),
        (
            counter("stale_replies", "Replies to questions that were over."),
            |c| c.stale_replies,
        ),
        (
            counter(
                "late_malicious",
                "Malicious verdicts after a provisional allow.",
            ),
            |c| c.late_malicious,
        ),
        (
            counter("restarts", "Files hashed again because they changed."),
            |c| c.restarts,
        ),
        (
            counter(
                "background_dropped",
                "Close-write and ledger work dropped for want of room.",
            ),
            |c| c.background_dropped,
        ),
        (
            counter(
                "standing_placed",
                "Clean verdicts that were to stand in the kernel.",
            ),
            |c| c.standing_placed,
        ),
        (
            counter(
                "standing_refused",
                "Of those, which were not placed: a writer was there, or the kernel would not.",
            ),
            |c| c.standing_refused,
        ),
        (
            counter("standing_broken", "Of those, which a writer brought down."),
            |c| c.standing_broken,
        ),
        (
            counter(
                "standing_displaced",
                "Of those, which gave their place up to another file's.",
            ),
            |c| c.standing_displaced,
        ),
        (
            counter(
                "kept_dropped",
                "Scans after a deadline left to the ledger for want of room.",
            ),
            |c| c.kept_dropped,
        ),
    ]
}

fn link_counters(registry: &Registry) -> Vec<Reading<Stats>> {
    let counter = |name: &str, help: &str| registry.counter(&full(name), help);
    vec![
        (
            counter("link_bytes_sent", "Bytes sent to appliances."),
            |s| s.bytes_sent,
        ),
        (
            counter("link_bytes_received", "Bytes received from appliances."),
            |s| s.bytes_received,
        ),
        (counter("link_sessions", "Sessions that came up."), |s| {
            s.sessions
        }),
        (
            counter("link_attempts_failed", "Attempts to connect that failed."),
            |s| s.attempts_failed,
        ),
        (
            counter("link_backpressure", "Frames refused for want of room."),
            |s| s.backpressure,
        ),
    ]
}

fn ledger_counters(registry: &Registry) -> Vec<Reading<LedgerTotals>> {
    let counter = |name: &str, help: &str| registry.counter(&full(name), help);
    vec![
        (
            counter("ledger_entries", "Ledger entries ever made."),
            |l| l.entries_total,
        ),
        (counter("ledger_paid", "Ledger entries paid back."), |l| {
            l.paid_total
        }),
        (
            counter(
                "ledger_overflow",
                "Unscanned opens that the ledger could not name.",
            ),
            |l| l.overflow_total,
        ),
    ]
}

fn gauges(registry: &Registry) -> Vec<GaugeReading<Snapshot>> {
    let gauge = |name: &str, help: &str| registry.gauge(&full(name), help);
    vec![
        (
            gauge("link_up", "1 while an appliance is connected."),
            |s| u64::from(s.link_up),
        ),
        (gauge("openers", "Openers that wait."), |s| s.openers as u64),
        (
            gauge("in_flight", "Files being hashed, asked about or sent."),
            |s| s.in_flight as u64,
        ),
        (gauge("requests", "Questions under way."), |s| {
            s.requests as u64
        }),
        (
            gauge("queue_len", "Files that wait for a place in flight."),
            |s| s.queued as u64,
        ),
        (
            gauge("kept", "Scans that go on after policy answered."),
            |s| s.kept as u64,
        ),
        (gauge("cache_entries", "Verdicts remembered."), |s| {
            s.cached as u64
        }),
        (
            gauge("standing", "Verdicts that stand in the kernel."),
            |s| s.standing as u64,
        ),
    ]
}

fn full(name: &str) -> String {
    format!("lazaret_agent_{name}")
}
