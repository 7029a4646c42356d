//! The gate: what the core decides, carried out. Called by every thread of the agent.
//!
//! One lock guards the core and the files held. It is held for decisions only: answers, frames
//! and log lines happen after it is given back, answers first.

pub(crate) mod content;
pub(crate) mod deeds;
mod delivery;
mod filters;
mod interpreter;
pub(crate) mod lanes;
mod listed;
pub(crate) mod look;
pub(crate) mod reader;
mod reports;
pub(crate) mod standing;
mod suspects;
pub(crate) mod tally;
pub(crate) mod timer;
pub(crate) mod trace;
pub(crate) mod whereabouts;
pub(crate) mod workers;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use agent_core::{Action, Core, FileKey, Input, Opened, Ticket};
use allowlist::{InForce, Shelf};
use daemon::log::RateLimit;
use fanotify::PermissionEvent;
use link::client::Client;
use model::{Disposition, LateAction, Outcome, Policy, UnscannedReason};
use supervisor::{Fallback, Worker};

use crate::bell::Bell;
use crate::books::Books;
use crate::filter_file::FilterFile;
use crate::foresight::Foresight;
use crate::guard::probe::Probes;
use crate::guard::sweeping::Sweeping;
use crate::unguarded::Gap;
use crate::{AgentConfig, allow};
use agent_config::Limits;
use content::{Content, Hashed, Wanted};
use deeds::{AtHand, Deed, Preparation};
use delivery::Delivery;
use look::Medium;
use proto::v1;
use reports::Looking;
use standing::Standing;
use suspects::Suspects;
use tally::Tally;
use trace::Trace;
use whereabouts::Whereabouts;

use crate::attached::Attached;
use workers::{AtOnce, Queues};

/// A file that a ticket names.
struct Held {
    /// The opener, until it is answered.
    event: Option<PermissionEvent>,
    /// The content, until the core releases it.
    content: Option<Arc<Content>>,
    key: FileKey,
    /// Since the gate's start.
    opened_at: Duration,
}

struct State {
    core: Core,
    held: HashMap<Ticket, Held>,
    actions: Vec<Action>,
    /// Of the policy that the supervisor knows.
    policy_told: [u8; 16],
    /// Until when the timer sleeps, unless it is woken.
    timer_sleeps_until: Duration,
    timer_ends: bool,
}

/// What the threads share.
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Wakes the timer where something is due before it would look.
    nearer: Condvar,
    start: Instant,
    next_ticket: AtomicU64,
    /// Copies of policy's switches, so that the reader needs no lock to read them.
    context_sensitive: AtomicBool,
    scan_on_close: AtomicBool,
    /// Openers let through are remembered, to be killed.
    kills_late: AtomicBool,
    compress: AtomicBool,
    /// Counts changes of what is mounted, so that the reader knows when to look anew.
    mount_changes: AtomicU64,
    media: Mutex<BTreeMap<u64, Medium>>,
    /// What the file systems were found to do.
    pub(crate) probes: Mutex<Probes>,
    pub(crate) standing: Standing,
    queues: Queues,
    pub(crate) foresight: Foresight,
    /// What is looked for in place of the appliance.
    pub(crate) looking: Looking,
    client: OnceLock<Client>,
    /// Sessions of the link that began so far.
    pub(crate) sessions: AtomicU64,
    /// `None`: this agent has no supervisor.
    worker: OnceLock<Arc<Worker>>,
    /// `None`: there are no allowlists.
    shelf: Option<Arc<Shelf>>,
    /// The lists that all of the gate goes by, and how many contents were recalled: what is
    /// shown. Behind the shelf until the core has forgotten what was allowed before.
    obeyed: Mutex<(Vec<InForce>, usize)>,
    /// Those that the appliance sends, and where each is kept, by its name.
    delivery: Mutex<Delivery>,
    fetched_files: HashMap<String, PathBuf>,
    pub(crate) books: Books,
    /// Where files are that may have to be judged again.
    pub(crate) whereabouts: Whereabouts,
    /// The channel to this guest's host.
    pub(crate) attached: Attached,
    /// Wakes the keeper.
    pub(crate) bell: Arc<Bell>,
    pub(crate) tally: Tally,
    pub(crate) gap: Gap,
    /// The sweep over what was open before the start.
    pub(crate) sweeping: Sweeping,
    pub(crate) suspects: Suspects,
    pub(crate) trace: Trace,
    pub(crate) lines: Lines,
    pub(crate) limits: Limits,
}

/// Log lines that a guest can trigger.
pub(crate) struct Lines {
    pub(crate) unscanned: RateLimit,
    pub(crate) malicious: RateLimit,
    pub(crate) late: RateLimit,
    pub(crate) lost: RateLimit,
    pub(crate) memory: RateLimit,
}

impl Lines {
    fn new(per_minute: u32) -> Self {
        Self {
            unscanned: RateLimit::new(per_minute),
            malicious: RateLimit::new(per_minute),
            late: RateLimit::new(per_minute),
            lost: RateLimit::new(per_minute),
            memory: RateLimit::new(per_minute),
        }
    }
}

/// What the gate is doing, for status and metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) link_up: bool,
    pub(crate) openers: usize,
    pub(crate) in_flight: usize,
    pub(crate) requests: usize,
    pub(crate) queued: usize,
    pub(crate) kept: usize,
    pub(crate) cached: usize,
    pub(crate) standing: usize,
    pub(crate) counters: agent_core::Counters,
}

impl Gate {
    pub(crate) fn new(
        config: &AgentConfig,
        queues: Queues,
        books: Books,
        shelf: Option<Arc<Shelf>>,
        bell: Arc<Bell>,
        standing: Standing,
    ) -> Self {
        books.ring(Arc::clone(&bell));
        let limits = &config.limits;
        let names = &config.allowlist.names;
        let policy = Policy::default();
        let mut core = Core::new(limits.core(), policy.clone(), Duration::ZERO);
        if let Some(shelf) = &shelf {
            core = core.with_allowlist(Box::new(allow::InForce(Arc::clone(shelf))));
        }
        Self {
            state: Mutex::new(State {
                core,
                held: HashMap::new(),
                actions: Vec::new(),
                policy_told: policy.revision,
                timer_sleeps_until: Duration::ZERO,
                timer_ends: false,
            }),
            nearer: Condvar::new(),
            start: Instant::now(),
            next_ticket: AtomicU64::new(1),
            context_sensitive: AtomicBool::new(policy.context_sensitive),
            scan_on_close: AtomicBool::new(policy.scan_on_close),
            kills_late: AtomicBool::new(policy.on_late_malicious == LateAction::Kill),
            compress: AtomicBool::new(false),
            mount_changes: AtomicU64::new(0),
            media: Mutex::default(),
            probes: Mutex::default(),
            standing,
            queues,
            foresight: Foresight::default(),
            looking: Looking::new(FilterFile::of(config), limits.filter_bytes_max),
            client: OnceLock::new(),
            sessions: AtomicU64::new(0),
            worker: OnceLock::new(),
            obeyed: Mutex::new(listed::what_counts(shelf.as_deref())),
            shelf,
            delivery: Mutex::new(Delivery::new(names.clone(), limits.allowlist_bytes_max)),
            fetched_files: names
                .iter()
                .map(|name| (name.clone(), config.fetched_allowlist(name)))
                .collect(),
            books,
            whereabouts: Whereabouts::new(limits.whereabouts_bytes_max),
            attached: Attached::default(),
            bell,
            tally: Tally::default(),
            gap: Gap::default(),
            sweeping: Sweeping::default(),
            suspects: Suspects::default(),
            trace: Trace::new(limits.trace_entries_max),
            lines: Lines::new(config.log.guest_lines_per_minute),
            limits: limits.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Ends the workers.
    pub(crate) fn end_workers(&self) {
        let Limits {
            digest_threads,
            upload_threads,
            ..
        } = self.limits;
        self.queues.end(digest_threads, upload_threads);
    }

    pub(crate) fn set_client(&self, client: Client) {
        // Set once, when the agent starts.
        let _ = self.client.set(client);
    }

    pub(crate) fn set_worker(&self, worker: Arc<Worker>) {
        // Set once, when the agent starts.
        let _ = self.worker.set(worker);
    }

    /// `None`: this agent has no supervisor.
    pub(crate) fn worker(&self) -> Option<&Worker> {
        self.worker.get().map(|worker| &**worker)
    }

    /// `None` until the agent has started its link.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.client.get()
    }

    pub(crate) fn is_context_sensitive(&self) -> bool {
        self.context_sensitive.load(Ordering::Relaxed)
    }

    pub(crate) fn scans_on_close(&self) -> bool {
        self.scan_on_close.load(Ordering::Relaxed)
    }

    pub(crate) fn compresses(&self) -> bool {
        self.compress.load(Ordering::Relaxed)
    }

    /// A file system came. Device numbers are used again, so nothing counts any more that was
    /// learnt of the one that had its number before.
    pub(crate) fn mounts_changed(&self) {
        self.mount_changes.fetch_add(1, Ordering::Release);
        self.input(Input::EventsLost);
    }

    /// What file systems were found to be good for, by device number.
    pub(crate) fn know_media(&self, media: BTreeMap<u64, Medium>) {
        let mut known = self.media.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != media {
            *known = media;
            self.mount_changes.fetch_add(1, Ordering::Release);
            self.bell.ring();
        }
    }

    /// On how many file systems each fast path is sound.
    pub(crate) fn fast_paths(&self) -> v1::FastPaths {
        let probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        probes.counts()
    }

    /// Another file system has this device number.
    pub(crate) fn forget_medium(&self, device: u64) {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        probes.forget(device);
        drop(probes);
        let mut media = self.media.lock().unwrap_or_else(PoisonError::into_inner);
        if media.remove(&device).is_some() {
            self.mount_changes.fetch_add(1, Ordering::Release);
        }
    }

    /// `None`: it was not tried out.
    pub(crate) fn medium_of(&self, device: u64) -> Option<Medium> {
        let known = self.media.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&device).copied()
    }

    /// How often what is known of file systems changed.
    pub(crate) fn mount_changes(&self) -> u64 {
        self.mount_changes.load(Ordering::Acquire)
    }

    /// Takes a file in that nobody waits for.
    pub(crate) fn take_in(&self, content: Content, writer_free: bool) {
        self.take(None, content, writer_free, None);
    }

    /// Takes an opener in with its event. `at_once`: the caller hashes the content, where that takes
    /// no longer than to hand it on.
    pub(crate) fn take_opener(
        &self,
        event: PermissionEvent,
        content: Content,
        writer_free: bool,
        at_once: Option<AtOnce<'_>>,
    ) {
        self.take(Some(event), content, writer_free, at_once);
    }

    fn take(
        &self,
        event: Option<PermissionEvent>,
        content: Content,
        writer_free: bool,
        at_once: Option<AtOnce<'_>>,
    ) {
        let ticket = Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed));
        let opened = Opened {
            ticket,
            class: content.class,
            key: content.key,
            context: content.context_hash,
            writer_free,
            may_stand: content.medium.stands,
        };
        let held = Held {
            event,
            key: content.key,
            content: Some(Arc::new(content)),
            opened_at: self.now(),
        };
        let mut state = self.lock();
        state.held.insert(ticket, held);
        let at_hand = AtHand {
            at_once: at_once.map(|at_once| (ticket, at_once)),
            ..AtHand::default()
        };
        self.act(state, Input::Opened(opened), at_hand);
    }

    /// Hands an input to the core and carries out what it decides.
    pub(crate) fn input(&self, input: Input) {
        let state = self.lock();
        self.act(state, input, AtHand::default());
    }

    /// The content of a ticket was hashed; a check may take it along.
    pub(crate) fn hashed(&self, ticket: Ticket, hashed: Hashed) {
        let at_hand = AtHand {
            along: Some((ticket, hashed.along)),
            ..AtHand::default()
        };
        let input = Input::Digested {
            ticket,
            key: hashed.key,
            digest: hashed.digest,
            writer_free: hashed.writer_free,
        };
        let state = self.lock();
        self.act(state, input, at_hand);
    }

    /// The appliance wants content.
    pub(crate) fn needed(&self, request_id: u64, need: v1::Need) {
        let at_hand = AtHand {
            need,
            ..AtHand::default()
        };
        let state = self.lock();
        self.act(state, Input::Needed { request_id }, at_hand);
    }

    fn act(&self, mut state: MutexGuard<'_, State>, input: Input, at_hand: AtHand<'_>) {
        let mut at_hand = at_hand;
        let mut deeds = self.decide(&mut state, input, &mut at_hand);
        // Once the lock is free another thread may take up what waits: it would have its lease on the
        // same open file, and lose it with this one.
        let is_other = |(of, _): &mut (Ticket, _)| !deeds.iter().any(|deed| deed.hashes(*of));
        drop(at_hand.at_once.take_if(is_other));
        drop(state);
        // Debts first: once an opener goes on, even a killed agent must know of them.
        deeds.sort_by_key(|deed| !matches!(deed, Deed::LedgerAdd(..)));
        // What could not be done is an input again, which may bring more to do.
        while !deeds.is_empty() {
            let again: Vec<Input> = deeds
                .drain(..)
                .filter_map(|deed| self.do_deed(deed, &mut at_hand.at_once))
                .collect();
            for input in again {
                let mut state = self.lock();
                deeds.extend(self.decide(&mut state, input, &mut AtHand::default()));
            }
        }
    }

    fn decide(&self, state: &mut State, input: Input, at_hand: &mut AtHand<'_>) -> Vec<Deed> {
        let State {
            core,
            held,
            actions,
            policy_told,
            timer_sleeps_until,
            ..
        } = state;
        core.handle(self.now(), input, actions);
        let standing = &self.standing;
        let mut preparation = Preparation {
            held,
            at_hand,
            standing,
        };
        let deeds = actions.drain(..);
        let deeds = deeds
            .filter_map(|action| preparation.deed(action))
            .collect::<Vec<_>>();
        if core
            .next_deadline()
            .is_some_and(|due| due < *timer_sleeps_until)
        {
            // Once: it looks again before it sleeps again.
            *timer_sleeps_until = Duration::ZERO;
            self.nearer.notify_all();
        }
        let policy = core.policy();
        self.context_sensitive
            .store(policy.context_sensitive, Ordering::Relaxed);
        self.scan_on_close
            .store(policy.scan_on_close, Ordering::Relaxed);
        self.kills_late.store(
            policy.on_late_malicious == LateAction::Kill,
            Ordering::Relaxed,
        );
        if policy.revision != *policy_told {
            *policy_told = policy.revision;
            if let Some(worker) = self.worker() {
                worker.set_policy(fallback_of(policy));
            }
        }
        self.compress.store(policy.compress, Ordering::Relaxed);
        self.looking.obey(policy);
        deeds
    }

    /// What hashing is to bring.
    pub(crate) fn wanted_of_content(&self) -> Wanted {
        let state = self.lock();
        let policy = state.core.policy();
        let ride_along_max = policy.ride_along_max_bytes.into();
        let size_max = policy.size_max_bytes;
        drop(state);
        let ride_along_max = self.foresight.ride_along_max(ride_along_max);
        let looked_for = self.looking.while_hashing();
        // What can be reported on does not ride along.
        let least = looked_for.as_ref().map(|(least, _)| *least);
        Wanted {
            ride_along_max: least.map_or(ride_along_max, |least| ride_along_max.min(least - 1)),
            size_max,
            report: looked_for.filter(|_| !self.foresight.expects_known()),
            in_memory_only: false,
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        self.lock().core.policy().clone()
    }

    pub(crate) fn is_link_up(&self) -> bool {
        self.lock().core.is_link_up()
    }

    /// Whether work that nobody waits for would be taken up before long, and asked about.
    pub(crate) fn has_room_for_background(&self) -> bool {
        let state = self.lock();
        state.core.is_link_up() && state.core.queue_len() == 0
    }

    pub(crate) fn new_request_id(&self) -> u64 {
        self.lock().core.new_request_id()
    }

    /// Whether anybody still waits for this exchange.
    pub(crate) fn is_wanted(&self, request_id: u64) -> bool {
        !self.lock().core.tickets_of(request_id).is_empty()
    }

    /// The files whose verdict this exchange brings.
    pub(crate) fn contents_of(&self, request_id: u64) -> Vec<(Ticket, Arc<Content>)> {
        let state = self.lock();
        let leads = state.core.tickets_of(request_id).iter();
        let content = |ticket: &Ticket| {
            let held = state.held.get(ticket)?;
            Some((*ticket, held.content.clone()?))
        };
        leads.filter_map(content).collect()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let core = &state.core;
        Snapshot {
            link_up: core.is_link_up(),
            openers: core.openers_len(),
            in_flight: core.in_flight(),
            requests: core.requests_len(),
            queued: core.queue_len(),
            kept: core.kept_len(),
            cached: core.cache_len(),
            standing: self.standing.len(),
            counters: core.counters().clone(),
        }
    }

    /// Sleeps until something is due, and no longer than `at_most`; then looks. False: the timer
    /// shall end.
    pub(crate) fn wait_for_deadline(&self, at_most: Duration) -> bool {
        let mut state = self.lock();
        let now = self.now();
        let due = state.core.next_deadline();
        let sleep = due.map_or(at_most, |due| due.saturating_sub(now).min(at_most));
        if !sleep.is_zero() && !state.timer_ends {
            state.timer_sleeps_until = now + sleep;
            let woken = self.nearer.wait_timeout(state, sleep);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
            state.timer_sleeps_until = Duration::ZERO;
        }
        let goes_on = !state.timer_ends;
        self.act(state, Input::Tick, AtHand::default());
        goes_on
    }

    /// Ends the timer.
    pub(crate) fn end_timer(&self) {
        self.lock().timer_ends = true;
        self.nearer.notify_all();
    }
}

/// What the supervisor goes by where this worker cannot answer.
pub(crate) fn fallback_of(policy: &Policy) -> Fallback {
    let unjudged = Outcome::unscanned(UnscannedReason::Deadline);
    Fallback {
        exec_budget: policy.exec_budget,
        open_budget: policy.open_budget,
        answer: match policy.disposition(&unjudged) {
            Disposition::Allow => fanotify::Answer::Allow,
            Disposition::Deny => fanotify::Answer::Deny,
        },
    }
}
