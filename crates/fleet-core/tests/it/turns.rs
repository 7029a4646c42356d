//! Background work of guests takes turns on what they share.

use std::time::Duration;

use fleet_core::{
    Core, InSession, InventoryChange, MovePhase, Order, Row, TurnAnswer, TurnAsk, TurnRow,
};
use model::GuestId;
use placement::{ApplianceId, LeaseId, Refused, WorkKind};

use crate::scene::{CONNECTOR, appliance, at, connect, core, core_after, guest, host, vm};

const TAKES: Duration = Duration::from_secs(100);

fn ask(kind: WorkKind, within_s: u64) -> TurnAsk {
    TurnAsk {
        kind,
        again: None,
        takes: TAKES,
        within: Duration::from_secs(within_s),
    }
}

/// Two hosts; VMs 1 to `count` on the first.
fn fleet(term: u32, count: u8) -> Core {
    fleet_after(core(term), count)
}

fn fleet_after(mut core: Core, count: u8) -> Core {
    let via = appliance(&mut core, "h1");
    for change in [host("h1"), host("h2")] {
        core.inventory(at(0), CONNECTOR, change);
    }
    let numbers: Vec<u8> = (1..=count).collect();
    for number in &numbers {
        core.inventory(at(0), CONNECTOR, vm(*number, "h1"));
    }
    connect(&mut core, via, &numbers);
    core
}

fn begun(answer: TurnAnswer) -> Option<LeaseId> {
    match answer {
        TurnAnswer::Begin { turn, ends_in } => {
            assert!(ends_in <= TAKES, "{ends_in:?}");
            turn
        }
        other => panic!("{other:?}"),
    }
}

fn waits(answer: TurnAnswer) -> (LeaseId, Duration) {
    match answer {
        TurnAnswer::Wait { turn, wait } => (turn, wait),
        other => panic!("{other:?}"),
    }
}

#[test]
fn at_whom_somebody_works_the_others_go_first() {
    const HOUR: Duration = Duration::from_secs(3600);
    let mut core = fleet(1, 8);
    let desks: Vec<_> = (1..=4)
        .flat_map(|n| core.find_vms(&format!("v{n}")))
        .collect();
    core.order_in_session(at(0), &desks, Some((true, HOUR)));
    let begins = |core: &mut Core, at_s: u64, number: u8| {
        let answer = core.ask_turn(at(at_s), guest(number), ask(WorkKind::Scan, 1000));
        match answer {
            TurnAnswer::Wait { wait, .. } => wait,
            _ => Duration::ZERO,
        }
    };
    // Whoever asks first.
    let busy: Vec<Duration> = (1..=4).map(|n| begins(&mut core, 0, n)).collect();
    let idle: Vec<Duration> = (5..=8).map(|n| begins(&mut core, 0, n)).collect();
    let deadline = Duration::from_secs(1000);
    assert!(
        busy.iter().all(|wait| *wait + TAKES <= deadline),
        "{busy:?}"
    );
    assert!(busy.iter().min() > idle.iter().max(), "{busy:?} {idle:?}");
    // It counts so long, and no longer; a person may say so before.
    core.order_in_session(at(0), &desks[..1], Some((false, HOUR)));
    core.order_in_session(at(0), &desks[1..2], None);
    let late = begins(&mut core, 3599, 3);
    for (at_s, number) in [(3599, 1), (3599, 2), (3600, 4)] {
        let wait = begins(&mut core, at_s, number);
        assert!(wait < late, "{number}: {wait:?} {late:?}");
    }
}

#[test]
fn who_works_where_is_written_down_with_the_vm() {
    let mut core = fleet(1, 1);
    let desk = core.find_vms("v1");
    let _before = core.take_writes();
    core.order_in_session(at(5), &desk, Some((true, Duration::from_secs(60))));
    let rows = core.take_writes();
    let said = rows.iter().find_map(|row| match row {
        Row::Vm(vm) => vm.in_session,
        _ => None,
    });
    let wanted = InSession {
        is_so: true,
        until_ms: 65_000,
    };
    assert_eq!(said, Some(wanted));
    // What its connector tells later takes nothing of that.
    core.inventory(at(6), CONNECTOR, vm(1, "h2"));
    let row = core.why(desk[0], 1).unwrap().vm;
    assert_eq!(row.stored.in_session, Some(wanted));
}

#[test]
fn a_host_has_room_for_four_scans_and_the_fifth_waits() {
    let mut core = fleet(1, 5);
    // No room for anything but now.
    for number in 1..=4 {
        let answer = core.ask_turn(at(0), guest(number), ask(WorkKind::Scan, 0));
        assert!(matches!(
            answer,
            TurnAnswer::Begin { .. } | TurnAnswer::Wait { .. }
        ));
    }
    let fifth = core.ask_turn(at(0), guest(5), ask(WorkKind::Scan, 0));
    let TurnAnswer::Refused {
        why: Refused::Full { .. },
        possible_within: Some(within),
    } = fifth
    else {
        panic!("{fifth:?}")
    };
    let question = TurnAsk {
        within: within + TAKES,
        ..ask(WorkKind::Scan, 0)
    };
    let (turn, wait) = waits(core.ask_turn(at(0), guest(5), question));
    let again = TurnAsk {
        again: Some(turn),
        ..question
    };
    let (same, _) = waits(core.ask_turn(at(1), guest(5), again));
    assert_eq!(same, turn, "it keeps its place");
    assert_eq!(
        begun(core.ask_turn(at(wait.as_secs()), guest(5), again)),
        Some(turn)
    );
}

#[test]
fn a_guest_holds_one_turn_of_a_kind_and_gives_back_only_its_own() {
    let mut core = fleet(1, 2);
    let mut turns = Vec::new();
    for _ in 0..20 {
        let answer = core.ask_turn(at(0), guest(1), ask(WorkKind::Scan, 0));
        turns.push(match answer {
            TurnAnswer::Begin {
                turn: Some(turn), ..
            }
            | TurnAnswer::Wait { turn, .. } => turn,
            other => panic!("asking again took from it: {other:?}"),
        });
    }
    let last = *turns.last().unwrap();
    core.turn_over(at(0), guest(2), last);
    let again = TurnAsk {
        again: Some(last),
        ..ask(WorkKind::Scan, 0)
    };
    let kept = core.ask_turn(at(20), guest(1), again);
    assert_eq!(begun(kept), Some(last), "another guest ended it");
    core.turn_over(at(20), guest(1), last);
    let next = core.ask_turn(at(20), guest(1), again);
    assert_ne!(
        match next {
            TurnAnswer::Begin { turn, .. } => turn,
            TurnAnswer::Wait { turn, .. } => Some(turn),
            TurnAnswer::Refused { .. } => None,
        },
        Some(last),
        "it is over"
    );
}

fn move_vm(core: &mut Core, now_s: u64, number: u8, to: &str) {
    let moved = InventoryChange::VmMoved {
        vm: format!("v{number}"),
        to: Some(to.into()),
        phase: MovePhase::Switched,
    };
    core.inventory(at(now_s), CONNECTOR, moved);
}

/// The hosts that turns are charged to, by VM.
fn charged(core: &Core, now_s: u64) -> Vec<(String, String)> {
    let rows = core.turn_rows(at(now_s).now, None).into_iter();
    let mut rows: Vec<_> = rows.map(|row| (row.vm, row.host)).collect();
    rows.sort();
    rows
}

/// Turns that are taken back, by guest, and through whom.
fn taken_back(core: &mut Core) -> Vec<(GuestId, LeaseId, ApplianceId)> {
    let orders = core.take_orders().into_iter();
    let taken = orders.filter_map(|order| match order {
        Order::TurnOver { via, guest, turn } => Some((guest, turn, via)),
        _ => None,
    });
    taken.collect()
}

#[test]
fn a_turn_moves_with_its_vm_and_does_not_outlive_its_placer() {
    let mut core = fleet(1, 1);
    let first = core.ask_turn(at(0), guest(1), ask(WorkKind::Sweep, 4000));
    let (turn, wait) = waits(first);
    let again = TurnAsk {
        again: Some(turn),
        ..ask(WorkKind::Sweep, 4000)
    };
    move_vm(&mut core, 1, 1, "h2");
    assert_eq!(charged(&core, 1), [("v1".into(), "h2".into())]);
    let begins = wait.as_secs();
    assert_eq!(
        begun(core.ask_turn(at(begins), guest(1), again)),
        Some(turn)
    );
    move_vm(&mut core, begins + 1, 1, "h1");
    assert_eq!(charged(&core, begins + 1), [("v1".into(), "h1".into())]);
    assert_eq!(taken_back(&mut core), [], "there is room");
    let mut next = fleet(2, 1);
    let (fresh, _) = waits(next.ask_turn(at(1), guest(1), again));
    assert!(fresh != turn, "names of two terms");
}

#[test]
fn a_turn_is_taken_back_where_its_vm_moves_to_a_full_host() {
    let mut core = fleet(1, 5);
    core.inventory(at(0), CONNECTOR, vm(5, "h2"));
    let gate = core.find_appliance("on-h1").unwrap();
    // No room for anything but now; a lease begins with the next step.
    let mut turns = Vec::new();
    for number in 1..=5 {
        let question = ask(WorkKind::Scan, 0);
        let turn = match core.ask_turn(at(0), guest(number), question) {
            TurnAnswer::Begin { turn, .. } => turn.unwrap(),
            other => waits(other).0,
        };
        let again = TurnAsk {
            again: Some(turn),
            ..question
        };
        core.order_turn(at(10), (gate, 1), guest(number), again);
        turns.push(turn);
    }
    core.take_orders();
    move_vm(&mut core, 20, 5, "h1");
    assert_eq!(taken_back(&mut core), [(guest(5), turns[4], gate)]);
    let on_h1 = core.turn_rows(at(20).now, Some("h1"));
    assert_eq!(on_h1.len(), 4, "the budget of the full host");
    assert_eq!(core.turn_rows(at(20).now, Some("h2")), []);
    // It was not connected where that was said: it hears of it when it comes.
    connect(&mut core, gate, &[5]);
    assert_eq!(taken_back(&mut core), [(guest(5), turns[4], gate)]);
    connect(&mut core, gate, &[4]);
    assert_eq!(taken_back(&mut core), [], "another one's");
    core.tick(at(200));
    connect(&mut core, gate, &[5]);
    assert_eq!(taken_back(&mut core), [], "it would be over by now");
}

#[test]
fn a_turn_is_taken_back_where_nobody_knows_the_host() {
    let mut core = fleet(1, 1);
    let (turn, wait) = waits(core.ask_turn(at(0), guest(1), ask(WorkKind::Sweep, 1000)));
    let again = TurnAsk {
        again: Some(turn),
        ..ask(WorkKind::Sweep, 1000)
    };
    let begins = wait.as_secs();
    begun(core.ask_turn(at(begins), guest(1), again));
    core.take_orders();
    move_vm(&mut core, begins + 1, 1, "h9");
    assert_eq!(charged(&core, begins + 1), []);
    assert_eq!(taken_back(&mut core).len(), 1);
}

#[test]
fn a_placer_that_takes_over_waits_for_the_turns_that_it_does_not_know() {
    let mut core = fleet(1, 1);
    core.take_writes();
    let (turn, wait) = waits(core.ask_turn(at(0), guest(1), ask(WorkKind::Scan, 200)));
    assert!(turns_out(&mut core).is_empty(), "it has not begun");
    let again = TurnAsk {
        again: Some(turn),
        ..ask(WorkKind::Scan, 200)
    };
    let begins = wait.as_secs();
    core.order_turn(at(begins), (ApplianceId(7), 9), guest(1), again);
    let written = turns_out(&mut core);
    let [out_s] = written[..] else {
        panic!("{written:?}");
    };
    assert!(u64::from(out_s) >= TAKES.as_secs(), "{out_s}");
    let orders = core.take_orders();
    let is_begin = |order: &Order| {
        let told = matches!(order, Order::Turn { via, ticket: 9, .. } if *via == ApplianceId(7));
        told && matches!(
            order,
            Order::Turn {
                answer: TurnAnswer::Begin { .. },
                ..
            }
        )
    };
    assert!(orders.iter().any(is_begin), "{orders:?}");
    core.tick(at(begins + 100));
    assert!(turns_out(&mut core).is_empty(), "not over yet");
    core.tick(at(begins + 1000));
    assert_eq!(turns_out(&mut core), [0]);

    let mut next = fleet_after(core_after(2, out_s), 1);
    let hasty = next.ask_turn(at(1), guest(1), ask(WorkKind::Scan, 0));
    let TurnAnswer::Refused {
        possible_within: Some(within),
        ..
    } = hasty
    else {
        panic!("{hasty:?}");
    };
    assert!(within.as_secs() >= u64::from(out_s) + TAKES.as_secs() - 1);
    let (_, wait) = waits(next.ask_turn(at(1), guest(1), ask(WorkKind::Scan, 1000)));
    assert!(wait.as_secs() >= u64::from(out_s) - 1);
}

fn turns_out(core: &mut Core) -> Vec<u32> {
    let writes = core.take_writes().into_iter();
    let out = writes.filter_map(|row| match row {
        Row::TurnsOut(seconds) => Some(seconds),
        _ => None,
    });
    out.collect()
}

#[test]
fn turns_can_be_looked_at() {
    let mut core = fleet(1, 2);
    let (_, wait) = waits(core.ask_turn(at(0), guest(1), ask(WorkKind::Scan, 4000)));
    waits(core.ask_turn(at(0), guest(2), ask(WorkKind::Sweep, 4000)));
    let rows = core.turn_rows(at(0).now, None);
    assert!(rows.is_sorted_by_key(|row| row.begins_in));
    let row = rows.into_iter().find(|row| row.vm == "v1");
    let expected = TurnRow {
        vm: "v1".into(),
        host: "h1".into(),
        kind: WorkKind::Scan,
        begins_in: wait,
        ends_in: wait + TAKES,
    };
    assert_eq!(row, Some(expected));
    assert_eq!(core.turn_rows(at(0).now, Some("h1")).len(), 2);
    assert_eq!(core.turn_rows(at(0).now, Some("h2")), []);
    assert_eq!(core.turn_rows(at(8000).now, None), [], "they are over");
}

#[test]
fn whoever_shares_nothing_that_is_known_waits_for_nobody() {
    let mut core = core(1);
    let via = appliance(&mut core, "h1");
    connect(&mut core, via, &[1]);
    for _ in 0..10 {
        let answer = core.ask_turn(at(0), guest(1), ask(WorkKind::Scan, 0));
        assert_eq!(begun(answer), None);
    }
}

#[test]
fn a_datastore_is_shared_by_hosts() {
    let mut core = core(1);
    let via = appliance(&mut core, "h0");
    // 20 scans of 40 MiB/s fill the datastore; each host has one.
    for number in 1..=21 {
        let name = format!("h{number}");
        core.inventory(at(0), CONNECTOR, host(&name));
        core.inventory(at(0), CONNECTOR, vm(number, &name));
        connect(&mut core, via, &[number]);
        let answer = core.ask_turn(at(0), guest(number), ask(WorkKind::Scan, 0));
        let is_refused = matches!(answer, TurnAnswer::Refused { .. });
        assert_eq!(is_refused, number == 21, "{number}: {answer:?}");
    }
}
