use super::rig::{Double, claim};
use super::*;
use proto::v1;
use proto::v1::envelope::Body;
use tokio::sync::Semaphore;

/// Scans begin but do not end until the gate is opened.
fn held() -> Rig {
    let double = Double {
        gate: Semaphore::new(0),
        ..Double::new()
    };
    Rig::with("", double)
}

async fn scan_begun(rig: &Rig) {
    while rig.double.scans() == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_scan_answers_everybody() {
    let rig = held();
    let (mut a, mut b) = (rig.guest(A), rig.guest(B));
    a.check(1, check(EVIL));
    a.check(3, check(EVIL));
    scan_begun(&rig).await;
    b.check(1, check(EVIL));
    b.check(3, claim(EVIL));
    assert!(a.is_quiet() && b.is_quiet());
    rig.double.gate.add_permits(10);
    for guest in [&mut a, &mut b] {
        let mut ids = Vec::new();
        for _ in 0..2 {
            let (id, Body::CheckReply(reply)) = guest.next().await else {
                panic!("not a reply");
            };
            malicious(&reply, false);
            ids.push(id);
        }
        // Which of two that a store is asked about comes first is not said.
        ids.sort_unstable();
        assert_eq!(ids, [1, 3]);
    }
    assert_eq!(rig.double.scans(), 1);
    assert!(rig.metric("lazaret_scans_joined_total 3"));
}

#[tokio::test]
async fn an_upload_joins_a_scan_that_began_meanwhile() {
    let rig = held();
    let (mut a, mut b) = (rig.guest(A), rig.guest(B));
    b.check(1, claim(b"same"));
    b.needed(1).await;
    a.check(1, check(b"same"));
    scan_begun(&rig).await;
    b.data(1, 0, b"same");
    b.end(1);
    rig.double.gate.add_permits(10);
    clean(&a.reply(1).await, false);
    let reply = b.reply(1).await;
    clean(&reply, reply.cached);
    assert_eq!(rig.double.scans(), 1);
}

/// What a guest claims is believed for nobody else: not even while its upload is under way.
#[tokio::test]
async fn a_liar_does_not_hold_up_the_others() {
    let rig = Rig::new();
    let (mut a, mut b) = (rig.guest(A), rig.guest(B));
    a.check(1, claim(b"popular"));
    a.needed(1).await;
    b.check(1, claim(b"popular"));
    b.needed(1).await;
    a.data(1, 0, b"pOpular");
    a.end(1);
    unscanned(&a.reply(1).await, model::UnscannedReason::Changed);
    b.data(1, 0, b"popular");
    b.end(1);
    clean(&b.reply(1).await, false);
}

#[tokio::test]
async fn a_scan_goes_on_when_nobody_waits_and_its_verdict_is_kept() {
    let rig = held();
    let mut a = rig.guest(A);
    a.check(1, check(b"good"));
    scan_begun(&rig).await;
    a.send(1, Body::Cancel(v1::Cancel {})).unwrap();
    rig.double.gate.add_permits(10);
    let mut b = rig.guest(B);
    loop {
        b.check(1, claim(b"good"));
        match b.next().await {
            (1, Body::CheckReply(reply)) => break clean(&reply, reply.cached),
            (1, Body::Need(_)) => b.send(1, Body::Cancel(v1::Cancel {})).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.double.scans(), 1);
    assert!(a.is_quiet(), "a cancelled check is owed no reply");
}

#[tokio::test]
async fn a_late_bad_verdict_still_removes_the_file() {
    let rig = held();
    let mut a = rig.guest(A);
    a.check(1, check(EVIL));
    scan_begun(&rig).await;
    a.send(1, Body::Cancel(v1::Cancel {})).unwrap();
    rig.double.gate.add_permits(10);
    let (id, Body::Order(order)) = a.next().await else {
        panic!("no order");
    };
    assert!(id % 2 == 0, "the appliance began this exchange");
    assert!(matches!(
        order.action,
        Some(v1::order::Action::Quarantine(_))
    ));
    assert_eq!(rig.shared.detections.newest(9).len(), 1);
}

#[tokio::test]
async fn a_session_that_ends_leaves_its_scan_running() {
    let rig = held();
    let a = rig.guest(A);
    a.check(1, check(EVIL));
    scan_begun(&rig).await;
    drop(a);
    let mut b = rig.guest(B);
    b.check(1, claim(EVIL));
    rig.double.gate.add_permits(10);
    malicious(&b.reply(1).await, false);
    let recorded = rig.shared.detections.newest(9);
    assert_eq!(recorded.len(), 2, "the guest that left is recorded too");
}

#[tokio::test]
async fn checks_that_are_cancelled_pile_up_nowhere() {
    let double = Double {
        gate: Semaphore::new(0),
        ..Double::new()
    };
    let rig = Rig::with("[limits]\nguest_late_max = 3\n", double);
    let a = rig.guest(A);
    a.check(1, check(EVIL));
    scan_begun(&rig).await;
    for id in 1..1000u64 {
        a.check(2 * id + 1, check(EVIL));
        a.send(2 * id + 1, Body::Cancel(v1::Cancel {})).unwrap();
    }
    assert_eq!(rig.shared.scans.held(), (1, 1), "one file is one entry");
    for id in 1000..1100u64 {
        let mut elsewhere = check(EVIL);
        if let Some(context) = &mut elsewhere.context {
            context.path = format!("/srv/{id}").into_bytes();
        }
        a.check(2 * id + 1, elsewhere);
        a.send(2 * id + 1, Body::Cancel(v1::Cancel {})).unwrap();
    }
    assert_eq!(rig.shared.scans.held(), (1, 3), "limit guest_late_max");
    drop(a);
    assert_eq!(rig.shared.scans.held(), (0, 3), "the session is over");
    rig.double.gate.add_permits(10);
    while rig.shared.scans.held() != (0, 0) || rig.shared.detections.newest(9).len() < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.shared.detections.newest(9).len(), 3);
}
