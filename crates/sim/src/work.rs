//! Work of guests in turns that the controller gives, and what runs at each moment.

use std::collections::BTreeMap;
use std::time::Duration;

use fleet_core::{Area, SiteRules, TurnAnswer, TurnAsk};
use placement::{HostId, Lease, LeaseId, Resources, StormPolicy, WorkKind};

use crate::random::Random;

/// An agent that has no answer by then works without a turn; nobody counts that.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Work that is asked for again so often found no room.
const ASKS_MAX: u32 = 8;
/// A guest that is connected stops by then after its turn was taken back: messages take 8 s.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Budgets so small that a few guests fill them.
pub(crate) fn policy() -> StormPolicy {
    StormPolicy {
        host: Resources {
            cpu_milli: 1000,
            read_mib_s: 60,
            link_mib_s: 40,
        },
        datastore_read_mib_s: 100,
        site_link_mib_s: 60,
        ..StormPolicy::default()
    }
}

/// Each cluster has a datastore.
pub(crate) fn sites() -> SiteRules {
    let datastore = |number| Area {
        name: format!("d{number}"),
        connectors: Vec::new(),
        clusters: vec![format!("c{number}")],
    };
    SiteRules {
        datastores: (0..3).map(datastore).collect(),
        ..SiteRules::default()
    }
}

/// Work that a guest has to do.
#[derive(Debug, Clone)]
struct Wish {
    vm: usize,
    kind: WorkKind,
    takes: Duration,
    within: Duration,
    /// The turn that was given and begins later.
    again: Option<LeaseId>,
    /// When it is asked for.
    at: Duration,
    /// When it was.
    asked: Option<Duration>,
    asks: u32,
}

/// Work in its turn.
#[derive(Debug, Clone)]
struct Running {
    vm: usize,
    lease: Lease,
    /// When the agent stops, in the world's time.
    until: Duration,
    /// It was taken back by the controller that gave it. How long the guest could have known.
    taken: Option<Duration>,
}

/// What the controller of now says of a lease.
pub(crate) enum Books {
    /// It is charged like this.
    Charged(Lease),
    /// It is of this controller's term, and no more. Whether the guest hears of that.
    Taken { hears: bool },
    /// It is of another term, or nobody speaks.
    Unknown,
}

/// Everything that is asked for and done.
#[derive(Debug, Default)]
pub(crate) struct Work {
    wishes: BTreeMap<u64, Wish>,
    last_ticket: u64,
    running: Vec<Running>,
    pub(crate) done: u64,
    /// Work that stopped because its VM moved to where there was no room for it.
    pub(crate) stopped: u64,
}

/// A question for the controller.
pub(crate) struct Question {
    pub(crate) ticket: u64,
    pub(crate) vm: usize,
    pub(crate) ask: TurnAsk,
}

impl Work {
    /// A guest has something to do: one of each kind at a time.
    pub(crate) fn wish(&mut self, random: &mut Random, now: Duration, vm: usize) {
        let (kind, takes_s) = match random.below(3) {
            0 => (WorkKind::Scan, 60 + random.next() % 300),
            1 => (WorkKind::Sweep, 30),
            _ => (WorkKind::ContentUpdate, 60),
        };
        let is_same = |wish: &Wish| wish.vm == vm && wish.kind == kind;
        let is_running = |it: &Running| it.vm == vm && it.lease.job.kind == kind;
        if self.wishes.values().any(is_same) || self.running.iter().any(is_running) {
            return;
        }
        let takes = Duration::from_secs(takes_s);
        self.last_ticket += 1;
        let wish = Wish {
            vm,
            kind,
            takes,
            within: takes + Duration::from_secs(10 + random.next() % 300),
            again: None,
            at: now,
            asked: None,
            asks: 0,
        };
        self.wishes.insert(self.last_ticket, wish);
    }

    /// What is to be asked now. Those whose answer does not come work without.
    pub(crate) fn questions(&mut self, now: Duration) -> Vec<Question> {
        self.wishes.retain(|_, wish| {
            let is_late = |asked| now.saturating_sub(asked) >= ANSWER_WAIT;
            wish.asks <= ASKS_MAX && !wish.asked.is_some_and(is_late)
        });
        let due = self.wishes.iter_mut();
        let due = due.filter(|(_, wish)| wish.asked.is_none() && wish.at <= now);
        due.map(|(ticket, wish)| {
            (wish.asked, wish.asks) = (Some(now), wish.asks + 1);
            let ask = TurnAsk {
                kind: wish.kind,
                again: wish.again,
                takes: wish.takes,
                within: wish.within,
            };
            let (ticket, vm) = (*ticket, wish.vm);
            Question { ticket, vm, ask }
        })
        .collect()
    }

    /// An answer arrives, as agents take it. `lease` is what was reserved.
    pub(crate) fn answered(
        &mut self,
        now: Duration,
        ticket: u64,
        answer: TurnAnswer,
        lease: Option<Lease>,
    ) {
        let Some(wish) = self.wishes.get_mut(&ticket) else {
            return;
        };
        let Some(asked) = wish.asked.take() else {
            return;
        };
        match answer {
            TurnAnswer::Begin { ends_in, .. } => {
                let (vm, until) = (wish.vm, asked + ends_in.min(wish.takes));
                self.wishes.remove(&ticket);
                if let Some(lease) = lease.filter(|_| now < until) {
                    let taken = None;
                    self.running.push(Running {
                        vm,
                        lease,
                        until,
                        taken,
                    });
                }
            }
            TurnAnswer::Wait { turn, wait } => (wish.again, wish.at) = (Some(turn), now + wait),
            TurnAnswer::Refused {
                possible_within: Some(within),
                ..
            } => (wish.again, wish.within) = (None, within + wish.takes),
            TurnAnswer::Refused { .. } => drop(self.wishes.remove(&ticket)),
        }
    }

    /// Time passes. What is over ends; what these VMs had is gone with them.
    pub(crate) fn step(&mut self, now: Duration, is_awake: impl Fn(usize) -> bool) {
        self.wishes.retain(|_, wish| is_awake(wish.vm));
        self.running.retain(|it| is_awake(it.vm));
        let before = self.running.len();
        self.running.retain(|it| it.until > now);
        self.done += (before - self.running.len()) as u64;
    }

    /// A machine starts anew, or as another guest: it does nothing of what it did.
    pub(crate) fn forget(&mut self, vm: usize) {
        self.wishes.retain(|_, wish| wish.vm != vm);
        self.running.retain(|it| it.vm != vm);
    }

    /// Some guest is done early: whose turn is given back.
    pub(crate) fn done_early(&mut self, random: &mut Random) -> Option<(usize, LeaseId)> {
        if self.running.is_empty() {
            return None;
        }
        let done = self.running.swap_remove(random.below(self.running.len()));
        self.done += 1;
        Some((done.vm, done.lease.id))
    }

    /// The guest that asked.
    pub(crate) fn asker(&self, ticket: u64) -> Option<usize> {
        self.wishes.get(&ticket).map(|wish| wish.vm)
    }

    /// A guest has come to another appliance: what was on its way to it is lost, and told anew there.
    pub(crate) fn came(&mut self, vm: usize) {
        for it in self.running.iter_mut().filter(|it| it.vm == vm) {
            it.taken = it.taken.map(|_| Duration::ZERO);
        }
    }

    /// A guest hears that its turn is taken back.
    pub(crate) fn taken_back(&mut self, vm: usize, turn: LeaseId) {
        let before = self.running.len();
        self.running.retain(|it| it.vm != vm || it.lease.id != turn);
        self.stopped += (before - self.running.len()) as u64;
    }

    /// `elapsed` later: leases have followed their VMs, or were taken back.
    pub(crate) fn follow(&mut self, elapsed: Duration, books: impl Fn(usize, LeaseId) -> Books) {
        for it in &mut self.running {
            match books(it.vm, it.lease.id) {
                Books::Charged(lease) => it.lease = lease,
                Books::Taken { hears } => {
                    let known = it.taken.unwrap_or_default();
                    it.taken = Some(known + if hears { elapsed } else { Duration::ZERO });
                }
                Books::Unknown => {}
            }
        }
    }

    /// What runs never uses more than a budget, whatever the terms in which it was allowed.
    pub(crate) fn check(&self) -> Result<(), String> {
        let is_late = |it: &&Running| it.lease.ends > it.lease.job.deadline;
        if let Some(late) = self.running.iter().find(is_late) {
            return Err(format!("work goes beyond its deadline: {late:?}"));
        }
        let policy = policy();
        let mut hosts: BTreeMap<HostId, Resources> = BTreeMap::new();
        let mut stores: BTreeMap<Option<u64>, Resources> = BTreeMap::new();
        let mut links: BTreeMap<Option<u64>, Resources> = BTreeMap::new();
        let is_deaf = |it: &&Running| it.taken.is_some_and(|known| known > STOP_MAX);
        if let Some(deaf) = self.running.iter().find(is_deaf) {
            return Err(format!(
                "work goes on after its turn was taken back: {deaf:?}"
            ));
        }
        // Who was told to stop and has not heard it yet is charged nowhere.
        let charged = self.running.iter().filter(|it| it.taken.is_none());
        for job in charged.map(|it| it.lease.job) {
            add(hosts.entry(job.host).or_default(), job.needs);
            add(stores.entry(job.datastore).or_default(), job.needs);
            add(links.entry(job.link).or_default(), job.needs);
        }
        let over = |used: &Resources, most: Resources| {
            used.cpu_milli > most.cpu_milli
                || used.read_mib_s > most.read_mib_s
                || used.link_mib_s > most.link_mib_s
        };
        if let Some((host, used)) = hosts.iter().find(|(_, used)| over(used, policy.host)) {
            return Err(format!("{host} works with {used:?}"));
        }
        let most = policy.datastore_read_mib_s;
        let mut stores = stores.iter().filter(|(store, _)| store.is_some());
        if let Some((store, used)) = stores.find(|(_, used)| used.read_mib_s > most) {
            return Err(format!("datastore {store:?} is read with {used:?}"));
        }
        let most = policy.site_link_mib_s;
        let mut links = links.iter().filter(|(link, _)| link.is_some());
        if let Some((link, used)) = links.find(|(_, used)| used.link_mib_s > most) {
            return Err(format!("link {link:?} carries {used:?}"));
        }
        Ok(())
    }
}

fn add(to: &mut Resources, more: Resources) {
    to.cpu_milli += more.cpu_milli;
    to.read_mib_s += more.read_mib_s;
    to.link_mib_s += more.link_mib_s;
}
