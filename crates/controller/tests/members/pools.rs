//! Pools: what they want to see, who waits, who is refused.

use std::time::{Duration, SystemTime};

use controller::{
    AuthorityError, Decision, Enrolled, Pool, Proof, Refusal, TokenTerms, VmRef, Word,
};
use fleet_core::{InventoryChange, Power};

use crate::scene::{
    HOUR, Joiner, Scene, address, embedded, joined, placer, pool, tell, token, vm, waits,
};

#[tokio::test]
async fn a_pool_of_tokens_is_bounded_and_takes_its_ranges_alone() {
    let dir = tempfile::tempdir().unwrap();
    let authority = embedded(dir.path()).await;
    let now = SystemTime::now();
    let unknown = TokenTerms {
        uses_max: 1,
        valid: HOUR,
        pool: Some("desktops".into()),
        vm: None,
    };
    let refused = authority.issue_token(unknown, now).await;
    assert!(matches!(refused, Err(AuthorityError::Unknown { .. })));
    let desktops = Pool {
        ephemeral: true,
        ranges: vec!["10.1.0.0/25".parse().unwrap()],
        guests_max: 2,
        ..pool("desktops", Proof::Token)
    };
    authority.set_pool(desktops.clone(), now).await.unwrap();
    let made = token(&authority, Some("desktops"), 10).await;
    let outside = Joiner::new(200).ask(&authority, &made, None).await;
    assert_eq!(outside.unwrap_err(), Refusal::Range);
    let first = Joiner::new(1).ask(&authority, &made, None).await.unwrap();
    let Enrolled::Joined {
        guest,
        cert,
        ephemeral,
    } = first
    else {
        panic!("it waits");
    };
    assert!(ephemeral);
    let life = pki::not_after_of(&cert).unwrap();
    assert!(life <= SystemTime::now() + Duration::from_secs(12 * 3600));
    joined(Joiner::new(2).ask(&authority, &made, None).await);
    let full = Joiner::new(3).ask(&authority, &made, None).await;
    assert_eq!(full.unwrap_err(), Refusal::PoolFull);
    assert_eq!(authority.pools(), [(desktops, 2)]);
    let busy = authority.remove_pool("desktops", now).await.unwrap_err();
    assert!(busy.to_string().contains("2 members"), "{busy}");
    authority.revoke(guest, false, "", now).await.unwrap();
    joined(Joiner::new(3).ask(&authority, &made, None).await);
    assert_eq!(authority.tokens(now)[0].uses_left, 7);
}

#[tokio::test]
async fn a_pool_goes_with_its_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let authority = embedded(dir.path()).await;
    let now = SystemTime::now();
    for wrong in ["", "a b", "ä", &"x".repeat(65), "\u{1b}[31m"] {
        let refused = authority.set_pool(pool(wrong, Proof::Token), now).await;
        assert!(matches!(refused, Err(AuthorityError::Pool(_))), "{wrong:?}");
    }
    authority
        .set_pool(pool("p", Proof::Token), now)
        .await
        .unwrap();
    let made = token(&authority, Some("p"), 1).await;
    authority.remove_pool("p", now).await.unwrap();
    assert!(authority.tokens(now).is_empty() && authority.pools().is_empty());
    let refused = Joiner::new(1).ask(&authority, &made, None).await;
    assert_eq!(refused.unwrap_err(), Refusal::Token);
    drop(authority);
    assert!(embedded(dir.path()).await.pools().is_empty());
}

#[tokio::test]
async fn a_person_approves_and_only_then_a_use_is_spent() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    authority
        .set_pool(pool("office", Proof::Approval), now)
        .await
        .unwrap();
    let made = token(&authority, Some("office"), 1).await;
    let (machine, other) = (Joiner::new(1), Joiner::new(2));
    waits(machine.ask(&authority, &made, None).await);
    waits(machine.ask(&authority, &made, None).await);
    waits(other.ask(&authority, &made, None).await);
    assert_eq!(authority.tokens(now)[0].uses_left, 1);
    let waiting = authority.pending(now);
    assert_eq!(waiting.len(), 2, "one entry each");
    let id_of = |name: &str| {
        let entry = waiting.iter().find(|entry| entry.hostname == name);
        entry.unwrap().id.clone()
    };
    // Over a restart, too.
    drop(authority);
    let authority = embedded(dir.path()).await;
    authority
        .decide(&id_of("v1"), Word::Yes, now)
        .await
        .unwrap();
    authority
        .decide(&id_of("v1"), Word::Yes, now)
        .await
        .unwrap();
    assert!(authority.tokens(now).is_empty(), "spent by the approval");
    let spent = authority.decide(&id_of("v2"), Word::Yes, now).await;
    assert!(matches!(
        spent,
        Err(AuthorityError::Refused(Refusal::TokenSpent))
    ));
    // Whoever else comes with the token does not get the approved one's place.
    let third = Joiner::new(3).ask(&authority, &made, None).await;
    assert_eq!(third.unwrap_err(), Refusal::Token);
    // The token may end meanwhile.
    let guest = joined(
        machine
            .ask_at(&authority, &made, None, now + 2 * HOUR)
            .await,
    );
    assert_eq!(authority.guest(guest).unwrap().pool.unwrap(), "office");
    let left = authority.pending(now);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].decision, Decision::Waiting);
    let unknown = authority.decide("00", Word::Yes, now).await;
    assert!(matches!(unknown, Err(AuthorityError::Unknown { .. })));
}

#[tokio::test]
async fn who_comes_with_another_token_has_another_request() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let mut tokens = Vec::new();
    for name in ["office", "desktops"] {
        let set = authority.set_pool(pool(name, Proof::Approval), now).await;
        set.unwrap();
        tokens.push(token(&authority, Some(name), 1).await);
    }
    let machine = Joiner::new(1);
    waits(machine.ask(&authority, &tokens[0], None).await);
    let id = authority.pending(now)[0].id.clone();
    authority.decide(&id, Word::Yes, now).await.unwrap();
    waits(machine.ask(&authority, &tokens[1], None).await);
    let waiting = authority.pending(now);
    assert_eq!(waiting.len(), 2);
    let approved = waiting.iter().find(|entry| entry.id == id).unwrap();
    assert_eq!(approved.decision, Decision::Approved, "it was overwritten");
    let guest = joined(machine.ask(&authority, &tokens[0], None).await);
    assert_eq!(authority.guest(guest).unwrap().pool.unwrap(), "office");
    let left = authority.pending(now);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].pool.as_deref(), Some("desktops"));
}

#[tokio::test]
async fn who_is_denied_stays_out_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    authority
        .set_pool(pool("office", Proof::Approval), now)
        .await
        .unwrap();
    let made = token(&authority, Some("office"), 1).await;
    let machine = Joiner::new(1);
    waits(machine.ask(&authority, &made, None).await);
    let id = authority.pending(now)[0].id.clone();
    authority.decide(&id, Word::No, now).await.unwrap();
    let denied = machine.ask(&authority, &made, None).await;
    assert_eq!(denied.unwrap_err(), Refusal::Denied);
    assert_eq!(authority.tokens(now)[0].uses_left, 1);
    // A person may think again.
    authority.decide(&id, Word::Yes, now).await.unwrap();
    joined(machine.ask(&authority, &made, None).await);
    let later = now + Duration::from_secs(4 * 24 * 3600);
    assert!(authority.pending(later).is_empty());
}

#[tokio::test]
async fn one_address_cannot_fill_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    authority
        .set_pool(pool("office", Proof::Approval), now)
        .await
        .unwrap();
    let made = token(&authority, Some("office"), 1).await;
    let from = |number: u8| Joiner {
        from: address(number),
        hostname: "\u{1b}[31m\nevil".into(),
        ..Joiner::new(1)
    };
    for _ in 0..32 {
        waits(from(1).ask(&authority, &made, None).await);
    }
    let refused = from(1).ask(&authority, &made, None).await;
    assert_eq!(refused.unwrap_err(), Refusal::QueueFull);
    waits(from(2).ask(&authority, &made, None).await);
    for number in 3..=33 {
        for _ in 0..32 {
            if authority.pending(now).len() < 1000 {
                waits(from(number).ask(&authority, &made, None).await);
            }
        }
    }
    let refused = from(40).ask(&authority, &made, None).await;
    assert_eq!(refused.unwrap_err(), Refusal::QueueFull, "of the pool");
    assert_eq!(authority.pending(now).len(), 1000);
    // When they are forgotten there is room.
    let later = now + Duration::from_secs(4 * 24 * 3600);
    let fresh = TokenTerms {
        uses_max: 1,
        valid: HOUR,
        pool: Some("office".into()),
        vm: None,
    };
    let fresh = authority.issue_token(fresh, later).await.unwrap();
    waits(from(1).ask_at(&authority, &fresh, None, later).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inventory_vouches_for_a_running_vm_of_the_scope_without_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let fleet = placer(dir.path()).await;
    let scoped = Pool {
        tags: vec!["vdi".into()],
        clusters: vec!["c".into()],
        ..pool("desktops", Proof::Inventory)
    };
    authority.set_pool(scoped, now).await.unwrap();
    let made = token(&authority, Some("desktops"), 100).await;
    for number in 1..=5 {
        let mut record = vm(number);
        match number {
            2 => record.power = Power::Off,
            3 => record.tags.clear(),
            4 => record.addresses.clear(),
            _ => {}
        }
        tell(&fleet, InventoryChange::Vm(record)).await;
    }
    let ask = async |machine: &Joiner| machine.ask(&authority, &made, Some(&fleet)).await;
    let guest = joined(ask(&Joiner::new(1)).await);
    let bound = authority.guest(guest).unwrap().vm.unwrap();
    assert_eq!(
        (bound.connector.as_str(), bound.id.as_str()),
        ("kvm", "id-1")
    );
    let silent = Joiner {
        uuid: None,
        ..Joiner::new(5)
    };
    let elsewhere = Joiner {
        from: address(99),
        ..Joiner::new(5)
    };
    for (machine, why) in [
        (Joiner::new(1), "its VM has a guest already"),
        (Joiner::new(2), "does not run"),
        (Joiner::new(3), "does not belong to this pool"),
        (Joiner::new(4), "reports its address"),
        (Joiner::new(9), "no connector reports a VM"),
        (silent, "shows no SMBIOS UUID"),
        (elsewhere, "reports its address"),
    ] {
        waits(ask(&machine).await);
        let waiting = authority.pending(now);
        assert!(
            waiting.iter().any(|entry| entry.why.contains(why)),
            "{why}: {waiting:?}"
        );
    }
    // What it lacked comes: it joins when it asks again, without anybody's word.
    let late = Joiner::new(9);
    waits(ask(&late).await);
    let waiting = authority.pending(now).len();
    tell(&fleet, InventoryChange::Vm(vm(9))).await;
    joined(ask(&late).await);
    assert_eq!(authority.pending(now).len(), waiting - 1);
    let elsewhere = Pool {
        clusters: vec!["other".into()],
        ..pool("desktops", Proof::Inventory)
    };
    authority.set_pool(elsewhere, now).await.unwrap();
    waits(ask(&Joiner::new(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_that_was_reset_takes_its_own_place() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let fleet = placer(dir.path()).await;
    let desktops = Pool {
        ephemeral: true,
        guests_max: 1,
        ..pool("desktops", Proof::Inventory)
    };
    authority.set_pool(desktops, now).await.unwrap();
    let made = token(&authority, Some("desktops"), 100).await;
    tell(&fleet, InventoryChange::Vm(vm(1))).await;
    let first = joined(Joiner::new(1).ask(&authority, &made, Some(&fleet)).await);
    let second = joined(Joiner::new(1).ask(&authority, &made, Some(&fleet)).await);
    let old = authority.guest(first).unwrap().ended.unwrap();
    assert!(!old.revoked && old.why.contains(&second.to_string()));
    assert!(authority.is_revoked(first) && !authority.is_revoked(second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_installed_anew_takes_its_own_place_where_a_person_says_so() {
    let scene = Scene::of(Pool {
        guests_max: 1,
        ..pool("servers", Proof::Inventory)
    })
    .await;
    tell(&scene.fleet, InventoryChange::Vm(vm(1))).await;
    let old = joined(scene.ask(&Joiner::new(1)).await);
    let new = Joiner::new(1);
    waits(scene.ask(&new).await);
    let id = scene.waiting().id;
    assert_eq!(scene.waiting().rivals, [old]);
    // Beside the old one there is no room; in its place there is.
    let full = scene.decide(&id, Word::Yes).await;
    assert!(matches!(
        full,
        Err(AuthorityError::Refused(Refusal::PoolFull))
    ));
    scene.decide(&id, Word::YesInPlace).await.unwrap();
    assert!(!scene.authority.is_revoked(old), "until it comes");
    let new = joined(scene.ask(&new).await);
    let ended = scene.authority.guest(old).unwrap().ended.unwrap();
    assert!(!ended.revoked && ended.why.contains(&new.to_string()));
    let its = scene.authority.guest(new).unwrap().vm;
    assert_eq!(its.map(|vm| vm.id).as_deref(), Some("id-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_whose_place_it_is_may_be_seen_later_and_has_to_be_seen_when_it_joins() {
    let scene = Scene::of(pool("servers", Proof::Inventory)).await;
    let seen = async |at: bool| {
        let mut record = vm(1);
        if !at {
            record.addresses.clear();
        }
        tell(&scene.fleet, InventoryChange::Vm(record)).await;
    };
    seen(true).await;
    let old = joined(scene.ask(&Joiner::new(1)).await);
    seen(false).await;
    let new = Joiner::new(1);
    waits(scene.ask(&new).await);
    let id = scene.waiting().id;
    assert!(scene.waiting().rivals.is_empty());
    seen(true).await;
    waits(scene.ask(&new).await);
    assert_eq!(scene.waiting().id, id);
    assert_eq!(scene.waiting().rivals, [old]);
    scene.decide(&id, Word::YesInPlace).await.unwrap();
    seen(false).await;
    waits(scene.ask(&new).await);
    assert!(!scene.authority.is_revoked(old));
    seen(true).await;
    joined(scene.ask(&new).await);
    assert!(scene.authority.is_revoked(old));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yes_is_for_those_whom_the_person_was_shown() {
    let scene = Scene::of(pool("servers", Proof::Inventory)).await;
    // Nobody is in its VM, which no connector reports yet.
    let late = Joiner::new(1);
    waits(scene.ask(&late).await);
    let id = scene.waiting().id;
    let nobody = scene.decide(&id, Word::YesInPlace).await;
    assert!(matches!(
        nobody,
        Err(AuthorityError::Refused(Refusal::NoRivals))
    ));
    scene.decide(&id, Word::Yes).await.unwrap();
    tell(&scene.fleet, InventoryChange::Vm(vm(1))).await;
    let first = joined(scene.ask(&Joiner::new(1)).await);
    let beside = joined(scene.ask(&late).await);
    assert!(!scene.authority.is_revoked(first) && !scene.authority.is_revoked(beside));
    // Of two, the person knew one when it said that its place be taken.
    let third = Joiner::new(1);
    waits(scene.ask(&third).await);
    let id = scene.waiting().id;
    scene.decide(&id, Word::YesInPlace).await.unwrap();
    let bound = TokenTerms {
        uses_max: 1,
        valid: HOUR,
        pool: None,
        vm: scene.authority.guest(first).unwrap().vm,
    };
    let bound = scene
        .authority
        .issue_token(bound, SystemTime::now())
        .await
        .unwrap();
    let fourth = joined(
        Joiner::new(1)
            .ask(&scene.authority, &bound, Some(&scene.fleet))
            .await,
    );
    assert!(scene.authority.is_revoked(first), "the token names the VM");
    joined(scene.ask(&third).await);
    assert!(!scene.authority.is_revoked(fourth), "nobody spoke of it");
    // Taking the yes back takes the replacing back with it.
    let fifth = Joiner::new(1);
    waits(scene.ask(&fifth).await);
    let id = scene.waiting().id;
    scene.decide(&id, Word::YesInPlace).await.unwrap();
    scene.decide(&id, Word::Yes).await.unwrap();
    joined(scene.ask(&fifth).await);
    assert!(!scene.authority.is_revoked(fourth));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_vm_is_for_that_vm_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = embedded(dir.path()).await;
    let fleet = placer(dir.path()).await;
    for number in 1..=2 {
        tell(&fleet, InventoryChange::Vm(vm(number))).await;
    }
    let for_first = || TokenTerms {
        uses_max: 7,
        valid: HOUR,
        pool: None,
        vm: Some(VmRef {
            connector: "kvm".into(),
            id: "id-1".into(),
            name: "v1".into(),
        }),
    };
    let made = authority.issue_token(for_first(), now).await.unwrap();
    let other = Joiner::new(2).ask(&authority, &made, Some(&fleet)).await;
    assert_eq!(other.unwrap_err(), Refusal::OtherVm);
    let guest = joined(Joiner::new(1).ask(&authority, &made, Some(&fleet)).await);
    assert_eq!(authority.guest(guest).unwrap().vm.unwrap().id, "id-1");
    let again = Joiner::new(1).ask(&authority, &made, Some(&fleet)).await;
    assert_eq!(again.unwrap_err(), Refusal::Token, "once");
    // The next one for that VM takes its place.
    let made = authority.issue_token(for_first(), now).await.unwrap();
    joined(Joiner::new(1).ask(&authority, &made, Some(&fleet)).await);
    assert!(authority.is_revoked(guest));
}
