//! A gate with hands: keeps the books on what the core asked for, and checks what must always
//! hold after every input.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_core::{
    Action, Allowlist, Answered, ContextHash, Core, CoreLimits, Fallen, FileKey, FileNode, Input,
    Opened, Source, StandingId, Ticket,
};
use model::{
    AccessClass, Coverage, Detection, Digest, Disposition, Generation, Outcome, Policy, Verdict,
};

pub(crate) const GENERATION: Generation = Generation([7; 16]);

/// A list that its test changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed(Arc<Mutex<BTreeSet<Digest>>>);

impl Listed {
    fn change(&self, change: impl FnOnce(&mut BTreeSet<Digest>)) {
        change(&mut self.0.lock().unwrap());
    }
}

impl Allowlist for Listed {
    fn lists(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap().contains(digest)
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

/// What a ticket of ours still owes.
#[derive(Debug)]
struct Held {
    class: AccessClass,
    key: FileKey,
    opened_at: Duration,
    answered: bool,
    released: bool,
}

/// A verdict in the kernel, and what it was judged by.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) key: FileKey,
    digests: BTreeSet<Digest>,
    generation: Option<Generation>,
    policy: Policy,
}

pub(crate) struct Gate {
    pub(crate) core: Core,
    pub(crate) now: Duration,
    held: BTreeMap<Ticket, Held>,
    /// Hashing asked for and not done.
    pub(crate) digesting: Vec<Ticket>,
    /// Questions asked and not replied to: number, leading ticket, digest, class.
    pub(crate) asked: BTreeMap<u64, (Ticket, Digest, AccessClass)>,
    /// All actions of the last input.
    pub(crate) last: Vec<Action>,
    /// All answers ever.
    pub(crate) answers: BTreeMap<Ticket, (Disposition, Answered, Source)>,
    /// Closes by a writer of each inode so far.
    epochs: BTreeMap<FileNode, u64>,
    /// How many there were when the hashing of a ticket began.
    hashed_at: BTreeMap<Ticket, u64>,
    /// States of files that a clean verdict was given for: identity and closes until then.
    judged_clean: BTreeSet<(FileKey, u64)>,
    /// The same of states whose content is listed.
    listed_clean: BTreeSet<(FileKey, u64)>,
    /// What those states held: one content on any real machine, more where a test says so.
    contents: BTreeMap<(FileKey, u64), BTreeSet<Digest>>,
    /// What stands in the kernel.
    pub(crate) standing: BTreeMap<StandingId, Standing>,
    pub(crate) may_stand: bool,
    generation: Option<Generation>,
    pub(crate) listed: Listed,
    next_ticket: u64,
}

impl Gate {
    pub(crate) fn new(limits: CoreLimits, policy: Policy) -> Self {
        let listed = Listed::default();
        let core = Core::new(limits, policy, Duration::ZERO);
        Self {
            core: core.with_allowlist(Box::new(listed.clone())),
            now: Duration::ZERO,
            held: BTreeMap::new(),
            digesting: Vec::new(),
            asked: BTreeMap::new(),
            last: Vec::new(),
            answers: BTreeMap::new(),
            epochs: BTreeMap::new(),
            hashed_at: BTreeMap::new(),
            judged_clean: BTreeSet::new(),
            listed_clean: BTreeSet::new(),
            contents: BTreeMap::new(),
            standing: BTreeMap::new(),
            may_stand: true,
            generation: None,
            listed,
            next_ticket: 1,
        }
    }

    pub(crate) fn linked(limits: CoreLimits, policy: Policy) -> Self {
        let mut gate = Self::new(limits, policy.clone());
        gate.input(Input::LinkUp {
            generation: GENERATION,
            policy,
            in_flight_max: 1000,
        });
        gate
    }

    pub(crate) fn open(&mut self, class: AccessClass, key: FileKey, writer_free: bool) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let held = Held {
            class,
            key,
            opened_at: self.now,
            answered: false,
            released: false,
        };
        self.held.insert(ticket, held);
        self.input(Input::Opened(Opened {
            ticket,
            class,
            key,
            context: ContextHash([3; 16]),
            writer_free,
            may_stand: self.may_stand,
        }));
        ticket
    }

    pub(crate) fn digested(&mut self, ticket: Ticket, key: FileKey, digest: Digest) {
        self.digesting.retain(|other| *other != ticket);
        let state = (self.held[&ticket].key, self.hashed_at[&ticket]);
        self.contents.entry(state).or_default().insert(digest);
        if self.listed.lists(&digest) {
            self.listed_clean.insert(state);
        }
        self.input(Input::Digested {
            ticket,
            key,
            digest,
            writer_free: true,
        });
    }

    /// Hashed while there was a writer, listed content.
    pub(crate) fn digested_with_writer(&mut self, ticket: Ticket, digest: Digest) {
        let key = self.held[&ticket].key;
        self.listed_clean.insert((key, self.hashed_at[&ticket]));
        self.input(Input::Digested {
            ticket,
            key,
            digest,
            writer_free: false,
        });
    }

    pub(crate) fn reply(&mut self, request_id: u64, outcome: Outcome) {
        let digest = self.asked.get(&request_id).map(|(_, digest, _)| *digest);
        if let (Some(_), Outcome::Clean) = (digest, &outcome) {
            for lead in self.core.tickets_of(request_id) {
                let state = (self.held[lead].key, self.hashed_at[lead]);
                self.judged_clean.insert(state);
            }
        }
        self.input(Input::Reply {
            request_id,
            verdict: verdict(outcome, digest),
            released: false,
            changed: Vec::new(),
        });
        self.asked.remove(&request_id);
    }

    pub(crate) fn written(&mut self, node: FileNode) {
        *self.epochs.entry(node).or_default() += 1;
        self.input(Input::Written { node });
    }

    /// Every inode may have been written.
    pub(crate) fn events_lost(&mut self) {
        for ino in 0..16 {
            *self.epochs.entry(key(ino).node).or_default() += 1;
        }
        self.input(Input::EventsLost);
    }

    /// A new list comes in force, with or without this digest.
    pub(crate) fn list(&mut self, digest: Digest, is_listed: bool) {
        self.listed.change(|listed| {
            listed.remove(&digest);
            if is_listed {
                listed.insert(digest);
            }
        });
        self.listed_clean.clear();
        self.input(Input::AllowlistChanged);
    }

    pub(crate) fn recall(&mut self, digest: Digest) {
        self.listed.change(|listed| {
            listed.remove(&digest);
        });
        let contents = &self.contents;
        for states in [&mut self.listed_clean, &mut self.judged_clean] {
            states.retain(|state| contents.get(state) != Some(&BTreeSet::from([digest])));
        }
        self.input(Input::Recalled {
            digests: vec![digest],
        });
        let is_it = |it: &&Standing| it.digests == BTreeSet::from([digest]);
        let recalled = self.standing.values().find(is_it);
        assert!(recalled.is_none(), "{recalled:?} still stands");
    }

    /// The kernel's side of the `index`th of those that stand.
    pub(crate) fn fall(&mut self, index: usize, why: Fallen) {
        let standing = *self
            .standing
            .keys()
            .nth(index % self.standing.len())
            .unwrap();
        self.standing.remove(&standing);
        self.input(Input::Fallen { standing, why });
    }

    pub(crate) fn not_sent(&mut self, request_id: u64) {
        self.asked.remove(&request_id);
        self.input(Input::NotSent { request_id });
    }

    pub(crate) fn sleep(&mut self, time: Duration) {
        self.now += time;
        self.input(Input::Tick);
    }

    pub(crate) fn input(&mut self, input: Input) {
        let during = match input {
            Input::Reply { .. } => Some(Source::Verdict),
            Input::Digested { .. } => Some(Source::Allowlist),
            _ => None,
        };
        match &input {
            Input::ContentChanged { generation } | Input::LinkUp { generation, .. } => {
                self.generation = Some(*generation);
            }
            _ => {}
        }
        self.last.clear();
        let mut actions = Vec::new();
        self.core.handle(self.now, input, &mut actions);
        for action in &actions {
            self.keep_books(action, during);
        }
        self.last = actions;
        self.check_standing();
    }

    /// What stands was judged by what is in force, under any name; there is one for each file.
    fn check_standing(&self) {
        let policy = self.core.policy();
        assert_eq!(self.core.standing_len(), self.standing.len());
        let mut nodes = BTreeSet::new();
        for standing in self.standing.values() {
            assert!(nodes.insert(standing.key.node), "{standing:?} twice");
            assert_eq!(standing.policy, *policy);
            let judged = standing.generation == self.generation && !policy.context_sensitive;
            let listed = standing.digests.iter().any(|it| self.listed.lists(it));
            assert!(judged || listed, "{standing:?} stands by nothing");
        }
    }

    fn place(&mut self, ticket: Ticket, id: StandingId, key: FileKey) {
        self.assert_held(ticket);
        let held = &self.held[&ticket];
        // The lead may be a closed file, or an opener that policy answered, which others joined.
        let answered = held.answered || !held.class.has_opener();
        assert!(answered, "answered first: {held:?}");
        assert!(self.may_stand);
        assert_eq!(held.key.node, key.node);
        let epoch = self.epochs.get(&key.node).copied().unwrap_or_default();
        let digests = self.contents[&(key, epoch)].clone();
        let standing = Standing {
            key,
            digests,
            generation: self.generation,
            policy: self.core.policy().clone(),
        };
        assert!(self.standing.insert(id, standing).is_none());
    }

    fn keep_books(&mut self, action: &Action, during: Option<Source>) {
        match action {
            Action::Answer {
                ticket,
                disposition,
                why,
            } => {
                let held = self.held.get_mut(ticket).expect("a ticket of ours");
                assert!(held.class.has_opener(), "{ticket:?} has nobody to answer");
                assert!(!held.answered, "{ticket:?} answered twice");
                held.answered = true;
                if why.answered == Answered::Clean {
                    let at_once = Some(why.source) == during;
                    assert!(at_once || why.source == Source::Cache, "{why:?}");
                    let node = held.key.node;
                    let epoch = self.epochs.get(&node).copied().unwrap_or_default();
                    let judged = |(key, at): &(FileKey, u64)| key.node == node && *at == epoch;
                    let same = |(key, _): &(FileKey, u64)| at_once || *key == held.key;
                    let mut states = self.judged_clean.iter().chain(&self.listed_clean);
                    let found = states.any(|state| judged(state) && same(state));
                    assert!(found, "{ticket:?}: nobody called this state clean");
                }
                self.answers
                    .insert(*ticket, (*disposition, why.answered, why.source));
            }
            Action::Provisional { ticket } => {
                let held = self.held.get(ticket).expect("a ticket of ours");
                assert!(held.class.has_opener() && !held.answered, "{ticket:?}");
            }
            Action::Digest { ticket, .. } => {
                self.assert_held(*ticket);
                let node = self.held[ticket].key.node;
                let epoch = self.epochs.get(&node).copied().unwrap_or_default();
                self.hashed_at.insert(*ticket, epoch);
                self.digesting.push(*ticket);
            }
            Action::Check {
                request_id,
                ticket,
                digest,
                class,
                ..
            } => {
                self.assert_held(*ticket);
                assert_eq!(request_id % 2, 1);
                let question = (*ticket, *digest, *class);
                assert!(self.asked.insert(*request_id, question).is_none());
            }
            Action::Place {
                ticket,
                standing,
                key,
            } => self.place(*ticket, *standing, *key),
            Action::Lift(taken) => {
                assert!(!taken.is_empty());
                for id in taken {
                    assert!(self.standing.remove(id).is_some(), "{id:?} does not stand");
                }
            }
            Action::Cancel { request_id } => {
                assert!(self.asked.remove(request_id).is_some());
            }
            Action::Upload { ticket, .. }
            | Action::LedgerAdd { ticket, .. }
            | Action::LedgerPaid { ticket }
            | Action::LedgerUnpaid { ticket }
            | Action::Late { ticket, .. } => self.assert_held(*ticket),
            Action::Release { ticket } => {
                self.assert_held(*ticket);
                self.held.get_mut(ticket).expect("held").released = true;
            }
        }
    }

    fn assert_held(&self, ticket: Ticket) {
        let held = self.held.get(&ticket).expect("a ticket of ours");
        assert!(!held.released, "{ticket:?} was released");
    }

    /// Nothing is owed any more.
    pub(crate) fn assert_settled(&self) {
        for (ticket, held) in &self.held {
            assert!(held.released, "{ticket:?} never released: {held:?}");
            assert_eq!(held.answered, held.class.has_opener(), "{ticket:?}");
        }
        assert_eq!(self.core.in_flight(), 0);
        assert_eq!(self.core.queue_len(), 0);
        assert_eq!(self.core.openers_len(), 0);
        assert_eq!(self.core.requests_len(), 0);
        assert_eq!(self.core.kept_len(), 0);
    }

    pub(crate) fn key_of(&self, ticket: Ticket) -> FileKey {
        self.held[&ticket].key
    }

    pub(crate) fn nth_question(&self, index: usize) -> u64 {
        let mut questions = self.asked.keys();
        *questions.nth(index % self.asked.len()).expect("in range")
    }

    /// An opener that waits longer than the budget of its class.
    pub(crate) fn overdue(&self) -> Option<Ticket> {
        let overdue = |held: &Held| {
            let budget = match held.class {
                AccessClass::Exec => self.core.policy().exec_budget,
                _ => self.core.policy().open_budget,
            };
            held.class.has_opener()
                && !held.answered
                && self.now >= held.opened_at + budget * 80 / 100
        };
        let mut held = self.held.iter();
        held.find(|(_, held)| overdue(held)).map(|(t, _)| *t)
    }

    pub(crate) fn the_question(&self) -> u64 {
        assert_eq!(self.asked.len(), 1, "{:?}", self.asked);
        *self.asked.keys().next().expect("one question")
    }

    pub(crate) fn answer_of(&self, ticket: Ticket) -> Option<(Disposition, Answered)> {
        let (disposition, answered, _) = self.answers.get(&ticket)?;
        Some((*disposition, *answered))
    }
}

pub(crate) fn key(ino: u64) -> FileKey {
    FileKey {
        node: FileNode { fs: 1, ino },
        generation: 0,
        size: 100,
        mtime_ns: 1,
        ctime_ns: 1,
    }
}

pub(crate) fn verdict(outcome: Outcome, digest: Option<Digest>) -> Verdict {
    Verdict {
        outcome,
        coverage: Coverage::whole(100),
        generation: GENERATION,
        digest,
        sha256: None,
    }
}

pub(crate) fn malicious() -> Outcome {
    Outcome::Malicious {
        detections: vec![Detection {
            name: "Eicar".into(),
            engine: "yara".into(),
            path_inside: Vec::new(),
        }],
        omitted: 0,
    }
}
