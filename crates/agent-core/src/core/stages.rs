//! The way of one open, stage by stage: known already, joined, admitted, hashed, asked.

use std::time::Duration;

use model::{AccessClass, Digest, Outcome, UnscannedReason, Verdict};

use super::{Core, Link, REHASH_PAUSE_MAX, REHASH_PAUSE_MIN};
use crate::cache::{Known, Remembered};
use crate::job::{Job, Opener, Phase, Timer};
use crate::request::{Content, Request};
use crate::{Action, Answered, ContextHash, FileKey, Opened, Source, Ticket};

impl Core {
    pub(super) fn opened(&mut self, now: Duration, mut opened: Opened, actions: &mut Vec<Action>) {
        if !self.policy.context_sensitive {
            opened.context = ContextHash::NONE;
        }
        if !opened.writer_free {
            self.counters.writer_held += 1;
        }
        if self.settled_at_once(now, &opened, actions) {
            return;
        }
        match self.job_that_serves(&opened) {
            Some(lead) => {
                self.counters.coalesced += 1;
                self.join(now, lead, opened.class, actions);
                self.add_opener(now, &opened, lead);
                actions.push(Action::Release {
                    ticket: opened.ticket,
                });
            }
            None => self.new_job(now, &opened, actions),
        }
    }

    /// Answers what needs no appliance, or cannot have one.
    fn settled_at_once(
        &mut self,
        now: Duration,
        opened: &Opened,
        actions: &mut Vec<Action>,
    ) -> bool {
        let remembered = self.remembered(opened);
        let known = remembered.map(|remembered| remembered.known);
        let reason = if let Some(remembered) = remembered.filter(Remembered::is_good) {
            self.counters.cache_hits += 1;
            self.settle_known(now, opened, remembered, actions);
            return true;
        } else if self.stopped {
            UnscannedReason::Cancelled
        } else if opened.key.size > self.policy.size_max_bytes {
            UnscannedReason::TooLarge
        } else if self.link == Link::Gone && known == Some(Known::Malicious) {
            // With an appliance it is asked again: content may have been released since.
            self.counters.cache_hits += 1;
            self.settle(opened, Answered::Malicious, Source::Cache, actions);
            return true;
        } else if self.link == Link::Gone && !self.may_be_listed(opened) {
            UnscannedReason::Unreachable
        } else if opened.class.has_opener() && self.openers.len() >= self.limits.openers_max {
            UnscannedReason::Overloaded
        } else {
            self.counters.cache_misses += u64::from(opened.class.has_opener());
            return false;
        };
        self.settle(opened, Answered::Unscanned(reason), Source::Local, actions);
        true
    }

    /// Whether hashing may show an opener's file to be listed, though nobody can be asked about it.
    fn may_be_listed(&self, opened: &Opened) -> bool {
        opened.class.has_opener() && !self.allowlist.is_empty()
    }

    fn remembered(&mut self, opened: &Opened) -> Option<Remembered> {
        if !opened.writer_free {
            return None;
        }
        self.cache.lookup(&opened.key, opened.context)
    }

    fn job_that_serves(&self, opened: &Opened) -> Option<Ticket> {
        let node = opened.key.node;
        let here = (node, Ticket(0))..=(node, Ticket(u64::MAX));
        let serves = |lead: &Ticket| {
            self.jobs.get(lead).is_some_and(|job| {
                // Paying back must end in its own paid or unpaid.
                opened.class != AccessClass::Ledger
                    && job.serves(&opened.key, opened.context, opened.writer_free)
            })
        };
        self.by_node
            .range(here)
            .map(|(_, lead)| *lead)
            .find(|lead| serves(lead))
    }

    fn add_opener(&mut self, now: Duration, opened: &Opened, lead: Ticket) {
        if !opened.class.has_opener() {
            return;
        }
        let deadline = self.deadline(now, opened.class);
        let opener = Opener { lead, deadline };
        self.openers.insert(opened.ticket, opener);
        self.timers.insert((deadline, Timer::Opener(opened.ticket)));
        if let Some(job) = self.jobs.get_mut(&lead) {
            job.waiting.push(opened.ticket);
        }
        // It has somebody again, so it is no longer one that may be dropped.
        self.kept.retain(|kept| *kept != lead);
    }

    fn new_job(&mut self, now: Duration, opened: &Opened, actions: &mut Vec<Action>) {
        let lead = opened.ticket;
        if !self.has_place(opened.class) && !self.make_room(opened.class, actions) {
            self.counters.background_dropped += u64::from(!opened.class.has_opener());
            let overloaded = Answered::Unscanned(UnscannedReason::Overloaded);
            self.settle(opened, overloaded, Source::Local, actions);
            return;
        }
        let end = now + self.limits.scan_time_max;
        let job = Job {
            class: opened.class,
            key: opened.key,
            context: opened.context,
            writer_free: opened.writer_free,
            may_stand: opened.may_stand,
            remembered: None,
            stale: false,
            waiting: Vec::new(),
            phase: Phase::Queued,
            digest: None,
            admitted: false,
            background: false,
            restarts: 0,
            ledgered: false,
            payback: opened.class == AccessClass::Ledger,
            let_through: false,
            end,
        };
        self.jobs.insert(lead, job);
        self.by_node.insert((opened.key.node, lead));
        self.timers.insert((end, Timer::Job(lead)));
        self.queue.push(opened.class.priority(), lead);
        self.add_opener(now, opened, lead);
    }

    fn has_place(&self, class: AccessClass) -> bool {
        let background_full = self.background_in_flight >= self.limits.background_in_flight_max;
        self.queue.len() == 0
            && self.in_flight < self.in_flight_max
            && (class.has_opener() || !background_full)
    }

    /// True if the queue can take one more of this class, for which a less urgent one may go.
    fn make_room(&mut self, class: AccessClass, actions: &mut Vec<Action>) -> bool {
        if self.queue.len() < self.limits.queue_len_max {
            return true;
        }
        let Some(victim) = self.queue.pop_less_urgent(class.priority()) else {
            return false;
        };
        self.counters.background_dropped += 1;
        self.drop_job(victim, actions);
        true
    }

    /// Gives places in flight to those who wait, the most urgent first.
    pub(super) fn admit_queued(&mut self, actions: &mut Vec<Action>) {
        while self.in_flight < self.in_flight_max {
            let background_full = self.background_in_flight >= self.limits.background_in_flight_max;
            let least = if background_full { 0 } else { u8::MAX };
            let Some(lead) = self.queue.pop(least) else {
                break;
            };
            let Some(job) = self.jobs.get_mut(&lead) else {
                continue;
            };
            job.admitted = true;
            job.background = !job.class.has_opener();
            self.in_flight += 1;
            self.background_in_flight += usize::from(job.background);
            hash_anew(job, lead, actions);
        }
    }

    /// Somebody of this class waits for a job too; a more urgent one makes it more urgent.
    fn join(&mut self, now: Duration, lead: Ticket, class: AccessClass, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&lead) else {
            return;
        };
        let before = job.class;
        if class.priority() >= before.priority() {
            return;
        }
        job.class = class;
        if job.background {
            job.background = false;
            self.background_in_flight -= 1;
        }
        match job.phase {
            Phase::Queued => {
                self.queue.remove(before.priority(), lead);
                self.queue.push(class.priority(), lead);
            }
            Phase::Asked { request_id } => self.hurry(now, request_id, class, actions),
            Phase::Resting { .. } | Phase::Digesting | Phase::Hashed => {}
        }
    }

    /// Asks again as a more urgent class, unless the content is on its way already.
    fn hurry(
        &mut self,
        now: Duration,
        request_id: u64,
        class: AccessClass,
        actions: &mut Vec<Action>,
    ) {
        let slow = self
            .requests
            .get(request_id)
            .is_some_and(|request| !request.needed && request.class.priority() > class.priority());
        if !slow {
            return;
        }
        let Some(mut request) = self.requests.remove(request_id) else {
            return;
        };
        actions.push(Action::Cancel { request_id });
        request.class = class;
        self.ask(now, request, actions);
    }

    pub(super) fn digested(
        &mut self,
        now: Duration,
        lead: Ticket,
        key: FileKey,
        digest: Digest,
        writer_free: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(&lead) else {
            return;
        };
        if job.phase != Phase::Digesting {
            return;
        }
        if job.stale || key.node != job.key.node {
            return self.restart(now, lead, actions);
        }
        if key.size > self.policy.size_max_bytes {
            let too_large = Outcome::unscanned(UnscannedReason::TooLarge);
            return self.finish(now, lead, &too_large, false, Source::Local, actions);
        }
        job.key = key;
        job.writer_free = writer_free;
        job.digest = Some(digest);
        job.phase = Phase::Hashed;
        if self.allowlist.lists(&digest) {
            self.counters.allowlisted += 1;
            self.remember(lead, Known::Listed);
            return self.finish(
                now,
                lead,
                &Outcome::Clean,
                false,
                Source::Allowlist,
                actions,
            );
        }
        if self.link == Link::Gone {
            let unreachable = Outcome::unscanned(UnscannedReason::Unreachable);
            return self.finish(now, lead, &unreachable, false, Source::Local, actions);
        }
        self.hashed.insert(lead);
    }

    /// Asks about what is hashed, as long as the appliance takes more questions.
    pub(super) fn ask_hashed(&mut self, now: Duration, actions: &mut Vec<Action>) {
        while self.link == Link::Up
            && self.ask_not_before <= now
            && self.requests.len() < self.in_flight_max
        {
            let Some(lead) = self.hashed.pop_first() else {
                break;
            };
            self.ask_about(now, lead, actions);
        }
    }

    /// A question did not reach the link: it is asked again after a pause.
    pub(super) fn not_sent(&mut self, now: Duration, request_id: u64) {
        let Some(request) = self.requests.remove(request_id) else {
            return;
        };
        self.ask_not_before = now + super::ASK_PAUSE;
        for lead in request.leads {
            if let Some(job) = self.jobs.get_mut(&lead) {
                job.phase = Phase::Hashed;
                self.hashed.insert(lead);
            }
        }
    }

    /// Asks about a hashed job, or lets it wait for the same question of another one.
    fn ask_about(&mut self, now: Duration, lead: Ticket, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&lead) else {
            return;
        };
        let Some(digest) = job.digest else {
            return;
        };
        let content = Content {
            digest,
            size: job.key.size,
            context: job.context,
        };
        let class = job.class;
        let Some(request_id) = self.requests.find(&content) else {
            let request = Request {
                content,
                class,
                leads: vec![lead],
                needed: false,
                sending: false,
            };
            return self.ask(now, request, actions);
        };
        job.phase = Phase::Asked { request_id };
        self.counters.coalesced += 1;
        if let Some(request) = self.requests.get_mut(request_id) {
            request.leads.push(lead);
        }
        self.hurry(now, request_id, class, actions);
    }

    fn ask(&mut self, now: Duration, request: Request, actions: &mut Vec<Action>) {
        let (content, class) = (request.content, request.class);
        // The newest one: its bytes may still be at hand from the hashing.
        let Some(ticket) = request.leads.last().copied() else {
            return;
        };
        let leads = request.leads.clone();
        let request_id = self.requests.insert(request);
        let mut patience = None;
        for lead in leads {
            let Some(job) = self.jobs.get_mut(&lead) else {
                continue;
            };
            job.phase = Phase::Asked { request_id };
            let deadlines = job.waiting.iter().filter_map(|t| self.openers.get(t));
            let left = deadlines.map(|opener| opener.deadline.saturating_sub(now));
            patience = patience.into_iter().chain(left).min();
        }
        self.counters.checks += 1;
        actions.push(Action::Check {
            request_id,
            ticket,
            digest: content.digest,
            size: content.size,
            class,
            patience,
        });
    }

    pub(super) fn digest_failed(
        &mut self,
        now: Duration,
        lead: Ticket,
        reason: UnscannedReason,
        actions: &mut Vec<Action>,
    ) {
        let digesting = |job: &Job| job.phase == Phase::Digesting;
        if !self.jobs.get(&lead).is_some_and(digesting) {
            return;
        }
        if reason == UnscannedReason::Changed {
            return self.restart(now, lead, actions);
        }
        let outcome = Outcome::unscanned(reason);
        self.finish(now, lead, &outcome, false, Source::Local, actions);
    }

    /// The content is not what was hashed: once more after a pause, so often and no more. Whoever
    /// waits has its deadline all the same.
    fn restart(&mut self, now: Duration, lead: Ticket, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&lead) else {
            return;
        };
        job.restarts += 1;
        if job.restarts >= self.limits.attempts_max {
            let outcome = Outcome::unscanned(UnscannedReason::Changed);
            return self.finish(now, lead, &outcome, false, Source::Local, actions);
        }
        self.counters.restarts += 1;
        let growth = 1_u32.checked_shl(job.restarts - 1).unwrap_or(u32::MAX);
        let until = now
            + REHASH_PAUSE_MIN
                .saturating_mul(growth)
                .min(REHASH_PAUSE_MAX);
        job.phase = Phase::Resting { until };
        self.timers.insert((until, Timer::Rehash(lead)));
    }

    /// The pause is over.
    pub(super) fn rested(&mut self, lead: Ticket, actions: &mut Vec<Action>) {
        if let Some(job) = self.jobs.get_mut(&lead) {
            hash_anew(job, lead, actions);
        }
    }

    pub(super) fn needed(&mut self, request_id: u64, actions: &mut Vec<Action>) {
        let Some(request) = self.requests.get_mut(request_id) else {
            self.counters.stale_replies += 1;
            return;
        };
        // A second Need meanwhile would have two threads send the same content.
        if request.sending {
            return;
        }
        request.needed = true;
        request.sending = true;
        if let Some(ticket) = request.leads.last().copied() {
            actions.push(Action::Upload {
                request_id,
                ticket,
                class: request.class,
            });
        }
    }

    pub(super) fn sent(&mut self, request_id: u64) {
        if let Some(request) = self.requests.get_mut(request_id) {
            request.sending = false;
        }
    }

    pub(super) fn replied(
        &mut self,
        now: Duration,
        request_id: u64,
        verdict: &Verdict,
        released: bool,
        changed: &[Ticket],
        actions: &mut Vec<Action>,
    ) {
        let Some(request) = self.requests.remove(request_id) else {
            self.counters.stale_replies += 1;
            return;
        };
        let outcome = about(&request.content, verdict);
        for lead in request.leads {
            let Some(job) = self.jobs.get(&lead) else {
                continue;
            };
            let wanted = !job.waiting.is_empty() || job.payback || job.ledgered;
            let moved_on = match &outcome {
                Outcome::Clean => job.stale || changed.contains(&lead),
                Outcome::Unscanned { reason, .. } => *reason == UnscannedReason::Changed,
                Outcome::Malicious { .. } | Outcome::Error { .. } => false,
            };
            if moved_on && wanted {
                self.restart(now, lead, actions);
                continue;
            }
            if released {
                // Known as malicious, it would be denied while no appliance can be asked.
                self.cache.forget(job.key.node);
            }
            let current = self.generation == Some(verdict.generation);
            let known = match &outcome {
                Outcome::Clean => Some(Known::Clean),
                // Content that the appliance never had whole may be found clean, by what the filter
                // reports; what is said to be malicious has to be proved before it is remembered.
                Outcome::Malicious { .. } => verdict.digest.map(|_| Known::Malicious),
                Outcome::Unscanned { .. } | Outcome::Error { .. } => None,
            };
            if let (Some(known), true, false, false) = (known, current, moved_on, released) {
                self.remember(lead, known);
            }
            self.finish(now, lead, &outcome, released, Source::Verdict, actions);
        }
    }

    fn remember(&mut self, lead: Ticket, known: Known) {
        let Some(job) = self.jobs.get_mut(&lead) else {
            return;
        };
        let Some(digest) = job.digest else {
            return;
        };
        if job.writer_free && !job.stale {
            let remembered = Remembered { known, digest };
            job.remembered = Some(remembered);
            self.cache.insert(job.key, job.context, remembered);
        }
    }
}

fn hash_anew(job: &mut Job, lead: Ticket, actions: &mut Vec<Action>) {
    job.stale = false;
    job.phase = Phase::Digesting;
    actions.push(Action::Digest {
        ticket: lead,
        class: job.class,
    });
}

/// The verdict's outcome, if it is about this content: a verdict about other bytes is an error.
fn about(content: &Content, verdict: &Verdict) -> Outcome {
    match verdict.digest {
        Some(digest) if digest != content.digest && verdict.outcome.is_cacheable() => {
            Outcome::Error {
                message: format!("verdict for {digest} instead of {}", content.digest),
            }
        }
        _ => verdict.outcome.clone(),
    }
}
