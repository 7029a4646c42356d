//! Guests without an identity, and copies of guests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::credentials::Credentials;
use model::{GuestId, Machine, Policy};
use proto::v1::{self, envelope::Body};

use crate::office::{Office, Says};
use crate::puppet::{Book, Renewing};
use crate::rig::{GUEST, Got, Rig, identity_of};

const OTHER: GuestId = GuestId([8; 16]);
const UUID: &str = "5d1c7a52-8f0e-4a5a-9d0b-3f6f2b7e000";

fn unhurried() -> Policy {
    Policy {
        open_budget: Duration::from_secs(120),
        scan_on_close: false,
        ..Policy::default()
    }
}

/// An agent that is to enrol at an office; in memory is a folder that is.
struct Joining {
    rig: Rig,
    office: Office,
    in_memory: tempfile::TempDir,
}

impl Joining {
    fn new(says: Says, configure: impl FnOnce(&mut agent::AgentConfig, &Path)) -> Self {
        let in_memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut rig = Rig::prepare(unhurried(), |config| configure(config, in_memory.path()));
        let office = Office::open(&rig.fleet, &rig.config.appliance.addresses[0], says);
        let enrol = &mut rig.config.enrol;
        enrol.controller = Some(office.address.to_string());
        enrol.retry_max_s = 1;
        enrol.refused_retry_s = 1;
        let token = in_memory.path().join("token");
        pki::write_atomic(&token, 0o600, office.token.to_string().as_bytes()).unwrap();
        enrol.token_file = Some(token);
        Self {
            rig,
            office,
            in_memory,
        }
    }

    /// With its runtime directory in memory.
    fn in_memory(says: Says) -> Self {
        Self::new(says, |config, dir| config.runtime_dir = dir.join("run"))
    }
}

/// The files below a folder that hold a private key.
fn keys_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(keys_below(&path));
        } else if std::fs::read(&path).is_ok_and(|it| it.windows(7).any(|it| it == b"PRIVATE")) {
            found.push(path);
        }
    }
    found
}

/// Has the firmware say another UUID, which ends in this digit.
fn set_uuid(rig: &Rig, digit: char) {
    put_sys(
        rig,
        "class/dmi/id/product_uuid",
        format!("{UUID}{digit}\n").as_bytes(),
    );
}

fn put_sys(rig: &Rig, path: &str, content: &[u8]) {
    let path = rig.config.sys_dir.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn uuid(digit: char) -> Vec<u8> {
    let hex = format!("{UUID}{digit}").replace('-', "");
    GuestId::from_hex(&hex).unwrap().0.to_vec()
}

fn has_come(book: &Book, guest: GuestId) -> bool {
    book.guests.iter().any(|(it, _)| *it == guest)
}

fn rekeys(book: &Book) -> Vec<v1::Renew> {
    let rekeys = book.renewals.iter().filter(|renew| renew.rekey);
    rekeys.cloned().collect()
}

#[test]
fn a_guest_without_identity_guards_by_policy_and_enrols_by_itself() {
    let Joining {
        mut rig,
        office,
        in_memory: _in_memory,
    } = Joining::in_memory(Says::No);
    rig.config.limits.link_grace_ms = 100;
    set_uuid(&rig, '1');
    rig.start_only();
    office.wait(2);
    rig.wait_for("the refusal", |status| {
        status["identity"]["state"] == "refused"
    });
    rig.put("f", b"opened before anybody was there to judge");
    assert!(
        matches!(rig.read("f"), Got::Content(_)),
        "policy allows what cannot be judged"
    );
    rig.wait_for("the debt", |status| status["ledger"]["open_entries"] == 1);

    office.say(Says::yes(GUEST));
    rig.wait_for_link();
    rig.wait_for("the debt is paid", |status| {
        status["ledger"]["open_entries"] == 0
    });
    let status = rig.status();
    assert_eq!(status["identity"]["state"], "enrolled", "{status}");
    assert_eq!(status["identity"]["guest"], GUEST.to_string());
    let asked = office.asked();
    let secret = office.token.secret.expose();
    assert!(asked.iter().all(|it| it.token == secret));
    // What was refused may have been the key.
    assert!(asked.iter().skip(1).all(|it| it.csr != asked[0].csr));
    let facts = asked[0].machine.as_ref().unwrap();
    assert_eq!(facts.system_uuid, uuid('1'));
    let hello = rig.shared().book().guests[0].1.clone();
    assert_eq!(hello.machine.unwrap().system_uuid, uuid('1'));

    rig.stop();
    rig.start();
    assert_eq!(office.asked().len(), asked.len(), "it asked again");
}

#[test]
fn who_waits_for_approval_asks_for_the_same_after_a_restart() {
    let Joining {
        mut rig,
        office,
        in_memory,
    } = Joining::in_memory(Says::Wait);
    rig.start_only();
    office.wait(2);
    rig.wait_for("the wait", |status| {
        status["identity"]["state"] == "pending"
    });
    rig.stop();
    let before = office.asked().len();
    rig.start_only();
    office.wait(before + 1);
    office.say(Says::yes(GUEST));
    rig.wait_for_link();
    let asked = office.asked();
    assert!(asked.iter().all(|it| it.csr == asked[0].csr), "other keys");
    let keys = keys_below(in_memory.path());
    assert!(keys.is_empty(), "a key is left: {keys:?}");
    assert_eq!(Credentials::load(&rig.config).unwrap().guest, GUEST);
}

#[test]
fn enrolling_by_hand_is_enough_for_one_that_runs() {
    let Joining {
        mut rig,
        office,
        in_memory: _in_memory,
    } = Joining::in_memory(Says::No);
    rig.config.enrol.controller = None;
    rig.start_only();
    rig.wait_for("the failure", |status| {
        status["identity"]["state"] == "failed"
    });
    rig.enrol(OTHER);
    rig.wait_for_link();
    assert!(has_come(&rig.shared().book(), OTHER));
    assert!(office.asked().is_empty());
}

#[test]
fn what_the_hypervisor_injects_comes_first() {
    let Joining {
        mut rig,
        office,
        in_memory: _in_memory,
    } = Joining::in_memory(Says::yes(GUEST));
    let fw_cfg = "firmware/qemu_fw_cfg/by_name/opt/org.lazaret";
    let address = office.address.to_string();
    put_sys(
        &rig,
        &format!("{fw_cfg}/controller/raw"),
        address.as_bytes(),
    );
    let injected = pki::JoinToken::generate(rig.fleet.ca.fingerprint()).unwrap();
    put_sys(
        &rig,
        &format!("{fw_cfg}/token/raw"),
        injected.to_string().as_bytes(),
    );
    rig.config.enrol.controller = Some("127.0.0.1:1".to_owned());
    rig.start();
    assert_eq!(office.asked()[0].token, injected.secret.expose());
}

#[test]
fn a_key_that_is_to_stay_in_memory_never_reaches_the_disk() {
    let says = Says::Yes {
        guest: GUEST,
        is_ephemeral: true,
        left: pki::LIFETIME,
    };
    let Joining {
        mut rig,
        office,
        in_memory,
    } = Joining::in_memory(says);
    rig.start();
    assert_eq!(rig.status()["identity"]["kept"], "runtime");
    assert_eq!(keys_below(&rig.config.state_dir), Vec::<PathBuf>::new());
    assert_eq!(keys_below(in_memory.path()).len(), 1);
    rig.stop();
    rig.start();
    assert_eq!(office.asked().len(), 1, "a restart lost it");

    // As after a reboot.
    rig.stop();
    std::fs::remove_dir_all(&rig.config.runtime_dir).unwrap();
    rig.start();
    assert_eq!(office.asked().len(), 2);
}

#[test]
fn a_runtime_directory_on_a_disk_gets_no_key_either() {
    let says = Says::Yes {
        guest: GUEST,
        is_ephemeral: true,
        left: pki::LIFETIME,
    };
    let Joining {
        mut rig,
        office,
        in_memory: _in_memory,
    } = Joining::new(says, |_, _| {});
    rig.start();
    assert_eq!(rig.status()["identity"]["kept"], "process");
    for dir in [&rig.config.state_dir, &rig.config.runtime_dir] {
        assert_eq!(keys_below(dir), Vec::<PathBuf>::new());
    }
    rig.stop();
    rig.start();
    assert_eq!(office.asked().len(), 2);
}

#[test]
fn an_identity_that_cannot_be_used_is_tried_again_until_it_can() {
    let Joining {
        mut rig,
        office,
        in_memory: _in_memory,
    } = Joining::in_memory(Says::No);
    rig.start_only();
    office.wait(1);
    // Enrolled by hand, with an anchor that is none.
    let dir = &rig.config.state_dir;
    std::fs::create_dir_all(dir).unwrap();
    let anchors = dir.join("anchors.pem");
    pki::save_anchors(&anchors, &[b"no certificate".to_vec().into()]).unwrap();
    let identity = identity_of(&rig.fleet, GUEST, pki::LIFETIME);
    Credentials::save_identity(dir, &identity).unwrap();
    let attempts = |status: &serde_json::Value| status["identity"]["attempts"].as_u64();
    rig.wait_for("the failure", |status| {
        status["identity"]["state"] == "failed"
    });
    let before = attempts(&rig.status());
    rig.wait_for("another try", |status| attempts(status) > before);
    assert_eq!(rig.status()["identity"]["guest"], "");
    pki::save_anchors(&anchors, &[rig.fleet.ca.cert().clone()]).unwrap();
    rig.wait_for_link();
    assert_eq!(rig.status()["identity"]["state"], "enrolled");
    rig.put("f", b"x");
    assert_eq!(rig.read("f"), Got::Content(b"x".to_vec()));
}

#[test]
fn an_expired_key_in_memory_is_given_up_for_another() {
    let says = Says::Yes {
        guest: GUEST,
        is_ephemeral: true,
        left: Duration::from_secs(5),
    };
    let Joining {
        mut rig,
        office,
        in_memory: _in_memory,
    } = Joining::in_memory(says);
    let shared = rig.shared();
    shared.book().renewing = Renewing::Refused;
    rig.start_only();
    office.wait(1);
    office.say(Says::Yes {
        guest: OTHER,
        is_ephemeral: true,
        left: pki::LIFETIME,
    });
    shared.wait("the other", |book| has_come(book, OTHER));
    rig.wait_for_link();
    assert_eq!(rig.status()["identity"]["guest"], OTHER.to_string());
    rig.put("f", b"x");
    assert_eq!(rig.read("f"), Got::Content(b"x".to_vec()));
    assert!(office.asked().len() >= 2);
}

/// An enrolled agent whose state is then found by another machine.
fn copied() -> Rig {
    let mut rig = Rig::prepare(unhurried(), |config| {
        config.appliance.follow_lists = Some(true);
    });
    set_uuid(&rig, '1');
    rig.enrol(GUEST);
    rig.start();
    let placement = v1::Placement {
        epoch: 57,
        appliances: rig.config.appliance.addresses.clone(),
    };
    rig.shared().say(&Body::Placement(placement));
    rig.wait_for("the list", |status| status["placement"]["epoch"] == 57);
    rig.stop();
    assert_eq!(rig.shared().book().renewals.len(), 0, "it is no copy");
    set_uuid(&rig, '2');
    rig
}

#[test]
fn a_copy_asks_for_an_identity_of_its_own_and_is_judged_for_meanwhile() {
    let mut rig = copied();
    let shared = rig.shared();
    shared.book().renewing = Renewing::Silent;
    rig.start();
    shared.wait("the question", |book| book.renewals.len() == 1);
    let asked = shared.book().renewals[0].clone();
    assert!(asked.rekey);
    assert_eq!(asked.machine.unwrap().system_uuid, uuid('2'));
    rig.put("f", b"x");
    assert_eq!(rig.read("f"), Got::Content(b"x".to_vec()));
    assert_eq!(rig.status()["ledger"]["entries_total"], 0);

    // Asked again at the next start: a crash is one, too.
    rig.stop();
    shared.book().renewing = Renewing::Other(OTHER);
    rig.start();
    shared.wait("its own session", |book| has_come(book, OTHER));
    rig.wait_for("the link", |status| {
        status["link"] == "up" && status["identity"]["guest"] == OTHER.to_string()
    });
    let status = rig.status();
    assert_eq!(status["identity"]["copy"], "", "{status}");
    assert_eq!(status["placement"]["epoch"], 0, "{status}");
    let hello = shared.book().guests.last().unwrap().1.clone();
    assert_eq!(hello.placement_epoch, 0, "another guest's list");
    assert_eq!(rig.read("f"), Got::Content(b"x".to_vec()));

    rig.stop();
    let before = shared.book().renewals.len();
    rig.start();
    assert_eq!(Credentials::load(&rig.config).unwrap().guest, OTHER);
    let book = shared.book();
    assert_eq!(book.guests.last().unwrap().0, OTHER);
    assert_eq!(book.renewals.len(), before, "it asked again");
}

#[test]
fn who_is_told_that_it_is_a_copy_asks_with_one_key_until_it_is_answered() {
    let rig = Rig::new(unhurried());
    let shared = rig.shared();
    shared.book().renewing = Renewing::Refused;
    let told = Body::Rekey(v1::Rekey {
        reason: "two machines".to_owned(),
    });
    shared.say(&told);
    shared.wait("two questions", |book| rekeys(book).len() >= 2);
    assert_eq!(rig.status()["identity"]["copy"], "two machines");
    assert_eq!(rig.status()["link"], "up");
    shared.book().renewing = Renewing::Other(OTHER);
    shared.wait("its own session", |book| has_come(book, OTHER));
    let book = shared.book();
    let asked = rekeys(&book);
    assert!(asked.iter().all(|it| it.csr == asked[0].csr), "other keys");
}

#[test]
fn nobody_becomes_another_guest_unasked_or_the_same_when_it_asked() {
    let mut rig = Rig::prepare(unhurried(), |_| {});
    let shared = rig.shared();
    rig.enrol(GUEST);
    rig.start();
    shared.say(&Body::Rekey(v1::Rekey::default()));
    shared.wait("asked again", |book| rekeys(book).len() >= 2);
    assert_eq!(Credentials::load(&rig.config).unwrap().guest, GUEST);
    rig.stop();

    // A renewal that was not asked to make another guest of it.
    let mut old = Rig::prepare(unhurried(), |_| {});
    let shared = old.shared();
    shared.book().renewing = Renewing::Other(OTHER);
    old.enrol_for(GUEST, Duration::from_secs(3600));
    old.start();
    shared.wait("the renewal", |book| book.renewals.len() == 1);
    assert!(!shared.book().renewals[0].rekey);
    old.stop();
    assert_eq!(Credentials::load(&old.config).unwrap().guest, GUEST);
}

#[test]
fn a_machine_that_does_not_say_who_it_is_is_no_copy() {
    let mut rig = copied();
    std::fs::remove_dir_all(&rig.config.sys_dir).unwrap();
    rig.start();
    set_uuid(&rig, '1');
    rig.stop();
    rig.start();
    rig.put("f", b"x");
    assert_eq!(rig.read("f"), Got::Content(b"x".to_vec()));
    let shared = rig.shared();
    assert!(rekeys(&shared.book()).is_empty());
    let last = shared.book().guests.last().unwrap().1.clone();
    let machine = Machine::try_from(&last.machine.unwrap()).unwrap();
    assert_eq!(machine.system_uuid.map(|id| id.to_vec()), Some(uuid('1')));
}
