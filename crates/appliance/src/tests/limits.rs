use super::rig::{Double, claim};
use super::*;
use model::UnscannedReason;
use proto::v1;
use tokio::sync::Semaphore;

async fn refused_with(text: &str, sizes: &[usize]) -> (UnscannedReason, String) {
    let double = Double {
        gate: Semaphore::new(0),
        ..Double::new()
    };
    let rig = Rig::with(text, double);
    let mut guest = rig.guest(A);
    for (n, size) in sizes.iter().enumerate() {
        guest.check(2 * n as u64 + 1, check(&vec![n as u8; *size]));
        guest.settled().await;
    }
    let reply = guest.reply(2 * sizes.len() as u64 - 1).await;
    let model::Outcome::Unscanned { reason, detail } = rig::verdict(&reply).outcome else {
        panic!("not unscanned: {reply:?}");
    };
    let limit = detail.split_whitespace().nth(1).unwrap().to_owned();
    assert!(
        rig.metric(&format!("lazaret_refusals_total{{limit=\"{limit}\"}} 1")),
        "{limit}"
    );
    (reason, limit)
}

#[track_caller]
fn is(got: (UnscannedReason, String), reason: UnscannedReason, limit: &str) {
    assert_eq!(got, (reason, limit.to_owned()));
}

const SMALL: &str = "[policy]\nsize_max_bytes = 1000\n[limits]\nupload_memory_max_bytes = 1000\n";

#[tokio::test]
async fn every_limit_is_enforced_and_named() {
    use UnscannedReason::{Overloaded, Quota};
    let small = |limit: &str| format!("{SMALL}{limit}\n");
    is(
        refused_with(&small("in_flight_max = 2"), &[1, 1, 1]).await,
        Quota,
        "in_flight_max",
    );
    is(
        refused_with(&small("guest_requests_in_flight_max = 2"), &[1, 1, 1]).await,
        Quota,
        "guest_requests_in_flight_max",
    );
    is(
        refused_with(&small("guest_bytes_in_flight_max = 1000"), &[600, 600]).await,
        Quota,
        "guest_bytes_in_flight_max",
    );
    is(
        refused_with(
            &small("memory_bytes_max = 1000\nguest_share_max_percent = 100"),
            &[600, 600],
        )
        .await,
        Overloaded,
        "memory_bytes_max",
    );
    is(
        refused_with(&small("memory_bytes_max = 1000"), &[200, 200]).await,
        Quota,
        "guest_share_max_percent",
    );
    is(
        refused_with(
            &small("guest_bytes_per_second = 1\nguest_burst_bytes = 500"),
            &[600, 1],
        )
        .await,
        Quota,
        "guest_bytes_per_second",
    );
    is(
        refused_with(
            &small("queue_len_max = 1\nscans_running_max = 1"),
            &[1, 1, 1],
        )
        .await,
        Overloaded,
        "queue_len_max",
    );
    is(
        refused_with(
            &small("guest_queue_len_max = 1\nscans_running_max = 1"),
            &[1, 1, 1],
        )
        .await,
        Quota,
        "guest_queue_len_max",
    );
}

#[tokio::test]
async fn the_spool_is_bounded() {
    let rig = Rig::limited(
        "[policy]\nsize_max_bytes = 100000\n[limits]\nupload_memory_max_bytes = 0\nspool_bytes_max = 150000\nguest_share_max_percent = 100\n",
    );
    let mut guest = rig.guest(A);
    guest.check(1, claim(&vec![1; 90_000]));
    guest.needed(1).await;
    guest.check(3, claim(&vec![2; 90_000]));
    unscanned(&guest.reply(3).await, UnscannedReason::NoSpace);
}

#[tokio::test]
async fn too_large_is_said_before_any_byte_is_asked_for() {
    let rig = Rig::limited(SMALL);
    let mut guest = rig.guest(A);
    let large = v1::Check {
        size: u64::MAX,
        ..claim(b"x")
    };
    guest.check(1, large);
    unscanned(&guest.reply(1).await, UnscannedReason::TooLarge);
}

#[tokio::test]
async fn waiters_of_one_scan_are_bounded() {
    let double = Double {
        gate: Semaphore::new(0),
        ..Double::new()
    };
    let rig = Rig::with("[limits]\nwaiters_per_scan_max = 2\n", double);
    let mut guest = rig.guest(A);
    for id in [1, 3, 5] {
        guest.check(id, check(b"same"));
        guest.settled().await;
    }
    unscanned(&guest.reply(5).await, UnscannedReason::Overloaded);
    rig.double.gate.add_permits(10);
    clean(&guest.reply(1).await, false);
    clean(&guest.reply(3).await, false);
}

/// However many slow scans one guest begins, another guest's file is judged.
#[tokio::test]
async fn one_guest_does_not_hold_every_engine() {
    let double = Double {
        gate: Semaphore::new(0),
        ..Double::new()
    };
    let rig = Rig::with("", double);
    let greedy = rig.guest(A);
    for id in 0..10u64 {
        greedy.check(2 * id + 1, check(&id.to_be_bytes()));
    }
    while rig.double.scans() < 3 {
        tokio::task::yield_now().await;
    }
    let (_, running) = rig.shared.scans.depth();
    assert_eq!(running, 3, "one place of four is left");
    let other = rig.guest(B);
    other.check(1, check(b"other"));
    while rig.double.scans() < 4 {
        tokio::task::yield_now().await;
    }
    let (_, running) = rig.shared.scans.depth();
    assert_eq!(running, 4);
}

#[tokio::test]
async fn sessions_are_bounded() {
    let rig = Rig::new();
    let _one = rig.join(A, false);
    let guests = &rig.shared.guests;
    assert!(guests.has_room(B, 2, 1).is_ok());
    assert!(guests.has_room(A, 2, 1).is_err());
    assert!(guests.has_room(B, 1, 1).is_err());
}

#[tokio::test]
async fn a_flood_of_checks_holds_nothing() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    for id in 0..20_000u64 {
        guest.check(2 * id + 1, check(&id.to_be_bytes()));
    }
    let mut unscanned = 0;
    for _ in 0..20_000 {
        let (_, proto::v1::envelope::Body::CheckReply(reply)) = guest.next().await else {
            panic!("not a reply");
        };
        let outcome = rig::verdict(&reply).outcome;
        assert!(matches!(outcome.name(), "clean" | "unscanned"));
        unscanned += u32::from(outcome.name() == "unscanned");
    }
    assert!(unscanned > 0, "the limits were never reached");
    assert_eq!(rig.shared.budget.lock().bytes_held(), (0, 0));
    assert_eq!(rig.shared.scans.depth(), ([0; 3], 0));
}
