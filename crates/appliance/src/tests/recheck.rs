//! Content that is not kept is asked of guests that were seen with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use model::{Digest, GuestId};
use proto::v1;
use proto::v1::envelope::Body;

use super::force::use_engines;
use super::rig::{Double, Guest, claim};
use super::rules::{Changed, forgetful, judged_by};
use super::*;
use crate::config::{Config, RecheckConfig};
use crate::recheck::ask_guests;

const C: GuestId = GuestId([0xc; 16]);
const THEN: &str = "aa Evil\n";
const NOW: &str = "aa Evil\nbb Fresh\n";
const GOOD: &[u8] = b"good";
const FRESH: &[u8] = b"a fresh one";

fn config(text: &str) -> RecheckConfig {
    let text = format!("[recheck]\nagain_s = 1\n{text}");
    let config: Config = daemon::config::parse(&text, "x").unwrap();
    config.recheck
}

/// Rules changed after these guests had these contents judged.
async fn changed(seen: &[(GuestId, &[&[u8]])]) -> Changed {
    let rig = forgetful();
    for (guest, contents) in seen {
        judged_by(&rig, *guest, contents).await;
    }
    Changed::new(rig, THEN, NOW).await
}

/// Begins to ask.
fn begin(changed: &Changed, text: &str) -> tokio::task::JoinHandle<()> {
    tokio::spawn(ask_guests(changed.rig.shared.clone(), config(text)))
}

/// The content that a guest is asked for.
async fn asked(guest: &mut Guest) -> Digest {
    match guest.next().await {
        (0, Body::Recheck(recheck)) => Digest::from_slice(&recheck.digests[0]).unwrap(),
        other => panic!("not asked: {other:?}"),
    }
}

fn not_held(guest: &Guest, digest: Digest) {
    let digests = vec![digest.0.to_vec()];
    let body = Body::NotHeld(v1::NotHeld { digests });
    guest.send(0, body).unwrap();
}

#[tokio::test]
async fn one_guest_is_asked_and_sends_what_nobody_opens() {
    let it = changed(&[(A, &[GOOD, FRESH, EVIL])]).await;
    let mut guest = it.rig.guest(A);
    // One at a time: otherwise being asked for the second may overtake being asked for the first's bytes.
    let asking = begin(&it, "guest_asked_max = 1\n");
    let contents = [GOOD, FRESH].map(|content| (Digest::of(content), content));
    let contents = HashMap::from(contents);
    for id in [1, 3] {
        let content = contents[&asked(&mut guest).await];
        guest.check(id, claim(content));
        guest.needed(id).await;
        guest.data(id, 0, content);
        guest.end(id);
        let reply = guest.reply(id).await;
        if content == FRESH {
            malicious(&reply, false);
        } else {
            clean(&reply, false);
        }
    }
    asking.await.unwrap();
    assert!(guest.is_quiet(), "malicious before, it is in no doubt");
    assert_eq!((it.delta.scans(), it.all.scans()), (2, 0));
    for line in [
        r#"lazaret_rechecks_total{result="clean"} 1"#,
        r#"lazaret_rechecks_total{result="malicious"} 1"#,
        "lazaret_recheck_bytes_total 15",
        "lazaret_rechecks_left 0",
    ] {
        assert!(it.rig.metric(line), "{line}: {}", it.rig.registry.render());
    }
}

#[tokio::test]
async fn another_guest_is_asked_where_the_first_has_it_no_more() {
    let it = changed(&[(A, &[GOOD]), (B, &[GOOD]), (C, &[GOOD])]).await;
    let mut guests = [A, B, C].map(|id| it.rig.guest(id));
    let asking = begin(&it, "answer_s = 5\n");
    let mut had_it = 0;
    // One has it no more, one says nothing, one has it.
    for turn in 0..3 {
        let (first, rest) = guests.split_at_mut(1);
        let (second, third) = rest.split_at_mut(1);
        let frame = tokio::select! {
            digest = asked(&mut first[0]) => (0, digest),
            digest = asked(&mut second[0]) => (1, digest),
            digest = asked(&mut third[0]) => (2, digest),
        };
        let (at, digest) = frame;
        assert_eq!(digest, Digest::of(GOOD));
        match turn {
            0 => not_held(&guests[at], digest),
            1 => {}
            _ => {
                guests[at].check(1, check(GOOD));
                clean(&guests[at].reply(1).await, false);
                had_it += 1;
            }
        }
    }
    asking.await.unwrap();
    assert_eq!((had_it, it.delta.scans()), (1, 1));
    for line in ["not_held", "late", "clean"] {
        let line = format!("lazaret_rechecks_total{{result=\"{line}\"}} 1");
        assert!(it.rig.metric(&line), "{line}");
    }
}

#[tokio::test]
async fn what_nobody_could_give_is_asked_for_again() {
    let it = changed(&[(A, &[FRESH])]).await;
    let asking = begin(&it, "");
    // Nobody is here who had it.
    while !it.rig.metric("lazaret_rechecks_left 1") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut guest = it.rig.guest(A);
    let digest = asked(&mut guest).await;
    not_held(&guest, digest);
    assert_eq!(asked(&mut guest).await, Digest::of(FRESH), "it may be back");
    guest.check(1, check(FRESH));
    malicious(&guest.reply(1).await, false);
    asking.await.unwrap();
    // At least once: it was looked for until the guest came.
    assert!(it.rig.registry.render().contains(r#"result="absent"}"#));
}

#[tokio::test]
async fn a_lie_settles_nothing() {
    let it = changed(&[(A, &[GOOD]), (B, &[GOOD])]).await;
    let mut liar = it.rig.guest(A);
    // It was asked for nothing yet.
    not_held(&liar, Digest::of(GOOD));
    let asking = begin(&it, "");
    assert_eq!(asked(&mut liar).await, Digest::of(GOOD));
    // Other bytes than the digest names.
    liar.check(1, claim(GOOD));
    liar.needed(1).await;
    liar.data(1, 0, b"lies");
    liar.end(1);
    unscanned(&liar.reply(1).await, model::UnscannedReason::Changed);
    // Later, when another one is here, it is asked, too.
    let mut honest = it.rig.guest(B);
    loop {
        tokio::select! {
            digest = asked(&mut liar) => not_held(&liar, digest),
            digest = asked(&mut honest) => {
                assert_eq!(digest, Digest::of(GOOD));
                break;
            }
        }
    }
    honest.check(1, check(GOOD));
    clean(&honest.reply(1).await, false);
    asking.await.unwrap();
    assert_eq!(it.delta.scans(), 1);
}

/// What a guest says of a size costs nobody time, and one that says nothing holds nobody up.
#[tokio::test]
async fn a_size_that_is_only_claimed_and_silence_hold_nobody_up() {
    let it = changed(&[(A, &[GOOD, FRESH])]).await;
    let mut liar = it.rig.guest(A);
    let asking = begin(&it, "bytes_per_s = 65536\nasked_max = 1\n");
    let first = asked(&mut liar).await;
    let mut claimed = claim(GOOD);
    claimed.blake3 = first.0.to_vec();
    claimed.size = 200 << 20;
    liar.check(1, claimed);
    liar.needed(1).await;
    liar.end(1);
    unscanned(&liar.reply(1).await, model::UnscannedReason::Truncated);
    // At 64 KiB a second 200 MiB would take an hour.
    let second = asked(&mut liar).await;
    assert_ne!(second, first);
    not_held(&liar, second);
    asking.abort();
}

#[test]
fn whoever_says_nothing_is_mute_until_the_next_round() {
    let asked = crate::asked::Asked::new(&daemon::metrics::Registry::default());
    (0..7).for_each(|_| asked.said_nothing(A));
    assert!(!asked.is_mute(A));
    asked.said_nothing(A);
    assert!(asked.is_mute(A) && !asked.is_mute(B));
    asked.forgive();
    assert!(!asked.is_mute(A));
}

#[tokio::test]
async fn nobody_is_asked_after_a_change_that_is_not_one_of_rules_alone() {
    let it = changed(&[(A, &[GOOD])]).await;
    let other = Double {
        generation: model::Generation([0x77; 16]),
        ..Double::new()
    };
    use_engines(&it.rig, &Config::default(), vec![Arc::new(other)]);
    let mut guest = it.rig.guest(A);
    begin(&it, "").await.unwrap();
    assert!(guest.is_quiet());
}

#[tokio::test]
async fn a_guest_is_asked_for_so_many_at_once() {
    let contents: Vec<[u8; 2]> = (0..6).map(|n| [b'g', n]).collect();
    let contents: Vec<&[u8]> = contents.iter().map(|it| &it[..]).collect();
    let it = changed(&[(A, &contents)]).await;
    let mut guest = it.rig.guest(A);
    let asking = begin(&it, "guest_asked_max = 2\n");
    for _ in 0..3 {
        let pair = [asked(&mut guest).await, asked(&mut guest).await];
        let more = tokio::time::timeout(Duration::from_millis(50), guest.next()).await;
        assert!(more.is_err(), "a third");
        pair.iter().for_each(|digest| not_held(&guest, *digest));
    }
    asking.abort();
}

#[tokio::test]
async fn nobody_is_asked_where_nothing_is_new_or_it_is_switched_off() {
    let it = changed(&[(A, &[GOOD])]).await;
    let mut guest = it.rig.guest(A);
    begin(&it, "bytes_per_s = 0\n").await.unwrap();
    assert!(guest.is_quiet());
    let rig = forgetful();
    judged_by(&rig, A, &[GOOD]).await;
    let it = Changed::new(rig, NOW, THEN).await;
    let mut guest = it.rig.guest(A);
    begin(&it, "").await.unwrap();
    assert!(guest.is_quiet(), "rules that went make nothing malicious");
}

#[tokio::test]
async fn what_is_kept_and_becomes_malicious_is_told_to_whoever_has_it() {
    let rig = Rig::new();
    judged_by(&rig, A, &[FRESH]).await;
    let mut guest = rig.guest(A);
    let _changed = Changed::new(rig, THEN, NOW).await;
    let (0, Body::ContentChanged(_)) = guest.next().await else {
        panic!("not told of the change");
    };
    assert_eq!(asked(&mut guest).await, Digest::of(FRESH));
    guest.check(1, claim(FRESH));
    malicious(&guest.reply(1).await, true);
}

#[tokio::test]
async fn what_is_malicious_for_one_guest_is_told_to_all_that_have_it() {
    let it = changed(&[(A, &[FRESH]), (B, &[FRESH])]).await;
    let (mut a, mut b) = (it.rig.guest(A), it.rig.guest(B));
    let asking = begin(&it, "");
    let is_a = tokio::select! {
        _ = asked(&mut a) => true,
        _ = asked(&mut b) => false,
    };
    let (first, second) = if is_a {
        (&mut a, &mut b)
    } else {
        (&mut b, &mut a)
    };
    first.check(1, check(FRESH));
    malicious(&first.reply(1).await, false);
    assert_eq!(asked(second).await, Digest::of(FRESH));
    second.check(1, claim(FRESH));
    malicious(&second.reply(1).await, true);
    asking.await.unwrap();
    assert!(first.is_quiet());
    assert!(it.rig.metric(r#"lazaret_rechecks_total{result="told"} 1"#));
}
