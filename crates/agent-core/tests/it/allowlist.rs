//! Content that is known to be good.

use std::time::Duration;

use agent_core::{Action, Answered, CoreLimits, Input, Source};
use model::{AccessClass, Digest, Disposition, Generation, Outcome, Policy, UnscannedReason};

use crate::gate::{Gate, key};

const OPEN: AccessClass = AccessClass::Open;
const GOOD: Digest = Digest([1; 32]);
const OTHER: Digest = Digest([2; 32]);

fn linked() -> Gate {
    let mut gate = Gate::linked(CoreLimits::default(), Policy::default());
    gate.list(GOOD, true);
    gate
}

/// An inode is opened, its content hashed: who allows it. `None`: somebody is asked.
#[track_caller]
fn opened(gate: &mut Gate, ino: u64, digest: Digest) -> Option<Source> {
    let ticket = gate.open(OPEN, key(ino), true);
    if gate.digesting.contains(&ticket) {
        gate.digested(ticket, key(ino), digest);
    }
    let (disposition, answered, source) = *gate.answers.get(&ticket)?;
    assert_eq!(
        (disposition, answered),
        (Disposition::Allow, Answered::Clean)
    );
    Some(source)
}

#[test]
fn listed_content_is_allowed_without_a_question() {
    let mut gate = linked();
    assert_eq!(opened(&mut gate, 1, GOOD), Some(Source::Allowlist));
    assert!(gate.asked.is_empty());
    assert_eq!(opened(&mut gate, 1, GOOD), Some(Source::Cache));
    assert_eq!(opened(&mut gate, 2, OTHER), None);
    assert_eq!(gate.asked.len(), 1);
    let counters = gate.core.counters();
    assert_eq!((counters.allowlisted, counters.checks), (1, 1));
}

#[test]
fn it_stays_remembered_when_rules_change() {
    let mut gate = linked();
    opened(&mut gate, 1, GOOD);
    gate.input(Input::ContentChanged {
        generation: Generation([8; 16]),
    });
    assert_eq!(opened(&mut gate, 1, GOOD), Some(Source::Cache));
}

#[test]
fn a_writer_keeps_it_from_being_remembered() {
    let mut gate = linked();
    let ticket = gate.open(OPEN, key(1), false);
    gate.digesting.clear();
    gate.digested_with_writer(ticket, GOOD);
    assert_eq!(gate.answers[&ticket].2, Source::Allowlist);
    assert_eq!(gate.core.cache_len(), 0);
}

#[test]
fn recalled_content_is_asked_about_at_once() {
    let mut gate = linked();
    opened(&mut gate, 1, GOOD);
    gate.recall(GOOD);
    assert_eq!(gate.core.cache_len(), 0);
    assert_eq!(opened(&mut gate, 1, GOOD), None);
    assert_eq!(gate.asked.len(), 1);
}

#[test]
fn a_verdict_from_before_a_recall_is_forgotten_too() {
    let mut gate = Gate::linked(CoreLimits::default(), Policy::default());
    opened(&mut gate, 1, GOOD);
    gate.reply(gate.the_question(), Outcome::Clean);
    assert_eq!(gate.core.cache_len(), 1);
    gate.recall(GOOD);
    assert_eq!(gate.core.cache_len(), 0);
}

#[test]
fn another_list_forgets_what_the_old_one_allowed_and_keeps_verdicts() {
    let mut gate = linked();
    opened(&mut gate, 1, GOOD);
    opened(&mut gate, 2, OTHER);
    gate.reply(gate.the_question(), Outcome::Clean);
    gate.list(GOOD, false);
    assert_eq!(opened(&mut gate, 2, OTHER), Some(Source::Cache));
    assert_eq!(opened(&mut gate, 1, GOOD), None);
}

#[test]
fn without_an_appliance_listed_content_is_allowed_and_policy_answers_the_rest() {
    let mut gate = Gate::new(CoreLimits::default(), Policy::default());
    gate.list(GOOD, true);
    gate.sleep(Duration::from_secs(60));
    assert_eq!(opened(&mut gate, 1, GOOD), Some(Source::Allowlist));
    let ticket = gate.open(OPEN, key(2), true);
    gate.digested(ticket, key(2), OTHER);
    let answer = gate.answer_of(ticket).map(|(_, answered)| answered);
    let unreachable = Answered::Unscanned(UnscannedReason::Unreachable);
    assert_eq!(answer, Some(unreachable));
    let in_ledger = |action: &Action| matches!(action, Action::LedgerAdd { .. });
    assert!(gate.last.iter().any(in_ledger));
    // With nothing listed nobody reads a file for nothing.
    gate.list(GOOD, false);
    let ticket = gate.open(OPEN, key(3), true);
    assert!(gate.digesting.is_empty() && gate.answer_of(ticket).is_some());
    gate.assert_settled();
}

#[test]
fn work_that_nobody_waits_for_is_settled_by_it_too() {
    let mut gate = linked();
    let ticket = gate.open(AccessClass::Ledger, key(1), true);
    gate.digested(ticket, key(1), GOOD);
    let paid = |action: &Action| matches!(action, Action::LedgerPaid { .. });
    assert!(gate.last.iter().any(paid));
    gate.assert_settled();
}
