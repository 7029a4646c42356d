//! Keys in their order, and who leaves, as they are written down.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use controller::fleet::serve;
use controller::{Pool, Proof, Refusal};
use fleet_core::InventoryChange;
use model::GuestId;
use pki::{GuestKey, KeyId};
use proto::v1;
use proto::v1::fleet_order::Body as Told;
use proto::v1::fleet_said::Body as Said;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::scene::{
    Joiner, PATIENCE, a_guest, embedded, joined, placer_with, pool, tell, token, vm, waits,
};
use crate::site::{Site, attach, key_of, member, until, up};

#[tokio::test]
async fn each_certificate_is_written_down_before_it_is_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let guest = a_guest(&authority).await;
    let first = member(&authority, guest).key.unwrap().id;
    let next = GuestKey::generate().unwrap();
    let renewed = authority.renew(guest, Some(first), next.csr(), now).await;
    let second = key_of(&renewed.unwrap());
    drop(authority);
    // As after a crash right behind the answer.
    let authority = embedded(dir.path()).await;
    let written = member(&authority, guest);
    assert_eq!(written.key.unwrap().id, first);
    assert_eq!(written.issued[0].id, second);
    assert_eq!(written.serial, 2);
    // Shown by a renewal it is in force.
    let third = GuestKey::generate().unwrap();
    let renewed = authority.renew(guest, Some(second), third.csr(), now).await;
    renewed.unwrap();
    assert_eq!(member(&authority, guest).key.unwrap().id, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_renews_at_once_is_written_down_whole() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let made = token(&authority, None, 10).await;
    let mut renewing = Vec::new();
    let mut guests = Vec::new();
    for number in 0..10 {
        guests.push(joined(
            Joiner::new(number).ask(&authority, &made, None).await,
        ));
    }
    let gone = guests[9];
    authority.revoke(gone, false, "", now).await.unwrap();
    for round in 0..60 {
        let (authority, guest) = (authority.clone(), guests[round % 10]);
        renewing.push(tokio::spawn(async move {
            let key = GuestKey::generate().unwrap();
            let renewed = authority.renew(guest, None, key.csr(), now).await;
            (guest, renewed.map(|chain| key_of(&chain)))
        }));
    }
    let mut issued = Vec::new();
    for renewing in renewing {
        match renewing.await.unwrap() {
            (guest, Err(refused)) => assert_eq!((guest, refused), (gone, Refusal::Revoked)),
            (guest, Ok(key)) => issued.push((guest, key)),
        }
    }
    assert_eq!(issued.len(), 54);
    drop(authority);
    let authority = embedded(dir.path()).await;
    for guest in &guests[..9] {
        let its = member(&authority, *guest);
        assert_eq!((its.serial, its.issued.len()), (7, 4));
        let known = |key: KeyId| issued.contains(&(*guest, key));
        assert!(its.issued.iter().all(|key| known(key.id)));
    }
}

#[tokio::test]
async fn appliances_are_told_of_those_who_could_still_come() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let guest = a_guest(&authority).await;
    assert!(authority.revoked(now).is_empty());
    authority.revoke(guest, false, "", now).await.unwrap();
    assert_eq!(authority.revoked(now), [guest]);
    let over = now + Duration::from_secs(26 * 3600);
    assert!(authority.revoked(over).is_empty());
    assert!(authority.is_revoked(guest));
}

fn hello() -> Said {
    Said::Hello(v1::FleetHello {
        address: "a:7443".into(),
        capacity: 100,
        ..v1::FleetHello::default()
    })
}

/// A stream of appliance `a`, with room for so many orders, and what serves it.
fn stream_of_a(
    site: &Site,
    room: usize,
) -> (mpsc::Sender<Said>, mpsc::Receiver<Told>, JoinHandle<()>) {
    let (say, said) = mpsc::channel(8);
    let (tell, told) = mpsc::channel(room);
    let (fleet, authority) = (site.fleet.clone(), site.authority.clone());
    let served = tokio::spawn(serve(fleet, authority, "a".into(), said, tell));
    (say, told, served)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_that_missed_something_gets_another_stream() {
    let site = Site::new().await;
    let (say, mut told, served) = stream_of_a(&site, 1);
    say.send(hello()).await.unwrap();
    let first = told.recv().await;
    assert!(matches!(first, Some(Told::Welcome(_))), "{first:?}");
    let ended = GuestId([7; 16]);
    let tell_all = || {
        site.fleet.with(move |lead, _| {
            lead.send_all(&Told::Revoked(ended.0.to_vec()));
            lead.send_all(&Told::Revoked(ended.0.to_vec()));
        })
    };
    // There is room for one of them.
    tell_all().await.unwrap();
    tokio::time::timeout(PATIENCE, served)
        .await
        .expect("the stream goes on with a gap in it")
        .unwrap();
    // What has room for all goes on.
    let (say, mut told, served) = stream_of_a(&site, 8);
    say.send(hello()).await.unwrap();
    assert!(matches!(told.recv().await, Some(Told::Welcome(_))));
    tell_all().await.unwrap();
    let alive = tokio::time::timeout(PATIENCE, async {
        while !matches!(told.recv().await, Some(Told::Alive(_)) | None) {}
    });
    alive.await.unwrap();
    assert!(!served.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replaced_stream_says_counts_no_more() {
    let site = Site::new().await;
    let guest = a_guest(&site.authority).await;
    let is_connected = || async {
        let rows = site
            .fleet
            .with(|lead, _| lead.core.vm_rows(None, 0, usize::MAX));
        let rows = rows.await.unwrap();
        rows.iter()
            .any(|vm| vm.connected_to.as_deref() == Some("a"))
    };
    let (old, mut told, served) = stream_of_a(&site, 8);
    old.send(hello()).await.unwrap();
    assert!(matches!(told.recv().await, Some(Told::Welcome(_))));
    let (say, mut told, _newer) = stream_of_a(&site, 8);
    say.send(hello()).await.unwrap();
    assert!(matches!(told.recv().await, Some(Told::Welcome(_))));
    let up = v1::GuestUp {
        guest_id: guest.0.to_vec(),
        address: "10.1.0.1".into(),
        ..v1::GuestUp::default()
    };
    let guests = vec![up];
    say.send(Said::GuestsUp(v1::GuestsUp { guests }))
        .await
        .unwrap();
    let connected = tokio::time::timeout(PATIENCE, async {
        while !is_connected().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    connected.await.expect("it is not connected");
    // As what was on its way when the newer one came.
    let _ended = old.send(Said::GuestDown(guest.0.to_vec())).await;
    tokio::time::timeout(PATIENCE, served)
        .await
        .expect("it goes on")
        .unwrap();
    assert!(is_connected().await, "it was obeyed");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_while_an_appliance_is_welcomed_is_told_after_it() {
    let site = Site::new().await;
    let guest = a_guest(&site.authority).await;
    let (say, said) = mpsc::channel(8);
    let (tell, mut told) = mpsc::channel(1);
    // There is no room for the welcome yet.
    tell.send(Told::Alive(true)).await.unwrap();
    let (fleet, authority) = (site.fleet.clone(), site.authority.clone());
    tokio::spawn(serve(fleet, authority, "a".into(), said, tell));
    say.send(hello()).await.unwrap();
    let is_there = || async {
        let found = site.fleet.with(|lead, _| lead.core.find_appliance("a"));
        found.await.unwrap().is_some()
    };
    while !is_there().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let now = SystemTime::now();
    site.authority.revoke(guest, false, "", now).await.unwrap();
    // As an appliance takes it.
    let knows = tokio::time::timeout(PATIENCE, async {
        let mut known = BTreeSet::new();
        let mut is_welcome = false;
        while !is_welcome || !known.contains(&guest) {
            match told.recv().await.unwrap() {
                Told::Welcome(welcome) => {
                    let revoked = welcome.revoked.iter();
                    known = revoked.filter_map(|id| GuestId::from_slice(id)).collect();
                    is_welcome = true;
                }
                Told::Revoked(id) => known.extend(GuestId::from_slice(&id)),
                _ => {}
            }
        }
    });
    knows.await.expect("it never hears of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_vm_retires_its_guest_when_that_has_no_session() {
    let site = Site::new().await;
    let _told = attach(&site.fleet).await;
    let made = token(&site.authority, None, 2).await;
    let mut guests = Vec::new();
    for number in 1..=2 {
        let guest = joined(Joiner::new(number).ask(&site.authority, &made, None).await);
        tell(&site.fleet, InventoryChange::Vm(vm(number))).await;
        let its = member(&site.authority, guest);
        let key = its.key.unwrap().id;
        up(&site.fleet, its, key, number).await;
        guests.push(guest);
    }
    for number in 1..=2 {
        let gone = InventoryChange::VmGone(format!("id-{number}"));
        tell(&site.fleet, gone).await;
    }
    until("it is not noted", || {
        guests
            .iter()
            .all(|guest| member(&site.authority, *guest).vm_gone_s.is_some())
    })
    .await;
    let first = guests[0];
    let down = site.fleet.with(move |lead, clock| {
        let via = lead.core.find_appliance("a").unwrap();
        lead.core.guest_down(clock, via, first);
    });
    down.await.unwrap();
    until("it is not retired", || site.authority.is_revoked(first)).await;
    let ended = member(&site.authority, first).ended.unwrap();
    assert!(!ended.revoked && ended.why.contains("deleted"));
    assert!(!site.authority.is_revoked(guests[1]), "it has a session");
    // Its VM is there again, elsewhere.
    let mut moved = vm(2);
    moved.id = "id-20".into();
    tell(&site.fleet, InventoryChange::Vm(moved)).await;
    until("it is not taken back", || {
        member(&site.authority, guests[1]).vm_gone_s.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_whose_certificate_is_over_is_retired_and_records_go() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let desktops = Pool {
        ephemeral: true,
        ..pool("desktops", Proof::Token)
    };
    let office = pool("office", Proof::Approval);
    authority.set_pool(desktops, now).await.unwrap();
    authority.set_pool(office, now).await.unwrap();
    let made = token(&authority, Some("desktops"), 1).await;
    let long_ago = now - DAY;
    let guest = joined(
        Joiner::new(1)
            .ask_at(&authority, &made, None, long_ago)
            .await,
    );
    let other = token(&authority, None, 2).await;
    let stays = joined(
        Joiner::new(2)
            .ask_at(&authority, &other, None, long_ago)
            .await,
    );
    let key = member(&authority, guest).key.unwrap().id;
    let next = GuestKey::generate().unwrap();
    let expired = authority.renew(guest, Some(key), next.csr(), now).await;
    assert_eq!(expired.unwrap_err(), Refusal::Expired);
    let fleet = placer_with(dir.path(), Some(authority.clone())).await;
    until("it is not retired", || authority.is_revoked(guest)).await;
    assert!(!authority.is_revoked(stays), "it may renew for a season");
    fleet.stop().await;
    // What ended and what nobody decided on is forgotten in time; the deleted rows, too.
    let month_ago = now - 31 * DAY;
    let old = joined(
        Joiner::new(3)
            .ask_at(&authority, &other, None, month_ago)
            .await,
    );
    authority.revoke(old, false, "", month_ago).await.unwrap();
    let waiting = token(&authority, Some("office"), 1).await;
    waits(
        Joiner::new(4)
            .ask_at(&authority, &waiting, None, month_ago)
            .await,
    );
    let fleet = placer_with(dir.path(), Some(authority.clone())).await;
    until("it is not forgotten", || authority.guest(old).is_none()).await;
    assert!(authority.guest(guest).is_some(), "its record is kept");
    assert!(authority.pending(month_ago).is_empty());
    fleet.stop().await;
}
