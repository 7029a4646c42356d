//! Copies of members: who gets an identity, and who goes.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use controller::fleet::renew_guest;
use controller::{Authority, Pool, Proof, REKEYS_PER_HOUR, Refusal, Rekey, Word};
use model::{GuestId, Machine};
use pki::{GuestKey, KeyId};
use proto::v1;
use proto::v1::fleet_order::Body as Told;

use crate::scene::{Joiner, PATIENCE, a_guest, embedded, joined, pool, token};
use crate::site::{Site, attach, guest_of, key_of, machine, member, until, up};

/// As the placer has it judged.
fn asks(of: GuestId, machine: &Machine) -> Rekey<'_> {
    Rekey {
        of,
        shown: None,
        machine,
        is_seen: true,
    }
}

async fn rekeyed(
    authority: &Authority,
    of: GuestId,
    uuid: u8,
    now: SystemTime,
) -> Result<GuestId, Refusal> {
    let key = GuestKey::generate().unwrap();
    let chain = authority
        .rekey(asks(of, &machine(uuid)), key.csr(), now)
        .await?;
    Ok(guest_of(&chain))
}

/// The same, where the placer does not see it.
async fn rekeyed_unseen(
    authority: &Authority,
    of: GuestId,
    shown: KeyId,
    uuid: u8,
) -> Result<GuestId, Refusal> {
    let key = GuestKey::generate().unwrap();
    let machine = machine(uuid);
    let asks = Rekey {
        shown: Some(shown),
        is_seen: false,
        ..asks(of, &machine)
    };
    let chain = authority.rekey(asks, key.csr(), SystemTime::now()).await?;
    Ok(guest_of(&chain))
}

#[tokio::test]
async fn a_copy_gets_an_identity_of_its_own_and_its_lost_answer_again() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    authority
        .set_pool(pool("p", Proof::Token), now)
        .await
        .unwrap();
    let made = token(&authority, Some("p"), 1).await;
    let guest = joined(Joiner::new(1).ask(&authority, &made, None).await);
    let key = GuestKey::generate().unwrap();
    let machine = machine(2);
    let chain = authority.rekey(asks(guest, &machine), key.csr(), now).await;
    let copy = guest_of(&chain.unwrap());
    assert_ne!(copy, guest);
    let again = authority.rekey(asks(guest, &machine), key.csr(), now).await;
    assert_eq!(guest_of(&again.unwrap()), copy);
    let its = member(&authority, copy);
    assert_eq!((its.copy_of, its.origin), (Some(guest), Some(guest)));
    assert_eq!(its.machine, machine);
    assert_eq!(its.pool.as_deref(), Some("p"));
    assert!(!authority.is_revoked(guest), "the first one stays");
    authority.revoke(guest, false, "", now).await.unwrap();
    let refused = rekeyed(&authority, guest, 3, now).await;
    assert_eq!(refused.unwrap_err(), Refusal::Revoked);
    let stranger = rekeyed(&authority, GuestId([9; 16]), 3, now).await;
    assert_eq!(stranger.unwrap_err(), Refusal::UnknownGuest);
}

#[tokio::test]
async fn copies_of_copies_are_bounded_and_then_a_person_decides() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let made = token(&authority, None, 2).await;
    let first = joined(Joiner::new(1).ask(&authority, &made, None).await);
    let other = joined(Joiner::new(2).ask(&authority, &made, None).await);
    let mut of = first;
    for number in 0..REKEYS_PER_HOUR {
        // Each of the one before: that must not be a way around it.
        of = rekeyed(&authority, of, 10 + u8::try_from(number).unwrap(), now)
            .await
            .unwrap();
    }
    for _ in 0..3 {
        let waits = rekeyed(&authority, of, 100, now).await;
        assert_eq!(waits.unwrap_err(), Refusal::Waits);
    }
    let waiting = authority.pending(now);
    assert_eq!(waiting.len(), 1, "one machine waits once");
    assert_eq!(waiting[0].copy_of, Some(of));
    rekeyed(&authority, other, 101, now).await.unwrap();
    authority
        .decide(&waiting[0].id, Word::Yes, now)
        .await
        .unwrap();
    rekeyed(&authority, of, 100, now).await.unwrap();
    assert!(authority.pending(now).is_empty());
    let refused = rekeyed(&authority, of, 102, now).await;
    assert_eq!(refused.unwrap_err(), Refusal::Waits);
    let id = authority.pending(now)[0].id.clone();
    authority.decide(&id, Word::No, now).await.unwrap();
    let denied = rekeyed(&authority, of, 102, now).await;
    assert_eq!(denied.unwrap_err(), Refusal::Denied);
    let later = now + Duration::from_secs(3601);
    rekeyed(&authority, of, 103, later).await.unwrap();
}

#[tokio::test]
async fn a_full_pool_takes_no_copies() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let small = Pool {
        guests_max: 1,
        ..pool("p", Proof::Token)
    };
    authority.set_pool(small, now).await.unwrap();
    let made = token(&authority, Some("p"), 1).await;
    let guest = joined(Joiner::new(1).ask(&authority, &made, None).await);
    let refused = rekeyed(&authority, guest, 2, now).await;
    assert_eq!(refused.unwrap_err(), Refusal::PoolFull);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_told_to_rekey_and_its_renewals_are_never_in_force() {
    let site = Site::new().await;
    let now = SystemTime::now();
    let mut told = attach(&site.fleet).await;
    let guest = a_guest(&site.authority).await;
    let its = member(&site.authority, guest);
    let key = its.key.unwrap().id;
    let next = GuestKey::generate().unwrap();
    let renewed = site
        .authority
        .renew(guest, Some(key), next.csr(), now)
        .await;
    let second = key_of(&renewed.unwrap());
    // A session with the next key: written down.
    up(&site.fleet, member(&site.authority, guest), second, 1).await;
    until("the key is not written down", || {
        member(&site.authority, guest).key.unwrap().id == second
    })
    .await;
    up(&site.fleet, member(&site.authority, guest), second, 2).await;
    let rekey = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(Told::Rekey(rekey)) = told.recv().await {
                return rekey;
            }
        }
    });
    let rekey = rekey.await.unwrap();
    assert_eq!(rekey.guest_id, guest.0);
    assert_eq!(rekey.key_id, second.0);
    assert_eq!(rekey.machine.unwrap().system_uuid, [2; 16]);
    let renew = |uuid: u8, rekey: bool| v1::RenewGuest {
        guest_id: guest.0.to_vec(),
        ticket: 1,
        csr: GuestKey::generate().unwrap().csr().to_vec(),
        key_id: second.0.to_vec(),
        rekey,
        machine: Some((&machine(uuid)).into()),
    };
    let as_guest = renew_guest(&site.authority, &site.fleet, &renew(2, false)).await;
    let as_guest = as_guest.unwrap();
    assert_eq!(guest_of(&as_guest), guest, "protected until it has its own");
    assert!(member(&site.authority, guest).issued.is_empty());
    let own = renew_guest(&site.authority, &site.fleet, &renew(2, true)).await;
    assert_ne!(guest_of(&own.unwrap()), guest);
    let first = renew_guest(&site.authority, &site.fleet, &renew(1, false)).await;
    assert_eq!(guest_of(&first.unwrap()), guest);
}

#[tokio::test]
async fn who_was_not_told_waits_for_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let guest = a_guest(&authority).await;
    let key = member(&authority, guest).key.unwrap().id;
    for _ in 0..2 {
        let waits = rekeyed_unseen(&authority, guest, key, 1).await;
        assert_eq!(waits.unwrap_err(), Refusal::Waits);
    }
    let waiting = authority.pending(now);
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].copy_of, Some(guest));
    assert!(waiting[0].why.contains("not told"), "{}", waiting[0].why);
    authority
        .decide(&waiting[0].id, Word::Yes, now)
        .await
        .unwrap();
    rekeyed_unseen(&authority, guest, key, 1).await.unwrap();
    assert!(authority.pending(now).is_empty());
    // One that waits waits no more when the placer sees it.
    let waits = rekeyed_unseen(&authority, guest, key, 2).await;
    assert_eq!(waits.unwrap_err(), Refusal::Waits);
    rekeyed(&authority, guest, 2, now).await.unwrap();
    assert!(authority.pending(now).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_told_may_ask_after_a_restart_and_gets_one_identity() {
    let site = Site::new().await;
    let _told = attach(&site.fleet).await;
    let guest = a_guest(&site.authority).await;
    let its = member(&site.authority, guest);
    let key = its.key.unwrap().id;
    up(&site.fleet, its.clone(), key, 1).await;
    up(&site.fleet, its, key, 2).await;
    until("it is not written down", || {
        !member(&site.authority, guest).told.is_empty()
    })
    .await;
    site.fleet.stop().await;
    let Site {
        authority,
        fleet,
        dir,
    } = site;
    drop((authority, fleet));
    let authority = embedded(dir.path()).await;
    let now = SystemTime::now();
    for (shown, uuid) in [(KeyId([9; 16]), 2), (key, 1), (key, 3)] {
        let waits = rekeyed_unseen(&authority, guest, shown, uuid).await;
        assert_eq!(waits.unwrap_err(), Refusal::Waits, "{shown} {uuid}");
    }
    let own = rekeyed_unseen(&authority, guest, key, 2).await.unwrap();
    assert_eq!(member(&authority, own).copy_of, Some(guest));
    assert!(member(&authority, own).told.is_empty());
    let again = rekeyed_unseen(&authority, guest, key, 2).await;
    assert_eq!(again.unwrap_err(), Refusal::Waits);
    assert!(
        authority
            .pending(now)
            .iter()
            .all(|it| it.copy_of == Some(guest))
    );
}

#[tokio::test]
async fn a_revocation_takes_the_copies_along_where_it_is_to() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let made = token(&authority, None, 2).await;
    let first = joined(Joiner::new(1).ask(&authority, &made, None).await);
    let other = joined(Joiner::new(2).ask(&authority, &made, None).await);
    let mut chain = vec![first];
    for uuid in 10..13 {
        let of = chain[chain.len() - 1];
        chain.push(rekeyed(&authority, of, uuid, now).await.unwrap());
    }
    let others = rekeyed(&authority, other, 20, now).await.unwrap();
    let key = member(&authority, chain[3]).key.unwrap().id;
    let waits = rekeyed_unseen(&authority, chain[3], key, 30).await;
    assert_eq!(waits.unwrap_err(), Refusal::Waits);

    // From amid them, and alone.
    let one = authority.revoke(chain[1], false, "", now).await.unwrap();
    assert_eq!(one, Some(vec![chain[1]]));
    assert!(!authority.is_revoked(chain[2]));
    let mut ended = authority.ended();
    let rest = authority.revoke(chain[1], true, "stolen", now).await;
    let rest = rest.unwrap().unwrap();
    assert_eq!(
        BTreeSet::from_iter(rest),
        BTreeSet::from([chain[2], chain[3]])
    );
    let told = [ended.try_recv().unwrap(), ended.try_recv().unwrap()];
    assert_eq!(BTreeSet::from(told), BTreeSet::from([chain[2], chain[3]]));
    assert!(!authority.is_revoked(first), "it came of nothing");
    assert!(
        authority.pending(now).is_empty(),
        "its copy waits for nothing"
    );
    let all = authority.revoke(first, true, "", now).await.unwrap();
    assert_eq!(all, Some(vec![first]), "the others were before");
    assert_eq!(member(&authority, chain[2]).ended.unwrap().why, "stolen");
    assert!(!authority.is_revoked(other) && !authority.is_revoked(others));
    let stranger = authority.revoke(GuestId([9; 16]), true, "", now).await;
    assert_eq!(stranger.unwrap(), None);
}
