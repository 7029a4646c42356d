//! Pools that ask for TPMs: what counts, which VM it is, and that one TPM is one guest.

use std::sync::LazyLock;
use std::time::SystemTime;

use controller::{AuthorityError, Pool, Proof, Refusal, Tpm, TpmCa, TpmShown, Word};
use fleet_core::{InventoryChange, Power};
use model::GuestId;
use tpm::EkId;

use crate::scene::{Joiner, Scene, address, embedded, joined, pool, tell, token, vm, waits};

/// Who vouches for the TPMs here; how it does is nothing that members look at.
static CA: LazyLock<TpmCa> = LazyLock::new(new_ca);

fn new_ca() -> TpmCa {
    let dir = tempfile::tempdir().unwrap();
    let ca = pki::Ca::init(dir.path()).unwrap();
    TpmCa(ca.cert().to_vec().into())
}

fn tpm_pool() -> Pool {
    Pool {
        tpm_cas: vec![CA.clone()],
        ..pool("servers", Proof::Tpm)
    }
}

fn shown(ek: u8, uuid: Option<u8>) -> TpmShown {
    TpmShown::Proved(Tpm {
        ek: EkId([ek; 32]),
        vm_uuid: uuid.map(|uuid| [uuid; 16]),
        ca: CA.clone(),
    })
}

/// The machine of a number, with the TPM of one and the VM that this was made for.
fn machine(number: u8, tpm: TpmShown) -> Joiner {
    Joiner {
        tpm,
        // Where it comes from says nothing here.
        from: address(99),
        ..Joiner::new(number)
    }
}

async fn tpm_scene(change: impl FnOnce(Pool) -> Pool) -> Scene {
    Scene::of(change(tpm_pool())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_tells_the_vm_and_what_is_too_little_waits() {
    let scene = tpm_scene(|pool| pool).await;
    for number in 1..=3 {
        let mut record = vm(number);
        if number == 2 {
            record.power = Power::Off;
        }
        tell(&scene.fleet, InventoryChange::Vm(record)).await;
    }
    let vm_of = |guest| {
        let member = scene.authority.guest(guest).unwrap();
        assert!(member.ek.is_some());
        member.vm.map(|vm| vm.id)
    };
    let first = joined(scene.ask(&machine(1, shown(1, Some(1)))).await);
    assert_eq!(vm_of(first).as_deref(), Some("id-1"));
    // Its VM is not seen to run, no connector knows it, its certificate names none.
    for (number, uuid) in [(2, Some(2)), (9, Some(9)), (3, None)] {
        let guest = joined(scene.ask(&machine(number, shown(number, uuid))).await);
        assert_eq!(vm_of(guest), None, "{number}");
    }
    let silent = Joiner {
        uuid: None,
        ..machine(5, shown(5, Some(5)))
    };
    let told = |why: &str| TpmShown::TooLittle(why.to_owned());
    for (machine, why) in [
        (machine(5, shown(5, Some(6))), "another SMBIOS UUID"),
        (silent, "another SMBIOS UUID"),
        (machine(5, told("it has no TPM")), "it has no TPM"),
        (machine(5, TpmShown::NotAsked), "was not asked for"),
        (machine(6, shown(1, Some(6))), "with this TPM already"),
        (machine(1, shown(7, Some(1))), "its VM has a guest already"),
    ] {
        waits(scene.ask(&machine).await);
        scene.says(why);
    }
    assert!(!scene.authority.is_revoked(first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_may_let_in_who_showed_too_little() {
    let scene = tpm_scene(|pool| pool).await;
    let other = machine(5, shown(5, Some(6)));
    waits(scene.ask(&other).await);
    let now = SystemTime::now();
    let id = scene.authority.pending(now)[0].id.clone();
    scene.authority.decide(&id, Word::Yes, now).await.unwrap();
    let guest = joined(scene.ask(&other).await);
    let member = scene.authority.guest(guest).unwrap();
    assert_eq!((member.vm, member.ek), (None, Some(EkId([5; 32]))));
    // What it lacked comes: nobody need say anything.
    let late = machine(7, TpmShown::TooLittle("it cannot be used".to_owned()));
    waits(scene.ask(&late).await);
    let late = Joiner {
        tpm: shown(7, None),
        ..late
    };
    joined(scene.ask(&late).await);
    assert!(scene.authority.pending(now).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_installed_anew_shows_its_tpm_and_a_person_ends_what_it_was() {
    let scene = tpm_scene(|pool| pool).await;
    tell(&scene.fleet, InventoryChange::Vm(vm(1))).await;
    let old = joined(scene.ask(&machine(1, shown(1, Some(1)))).await);
    let new = machine(1, shown(1, Some(1)));
    waits(scene.ask(&new).await);
    scene.says(&format!("with this TPM already: {old}"));
    let entry = scene.waiting();
    assert_eq!(entry.rivals, [old], "in the VM and with the TPM, once");
    scene.decide(&entry.id, Word::YesInPlace).await.unwrap();
    let new = joined(scene.ask(&new).await);
    assert!(scene.authority.is_revoked(old));
    assert!(scene.authority.guest(new).unwrap().vm.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scope_of_a_pool_is_that_of_the_tpms_vm() {
    let scene = tpm_scene(|pool| Pool {
        tags: vec!["vdi".into()],
        ..pool
    })
    .await;
    let mut untagged = vm(2);
    untagged.tags.clear();
    tell(&scene.fleet, InventoryChange::Vm(vm(1))).await;
    tell(&scene.fleet, InventoryChange::Vm(untagged)).await;
    joined(scene.ask(&machine(1, shown(1, Some(1)))).await);
    for (number, uuid) in [(2, Some(2)), (3, Some(3))] {
        waits(scene.ask(&machine(number, shown(9, uuid))).await);
        scene.says("runs and is of this pool");
    }
    waits(scene.ask(&machine(1, shown(9, None))).await);
    scene.says("its TPM names no VM");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_that_was_reset_takes_the_place_of_its_tpm() {
    let scene = tpm_scene(|pool| Pool {
        ephemeral: true,
        guests_max: 1,
        ..pool
    })
    .await;
    let first = joined(scene.ask(&machine(1, shown(1, None))).await);
    let second = joined(scene.ask(&machine(1, shown(1, None))).await);
    let old = scene.authority.guest(first).unwrap().ended.unwrap();
    assert!(!old.revoked && old.why.contains(&second.to_string()));
    let full = scene.ask(&machine(2, shown(2, None))).await;
    assert_eq!(full, Err(Refusal::PoolFull));
    // Copied with its TPM, beside the first: nobody is sent away.
    waits(scene.ask(&machine(2, shown(1, None))).await);
    scene.says("with this TPM already");
    assert!(scene.authority.guest(second).unwrap().ended.is_none());
    // Another pool's guests keep theirs.
    let now = SystemTime::now();
    let others = Pool {
        name: "others".to_owned(),
        ephemeral: true,
        ..tpm_pool()
    };
    scene.authority.set_pool(others, now).await.unwrap();
    let made = token(&scene.authority, Some("others"), 1).await;
    let foreign = machine(1, shown(1, None));
    waits(foreign.ask(&scene.authority, &made, None).await);
    scene.says("with this TPM already");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_whose_guest_was_revoked_does_not_come_back_by_itself() {
    let scene = tpm_scene(|pool| pool).await;
    let now = SystemTime::now();
    let guest = joined(scene.ask(&machine(1, shown(1, Some(1)))).await);
    scene.authority.revoke(guest, false, "", now).await.unwrap();
    let again = machine(1, shown(1, Some(1)));
    waits(scene.ask(&again).await);
    scene.says(&format!("with this TPM was revoked: {guest}"));
    let id = scene.authority.pending(now)[0].id.clone();
    scene.authority.decide(&id, Word::Yes, now).await.unwrap();
    joined(scene.ask(&again).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_says_that_it_is_in_a_vm_does_not_keep_its_tpm_out() {
    let scene = tpm_scene(|pool| pool).await;
    tell(&scene.fleet, InventoryChange::Vm(vm(1))).await;
    let liar = GuestId([9; 16]);
    let told = scene.fleet.with(move |lead, clock| {
        let hello = fleet_core::ApplianceHello {
            name: "a".into(),
            address: "a:7443".into(),
            host_name: None,
            cluster: None,
            site: None,
            capacity: 10,
            labels: Vec::new(),
        };
        let via = lead.core.appliance_up(clock, hello);
        let facts = fleet_core::GuestFacts {
            uuid: Some([1; 16]),
            address: address(9),
            hostname: "v1".into(),
            epoch: 0,
            channel: None,
            key: None,
            machine: model::Machine::default(),
            vm: None,
            known: None,
        };
        lead.core.guest_up(clock, via, liar, facts);
    });
    told.await.unwrap();
    let guest = joined(scene.ask(&machine(1, shown(1, Some(1)))).await);
    let its = scene.authority.guest(guest).unwrap();
    assert_eq!(its.vm.map(|vm| vm.id).as_deref(), Some("id-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_leaves_its_pool_vouches_for_nobody_who_is_still_asking() {
    let scene = tpm_scene(|pool| pool).await;
    let others = Pool {
        tpm_cas: vec![new_ca()],
        ..tpm_pool()
    };
    let now = SystemTime::now();
    scene.authority.set_pool(others, now).await.unwrap();
    waits(scene.ask(&machine(1, shown(1, Some(1)))).await);
    scene.says("was taken from this pool");
    scene.authority.set_pool(tpm_pool(), now).await.unwrap();
    joined(scene.ask(&machine(1, shown(1, Some(1)))).await);
}

#[tokio::test]
async fn a_pool_that_asks_for_tpms_names_cas_and_others_name_none() {
    let dir = tempfile::tempdir().unwrap();
    let authority = embedded(dir.path()).await;
    let good = tpm_pool();
    let ca = good.tpm_cas[0].clone();
    let validity = pki::Validity::starting(SystemTime::now(), pki::LIFETIME);
    let leaf = authority.ca().issue_appliance("a", validity).unwrap();
    let leaf = TpmCa(leaf.chain[0].to_vec().into());
    let noise = TpmCa([1, 2, 3].into());
    for (proof, cas, why) in [
        (Proof::Tpm, vec![], "needs the CAs"),
        (Proof::Token, vec![ca.clone()], "no other does"),
        (
            Proof::Tpm,
            vec![ca.clone(), leaf],
            "certificate 2 of TPMs' CAs: it is not a CA's",
        ),
        (
            Proof::Tpm,
            vec![noise],
            "certificate 1 of TPMs' CAs: it is no certificate",
        ),
        (Proof::Tpm, vec![ca; 65], "at most 64"),
    ] {
        let wrong = Pool {
            proof,
            tpm_cas: cas,
            ..good.clone()
        };
        let refused = authority.set_pool(wrong, SystemTime::now()).await;
        match refused {
            Err(AuthorityError::Pool(said)) => assert!(said.contains(why), "{said}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    assert!(authority.pools().is_empty());
}
