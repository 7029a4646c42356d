//! Files that are judged again because an appliance asks for their content, though nobody opens them.

use model::{Digest, Policy};
use proto::v1::{self, AccessClass, envelope::Body};

use crate::puppet::{Book, SWEEP};
use crate::rig::{Got, Rig};

fn policy() -> Policy {
    Policy {
        open_budget: std::time::Duration::from_secs(120),
        scan_on_close: false,
        ..Policy::default()
    }
}

fn recheck(contents: &[&[u8]]) -> Body {
    let digests = contents.iter().map(|it| Digest::of(it).0.to_vec());
    Body::Recheck(v1::Recheck {
        digests: digests.collect(),
    })
}

/// Rules changed, so that no verdict is remembered.
fn other_rules() -> Body {
    Body::ContentChanged(v1::ContentChanged {
        generation: vec![6; 16],
    })
}

fn checks_of(book: &Book, content: &[u8]) -> usize {
    let digest = Digest::of(content).0;
    let is_it = |check: &&v1::Check| check.blake3 == digest;
    book.checks.iter().filter(is_it).count()
}

fn has_not(book: &Book, content: &[u8]) -> bool {
    book.not_held.contains(&Digest::of(content).0.to_vec())
}

#[test]
fn a_file_is_judged_again_where_it_was_and_what_changed_is_not_held() {
    let rig = Rig::new(policy());
    let shared = rig.shared();
    let files: [(&str, &[u8]); 4] = [
        ("stays", b"the first content"),
        ("moves", b"the second content"),
        ("changes", b"the third content"),
        ("goes", b"the fourth content"),
    ];
    for (name, content) in files {
        rig.put(name, content);
        assert_eq!(rig.read(name), Got::Content(content.to_vec()));
    }
    let [stays, moves, changes, goes] = files.map(|(_, content)| content);
    std::fs::rename(rig.path("moves"), rig.path("moved")).unwrap();
    rig.put("changes", b"something else of it");
    std::fs::remove_file(rig.path("goes")).unwrap();

    shared.say(&other_rules());
    shared.say(&recheck(&[stays, moves, changes, goes, b"never seen"]));
    shared.wait("judged again", |book| checks_of(book, stays) == 2);
    shared.wait("the rest is not held", |book| {
        let gone: [&[u8]; 4] = [moves, changes, goes, b"never seen"];
        gone.iter().all(|content| has_not(book, content))
    });
    let book = shared.book();
    let again = book.checks.last().unwrap();
    assert_eq!(again.class(), AccessClass::OnDemand);
    let path = again.context.as_ref().unwrap().path.clone();
    assert!(path.ends_with(b"/stays"));
    assert!(!has_not(&book, stays));
    assert_eq!(checks_of(&book, b"something else of it"), 0);
    assert!(
        book.turns.iter().any(|turn| turn.kind() as u64 == SWEEP),
        "not when it was its turn"
    );
}

#[test]
fn it_waits_for_its_turn() {
    let rig = Rig::new(policy());
    let shared = rig.shared();
    rig.put("f", b"some content");
    assert_eq!(rig.read("f"), Got::Content(b"some content".to_vec()));
    shared.book().busy = true;
    shared.say(&other_rules());
    shared.say(&recheck(&[b"some content"]));
    let asks = shared.book().turns.len();
    shared.wait("it asks again and again", |book| {
        book.turns.len() >= asks + 3
    });
    assert_eq!(checks_of(&shared.book(), b"some content"), 1);
    shared.book().busy = false;
    shared.wait("its turn", |book| checks_of(book, b"some content") == 2);
    shared.wait("the turn is given back", |book| {
        book.turns_over.contains(&SWEEP)
    });
}

#[test]
fn without_a_memory_nothing_is_held() {
    let configure = |config: &mut agent::AgentConfig| {
        config.limits.whereabouts_bytes_max = 0;
    };
    let rig = Rig::with(policy(), configure, pki::LIFETIME);
    let shared = rig.shared();
    rig.put("f", b"some content");
    assert_eq!(rig.read("f"), Got::Content(b"some content".to_vec()));
    shared.say(&recheck(&[b"some content"]));
    shared.wait("not held", |book| has_not(book, b"some content"));
}

/// What an appliance doubts is not answered for by what it said before.
#[test]
fn what_is_remembered_is_asked_about_all_the_same() {
    let rig = Rig::new(policy());
    let content = b"remembered as clean";
    rig.put("file", content);
    assert_eq!(rig.read("file"), Got::Content(content.to_vec()));
    assert_eq!(rig.read("file"), Got::Content(content.to_vec()));
    let shared = rig.shared();
    assert_eq!(checks_of(&shared.book(), content), 1);
    shared.say(&recheck(&[content]));
    shared.wait("another check", |book| checks_of(book, content) == 2);
}
