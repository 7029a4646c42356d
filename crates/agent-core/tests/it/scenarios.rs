//! One situation each.

use std::time::Duration;

use agent_core::{Action, Answered, ContextHash, CoreLimits, Input, Opened, Ticket};
use model::{AccessClass, Digest, Disposition, Generation, Outcome, Policy, UnscannedReason};

use crate::gate::{GENERATION, Gate, key, malicious, verdict};

const ALLOW: Disposition = Disposition::Allow;
const DENY: Disposition = Disposition::Deny;
const OPEN: AccessClass = AccessClass::Open;

fn linked() -> Gate {
    Gate::linked(CoreLimits::default(), Policy::default())
}

fn digest(n: u8) -> Digest {
    Digest([n; 32])
}

fn unscanned(reason: UnscannedReason, disposition: Disposition) -> Option<(Disposition, Answered)> {
    Some((disposition, Answered::Unscanned(reason)))
}

#[test]
fn a_clean_file_is_asked_about_once() {
    let mut gate = linked();
    let first = gate.open(OPEN, key(1), true);
    gate.digested(first, key(1), digest(1));
    gate.reply(gate.the_question(), Outcome::Clean);
    assert_eq!(gate.answer_of(first), Some((ALLOW, Answered::Clean)));
    let second = gate.open(AccessClass::Exec, key(1), true);
    assert_eq!(gate.answer_of(second), Some((ALLOW, Answered::Clean)));
    assert_eq!(gate.core.counters().cache_hits, 1);
    gate.assert_settled();
}

#[test]
fn a_writer_makes_the_verdict_count_once_only() {
    let mut gate = linked();
    let first = gate.open(OPEN, key(1), false);
    gate.digesting.clear();
    gate.input(Input::Digested {
        ticket: first,
        key: key(1),
        digest: digest(1),
        writer_free: false,
    });
    gate.reply(gate.the_question(), Outcome::Clean);
    gate.open(OPEN, key(1), true);
    assert_eq!(gate.digesting.len(), 1, "judged again");
}

#[test]
fn the_cache_forgets_what_was_written_and_what_rules_no_longer_say() {
    let forget: [fn(&mut Gate); 4] = [
        |gate| gate.written(key(1).node),
        Gate::events_lost,
        |gate| {
            gate.input(Input::ContentChanged {
                generation: Generation([8; 16]),
            });
        },
        |gate| {
            gate.input(Input::PolicyChanged {
                policy: Policy {
                    context_sensitive: true,
                    ..Policy::default()
                },
            });
        },
    ];
    for (index, forget) in forget.into_iter().enumerate() {
        let mut gate = linked();
        let first = gate.open(OPEN, key(1), true);
        gate.digested(first, key(1), digest(1));
        gate.reply(gate.the_question(), Outcome::Clean);
        forget(&mut gate);
        let again = gate.open(OPEN, key(1), true);
        assert_eq!(gate.answer_of(again), None, "case {index}");
    }
}

#[test]
fn a_reply_of_an_older_generation_is_not_remembered() {
    let mut gate = linked();
    let first = gate.open(OPEN, key(1), true);
    gate.digested(first, key(1), digest(1));
    gate.input(Input::ContentChanged {
        generation: Generation([9; 16]),
    });
    gate.reply(gate.the_question(), Outcome::Clean);
    assert_eq!(gate.answer_of(first), Some((ALLOW, Answered::Clean)));
    assert_eq!(gate.core.cache_len(), 0);
}

#[test]
fn one_question_however_many_openers_and_files() {
    let mut gate = linked();
    let a1 = gate.open(OPEN, key(1), true);
    let a2 = gate.open(OPEN, key(1), true);
    let b = gate.open(OPEN, key(2), true);
    assert_eq!(gate.digesting, [a1, b], "one file is hashed once");
    gate.digested(a1, key(1), digest(1));
    gate.digested(b, key(2), digest(1));
    let a3 = gate.open(OPEN, key(1), true);
    gate.reply(gate.the_question(), malicious());
    for ticket in [a1, a2, a3, b] {
        assert_eq!(gate.answer_of(ticket), Some((DENY, Answered::Malicious)));
    }
    gate.assert_settled();
}

/// Content that the appliance never had whole has no digest of its own.
#[test]
fn what_was_judged_by_a_report_is_remembered_if_clean_and_only_then() {
    for (outcome, answer, remembered) in [
        (Outcome::Clean, (ALLOW, Answered::Clean), 1),
        (malicious(), (DENY, Answered::Malicious), 0),
    ] {
        let mut gate = linked();
        let ticket = gate.open(OPEN, key(1), true);
        gate.digested(ticket, key(1), digest(1));
        let request_id = gate.the_question();
        // A report, then ranges, then others: each begins when the one before was sent.
        for _ in 0..3 {
            gate.input(Input::Needed { request_id });
            assert!(matches!(gate.last[..], [Action::Upload { .. }]));
            gate.input(Input::Needed { request_id });
            assert!(gate.last.is_empty());
            gate.input(Input::Sent { request_id });
        }
        gate.reply_about(request_id, outcome, None);
        assert_eq!(gate.answer_of(ticket), Some(answer));
        assert_eq!(gate.core.cache_len(), remembered);
    }
}

#[test]
fn equal_content_with_another_name_is_another_question_where_rules_read_names() {
    let policy = Policy {
        context_sensitive: true,
        ..Policy::default()
    };
    let mut gate = Gate::linked(CoreLimits::default(), policy);
    let mut actions = Vec::new();
    for (ticket, context) in [(1_u64, 1_u8), (2, 2), (3, 2)] {
        let opened = Opened {
            ticket: Ticket(ticket),
            class: AccessClass::CloseWrite,
            key: key(ticket),
            context: ContextHash([context; 16]),
            writer_free: true,
            may_stand: false,
        };
        gate.core
            .handle(gate.now, Input::Opened(opened), &mut actions);
        let digested = Input::Digested {
            ticket: Ticket(ticket),
            key: key(ticket),
            digest: digest(1),
            writer_free: true,
        };
        gate.core.handle(gate.now, digested, &mut actions);
    }
    assert_eq!(gate.core.requests_len(), 2);
}

#[test]
fn at_the_deadline_policy_answers_and_the_scan_goes_on() {
    let mut gate = linked();
    let slow = gate.open(OPEN, key(1), true);
    gate.digested(slow, key(1), digest(1));
    let budget = Policy::default().open_budget;
    assert_eq!(gate.core.next_deadline(), Some(budget * 80 / 100));
    gate.sleep(budget * 80 / 100);
    let by_policy = unscanned(UnscannedReason::Deadline, ALLOW);
    assert_eq!(gate.answer_of(slow), by_policy);
    let ledger = |a: &Action| matches!(a, Action::LedgerAdd { .. });
    assert_eq!(gate.last.iter().filter(|a| ledger(a)).count(), 1);

    // Nothing is remembered of it: the next one waits on the same question.
    let second = gate.open(OPEN, key(1), true);
    assert_eq!(gate.answer_of(second), None);
    gate.reply(gate.the_question(), malicious());
    assert_eq!(gate.answer_of(second), Some((DENY, Answered::Malicious)));
    let late = Action::Late {
        ticket: slow,
        digest: digest(1),
    };
    assert!(gate.last.contains(&late), "{:?}", gate.last);
    assert!(gate.last.contains(&Action::LedgerPaid { ticket: slow }));
    gate.assert_settled();
}

#[test]
fn exec_has_its_own_deadline() {
    let mut gate = linked();
    let open = gate.open(OPEN, key(1), true);
    let exec = gate.open(AccessClass::Exec, key(2), true);
    gate.sleep(Policy::default().exec_budget * 80 / 100);
    assert!(gate.answer_of(exec).is_some());
    assert_eq!(gate.answer_of(open), None);
}

#[test]
fn a_lost_link_is_waited_for_and_a_gone_one_is_not() {
    let mut gate = linked();
    let waiting = gate.open(OPEN, key(1), true);
    gate.digested(waiting, key(1), digest(1));
    let lost = gate.the_question();
    gate.input(Input::LinkDown);
    gate.asked.clear();
    assert_eq!(gate.answer_of(waiting), None);

    // It comes back within the grace: asked again, under a new number.
    gate.sleep(Duration::from_secs(1));
    gate.input(Input::LinkUp {
        generation: GENERATION,
        policy: Policy::default(),
        in_flight_max: 8,
    });
    assert!(gate.the_question() > lost);
    gate.reply(gate.the_question(), Outcome::Clean);
    assert_eq!(gate.answer_of(waiting), Some((ALLOW, Answered::Clean)));

    // It does not: policy answers who waits, and then everybody at once.
    gate.input(Input::LinkDown);
    let waiting = gate.open(OPEN, key(2), true);
    gate.digested(waiting, key(2), digest(2));
    gate.sleep(CoreLimits::default().link_grace);
    let unreachable = unscanned(UnscannedReason::Unreachable, ALLOW);
    assert_eq!(gate.answer_of(waiting), unreachable);
    let at_once = gate.open(OPEN, key(3), true);
    assert_eq!(gate.answer_of(at_once), unreachable);
    let cached = gate.open(OPEN, key(1), true);
    assert_eq!(gate.answer_of(cached), Some((ALLOW, Answered::Clean)));
    gate.assert_settled();
}

#[test]
fn what_was_malicious_stays_denied_without_an_appliance() {
    let mut gate = linked();
    let bad = gate.open(OPEN, key(1), true);
    gate.digested(bad, key(1), digest(1));
    gate.reply(gate.the_question(), malicious());
    let again = gate.open(OPEN, key(1), true);
    assert_eq!(gate.answer_of(again), None, "asked: it may be released");
    gate.input(Input::LinkDown);
    gate.sleep(CoreLimits::default().link_grace);
    assert_eq!(gate.answer_of(again), Some((DENY, Answered::Malicious)));
    let offline = gate.open(OPEN, key(1), true);
    assert_eq!(gate.answer_of(offline), Some((DENY, Answered::Malicious)));
}

#[test]
fn released_content_goes_through_and_is_not_remembered() {
    let mut gate = linked();
    let ticket = gate.open(OPEN, key(1), true);
    gate.digested(ticket, key(1), digest(1));
    gate.input(Input::Reply {
        request_id: gate.the_question(),
        verdict: verdict(malicious(), Some(digest(1))),
        released: true,
        changed: Vec::new(),
    });
    assert_eq!(gate.answer_of(ticket), Some((ALLOW, Answered::Released)));
    assert_eq!(gate.core.cache_len(), 0);
}

#[test]
fn released_content_is_no_longer_known_to_be_malicious() {
    let mut gate = linked();
    let bad = gate.open(OPEN, key(1), true);
    gate.digested(bad, key(1), digest(1));
    gate.reply(gate.the_question(), malicious());
    let released = gate.open(OPEN, key(1), true);
    gate.digested(released, key(1), digest(1));
    let request_id = gate.the_question();
    gate.input(Input::Reply {
        request_id,
        verdict: verdict(malicious(), Some(digest(1))),
        released: true,
        changed: Vec::new(),
    });
    gate.input(Input::LinkDown);
    gate.sleep(CoreLimits::default().link_grace);
    let again = gate.open(OPEN, key(1), true);
    let unreachable = unscanned(UnscannedReason::Unreachable, ALLOW);
    assert_eq!(gate.answer_of(again), unreachable);
}

#[test]
fn too_large_is_not_sent() {
    let policy = Policy {
        size_max_bytes: 99,
        on_unscanned: DENY,
        ..Policy::default()
    };
    let mut gate = Gate::linked(CoreLimits::default(), policy);
    let ticket = gate.open(OPEN, key(1), true);
    let too_large = unscanned(UnscannedReason::TooLarge, DENY);
    assert_eq!(gate.answer_of(ticket), too_large);
    assert!(gate.digesting.is_empty());
    let no_debt = |a: &Action| !matches!(a, Action::LedgerAdd { .. });
    assert!(
        gate.last.iter().all(no_debt),
        "asking again changes nothing"
    );
}

#[test]
fn a_file_that_keeps_changing_is_unscanned_in_the_end() {
    let mut gate = linked();
    let ticket = gate.open(OPEN, key(1), true);
    for attempt in 1..=CoreLimits::default().attempts_max {
        assert_eq!(gate.answer_of(ticket), None, "attempt {attempt}");
        assert_eq!(gate.digesting, [ticket], "attempt {attempt}");
        gate.digesting.clear();
        gate.input(Input::DigestFailed {
            ticket,
            reason: UnscannedReason::Changed,
        });
        rest(&mut gate);
    }
    let changed = unscanned(UnscannedReason::Changed, ALLOW);
    assert_eq!(gate.answer_of(ticket), changed);
    gate.assert_settled();
}

/// Sleeps until the core wants to be woken, unless that is for nobody.
fn rest(gate: &mut Gate) {
    if gate.core.openers_len() > 0 {
        let at = gate.core.next_deadline().expect("wants to be woken");
        gate.sleep(at - gate.now);
    }
}

#[test]
fn the_pauses_between_attempts_grow_and_never_outlast_a_deadline() {
    let limits = CoreLimits {
        attempts_max: u32::MAX,
        ..CoreLimits::default()
    };
    let mut gate = Gate::linked(limits, Policy::default());
    let ticket = gate.open(OPEN, key(1), true);
    let mut pauses = Vec::new();
    while gate.answer_of(ticket).is_none() {
        gate.digesting.clear();
        gate.input(Input::DigestFailed {
            ticket,
            reason: UnscannedReason::Changed,
        });
        let before = gate.now;
        rest(&mut gate);
        pauses.push((gate.now - before).as_millis());
    }
    assert_eq!(pauses[..9], [1, 2, 4, 8, 16, 32, 64, 100, 100]);
    let deadline = Policy::default().open_budget * 80 / 100;
    assert_eq!(gate.now, deadline);
    let by_policy = unscanned(UnscannedReason::Deadline, ALLOW);
    assert_eq!(gate.answer_of(ticket), by_policy);
    gate.input(Input::Stop);
    gate.assert_settled();
}

#[test]
fn clean_does_not_count_for_content_that_is_gone() {
    let mut gate = linked();
    let ticket = gate.open(OPEN, key(1), true);
    gate.digested(ticket, key(1), digest(1));
    gate.written(key(1).node);
    gate.reply(gate.the_question(), Outcome::Clean);
    assert_eq!(gate.answer_of(ticket), None, "closed by a writer meanwhile");
    rest(&mut gate);
    gate.digested(ticket, key(1), digest(2));
    let request_id = gate.the_question();
    gate.input(Input::Reply {
        request_id,
        verdict: verdict(Outcome::Clean, Some(digest(2))),
        released: false,
        changed: vec![ticket],
    });
    assert_eq!(gate.answer_of(ticket), None, "another identity");
    assert_eq!(gate.core.cache_len(), 0);
}

#[test]
fn a_verdict_for_other_bytes_is_an_error() {
    let mut gate = linked();
    let ticket = gate.open(OPEN, key(1), true);
    gate.digested(ticket, key(1), digest(1));
    gate.input(Input::Reply {
        request_id: gate.the_question(),
        verdict: verdict(Outcome::Clean, Some(digest(2))),
        released: false,
        changed: Vec::new(),
    });
    assert_eq!(gate.answer_of(ticket), Some((ALLOW, Answered::Error)));
}

#[test]
fn an_opener_hurries_what_a_closed_write_began() {
    let mut gate = linked();
    let closed = gate.open(AccessClass::CloseWrite, key(1), true);
    gate.digested(closed, key(1), digest(1));
    let slow = gate.the_question();
    let opener = gate.open(OPEN, key(1), true);
    let quick = gate.the_question();
    assert_ne!(slow, quick);
    let (_, _, class) = gate.asked[&quick];
    assert_eq!(class, OPEN);
    gate.reply(quick, Outcome::Clean);
    assert_eq!(gate.answer_of(opener), Some((ALLOW, Answered::Clean)));
    gate.assert_settled();
}

#[test]
fn a_full_queue_drops_background_work_before_openers() {
    let limits = CoreLimits {
        in_flight_max: 1,
        queue_len_max: 2,
        ..CoreLimits::default()
    };
    let mut gate = Gate::linked(limits, Policy::default());
    gate.open(OPEN, key(1), true);
    gate.open(AccessClass::Ledger, key(2), true);
    gate.open(AccessClass::CloseWrite, key(3), true);
    let opener = gate.open(OPEN, key(4), true);
    let unpaid = |a: &Action| matches!(a, Action::LedgerUnpaid { .. });
    assert!(gate.last.iter().any(unpaid), "the ledger goes first");
    assert_eq!(gate.answer_of(opener), None);
    gate.open(OPEN, key(5), true);
    assert_eq!(gate.core.counters().background_dropped, 2);
    let one_too_many = gate.open(OPEN, key(6), true);
    let overloaded = unscanned(UnscannedReason::Overloaded, ALLOW);
    assert_eq!(gate.answer_of(one_too_many), overloaded);
}

#[test]
fn background_work_leaves_places_for_openers() {
    let limits = CoreLimits {
        in_flight_max: 2,
        background_in_flight_max: 1,
        ..CoreLimits::default()
    };
    let mut gate = Gate::linked(limits, Policy::default());
    gate.open(AccessClass::CloseWrite, key(1), true);
    gate.open(AccessClass::CloseWrite, key(2), true);
    assert_eq!(gate.digesting.len(), 1);
    gate.open(OPEN, key(3), true);
    assert_eq!(gate.digesting.len(), 2);
}

#[test]
fn openers_and_kept_scans_are_bounded() {
    let limits = CoreLimits {
        openers_max: 2,
        kept_max: 1,
        ..CoreLimits::default()
    };
    let mut gate = Gate::linked(limits, Policy::default());
    gate.open(OPEN, key(1), true);
    gate.open(OPEN, key(2), true);
    let third = gate.open(OPEN, key(3), true);
    let overloaded = unscanned(UnscannedReason::Overloaded, ALLOW);
    assert_eq!(gate.answer_of(third), overloaded);
    gate.sleep(Policy::default().open_budget);
    assert_eq!(gate.core.kept_len(), 1);
    assert_eq!(gate.core.counters().kept_dropped, 1);
}

#[test]
fn the_appliance_takes_only_so_many_questions() {
    let mut gate = Gate::new(CoreLimits::default(), Policy::default());
    for ino in 1..=3 {
        let ticket = gate.open(OPEN, key(ino), true);
        gate.digested(ticket, key(ino), digest(ino as u8));
    }
    gate.input(Input::LinkUp {
        generation: GENERATION,
        policy: Policy::default(),
        in_flight_max: 2,
    });
    assert_eq!(gate.asked.len(), 2);
    let first = *gate.asked.keys().next().unwrap();
    gate.reply(first, Outcome::Clean);
    assert_eq!(gate.asked.len(), 2);
}

#[test]
fn a_scan_for_nobody_ends_some_day() {
    let mut gate = linked();
    let closed = gate.open(AccessClass::CloseWrite, key(1), true);
    gate.digested(closed, key(1), digest(1));
    let request_id = gate.the_question();
    gate.sleep(CoreLimits::default().scan_time_max);
    assert!(gate.last.contains(&Action::Cancel { request_id }));
    gate.reply(request_id, malicious());
    assert_eq!(gate.core.counters().stale_replies, 1);
    gate.assert_settled();
}

#[test]
fn a_payback_ends_paid_or_unpaid() {
    let ends: [(Outcome, bool); 4] = [
        (Outcome::Clean, true),
        (malicious(), true),
        (Outcome::unscanned(UnscannedReason::Encrypted), true),
        (Outcome::unscanned(UnscannedReason::EngineCrashed), false),
    ];
    for (outcome, paid) in ends {
        let mut gate = linked();
        let ticket = gate.open(AccessClass::Ledger, key(1), true);
        gate.digested(ticket, key(1), digest(1));
        gate.reply(gate.the_question(), outcome.clone());
        let expected = if paid {
            Action::LedgerPaid { ticket }
        } else {
            Action::LedgerUnpaid { ticket }
        };
        assert!(gate.last.contains(&expected), "{outcome:?}");
    }
}

#[test]
fn one_need_is_served_at_a_time() {
    let mut gate = linked();
    let ticket = gate.open(OPEN, key(1), true);
    gate.digested(ticket, key(1), digest(1));
    let request_id = gate.the_question();
    gate.input(Input::Needed { request_id });
    let upload = Action::Upload {
        request_id,
        ticket,
        class: OPEN,
    };
    assert_eq!(gate.last, std::slice::from_ref(&upload));
    gate.input(Input::Needed { request_id });
    assert_eq!(gate.last, []);
    gate.input(Input::Sent { request_id });
    gate.input(Input::Needed { request_id });
    assert_eq!(gate.last, [upload], "something else of the same content");
}

#[test]
fn stopping_answers_everybody() {
    let mut gate = linked();
    let known = gate.open(OPEN, key(4), true);
    gate.digested(known, key(4), digest(4));
    gate.reply(gate.the_question(), Outcome::Clean);
    let ticket = gate.open(OPEN, key(1), true);
    gate.open(AccessClass::CloseWrite, key(2), true);
    gate.input(Input::Stop);
    let cancelled = unscanned(UnscannedReason::Cancelled, ALLOW);
    assert_eq!(gate.answer_of(ticket), cancelled);
    let after = gate.open(OPEN, key(3), true);
    assert_eq!(gate.answer_of(after), cancelled);
    let known = gate.open(OPEN, key(4), true);
    assert_eq!(gate.answer_of(known), Some((ALLOW, Answered::Clean)));
    gate.assert_settled();
}

#[test]
fn a_full_link_is_asked_again_after_a_pause() {
    let mut gate = linked();
    let ticket = gate.open(OPEN, key(1), true);
    gate.digested(ticket, key(1), digest(1));
    gate.not_sent(gate.the_question());
    assert!(gate.asked.is_empty());
    let at = gate.core.next_deadline().expect("wants to be woken");
    gate.sleep(at);
    gate.reply(gate.the_question(), Outcome::Clean);
    assert_eq!(gate.answer_of(ticket), Some((ALLOW, Answered::Clean)));
}

#[test]
fn what_was_written_meanwhile_is_not_remembered_as_malicious_either() {
    let mut gate = linked();
    let ticket = gate.open(OPEN, key(1), true);
    gate.digested(ticket, key(1), digest(1));
    gate.written(key(1).node);
    gate.reply(gate.the_question(), malicious());
    assert_eq!(gate.answer_of(ticket), Some((DENY, Answered::Malicious)));
    assert_eq!(gate.core.cache_len(), 0);
}
