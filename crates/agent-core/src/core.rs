//! The state machine: what it holds, and which input goes where.

mod finish;
mod stages;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use model::{AccessClass, Digest, Generation, Policy};

use crate::cache::{Known, VerdictCache};
use crate::job::{Job, Opener, Timer};
use crate::queue::WaitQueue;
use crate::request::Requests;
use crate::standing::{StandingId, StandingSet};
use crate::{
    Action, Allowlist, CoreLimits, Counters, Fallen, FileNode, Input, NothingListed, Ticket,
};

/// The part of a budget after which policy answers, in percent.
const DEADLINE_PERCENT: u32 = 80;

/// How long asking rests when the link takes no more.
const ASK_PAUSE: Duration = Duration::from_millis(20);

/// The first pause before a file that changed is hashed anew; doubled up to [`REHASH_PAUSE_MAX`].
const REHASH_PAUSE_MIN: Duration = Duration::from_millis(1);
const REHASH_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Is there anybody to ask?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    /// Lost; openers wait until the grace ends.
    Lost {
        grace_ends: Duration,
    },
    /// Lost for long; policy answers at once.
    Gone,
}

/// What the gate decides. See the crate's documentation.
#[derive(Debug)]
pub struct Core {
    limits: CoreLimits,
    policy: Policy,
    generation: Option<Generation>,
    link: Link,
    stopped: bool,
    allowlist: Box<dyn Allowlist>,
    cache: VerdictCache,
    standing: StandingSet,
    jobs: BTreeMap<Ticket, Job>,
    by_node: BTreeSet<(FileNode, Ticket)>,
    openers: BTreeMap<Ticket, Opener>,
    timers: BTreeSet<(Duration, Timer)>,
    queue: WaitQueue,
    /// Jobs that can be asked about as soon as there is a link with room.
    hashed: BTreeSet<Ticket>,
    /// Jobs whose openers were all answered by policy, oldest first.
    kept: VecDeque<Ticket>,
    requests: Requests,
    /// Until then nothing is asked: the link has as much to send as it may hold.
    ask_not_before: Duration,
    in_flight_max: usize,
    in_flight: usize,
    background_in_flight: usize,
    counters: Counters,
}

impl Core {
    /// A gate without a link: the grace begins at `now`. `policy` counts until an appliance
    /// sends its own.
    #[must_use]
    pub fn new(limits: CoreLimits, policy: Policy, now: Duration) -> Self {
        Self {
            policy,
            generation: None,
            link: Link::Lost {
                grace_ends: now + limits.link_grace,
            },
            stopped: false,
            allowlist: Box::new(NothingListed),
            cache: VerdictCache::new(limits.cache_entries_max),
            standing: StandingSet::new(limits.standing_max),
            jobs: BTreeMap::new(),
            by_node: BTreeSet::new(),
            openers: BTreeMap::new(),
            timers: BTreeSet::new(),
            queue: WaitQueue::default(),
            hashed: BTreeSet::new(),
            kept: VecDeque::new(),
            requests: Requests::new(),
            ask_not_before: Duration::ZERO,
            in_flight_max: limits.in_flight_max,
            in_flight: 0,
            background_in_flight: 0,
            counters: Counters::default(),
            limits,
        }
    }

    /// The same gate with this list of what is known to be good.
    #[must_use]
    pub fn with_allowlist(mut self, allowlist: Box<dyn Allowlist>) -> Self {
        self.allowlist = allowlist;
        self
    }

    /// Takes one input at `now` and appends what has to be done to `actions`.
    pub fn handle(&mut self, now: Duration, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Opened(opened) => self.opened(now, opened, actions),
            Input::Written { node } => self.written(node, actions),
            Input::EventsLost => self.events_lost(),
            Input::Fallen { standing, why } => self.fell(standing, why),
            Input::DescriptorsScarce => lift(self.standing.keep(|_, _| false), actions),
            Input::Digested {
                ticket,
                key,
                digest,
                writer_free,
            } => self.digested(now, ticket, key, digest, writer_free, actions),
            Input::DigestFailed { ticket, reason } => {
                self.digest_failed(now, ticket, reason, actions);
            }
            Input::NotSent { request_id } => self.not_sent(now, request_id),
            Input::Needed { request_id } => self.needed(request_id, actions),
            Input::Sent { request_id } => self.sent(request_id),
            Input::Reply {
                request_id,
                verdict,
                released,
                changed,
            } => self.replied(now, request_id, &verdict, released, &changed, actions),
            Input::LinkUp {
                generation,
                policy,
                in_flight_max,
            } => {
                self.link_lost(now, actions);
                self.link_up(generation, policy, in_flight_max, actions);
            }
            Input::LinkMoved {
                generation,
                policy,
                in_flight_max,
            } => self.link_up(generation, policy, in_flight_max, actions),
            Input::LinkDown => self.link_lost(now, actions),
            Input::AllowlistChanged => self.allowlist_changed(actions),
            Input::Recalled { digests } => self.recalled(digests, actions),
            Input::ContentChanged { generation } => self.set_generation(generation, actions),
            Input::PolicyChanged { policy } => self.set_policy(policy, actions),
            Input::Stop => self.stop(actions),
            Input::Tick => self.tick(now, actions),
        }
        self.admit_queued(actions);
        self.ask_hashed(now, actions);
    }

    /// When [`Input::Tick`] is wanted. Any input may bring it nearer; an opener seldom does, for
    /// its deadline lies behind those of the openers before it.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let grace = match self.link {
            Link::Lost { grace_ends } => Some(grace_ends),
            Link::Up | Link::Gone => None,
        };
        let held_back = self.link == Link::Up
            && !self.hashed.is_empty()
            && self.requests.len() < self.in_flight_max;
        let retry = held_back.then_some(self.ask_not_before);
        timer.into_iter().chain(grace).chain(retry).min()
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// True while an appliance can be asked.
    #[must_use]
    pub fn is_link_up(&self) -> bool {
        self.link == Link::Up
    }

    /// The leading tickets that wait for this exchange: those whose identity the caller reads
    /// again before it hands in the reply.
    #[must_use]
    pub fn tickets_of(&self, request_id: u64) -> &[Ticket] {
        self.requests
            .get(request_id)
            .map_or(&[], |request| &request.leads)
    }

    /// A number for an exchange of the caller's own, such as a certificate's renewal.
    pub fn new_request_id(&mut self) -> u64 {
        self.requests.new_id()
    }

    /// Totals since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Openers that wait.
    #[must_use]
    pub fn openers_len(&self) -> usize {
        self.openers.len()
    }

    /// Files being hashed, asked about or sent.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Questions under way.
    #[must_use]
    pub fn requests_len(&self) -> usize {
        self.requests.len()
    }

    /// Files that wait for a place among those in flight.
    #[must_use]
    pub fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// Scans that go on after all their openers were answered by policy.
    #[must_use]
    pub fn kept_len(&self) -> usize {
        self.kept.len()
    }

    /// Verdicts remembered.
    #[must_use]
    pub fn cache_len(&self) -> usize {
        self.cache.len()
    }

    /// Verdicts that stand in the kernel.
    #[must_use]
    pub fn standing_len(&self) -> usize {
        self.standing.len()
    }

    fn set_policy(&mut self, policy: Policy, actions: &mut Vec<Action>) {
        if policy != self.policy {
            self.cache.clear();
            lift(self.standing.keep(|_, _| false), actions);
            self.policy = policy;
        }
    }

    fn set_generation(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        if self.generation != Some(generation) {
            self.cache.forget_verdicts();
            let stays = |known, _: &_| known == Known::Listed;
            lift(self.standing.keep(stays), actions);
            self.generation = Some(generation);
        }
    }

    /// What is still listed stands: only its next look into the cache will miss.
    fn allowlist_changed(&mut self, actions: &mut Vec<Action>) {
        self.cache.forget_listed();
        let allowlist = &self.allowlist;
        let stays = |known, digest: &_| known != Known::Listed || allowlist.lists(digest);
        lift(self.standing.keep(stays), actions);
    }

    /// Recalled content may have been judged clean before, by other rules elsewhere.
    fn recalled(&mut self, digests: Vec<Digest>, actions: &mut Vec<Action>) {
        let digests: HashSet<Digest> = digests.into_iter().collect();
        self.cache.forget_contents(&digests);
        let stays = |_, digest: &_| !digests.contains(digest);
        lift(self.standing.keep(stays), actions);
    }

    /// The cached verdict goes, and what is being judged is no longer what is there. A standing
    /// verdict fell when the writer came; should it not have, it does now.
    fn written(&mut self, node: FileNode, actions: &mut Vec<Action>) {
        self.cache.forget(node);
        lift(self.standing.forget(node).into_iter().collect(), actions);
        let here = (node, Ticket(0))..=(node, Ticket(u64::MAX));
        for (_, lead) in self.by_node.range(here) {
            if let Some(job) = self.jobs.get_mut(lead) {
                job.stale = true;
            }
        }
    }

    fn fell(&mut self, standing: StandingId, why: Fallen) {
        match why {
            Fallen::NotPlaced => self.counters.standing_refused += 1,
            Fallen::Writer => self.counters.standing_broken += 1,
            Fallen::Deleted => {}
        }
        self.standing.fell(standing, why);
    }

    /// What stands does not depend on events that were lost: its leases watch over it.
    fn events_lost(&mut self) {
        self.cache.clear();
        for job in self.jobs.values_mut() {
            job.stale = true;
        }
    }

    fn link_up(
        &mut self,
        generation: Generation,
        policy: Policy,
        in_flight_max: usize,
        actions: &mut Vec<Action>,
    ) {
        self.set_policy(policy, actions);
        self.set_generation(generation, actions);
        self.in_flight_max = self.limits.in_flight_max.min(in_flight_max.max(1));
        self.link = Link::Up;
    }

    fn link_lost(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.link != Link::Up {
            return;
        }
        self.ask_not_before = Duration::ZERO;
        self.link = Link::Lost {
            grace_ends: now + self.limits.link_grace,
        };
        self.requests_lost(actions);
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Opener(ticket) => self.opener_expired(ticket, actions),
                Timer::Job(lead) => self.give_up(lead, actions),
                Timer::Rehash(lead) => self.rested(lead, actions),
            }
        }
        if let Link::Lost { grace_ends } = self.link
            && grace_ends <= now
        {
            self.link = Link::Gone;
            self.give_up_all(model::UnscannedReason::Unreachable, actions);
        }
    }

    fn stop(&mut self, actions: &mut Vec<Action>) {
        self.stopped = true;
        self.give_up_all(model::UnscannedReason::Cancelled, actions);
    }

    fn deadline(&self, now: Duration, class: AccessClass) -> Duration {
        let budget = match class {
            AccessClass::Exec => self.policy.exec_budget,
            _ => self.policy.open_budget,
        };
        now + budget * DEADLINE_PERCENT / 100
    }
}

fn lift(taken: Vec<StandingId>, actions: &mut Vec<Action>) {
    if !taken.is_empty() {
        actions.push(Action::Lift(taken));
    }
}
