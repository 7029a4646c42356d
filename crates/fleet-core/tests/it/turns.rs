//! Background work of guests takes turns on what they share.

use std::time::Duration;

use fleet_core::{Core, InventoryChange, MovePhase, Order, Row, TurnAnswer, TurnAsk, TurnRow};
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

#[test]
fn a_turn_does_not_move_with_its_vm_nor_outlive_its_placer() {
    let mut core = fleet(1, 1);
    let first = core.ask_turn(at(0), guest(1), ask(WorkKind::Sweep, 4000));
    let (turn, _) = waits(first);
    let again = TurnAsk {
        again: Some(turn),
        ..ask(WorkKind::Sweep, 4000)
    };
    let moved = InventoryChange::VmMoved {
        vm: "v1".into(),
        to: Some("h2".into()),
        phase: MovePhase::Switched,
    };
    core.inventory(at(1), CONNECTOR, moved);
    let (other, _) = waits(core.ask_turn(at(1), guest(1), again));
    assert_ne!(other, turn, "it is of the old host");
    let mut next = fleet(2, 1);
    let (fresh, _) = waits(next.ask_turn(at(1), guest(1), again));
    assert!(fresh != turn && fresh != other, "names of two terms");
}

#[test]
fn a_placer_that_takes_over_waits_for_the_turns_that_it_does_not_know() {
    let mut core = fleet(1, 1);
    core.take_writes();
    let (turn, wait) = waits(core.ask_turn(at(0), guest(1), ask(WorkKind::Scan, 200)));
    assert_eq!(turns_out(&mut core), [], "it has not begun");
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
    assert_eq!(turns_out(&mut core), [], "not over yet");
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
