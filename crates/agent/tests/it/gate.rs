//! What openers, the appliance and the disk see.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use model::{Disposition, LateAction, Policy};
use pki::LIFETIME;
use proto::v1::{self, OrderStatus, TurnKind, envelope::Body};

use crate::puppet::{BAD, PATIENCE, SWEEP};
use crate::rig::{Got, Rig};

fn content(bytes: &[u8]) -> Got {
    Got::Content(bytes.to_vec())
}

fn checks(rig: &Rig) -> usize {
    rig.shared().book().checks.len()
}

/// Short enough for a test to see the deadline.
fn hasty() -> Policy {
    Policy {
        open_budget: Duration::from_millis(500),
        exec_budget: Duration::from_millis(500),
        scan_on_close: false,
        ..Policy::default()
    }
}

fn unhurried() -> Policy {
    Policy {
        open_budget: Duration::from_secs(120),
        exec_budget: Duration::from_secs(120),
        scan_on_close: false,
        ..Policy::default()
    }
}

#[test]
fn clean_is_asked_once_and_written_asked_again() {
    let rig = Rig::new(unhurried());
    rig.put("f", b"harmless");
    assert_eq!(rig.read("f"), content(b"harmless"));
    assert_eq!(rig.read("f"), content(b"harmless"));
    assert_eq!(checks(&rig), 1, "the second was cached");
    let check = rig.shared().book().checks[0].clone();
    let context = check.context.unwrap();
    assert_eq!(context.path, rig.path("f").as_os_str().as_bytes());
    assert!(check.content.is_some(), "small content rides along");
    rig.shell("printf more >> f");
    assert_eq!(rig.read("f"), content(b"harmlessmore"));
    // Its own open for writing was judged, and then what it wrote.
    assert!(checks(&rig) >= 2);
    let last = rig.shared().book().checks.last().unwrap().size;
    assert_eq!(last, 12);
    rig.shared().say(&Body::ContentChanged(v1::ContentChanged {
        generation: vec![6; 16],
    }));
    rig.wait_for("the new generation", |status| {
        status["cache"]["entries"] == 0
    });
}

#[test]
fn malicious_is_denied_and_put_into_quarantine() {
    let rig = Rig::new(unhurried());
    rig.shared().book().removes = true;
    let path = rig.put("bad", BAD);
    assert_eq!(rig.read("bad"), Got::Denied);
    let shared = rig.shared();
    shared.wait("the order's result", |book| !book.results.is_empty());
    let result = shared.book().results[0].clone();
    assert_eq!(result.status(), OrderStatus::Done, "{}", result.detail);
    assert!(!path.exists());
    shared.say(&Body::Order(v1::Order {
        order_id: vec![200; 16],
        action: Some(v1::order::Action::Restore(v1::RestoreItem {
            item_id: result.item_id,
            path: Vec::new(),
        })),
    }));
    shared.wait("the restore", |book| book.results.len() == 2);
    assert_eq!(std::fs::read(path).unwrap(), BAD);
    assert_eq!(rig.read("bad"), Got::Denied, "still malicious");
}

#[test]
fn a_program_that_is_malicious_does_not_run() {
    let rig = Rig::new(unhurried());
    let script = [b"#!/bin/sh\n# ", BAD, b"\necho ran\n"].concat();
    rig.put("script", &script);
    rig.put("good", b"#!/bin/sh\nexit 0\n");
    rig.shell("chmod +x good script; ./good; ! ./script; ! sh script");
}

#[test]
fn large_content_is_sent_when_asked_for() {
    let rig = Rig::new(unhurried());
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    rig.put("large", &large);
    assert_eq!(rig.read("large"), content(&large));
    {
        let shared = rig.shared();
        let book = shared.book();
        assert!(book.uploads == [large.clone()]);
    }
    let mut bad = large;
    bad.extend_from_slice(BAD);
    rig.put("bad", &bad);
    assert_eq!(rig.read("bad"), Got::Denied);
}

#[test]
fn a_silent_appliance_does_not_hold_openers_for_ever() {
    let rig = Rig::new(hasty());
    let shared = rig.shared();
    shared.book().silent = true;
    rig.put("bad", BAD);
    assert_eq!(rig.read("bad"), content(BAD), "policy allows");
    rig.wait_for("the ledger entry", |s| s["ledger"]["open_entries"] == 1);
    shared.speak();
    shared.wait("the alert", |book| !book.alerts.is_empty());
    assert_eq!(shared.book().alerts[0].kind, "late_malicious");
    rig.wait_for("the payment", |s| s["ledger"]["open_entries"] == 0);
    shared.wait("the report", |book| {
        book.reports.last().is_some_and(|r| r.paid_total == 1)
    });
    assert_eq!(rig.read("bad"), Got::Denied);
}

/// A process that opens the file and lives on.
fn keeper_of(rig: &Rig, name: &str) -> std::process::Child {
    std::process::Command::new("tail")
        .args(["-f", "--"])
        .arg(rig.path(name))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_late_verdict_kills_whoever_opened_the_file_by_policy() {
    use std::os::unix::process::ExitStatusExt;
    let policy = Policy {
        on_late_malicious: LateAction::Kill,
        ..hasty()
    };
    let rig = Rig::new(policy);
    let shared = rig.shared();
    shared.book().silent = true;
    rig.put("bad", BAD);
    rig.put("good", b"good");
    let mut of_bad = keeper_of(&rig, "bad");
    let mut of_good = keeper_of(&rig, "good");
    rig.wait_for("the ledger entries", |s| s["ledger"]["open_entries"] == 2);
    shared.speak();
    let ended = of_bad.wait().unwrap();
    assert_eq!(ended.signal(), Some(9), "{ended}");
    shared.wait("the alert", |book| !book.alerts.is_empty());
    let detail = shared.book().alerts[0].detail.clone();
    assert!(
        detail.contains(&format!("killed [{}]", of_bad.id())),
        "{detail}"
    );
    rig.wait_for("the payment", |s| s["ledger"]["open_entries"] == 0);
    assert!(of_good.try_wait().unwrap().is_none());
    of_good.kill().unwrap();
    of_good.wait().unwrap();
}

#[test]
fn a_late_verdict_is_only_told_unless_policy_says_more() {
    let rig = Rig::new(hasty());
    let shared = rig.shared();
    shared.book().silent = true;
    rig.put("bad", BAD);
    let mut opener = keeper_of(&rig, "bad");
    rig.wait_for("the ledger entry", |s| s["ledger"]["open_entries"] == 1);
    shared.speak();
    shared.wait("the alert", |book| !book.alerts.is_empty());
    rig.wait_for("the payment", |s| s["ledger"]["open_entries"] == 0);
    assert!(opener.try_wait().unwrap().is_none());
    opener.kill().unwrap();
    opener.wait().unwrap();
}

#[test]
fn debts_are_paid_in_turns() {
    let rig = Rig::new(hasty());
    let shared = rig.shared();
    shared.wait("the end of the sweep at the start", |book| {
        book.turns_over == [SWEEP]
    });
    {
        let mut book = shared.book();
        (book.silent, book.busy) = (true, true);
        book.turns.clear();
    }
    rig.put("f", b"good");
    assert_eq!(rig.read("f"), content(b"good"), "policy allows");
    rig.wait_for("the ledger entry", |s| s["ledger"]["open_entries"] == 1);
    // Until its first scan is given up, nothing is due.
    shared.wait("asked again under the same turn", |book| {
        book.turns.len() >= 3 && book.turns[1..].iter().all(|ask| ask.turn_id == SWEEP)
    });
    assert_eq!(shared.book().turns[0].kind(), TurnKind::Sweep);
    assert_eq!(rig.status()["ledger"]["open_entries"], 1);
    shared.book().busy = false;
    shared.speak();
    rig.wait_for("the payment", |s| s["ledger"]["open_entries"] == 0);
    shared.wait("the turn given back", |book| book.turns_over == [SWEEP; 2]);
}

#[test]
fn policy_may_deny_what_nobody_judged() {
    let policy = Policy {
        on_unscanned: Disposition::Deny,
        size_max_bytes: 1000,
        ..hasty()
    };
    let rig = Rig::new(policy);
    rig.put("large", &[1; 1001]);
    assert_eq!(rig.read("large"), Got::Denied);
    assert_eq!(checks(&rig), 0, "not a byte was sent");
    rig.shared().book().silent = true;
    rig.put("f", b"x");
    assert_eq!(rig.read("f"), Got::Denied);
}

#[test]
fn debts_are_paid_when_the_appliance_is_back_even_by_another_agent() {
    let mut rig = Rig::with(
        unhurried(),
        |config| config.limits.link_grace_ms = 200,
        LIFETIME,
    );
    let puppet = rig.puppet.take().unwrap();
    let address = puppet.address;
    puppet.kill();
    rig.put("bad", BAD);
    rig.put("good\n", b"good");
    assert_eq!(rig.read("bad"), content(BAD), "policy allows");
    assert_eq!(rig.read("good\n"), content(b"good"));
    rig.wait_for("the entries", |s| s["ledger"]["open_entries"] == 2);
    rig.stop();
    rig.puppet = Some(rig.fleet.appliance(address));
    rig.start();
    rig.wait_for("the payment", |s| s["ledger"]["open_entries"] == 0);
    assert_eq!(rig.status()["ledger"]["paid_total"], 2);
    assert_eq!(checks(&rig), 2);
}

#[test]
fn one_question_for_many_openers() {
    let rig = Rig::new(unhurried());
    let shared = rig.shared();
    shared.book().silent = true;
    rig.put("f", b"wanted by all");
    std::thread::scope(|threads| {
        let openers: Vec<_> = (0..8).map(|_| threads.spawn(|| rig.read("f"))).collect();
        rig.wait_for("all of them", |status| status["openers"] == 8);
        shared.speak();
        for opener in openers {
            assert_eq!(opener.join().unwrap(), content(b"wanted by all"));
        }
    });
    assert_eq!(checks(&rig), 1);
}

#[test]
fn stopping_lets_everybody_go() {
    let mut rig = Rig::new(unhurried());
    let shared = rig.shared();
    shared.book().silent = true;
    rig.put("f", b"x");
    let path = rig.path("f");
    let opener = std::thread::spawn(move || crate::rig::read(path));
    rig.wait_for("the opener", |status| status["openers"] == 1);
    rig.stop();
    assert_eq!(opener.join().unwrap(), content(b"x"));
    rig.put("bad", BAD);
    assert_eq!(rig.read("bad"), content(BAD), "nothing is guarded");
    // What was let go unjudged is not forgotten.
    shared.speak();
    rig.start();
    rig.wait_for("the payment", |s| s["ledger"]["paid_total"] == 1);
}

#[test]
fn what_has_no_content_is_let_through() {
    let rig = Rig::new(unhurried());
    rig.put("empty", b"");
    rig.shell("cat empty; mkdir dir; ls dir; mkfifo fifo; mknod null c 1 3; cat null; (echo x > fifo &); cat fifo");
    assert_eq!(checks(&rig), 0);
}

#[test]
fn excludes_and_registered_scans_are_not_asked_about() {
    let rig = Rig::with(
        unhurried(),
        |config| {
            let mount = config.guard.include[0].clone();
            config.guard.include = vec![mount.join("in")];
            config.guard.exclude = vec![mount.join("in/out")];
            config.guard.exclude_programs = vec!["/usr/bin/head".into(), "/bin/head".into()];
            std::fs::create_dir_all(mount.join("in/out")).unwrap();
        },
        LIFETIME,
    );
    rig.put("f", BAD);
    rig.put("in/f", BAD);
    rig.put("in/out/f", BAD);
    assert_eq!(rig.read("f"), content(BAD));
    assert_eq!(rig.read("in/out/f"), content(BAD));
    assert_eq!(rig.read("in/f"), Got::Denied);
    rig.shell("head -c 1 in/f");
}

#[test]
fn a_file_system_that_takes_the_place_of_another_is_guarded_too() {
    let rig = Rig::new(unhurried());
    let denied_in_the_end = |name: &str| {
        let denied = testbed::wait_until(PATIENCE, || rig.read(name) == Got::Denied);
        assert!(denied, "{name} is not guarded");
    };
    rig.shell("mkdir below; mount -t tmpfs first below");
    rig.put("below/f", BAD);
    denied_in_the_end("below/f");
    // At once, so that the table of mounts may show the same device in the same place.
    for _ in 0..5 {
        rig.shell(&format!("{} mount -t tmpfs second below", unmount("below")));
    }
    rig.put("below/f", BAD);
    denied_in_the_end("below/f");
    // One over the other: both are guarded, the lower one by another place.
    rig.shell("mkdir aside; mount --bind below aside; mount -t tmpfs third below");
    rig.put("below/g", BAD);
    denied_in_the_end("below/g");
    assert_eq!(rig.read("aside/f"), Got::Denied);
    rig.shell(&["below", "aside", "below"].map(unmount).concat());
}

/// Whoever was answered may unmount before the agent has closed what it was asked about.
fn unmount(place: &str) -> String {
    format!("for try in $(seq 600); do umount {place} && break; [ $try -lt 600 ]; sleep .1; done; ")
}

#[test]
fn a_writers_close_is_judged_before_anybody_asks() {
    let policy = Policy {
        scan_on_close: true,
        ..unhurried()
    };
    let rig = Rig::new(policy);
    rig.shell("printf harmless > f");
    let shared = rig.shared();
    shared.wait("the check", |book| !book.checks.is_empty());
    assert_eq!(shared.book().checks[0].class(), v1::AccessClass::CloseWrite);
    rig.wait_for("the verdict", |status| status["cache"]["entries"] == 1);
    assert_eq!(rig.read("f"), content(b"harmless"));
    assert_eq!(checks(&rig), 1);
}

#[test]
fn busy_trees_stay_whole() {
    let policy = Policy {
        scan_on_close: true,
        ..unhurried()
    };
    let rig = Rig::new(policy);
    rig.shell(
        "mkdir src; for n in $(seq 200); do head -c $((n * 400)) /dev/urandom > src/$n; done
         tar cf all.tar src
         for n in 1 2 3 4; do (mkdir t$n; tar xf all.tar -C t$n; diff -r src t$n/src) & done
         wait
         for n in 1 2 3 4; do diff -r src t$n/src; done
         for n in $(seq 50); do echo $n >> log; mv log log2; cat log2 > /dev/null; mv log2 log; done
         test $(wc -l < log) = 50",
    );
    let status = rig.status();
    assert_eq!(status["ledger"]["entries_total"], 0, "{status}");
    rig.wait_for("quiet", |status| status["in_flight"] == 0);
}

#[test]
fn an_old_certificate_is_renewed() {
    let rig = Rig::with(unhurried(), |_| {}, Duration::from_secs(3600));
    rig.shared()
        .wait("the renewal", |book| book.renewals.len() == 1);
    let renewed = testbed::wait_until(PATIENCE, || {
        let credentials = agent::credentials::Credentials::load(&rig.config).unwrap();
        let leaf = credentials.identity.leaf().unwrap().clone();
        let validity = pki::validity_of(&leaf).unwrap();
        validity.not_after > std::time::SystemTime::now() + Duration::from_secs(7200)
    });
    assert!(renewed);
    rig.put("f", b"x");
    assert_eq!(rig.read("f"), content(b"x"));
}

#[test]
fn what_cannot_be_guarded_is_refused_before_anything_is() {
    let rig = Rig::new(unhurried());
    let mut config = rig.config.clone();
    config.runtime_dir = rig.config.state_dir.join("other-run");
    config.guard.include = vec![rig.path("missing")];
    let stop = daemon::signal::Stop::manual().unwrap();
    let error = agent::Agent::start(config, stop).err().unwrap();
    assert!(error.to_string().contains("missing"), "{error}");
}
