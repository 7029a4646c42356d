//! One file's way: read, asked about, acted upon, reported.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use allowlist::Shelf;
use model::{Coverage, Digest, Outcome, UnscannedReason, Verdict};
use proto::v1;

use super::content::{Candidate, Opened};
use super::halt::Halt;
use super::pace::Pace;
use super::removal::{Hands, Removal};
use super::report::{Finding, Report};
use super::session::{NoAnswer, Session};
use super::totals::Totals;
use crate::foresight::Foresight;

/// How often a file is tried again that changed while it was read, or that the appliance had no
/// room for.
const TRIES_MAX: u32 = 5;
/// Before the second try; each further one waits twice as long.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What every worker needs.
pub(crate) struct Judge<'a> {
    pub(crate) session: &'a Session,
    pub(crate) hands: &'a Hands,
    pub(crate) report: &'a Report<'a>,
    pub(crate) pace: &'a Pace,
    pub(crate) halt: &'a Halt,
    pub(crate) bytes_read: &'a AtomicU64,
    /// `None`: everything is asked about.
    pub(crate) shelf: Option<&'a Shelf>,
    pub(crate) foresight: &'a Foresight,
}

/// What an appliance or we ourselves say of a file.
struct Judged {
    outcome: Outcome,
    digest: Option<Digest>,
    size: u64,
    /// What engines saw, where an appliance told.
    coverage: Option<Coverage>,
    released: bool,
    allowlisted: bool,
    order: Option<v1::Order>,
}

impl Judged {
    fn of(outcome: Outcome, size: u64) -> Self {
        Self {
            outcome,
            digest: None,
            size,
            coverage: None,
            released: false,
            allowlisted: false,
            order: None,
        }
    }
}

impl Judge<'_> {
    /// Judges a file, to its report. `None`: the scan was halted first, and the file counts as
    /// not looked at.
    pub(crate) fn file(&self, opened: &Opened) -> Option<Totals> {
        let judged = self.judge(opened)?;
        let removal = match (&judged.order, judged.digest) {
            (Some(order), Some(digest)) => {
                let removal = self.hands.obey(order, &opened.path, digest);
                self.session.report(removal.to_result(order));
                Some(removal)
            }
            _ => None,
        };
        self.report.finding(&Finding {
            path: &opened.path,
            outcome: &judged.outcome,
            released: judged.released,
            digest: judged.digest,
            coverage: judged.coverage.as_ref(),
            removal: removal.as_ref(),
        });
        Some(counts(&judged, removal.as_ref()))
    }

    /// Asks until there is an answer worth keeping. Circumstances pass: a file that was being
    /// written to, an appliance that was full.
    fn judge(&self, opened: &Opened) -> Option<Judged> {
        let mut wait = RETRY_AFTER;
        for attempt in 1.. {
            let judged = self.judge_once(opened)?;
            let passing = match &judged.outcome {
                Outcome::Unscanned { reason, .. } => matches!(
                    reason,
                    UnscannedReason::Changed
                        | UnscannedReason::Overloaded
                        | UnscannedReason::Quota
                        | UnscannedReason::EngineUnavailable
                ),
                _ => false,
            };
            if !passing || attempt == TRIES_MAX {
                return Some(judged);
            }
            self.halt.sleep(wait);
            wait *= 2;
        }
        None
    }

    fn judge_once(&self, opened: &Opened) -> Option<Judged> {
        let policy = match self.session.appliance(self.halt) {
            Ok(appliance) => appliance.policy,
            Err(_) => return None,
        };
        if opened.size > policy.size_max_bytes {
            let too_large = Outcome::unscanned(UnscannedReason::TooLarge);
            return Some(Judged::of(too_large, 0));
        }
        let ride_along_max = u64::from(policy.ride_along_max_bytes);
        let ride_along_max = self.foresight.ride_along_max(ride_along_max);
        let filter = self.session.filter_for(&policy, opened.size);
        let ride_along_max = match &filter {
            Some(_) => 0,
            None => usize::try_from(ride_along_max).unwrap_or(0),
        };
        let read = Candidate::read(opened, ride_along_max, |bytes| {
            self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
            self.pace.give_way(self.halt);
        });
        let file = match read {
            Ok(file) => file.with_filter(filter),
            Err(error) => {
                let message = format!("cannot be read: {error}");
                return Some(Judged::of(Outcome::Error { message }, 0));
            }
        };
        if file.size == 0 {
            return Some(Judged::of(Outcome::Clean, 0));
        }
        if self.shelf.is_some_and(|shelf| shelf.lists(&file.digest.0)) {
            return Some(Judged {
                digest: Some(file.digest),
                allowlisted: true,
                ..Judged::of(Outcome::Clean, file.size)
            });
        }
        match self.session.check(&file, self.halt) {
            Ok(reply) => {
                self.foresight.learn(reply.cached);
                Some(read_reply(&file, *reply))
            }
            Err(NoAnswer::Halted) => None,
            Err(NoAnswer::GivenUp(why)) => {
                let outcome = Outcome::Unscanned {
                    reason: UnscannedReason::Deadline,
                    detail: why.to_owned(),
                };
                Some(Judged::of(outcome, 0))
            }
        }
    }
}

/// An answer without a valid verdict is an error, never clean.
fn read_reply(file: &Candidate<'_>, reply: v1::CheckReply) -> Judged {
    let verdict = reply
        .verdict
        .ok_or_else(|| "no verdict in the answer".to_owned())
        .and_then(|verdict| Verdict::try_from(verdict).map_err(|error| error.to_string()));
    let coverage = verdict.as_ref().ok().map(|it| it.coverage.clone());
    // Nothing is removed for a verdict on content that the appliance never had whole.
    let proved = verdict.as_ref().is_ok_and(|it| it.digest.is_some());
    let outcome = match verdict {
        // A verdict on other bytes says nothing about these.
        Ok(verdict) if verdict.digest.is_some_and(|digest| digest != file.digest) => {
            Outcome::Error {
                message: "the appliance answered for other content".into(),
            }
        }
        Ok(verdict) => verdict.outcome,
        Err(message) => Outcome::Error { message },
    };
    let malicious = matches!(outcome, Outcome::Malicious { .. });
    Judged {
        outcome,
        digest: Some(file.digest),
        size: file.size,
        coverage,
        released: malicious && reply.released,
        allowlisted: false,
        order: reply
            .order
            .filter(|_| malicious && proved && !reply.released),
    }
}

fn counts(judged: &Judged, removal: Option<&Removal>) -> Totals {
    let mut totals = Totals {
        files: 1,
        ..Totals::default()
    };
    match &judged.outcome {
        Outcome::Clean => totals.clean = 1,
        Outcome::Malicious { .. } if judged.released => totals.released = 1,
        Outcome::Malicious { .. } => totals.found = 1,
        Outcome::Unscanned { .. } => totals.unscanned = 1,
        Outcome::Error { .. } => totals.errors = 1,
    }
    if judged.outcome.is_cacheable() {
        totals.bytes = judged.size;
    }
    totals.allowlisted = u64::from(judged.allowlisted);
    let by_report = judged
        .coverage
        .as_ref()
        .is_some_and(|it| it.filter.is_some());
    totals.reported = u64::from(by_report);
    match removal {
        Some(removal) if removal.is_done() => totals.removed = 1,
        Some(_) => totals.removals_failed = 1,
        None => {}
    }
    totals
}
