//! Whatever happens in whatever order: `Gate` asserts the rules after each input.

use std::time::Duration;

use agent_core::{CoreLimits, Fallen, FileKey, FileNode, Input};
use model::{AccessClass, Digest, Generation, Outcome, Policy, UnscannedReason};
use proptest::prelude::*;

use crate::gate::{GENERATION, Gate, key, malicious};

#[derive(Debug, Clone)]
enum Step {
    Open(AccessClass, u64, bool),
    /// Of this inode; the other value says whether ctime shows it.
    Write(u64, bool),
    Hash(usize, u8),
    HashFails(usize, UnscannedReason),
    Need(usize),
    Reply(usize, Outcome),
    StrayReply(u64),
    NotSent(usize),
    EventsLost,
    Up(usize),
    Down,
    NewGeneration(u8),
    NewPolicy(bool, u64),
    List(u8, bool),
    Recall(u8),
    Fall(usize, Fallen),
    Scarce,
    Sleep(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop_oneof![
        Just(AccessClass::Open),
        Just(AccessClass::Exec),
        Just(AccessClass::CloseWrite),
        Just(AccessClass::Ledger),
    ];
    let outcome = prop_oneof![
        3 => Just(Outcome::Clean),
        1 => Just(malicious()),
        1 => Just(Outcome::unscanned(UnscannedReason::Encrypted)),
        1 => Just(Outcome::unscanned(UnscannedReason::Changed)),
        1 => Just(Outcome::Error { message: "x".into() }),
    ];
    let failure = prop_oneof![
        Just(UnscannedReason::Changed),
        Just(UnscannedReason::ReadFailed)
    ];
    let fallen = prop_oneof![
        Just(Fallen::Writer),
        Just(Fallen::NotPlaced),
        Just(Fallen::Deleted)
    ];
    let step = prop_oneof![
        6 => (class, 0..6_u64, any::<bool>()).prop_map(|(c, i, w)| Step::Open(c, i, w)),
        2 => (0..6_u64, any::<bool>()).prop_map(|(i, s)| Step::Write(i, s)),
        6 => (any::<usize>(), 0..3_u8).prop_map(|(i, d)| Step::Hash(i, d)),
        1 => (any::<usize>(), failure).prop_map(|(i, r)| Step::HashFails(i, r)),
        1 => any::<usize>().prop_map(Step::Need),
        5 => (any::<usize>(), outcome).prop_map(|(i, o)| Step::Reply(i, o)),
        1 => any::<u64>().prop_map(Step::StrayReply),
        1 => any::<usize>().prop_map(Step::NotSent),
        1 => Just(Step::EventsLost),
        1 => (0..8_usize).prop_map(Step::Up),
        1 => Just(Step::Down),
        1 => (0..3_u8).prop_map(Step::NewGeneration),
        1 => (any::<bool>(), 50..200_u64).prop_map(|(c, s)| Step::NewPolicy(c, s)),
        1 => (0..3_u8, any::<bool>()).prop_map(|(d, l)| Step::List(d, l)),
        1 => (0..3_u8).prop_map(Step::Recall),
        1 => (any::<usize>(), fallen).prop_map(|(i, f)| Step::Fall(i, f)),
        1 => Just(Step::Scarce),
        2 => (0..4000_u64).prop_map(Step::Sleep),
    ];
    prop::collection::vec(step, 0..120)
}

/// A file's identity follows most of its writes, as ctime does.
struct Files([u64; 6]);

impl Files {
    fn key(&self, ino: u64) -> FileKey {
        let version = self.0[ino as usize % self.0.len()];
        FileKey {
            ctime_ns: i128::from(version),
            ..key(ino)
        }
    }
}

fn take(gate: &mut Gate, step: Step, files: &mut Files) {
    match step {
        Step::Open(class, ino, free) => {
            gate.open(class, files.key(ino), free);
        }
        Step::Write(ino, shows) => {
            files.0[ino as usize] += u64::from(shows);
            gate.written(FileNode { fs: 1, ino });
        }
        Step::Hash(index, content) if !gate.digesting.is_empty() => {
            let ticket = gate.digesting[index % gate.digesting.len()];
            let key = gate.key_of(ticket);
            gate.digested(ticket, key, Digest([content; 32]));
        }
        Step::HashFails(index, reason) if !gate.digesting.is_empty() => {
            let ticket = gate.digesting.remove(index % gate.digesting.len());
            gate.input(Input::DigestFailed { ticket, reason });
        }
        Step::Need(index) if !gate.asked.is_empty() => {
            let request_id = gate.nth_question(index);
            gate.input(Input::Needed { request_id });
            // A third Need comes after the second was served.
            gate.input(Input::Sent { request_id });
        }
        Step::Reply(index, outcome) if !gate.asked.is_empty() => {
            let request_id = gate.nth_question(index);
            gate.reply(request_id, outcome);
        }
        Step::NotSent(index) if !gate.asked.is_empty() => {
            let request_id = gate.nth_question(index);
            gate.not_sent(request_id);
        }
        Step::EventsLost => gate.events_lost(),
        // Even numbers are never ours.
        Step::StrayReply(id) => gate.reply(id & !1, Outcome::Clean),
        Step::Up(in_flight_max) => {
            gate.asked.clear();
            gate.input(Input::LinkUp {
                generation: GENERATION,
                policy: gate.core.policy().clone(),
                in_flight_max,
            });
        }
        Step::Down => {
            gate.asked.clear();
            gate.input(Input::LinkDown);
        }
        Step::NewGeneration(n) => gate.input(Input::ContentChanged {
            generation: Generation([7 + n; 16]),
        }),
        Step::NewPolicy(context_sensitive, size_max_bytes) => gate.input(Input::PolicyChanged {
            policy: Policy {
                context_sensitive,
                size_max_bytes,
                ..Policy::default()
            },
        }),
        Step::List(content, listed) => gate.list(Digest([content; 32]), listed),
        Step::Recall(content) => gate.recall(Digest([content; 32])),
        Step::Fall(index, why) if !gate.standing.is_empty() => gate.fall(index, why),
        Step::Scarce => gate.input(Input::DescriptorsScarce),
        Step::Sleep(ms) => gate.sleep(Duration::from_millis(ms)),
        Step::Hash(..)
        | Step::HashFails(..)
        | Step::Need(_)
        | Step::Reply(..)
        | Step::NotSent(_)
        | Step::Fall(..) => {}
    }
}

fn small_limits() -> CoreLimits {
    CoreLimits {
        openers_max: 6,
        queue_len_max: 3,
        in_flight_max: 4,
        background_in_flight_max: 2,
        kept_max: 2,
        cache_entries_max: 4,
        standing_max: 3,
        ..CoreLimits::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_ticket_ends_exactly_once(steps in steps(), stop: bool) {
        let limits = small_limits();
        let mut gate = Gate::new(limits.clone(), Policy::default());
        let mut files = Files([0; 6]);
        for step in steps {
            take(&mut gate, step, &mut files);
            prop_assert!(gate.core.openers_len() <= limits.openers_max);
            prop_assert!(gate.core.in_flight() <= limits.in_flight_max);
            prop_assert!(gate.core.queue_len() <= limits.queue_len_max);
            prop_assert!(gate.core.kept_len() <= limits.kept_max);
            prop_assert!(gate.core.cache_len() <= limits.cache_entries_max);
            prop_assert!(gate.core.standing_len() <= limits.standing_max);
            prop_assert!(gate.core.requests_len() == gate.asked.len());
        }
        // Whatever is left ends: by a stop, or by time alone.
        if stop {
            gate.input(Input::Stop);
        } else {
            gate.sleep(limits.scan_time_max);
        }
        gate.assert_settled();
    }

    #[test]
    fn no_opener_waits_beyond_its_deadline(steps in steps()) {
        let mut gate = Gate::new(CoreLimits::default(), Policy::default());
        let mut files = Files([0; 6]);
        for step in steps {
            take(&mut gate, step, &mut files);
            // Sleep exactly until the core wants to be woken; then nothing may be overdue.
            while gate.core.next_deadline().is_some_and(|at| at <= gate.now) {
                gate.input(Input::Tick);
            }
            prop_assert!(gate.overdue().is_none(), "{:?}", gate.overdue());
        }
    }
}
