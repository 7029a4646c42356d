//! Verdicts that stand in the kernel. `Gate` checks after each input that what stands was judged
//! by what is in force.

use std::time::Duration;

use agent_core::{Action, CoreLimits, Fallen, Input};
use model::{AccessClass, Digest, Generation, Outcome, Policy};

use crate::gate::{GENERATION, Gate, key, malicious};

const LISTED: Digest = Digest([1; 32]);
const CLEAN: Digest = Digest([2; 32]);
const OTHER: Digest = Digest([3; 32]);

fn linked() -> Gate {
    let mut gate = Gate::linked(CoreLimits::default(), Policy::default());
    gate.list(LISTED, true);
    gate
}

/// An inode is opened, and judged where that is needed.
fn open(gate: &mut Gate, ino: u64, digest: Digest) {
    open_as(gate, AccessClass::Open, ino, digest);
}

fn open_as(gate: &mut Gate, class: AccessClass, ino: u64, digest: Digest) {
    let ticket = gate.open(class, key(ino), true);
    if gate.digesting.contains(&ticket) {
        gate.digested(ticket, key(ino), digest);
    }
    if let Some(request_id) = gate.asked.keys().next().copied() {
        gate.reply(request_id, Outcome::Clean);
    }
}

fn stand(gate: &Gate) -> Vec<u64> {
    let nodes = gate.standing.values().map(|it| it.key.node.ino);
    nodes.collect()
}

#[test]
fn a_clean_verdict_stands_from_its_first_use_on() {
    let mut gate = linked();
    open(&mut gate, 1, LISTED);
    open(&mut gate, 2, CLEAN);
    assert_eq!(stand(&gate), [1, 2]);
    // The opener goes on first; the descriptor is needed until the verdict is placed.
    let kinds: Vec<_> = gate.last.iter().map(std::mem::discriminant).collect();
    let at = |wanted: fn(&Action) -> bool| gate.last.iter().position(wanted).unwrap();
    let answer = at(|it| matches!(it, Action::Answer { .. }));
    let place = at(|it| matches!(it, Action::Place { .. }));
    let release = at(|it| matches!(it, Action::Release { .. }));
    assert!(answer < place && place < release, "{kinds:?}");
}

#[test]
fn only_what_an_opener_got_as_clean_stands() {
    let mut gate = linked();
    open_as(&mut gate, AccessClass::CloseWrite, 1, CLEAN);
    open_as(&mut gate, AccessClass::Ledger, 2, LISTED);
    let ticket = gate.open(AccessClass::Open, key(3), true);
    gate.digested(ticket, key(3), OTHER);
    gate.reply(gate.the_question(), malicious());
    let ticket = gate.open(AccessClass::Open, key(4), false);
    gate.digesting.clear();
    gate.digested_with_writer(ticket, LISTED);
    gate.may_stand = false;
    open(&mut gate, 5, LISTED);
    assert_eq!(stand(&gate), [0; 0]);
    // Known from its close, opened now.
    gate.may_stand = true;
    open(&mut gate, 1, CLEAN);
    assert_eq!(stand(&gate), [1]);
}

#[test]
fn new_rules_take_back_what_rules_judged_and_nothing_else() {
    let mut gate = linked();
    open(&mut gate, 1, LISTED);
    open(&mut gate, 2, CLEAN);
    gate.input(Input::ContentChanged {
        generation: GENERATION,
    });
    assert_eq!(stand(&gate), [1, 2], "nothing changed");
    gate.input(Input::ContentChanged {
        generation: Generation([8; 16]),
    });
    assert_eq!(stand(&gate), [1]);
}

#[test]
fn a_recall_takes_back_its_contents_whoever_called_them_good() {
    let mut gate = linked();
    open(&mut gate, 1, LISTED);
    open(&mut gate, 2, CLEAN);
    open(&mut gate, 3, CLEAN);
    open(&mut gate, 4, OTHER);
    gate.recall(CLEAN);
    assert_eq!(stand(&gate), [1, 4]);
    gate.recall(LISTED);
    assert_eq!(stand(&gate), [4]);
}

#[test]
fn another_list_takes_back_what_it_no_longer_has() {
    let mut gate = linked();
    gate.list(OTHER, true);
    open(&mut gate, 1, LISTED);
    open(&mut gate, 2, CLEAN);
    open(&mut gate, 3, OTHER);
    gate.list(OTHER, false);
    assert_eq!(stand(&gate), [1, 2]);
}

#[test]
fn another_policy_takes_back_everything() {
    let mut gate = linked();
    open(&mut gate, 1, LISTED);
    open(&mut gate, 2, CLEAN);
    gate.input(Input::PolicyChanged {
        policy: Policy {
            size_max_bytes: 7000,
            ..Policy::default()
        },
    });
    assert_eq!(stand(&gate), [0; 0]);
}

/// A mark is on the inode: it would carry a verdict on `a.txt` over to its hard link `a.exe`.
#[test]
fn where_rules_read_names_only_listed_content_stands() {
    let policy = Policy {
        context_sensitive: true,
        ..Policy::default()
    };
    let mut gate = Gate::linked(CoreLimits::default(), policy);
    gate.list(LISTED, true);
    for _ in 0..2 {
        open(&mut gate, 1, LISTED);
        open(&mut gate, 2, CLEAN);
        assert_eq!(stand(&gate), [1]);
    }
}

#[test]
fn what_a_writer_came_to_is_judged_again_and_does_not_stand() {
    let mut gate = linked();
    open(&mut gate, 1, CLEAN);
    gate.fall(0, Fallen::Writer);
    gate.written(key(1).node);
    open(&mut gate, 1, OTHER);
    open(&mut gate, 1, OTHER);
    assert_eq!(stand(&gate), [0; 0]);
    let counters = gate.core.counters();
    assert_eq!((counters.standing_placed, counters.standing_broken), (1, 1));
}

#[test]
fn a_close_that_no_lease_announced_takes_it_back_too() {
    let mut gate = linked();
    open(&mut gate, 1, CLEAN);
    gate.written(key(1).node);
    assert_eq!(stand(&gate), [0; 0]);
}

#[test]
fn it_is_bounded_and_the_most_used_come_in() {
    let limits = CoreLimits {
        standing_max: 2,
        ..CoreLimits::default()
    };
    let mut gate = Gate::linked(limits, Policy::default());
    for ino in 1..=3 {
        open(&mut gate, ino, CLEAN);
    }
    assert_eq!(stand(&gate), [1, 2]);
    gate.sleep(Duration::from_secs(60));
    open(&mut gate, 4, CLEAN);
    assert_eq!(stand(&gate), [1, 2], "opened once");
    open(&mut gate, 3, CLEAN);
    assert_eq!(stand(&gate), [2, 3]);
    assert_eq!(gate.core.counters().standing_displaced, 1);
}

#[test]
fn scarce_descriptors_are_given_back() {
    let mut gate = linked();
    open(&mut gate, 1, CLEAN);
    gate.input(Input::DescriptorsScarce);
    assert_eq!(stand(&gate), [0; 0]);
}

#[test]
fn lost_events_take_nothing_back() {
    let mut gate = linked();
    open(&mut gate, 1, CLEAN);
    gate.input(Input::EventsLost);
    assert_eq!((stand(&gate), gate.core.cache_len()), (vec![1], 0));
}
