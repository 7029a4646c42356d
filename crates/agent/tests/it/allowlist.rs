//! Content that is known to be good, and content that turns out not to be.

use std::path::PathBuf;
use std::time::Duration;

use allowlist::{List, SigningKey};
use model::{Digest, Disposition, Policy};
use pki::LIFETIME;
use proto::v1::{self, envelope::Body};

use crate::puppet::BAD;
use crate::rig::{Got, Rig};

const GOOD: &[u8] = b"known to be good";

/// A folder with a key in it, and the lists that are signed with it.
struct Lists {
    folder: tempfile::TempDir,
    key: SigningKey,
}

impl Lists {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::create(&folder.path().join("key")).unwrap();
        Self { folder, key }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("gold.list")
    }

    fn put(&self, serial: u64, listed: &[&[u8]], revoked: &[&[u8]]) {
        let digests = |of: &[&[u8]]| of.iter().map(|it| Digest::of(it).0).collect();
        let list = List::new("gold", serial, 0, digests(listed), digests(revoked)).unwrap();
        list.write(&self.path(), Some(&self.key)).unwrap();
    }

    fn rig(&self, policy: Policy) -> Rig {
        let configure = |config: &mut agent::AgentConfig| {
            // On the guarded file system, as on any real machine.
            config.state_dir = config.guard.include[0].join("state");
            config.allowlist.files = vec![self.path()];
            config.allowlist.trusted_keys = vec![self.key.public()];
            config.limits.link_grace_ms = 100;
        };
        Rig::with(policy, configure, LIFETIME)
    }
}

fn policy() -> Policy {
    Policy {
        open_budget: Duration::from_secs(120),
        exec_budget: Duration::from_secs(120),
        on_unscanned: Disposition::Deny,
        scan_on_close: false,
        ..Policy::default()
    }
}

fn recall(content: &[u8]) -> Body {
    Body::Recall(v1::Recall {
        // One that is no digest is passed over.
        digests: vec![vec![1; 5], Digest::of(content).0.to_vec()],
    })
}

/// Reads a file; returns how many questions that took: what is asked in the background meanwhile is
/// none of them.
#[track_caller]
fn questions(rig: &Rig, name: &str, got: &Got) -> usize {
    let before = rig.shared().book().checks.len();
    assert_eq!(rig.read(name), *got);
    let shared = rig.shared();
    let book = shared.book();
    let is_waited_for = |check: &&v1::Check| check.deadline_ms > 0;
    book.checks[before..].iter().filter(is_waited_for).count()
}

fn content(bytes: &[u8]) -> Got {
    Got::Content(bytes.to_vec())
}

#[test]
fn listed_content_costs_no_question_until_it_is_recalled() {
    let lists = Lists::new();
    lists.put(1, &[GOOD, BAD], &[]);
    let mut rig = lists.rig(policy());
    rig.put("good", GOOD);
    rig.put("other", b"unknown");
    rig.put("bad", BAD);
    assert_eq!(questions(&rig, "good", &content(GOOD)), 0);
    assert_eq!(
        questions(&rig, "bad", &content(BAD)),
        0,
        "listed by mistake"
    );
    assert_eq!(questions(&rig, "bad", &content(BAD)), 0, "and remembered");
    assert_eq!(questions(&rig, "other", &content(b"unknown")), 1);
    let status = rig.status();
    assert_eq!(status["allowlist"]["allowed"], 2);
    assert_eq!(status["allowlist"]["lists"][0]["serial"], 1);
    rig.shared().say(&recall(BAD));
    rig.wait_for("the recall", |status| status["allowlist"]["recalled"] == 1);
    assert_eq!(questions(&rig, "bad", &Got::Denied), 1);
    assert_eq!(questions(&rig, "good", &content(GOOD)), 0);
    // It is kept, though nobody repeats it.
    rig.stop();
    rig.start();
    assert_eq!(questions(&rig, "bad", &Got::Denied), 1);
    assert_eq!(questions(&rig, "good", &content(GOOD)), 0);
}

#[test]
fn a_list_that_changes_is_loaded_and_a_bad_one_is_not() {
    let lists = Lists::new();
    lists.put(5, &[GOOD], &[]);
    let rig = lists.rig(policy());
    rig.put("good", GOOD);
    assert_eq!(questions(&rig, "good", &content(GOOD)), 0);
    let wait = |serial: u64, refused: u64| {
        rig.wait_for("the list", |status| {
            let lists = &status["allowlist"];
            lists["lists"][0]["serial"] == serial && lists["refused"] == refused
        });
    };
    lists.put(4, &[], &[]);
    wait(5, 1);
    assert_eq!(questions(&rig, "good", &content(GOOD)), 0);
    lists.put(6, &[], &[GOOD]);
    wait(6, 1);
    assert_eq!(questions(&rig, "good", &content(GOOD)), 1, "revoked");
    let whole = std::fs::read(lists.path()).unwrap();
    std::fs::write(lists.path(), &whole[..whole.len() - 1]).unwrap();
    wait(6, 2);
    std::fs::remove_file(lists.path()).unwrap();
    rig.wait_for("its end", |status| {
        status["allowlist"]["lists"][0].is_null()
    });
}

#[test]
fn without_an_appliance_listed_content_is_still_allowed() {
    let lists = Lists::new();
    lists.put(1, &[GOOD], &[]);
    let mut rig = lists.rig(policy());
    rig.put("good", GOOD);
    rig.put("other", b"unknown");
    rig.puppet.take().unwrap().kill();
    rig.wait_for("the link's end", |status| status["link"] == "down");
    assert_eq!(rig.read("other"), Got::Denied);
    assert_eq!(rig.read("good"), content(GOOD));
    assert_eq!(rig.read("good"), content(GOOD));
}

/// The puppet has this list, and says so.
fn offer(rig: &Rig, name: &str, serial: u64, file: &[u8]) {
    let fingerprint = Digest::of(file).0.to_vec();
    let shared = rig.shared();
    let mut book = shared.book();
    book.lists.insert(fingerprint.clone(), file.to_vec());
    drop(book);
    shared.say(&Body::AllowlistOffers(v1::AllowlistOffers {
        offers: vec![v1::AllowlistOffer {
            name: name.into(),
            serial,
            size: file.len() as u64,
            fingerprint,
        }],
    }));
}

#[test]
fn lists_are_fetched_from_the_appliance_and_verified() {
    let lists = Lists::new();
    let file = |serial: u64, listed: &[&[u8]]| {
        lists.put(serial, listed, &[]);
        std::fs::read(lists.path()).unwrap()
    };
    let configure = |config: &mut agent::AgentConfig| {
        config.state_dir = config.guard.include[0].join("state");
        config.allowlist.names = vec!["gold".into()];
        config.allowlist.trusted_keys = vec![lists.key.public()];
        config.limits.allowlist_fetch_spread_s = 0;
    };
    let mut rig = Rig::with(policy(), configure, LIFETIME);
    rig.put("good", GOOD);
    assert_eq!(questions(&rig, "good", &content(GOOD)), 1);
    let first = file(3, &[GOOD, b"another", b"a third"]);
    offer(&rig, "another", 3, &first);
    offer(&rig, "gold", 3, &first);
    let wait = |rig: &Rig, serial: u64, refused: u64| {
        rig.wait_for("the list", |status| {
            let lists = &status["allowlist"];
            lists["lists"][0]["serial"] == serial && lists["refused"] == refused
        });
    };
    wait(&rig, 3, 0);
    assert_eq!(rig.shared().book().pieces, first.len().div_ceil(100));
    rig.put("again", GOOD);
    assert_eq!(questions(&rig, "again", &content(GOOD)), 0);
    // Changed on its way; the old one stays, and it is not fetched for ever.
    let mut bad = file(4, &[BAD]);
    bad[120] ^= 1;
    offer(&rig, "gold", 4, &bad);
    wait(&rig, 3, 1);
    offer(&rig, "gold", 4, &bad);
    offer(&rig, "gold", 5, &file(5, &[]));
    wait(&rig, 5, 1);
    assert_eq!(questions(&rig, "again", &content(GOOD)), 1);
    // What says that it is newer, and is not.
    offer(&rig, "gold", 6, &first);
    wait(&rig, 5, 2);
    rig.stop();
    rig.start();
    wait(&rig, 5, 0);
}
