use super::rig::{Double, claim};
use super::*;
use model::Digest;
use proto::v1;
use proto::v1::envelope::Body;

#[tokio::test]
async fn who_holds_what_is_noted() {
    let rig = Rig::new();
    let (mut a, mut b) = (rig.guest(A), rig.guest(B));
    a.check(1, check(EVIL));
    malicious(&a.reply(1).await, false);
    b.check(1, claim(EVIL));
    malicious(&b.reply(1).await, true);
    // What nobody has judged is nothing.
    a.check(3, claim(b"made up"));
    a.needed(3).await;
    a.send(3, Body::Cancel(v1::Cancel {})).unwrap();
    let holders =
        |content: &'static [u8]| rig.shared.sightings.holders(Digest::of(content), None, 10);
    let found = holders(EVIL).await.unwrap();
    let guests: Vec<_> = found.guests.iter().map(|holder| holder.guest).collect();
    assert_eq!(guests, [A, B]);
    assert!(holders(b"made up").await.unwrap().guests.is_empty());
}

#[tokio::test]
async fn the_own_disk_answers_after_a_restart() {
    let rig = Rig::new();
    let mut a = rig.guest(A);
    a.check(1, check(EVIL));
    malicious(&a.reply(1).await, false);
    drop(a);
    rig.shared.sightings.flush().await;
    let rig = rig.restart(Double::new()).await;
    let mut b = rig.guest(B);
    b.check(1, claim(EVIL));
    malicious(&b.reply(1).await, true);
    assert_eq!(rig.double.scans(), 0);
    let hit = r#"lazaret_verdict_store_gets_total{store="embedded",result="hit"} 1"#;
    assert!(rig.metric(hit));
    // And who held it before, beside who has just asked.
    let found = rig.shared.sightings.holders(Digest::of(EVIL), None, 10);
    let guests: Vec<_> = found
        .await
        .unwrap()
        .guests
        .iter()
        .map(|holder| holder.guest)
        .collect();
    assert_eq!(guests, [A, B]);
}

/// A guest that claims and cancels without end has no more under way than it may.
#[tokio::test]
async fn cancelled_questions_count_until_they_are_over() {
    let rig = Rig::limited("[limits]\nin_flight_max = 4\n");
    let mut a = rig.guest(A);
    for id in 0..4u64 {
        a.check(2 * id + 1, claim(&id.to_be_bytes()));
        a.send(2 * id + 1, Body::Cancel(v1::Cancel {})).unwrap();
    }
    a.check(99, claim(b"one more"));
    unscanned(&a.reply(99).await, model::UnscannedReason::Quota);
}
