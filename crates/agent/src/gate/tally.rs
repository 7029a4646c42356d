//! Counts kept where things happen: one atomic addition each, copied into metrics later.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_core::{Answered, Source, Why};
use bytes::Bytes;
use daemon::metrics::Histogram;
use model::{Disposition, UnscannedReason};
use proto::v1;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

const OUTCOMES: usize = 4 + UnscannedReason::ALL.len();
const SOURCES: [(Source, &str); 4] = [
    (Source::Verdict, "verdict"),
    (Source::Cache, "cache"),
    (Source::Allowlist, "allowlist"),
    (Source::Local, "local"),
];
const DISPOSITIONS: [(Disposition, &str); 2] =
    [(Disposition::Allow, "allow"), (Disposition::Deny, "deny")];

/// What happened at the gate.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) events_open: Count,
    pub(crate) events_exec: Count,
    pub(crate) events_close: Count,
    pub(crate) events_overflow: Count,
    /// Opens that are none of the gate's business, by why.
    pub(crate) passed_process: Count,
    pub(crate) passed_path: Count,
    pub(crate) passed_kind: Count,
    pub(crate) passed_empty: Count,
    /// The kernel denied an open because it could not open the file for us.
    pub(crate) unopenable: Count,
    /// No descriptor was left for an event.
    pub(crate) descriptors_exhausted: Count,
    pub(crate) answers_refused: Count,
    pub(crate) panics: Count,
    pub(crate) hashed_files: Count,
    pub(crate) hashed_bytes: Count,
    pub(crate) content_bytes_sent: Count,
    /// Of them, bytes of the ranges that were asked for because of a report.
    pub(crate) range_bytes_sent: Count,
    /// Reports in place of content, and their bytes.
    pub(crate) reports_sent: Count,
    pub(crate) report_bytes_sent: Count,
    /// Reports that could not be made: no filter any more, or more than a report can tell.
    pub(crate) reports_declined: Count,
    /// Bytes of filters that were fetched and taken.
    pub(crate) filter_bytes: Count,
    /// Filters, fetched or kept, that could not be used.
    pub(crate) filters_refused: Count,
    /// Processes killed for having opened what a late verdict called malicious.
    pub(crate) openers_killed: Count,
    pub(crate) orders_done: Count,
    pub(crate) orders_refused: Count,
    /// Programs that were run from memory.
    pub(crate) memfd_execs: Count,
    /// Times that the kernel could not tell of all programs.
    pub(crate) execs_lost: Count,
    /// Files that were open before the start, and judged after it.
    pub(crate) swept: Count,
    /// Files judged again because rules changed, though nobody opened them; and contents of which no
    /// file was found.
    pub(crate) rechecked: Count,
    pub(crate) not_held: Count,
    /// Files of allowlists that could not be taken.
    pub(crate) allowlists_refused: Count,
    /// Lists of appliances that were stale or no lists.
    pub(crate) lists_refused: Count,
    answers: [[[Count; OUTCOMES]; SOURCES.len()]; DISPOSITIONS.len()],
    /// Set where metrics are served.
    waits: OnceLock<Histogram>,
}

/// How many openers got one kind of answer.
pub(crate) struct AnswerCount {
    pub(crate) disposition: &'static str,
    pub(crate) outcome: &'static str,
    /// Of an unscanned outcome; empty otherwise.
    pub(crate) reason: &'static str,
    pub(crate) source: &'static str,
    pub(crate) count: u64,
}

impl Tally {
    pub(crate) fn answered(&self, disposition: Disposition, why: Why, waited: Duration) {
        let row = usize::from(disposition == Disposition::Deny);
        let source = SOURCES.iter().position(|(source, _)| *source == why.source);
        let count = self
            .answers
            .get(row)
            .and_then(|row| row.get(source?))
            .and_then(|row| row.get(outcome_index(why.answered)));
        if let Some(count) = count {
            count.add(1);
        }
        if let (Some(waits), false) = (self.waits.get(), why.source == Source::Cache) {
            waits.observe(waited.as_secs_f64());
        }
    }

    /// From now on waits are observed here; once.
    pub(crate) fn publish_waits(&self, waits: Histogram) {
        let _ = self.waits.set(waits);
    }

    pub(crate) fn rode_along(&self, content: Option<&Bytes>) {
        self.content_bytes_sent
            .add(content.map_or(0, |bytes| bytes.len() as u64));
    }

    pub(crate) fn reported(&self, report: &v1::FilterReport) {
        if report.filter.is_empty() {
            self.reports_declined.add(1);
        } else {
            self.reports_sent.add(1);
            let bytes = report.head.len() + report.report.len();
            self.report_bytes_sent.add(bytes as u64);
        }
    }

    /// Every kind of answer that was given at least once.
    pub(crate) fn answers(&self) -> Vec<AnswerCount> {
        let mut counts = Vec::new();
        for (row, (_, disposition)) in self.answers.iter().zip(DISPOSITIONS) {
            for (row, (_, source)) in row.iter().zip(SOURCES) {
                for (index, count) in row.iter().enumerate().filter(|(_, c)| c.value() > 0) {
                    let (outcome, reason) = outcome_names(index);
                    counts.push(AnswerCount {
                        disposition,
                        outcome,
                        reason,
                        source,
                        count: count.value(),
                    });
                }
            }
        }
        counts
    }

    pub(crate) fn events(&self) -> u64 {
        self.opens() + self.events_close.value()
    }

    pub(crate) fn opens(&self) -> u64 {
        self.events_open.value() + self.events_exec.value()
    }
}

fn outcome_index(answered: Answered) -> usize {
    match answered {
        Answered::Clean => 0,
        Answered::Malicious => 1,
        Answered::Released => 2,
        Answered::Error => 3,
        Answered::Unscanned(reason) => {
            let index = UnscannedReason::ALL.iter().position(|r| *r == reason);
            4 + index.unwrap_or(0)
        }
    }
}

fn outcome_names(index: usize) -> (&'static str, &'static str) {
    match index {
        0 => ("clean", ""),
        1 => ("malicious", ""),
        2 => ("released", ""),
        3 => ("error", ""),
        more => {
            let reason = UnscannedReason::ALL.get(more - 4);
            ("unscanned", reason.map_or("other", |reason| reason.name()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_answer_has_its_own_count() {
        let tally = Tally::default();
        let outcomes = [
            Answered::Clean,
            Answered::Malicious,
            Answered::Released,
            Answered::Error,
        ];
        let unscanned = UnscannedReason::ALL.map(Answered::Unscanned);
        let all = outcomes.into_iter().chain(unscanned);
        for (n, answered) in all.clone().enumerate() {
            for _ in 0..=n {
                let why = Why {
                    answered,
                    source: Source::Cache,
                };
                tally.answered(Disposition::Deny, why, Duration::from_micros(70));
            }
        }
        let counts = tally.answers();
        assert_eq!(counts.len(), all.count());
        let encrypted = counts.iter().find(|c| c.reason == "encrypted").unwrap();
        assert_eq!(
            (encrypted.outcome, encrypted.source),
            ("unscanned", "cache")
        );
        assert!(counts.iter().map(|c| c.count).eq(1..=28));
    }
}
