//! Keys in their order, copies, and who leaves, as they are written down.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use controller::fleet::{Fleet, renew_guest};
use controller::{Authority, Member, Pool, Proof, REKEYS_PER_HOUR, Refusal};
use fleet_core::{ApplianceHello, GuestFacts, InventoryChange};
use model::{GuestId, Machine};
use pki::{CertificateDer, GuestKey, KeyId};
use proto::v1;
use proto::v1::fleet_order::Body as Told;

use crate::scene::{
    Joiner, PATIENCE, address, embedded, joined, placer_with, pool, tell, token, vm, waits,
};

fn machine(uuid: u8) -> Machine {
    Machine {
        system_uuid: Some([uuid; 16]),
        ..Machine::default()
    }
}

fn key_of(chain: &[CertificateDer<'static>]) -> KeyId {
    KeyId::of(&chain[0]).unwrap()
}

fn guest_of(chain: &[CertificateDer<'static>]) -> GuestId {
    pki::guest_id_of(&chain[0]).unwrap()
}

fn member(authority: &Authority, guest: GuestId) -> Member {
    authority.guest(guest).unwrap()
}

async fn rekeyed(
    authority: &Authority,
    of: GuestId,
    uuid: u8,
    now: SystemTime,
) -> Result<GuestId, Refusal> {
    let key = GuestKey::generate().unwrap();
    let chain = authority.rekey(of, key.csr(), &machine(uuid), now).await?;
    Ok(guest_of(&chain))
}

#[tokio::test]
async fn each_certificate_is_written_down_before_it_is_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let made = token(&authority, None, 1).await;
    let guest = joined(Joiner::new(1).ask(&authority, &made, None).await);
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
    authority.revoke(gone, "", now).await.unwrap();
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
    let made = token(&authority, None, 1).await;
    let guest = joined(Joiner::new(1).ask(&authority, &made, None).await);
    assert!(authority.revoked(now).is_empty());
    authority.revoke(guest, "", now).await.unwrap();
    assert_eq!(authority.revoked(now), [guest]);
    let over = now + Duration::from_secs(26 * 3600);
    assert!(authority.revoked(over).is_empty());
    assert!(authority.is_revoked(guest));
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
    let chain = authority.rekey(guest, key.csr(), &machine(2), now).await;
    let copy = guest_of(&chain.unwrap());
    assert_ne!(copy, guest);
    let again = authority.rekey(guest, key.csr(), &machine(2), now).await;
    assert_eq!(guest_of(&again.unwrap()), copy);
    let its = member(&authority, copy);
    assert_eq!((its.copy_of, its.origin), (Some(guest), Some(guest)));
    assert_eq!(its.machine, machine(2));
    assert_eq!(its.pool.as_deref(), Some("p"));
    assert!(!authority.is_revoked(guest), "the first one stays");
    authority.revoke(guest, "", now).await.unwrap();
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
    authority.decide(&waiting[0].id, true, now).await.unwrap();
    rekeyed(&authority, of, 100, now).await.unwrap();
    assert!(authority.pending(now).is_empty());
    let refused = rekeyed(&authority, of, 102, now).await;
    assert_eq!(refused.unwrap_err(), Refusal::Waits);
    let id = authority.pending(now)[0].id.clone();
    authority.decide(&id, false, now).await.unwrap();
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

/// An appliance whose orders are kept.
async fn attach(fleet: &Fleet) -> tokio::sync::mpsc::UnboundedReceiver<Told> {
    let (sink, told) = tokio::sync::mpsc::unbounded_channel();
    let attached = fleet.with(move |lead, clock| {
        let hello = ApplianceHello {
            name: "a".into(),
            address: "a:7443".into(),
            host_name: None,
            cluster: None,
            site: None,
            capacity: 100,
            labels: Vec::new(),
        };
        let id = lead.core.appliance_up(clock, hello);
        lead.attach(id, Box::new(move |body| sink.send(body).is_ok()));
    });
    attached.await.unwrap();
    told
}

async fn up(fleet: &Fleet, member: Member, key: KeyId, uuid: u8) {
    let up = fleet.with(move |lead, clock| {
        let via = lead.core.find_appliance("a").unwrap();
        let facts = GuestFacts {
            uuid: member.machine.system_uuid,
            address: address(uuid),
            hostname: member.hostname.clone(),
            epoch: 0,
            channel: None,
            key: Some(key.0),
            machine: machine(uuid),
            known: Some(member.known()),
            vm: None,
        };
        lead.core.guest_up(clock, via, member.id, facts);
    });
    up.await.unwrap();
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < patience, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Site {
    authority: Arc<Authority>,
    fleet: Fleet,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = embedded(dir.path()).await;
        let fleet = placer_with(dir.path(), Some(authority.clone())).await;
        Self {
            authority,
            fleet,
            _dir: dir,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_told_to_rekey_and_its_renewals_are_never_in_force() {
    let site = Site::new().await;
    let now = SystemTime::now();
    let mut told = attach(&site.fleet).await;
    let made = token(&site.authority, None, 1).await;
    let guest = joined(Joiner::new(1).ask(&site.authority, &made, None).await);
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
    authority.revoke(old, "", month_ago).await.unwrap();
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
