//! How jobs and openers end: by a verdict, by policy, or dropped.

use std::time::Duration;

use model::{Disposition, Outcome, UnscannedReason};

use super::{Core, Link};
use crate::cache::{Known, Remembered};
use crate::job::{Job, Phase, Timer};
use crate::standing::Use;
use crate::{Action, Answered, FileKey, Opened, Source, Ticket, Why};

impl Core {
    /// What an opener with this answer gets.
    fn disposition(&self, answered: Answered) -> Disposition {
        match answered {
            Answered::Clean | Answered::Released => Disposition::Allow,
            Answered::Malicious => self.policy.on_malicious,
            Answered::Unscanned(reason) => self.policy.disposition(&Outcome::unscanned(reason)),
            Answered::Error => self.policy.on_error,
        }
    }

    fn answer(
        &self,
        ticket: Ticket,
        answered: Answered,
        source: Source,
        actions: &mut Vec<Action>,
    ) {
        let disposition = self.disposition(answered);
        actions.push(Action::Answer {
            ticket,
            disposition,
            why: Why { answered, source },
        });
    }

    /// Ends a file that never became a job.
    pub(super) fn settle(
        &mut self,
        opened: &Opened,
        answered: Answered,
        source: Source,
        actions: &mut Vec<Action>,
    ) {
        let ticket = opened.ticket;
        if opened.class.has_opener() {
            let allowed = self.disposition(answered) == Disposition::Allow;
            if debt(answered).is_some() && allowed {
                actions.push(Action::Provisional { ticket });
            }
            self.answer(ticket, answered, source, actions);
            if let Some(reason) = debt(answered) {
                actions.push(Action::LedgerAdd { ticket, reason });
            }
        } else if opened.class == model::AccessClass::Ledger {
            actions.push(match debt(answered) {
                Some(_) => Action::LedgerUnpaid { ticket },
                None => Action::LedgerPaid { ticket },
            });
        }
        actions.push(Action::Release { ticket });
    }

    /// Ends an opener or a file whose content is known to be good.
    pub(super) fn settle_known(
        &mut self,
        now: Duration,
        opened: &Opened,
        remembered: Remembered,
        actions: &mut Vec<Action>,
    ) {
        let stands = opened.may_stand && opened.class.has_opener();
        self.settle(opened, Answered::Clean, Source::Cache, actions);
        let release = actions.pop();
        if stands {
            self.let_stand(
                now,
                opened.ticket,
                opened.key,
                remembered,
                Use::Again,
                actions,
            );
        }
        actions.extend(release);
    }

    /// Has a verdict placed in the kernel, where it may be: there it holds for every name of the
    /// file, so it must not depend on one.
    fn let_stand(
        &mut self,
        now: Duration,
        ticket: Ticket,
        key: FileKey,
        remembered: Remembered,
        how: Use,
        actions: &mut Vec<Action>,
    ) {
        let of_any_name = remembered.known == Known::Listed || !self.policy.context_sensitive;
        if !remembered.is_good() || !of_any_name {
            return;
        }
        let Some(admitted) = self.standing.admit(now, key.node, remembered, how) else {
            return;
        };
        self.counters.standing_placed += 1;
        if let Some(gone) = admitted.instead_of {
            self.counters.standing_displaced += 1;
            actions.push(Action::Lift(vec![gone]));
        }
        actions.push(Action::Place {
            ticket,
            standing: admitted.id,
            key,
        });
    }

    /// Ends a job with an outcome: answers who waits, settles the ledger.
    pub(super) fn finish(
        &mut self,
        now: Duration,
        lead: Ticket,
        outcome: &Outcome,
        released: bool,
        source: Source,
        actions: &mut Vec<Action>,
    ) {
        let Some(job) = self.take_job(lead) else {
            return;
        };
        let answered = match outcome {
            Outcome::Clean => Answered::Clean,
            Outcome::Malicious { .. } if released => Answered::Released,
            Outcome::Malicious { .. } => Answered::Malicious,
            Outcome::Unscanned { reason, .. } => Answered::Unscanned(*reason),
            Outcome::Error { .. } => Answered::Error,
        };
        for ticket in &job.waiting {
            self.forget_opener(*ticket);
            self.answer(*ticket, answered, source, actions);
        }
        if let (Some(remembered), true, false) =
            (job.remembered, job.may_stand, job.waiting.is_empty())
        {
            self.let_stand(now, lead, job.key, remembered, Use::First, actions);
        }
        match debt(answered) {
            None if job.ledgered || job.payback => {
                actions.push(Action::LedgerPaid { ticket: lead });
            }
            Some(_) if job.payback => actions.push(Action::LedgerUnpaid { ticket: lead }),
            Some(reason) if !job.ledgered && !job.waiting.is_empty() => {
                actions.push(Action::LedgerAdd {
                    ticket: lead,
                    reason,
                });
            }
            None | Some(_) => {}
        }
        let opened_before = job.let_through || job.payback;
        if let (Answered::Malicious, true, Some(digest)) = (answered, opened_before, job.digest) {
            self.counters.late_malicious += 1;
            actions.push(Action::Late {
                ticket: lead,
                digest,
            });
        }
        actions.push(Action::Release { ticket: lead });
    }

    /// Ends a job without any outcome. Its openers were answered before.
    pub(super) fn drop_job(&mut self, lead: Ticket, actions: &mut Vec<Action>) {
        let Some(job) = self.take_job(lead) else {
            return;
        };
        if let Phase::Asked { request_id } = job.phase
            && self.requests.detach(request_id, lead)
        {
            actions.push(Action::Cancel { request_id });
        }
        if job.payback {
            actions.push(Action::LedgerUnpaid { ticket: lead });
        }
        actions.push(Action::Release { ticket: lead });
    }

    /// Takes a job out of every index and frees its place.
    fn take_job(&mut self, lead: Ticket) -> Option<Job> {
        let job = self.jobs.remove(&lead)?;
        self.by_node.remove(&(job.key.node, lead));
        self.timers.remove(&(job.end, Timer::Job(lead)));
        if let Phase::Resting { until } = job.phase {
            self.timers.remove(&(until, Timer::Rehash(lead)));
        }
        self.hashed.remove(&lead);
        self.kept.retain(|kept| *kept != lead);
        if job.admitted {
            self.in_flight -= 1;
            self.background_in_flight -= usize::from(job.background);
        } else {
            self.queue.remove(job.class.priority(), lead);
        }
        Some(job)
    }

    fn forget_opener(&mut self, ticket: Ticket) {
        if let Some(opener) = self.openers.remove(&ticket) {
            self.timers
                .remove(&(opener.deadline, Timer::Opener(ticket)));
        }
    }

    /// The deadline came: policy answers, the scan goes on.
    pub(super) fn opener_expired(&mut self, ticket: Ticket, actions: &mut Vec<Action>) {
        let Some(opener) = self.openers.get(&ticket).copied() else {
            return;
        };
        self.counters.deadlines += 1;
        let reason = match self.link {
            Link::Up => UnscannedReason::Deadline,
            Link::Lost { .. } | Link::Gone => UnscannedReason::Unreachable,
        };
        self.answer_by_policy(ticket, opener.lead, reason, actions);
        let idle = |job: &Job| job.waiting.is_empty();
        if self.jobs.get(&opener.lead).is_some_and(idle) {
            self.keep(opener.lead, actions);
        }
    }

    fn answer_by_policy(
        &mut self,
        ticket: Ticket,
        lead: Ticket,
        reason: UnscannedReason,
        actions: &mut Vec<Action>,
    ) {
        self.forget_opener(ticket);
        let Some(job) = self.jobs.get_mut(&lead) else {
            return;
        };
        job.waiting.retain(|other| *other != ticket);
        let (key, context) = (job.key, job.context);
        // What was malicious when an appliance could still be asked stays so.
        let known_bad = job.writer_free
            && !job.stale
            && self
                .cache
                .lookup(&key, context)
                .is_some_and(|it| it.known == Known::Malicious);
        if known_bad {
            self.answer(ticket, Answered::Malicious, Source::Cache, actions);
            return;
        }
        let answered = Answered::Unscanned(reason);
        let allowed = self.disposition(answered) == Disposition::Allow;
        if allowed {
            actions.push(Action::Provisional { ticket });
        }
        self.answer(ticket, answered, Source::Local, actions);
        let Some(job) = self.jobs.get_mut(&lead) else {
            return;
        };
        job.let_through |= allowed;
        if !job.ledgered && !job.payback {
            job.ledgered = true;
            actions.push(Action::LedgerAdd {
                ticket: lead,
                reason,
            });
        }
    }

    /// A scan goes on for nobody; of those only so many.
    fn keep(&mut self, lead: Ticket, actions: &mut Vec<Action>) {
        self.kept.push_back(lead);
        while self.kept.len() > self.limits.kept_max {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            self.counters.kept_dropped += 1;
            self.drop_job(oldest, actions);
        }
    }

    /// A scan has gone on for too long.
    pub(super) fn give_up(&mut self, lead: Ticket, actions: &mut Vec<Action>) {
        self.answer_waiting(lead, UnscannedReason::Deadline, actions);
        self.drop_job(lead, actions);
    }

    /// Nothing can be expected any more: everybody is answered by policy.
    pub(super) fn give_up_all(&mut self, reason: UnscannedReason, actions: &mut Vec<Action>) {
        let leads: Vec<Ticket> = self.jobs.keys().copied().collect();
        for lead in leads {
            self.answer_waiting(lead, reason, actions);
            self.drop_job(lead, actions);
        }
    }

    fn answer_waiting(&mut self, lead: Ticket, reason: UnscannedReason, actions: &mut Vec<Action>) {
        let waiting = self.jobs.get(&lead).map(|job| job.waiting.clone());
        for ticket in waiting.unwrap_or_default() {
            self.answer_by_policy(ticket, lead, reason, actions);
        }
    }

    /// The link is gone and with it every question. Who is waited for is asked about again
    /// over the next one; the rest is in the ledger, or will be seen at its next open.
    pub(super) fn requests_lost(&mut self, actions: &mut Vec<Action>) {
        self.requests.clear();
        let leads: Vec<Ticket> = self.jobs.keys().copied().collect();
        for lead in leads {
            let Some(job) = self.jobs.get_mut(&lead) else {
                continue;
            };
            let Phase::Asked { .. } = job.phase else {
                continue;
            };
            if job.waiting.is_empty() {
                self.drop_job(lead, actions);
            } else {
                job.phase = Phase::Hashed;
                self.hashed.insert(lead);
            }
        }
    }
}

/// Why an answer leaves something to be paid back: circumstances kept the content from being
/// judged. What a limit or the content itself forbids would only be answered so again.
fn debt(answered: Answered) -> Option<UnscannedReason> {
    match answered {
        Answered::Clean | Answered::Malicious | Answered::Released => None,
        Answered::Unscanned(reason) => (!reason.is_about_content()).then_some(reason),
        Answered::Error => Some(UnscannedReason::Other),
    }
}
