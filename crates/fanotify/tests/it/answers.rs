//! Answers: once, by the right number, whatever happens.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fanotify::{Answer, Event, EventBuffer, MarkMask};
use rustix::io::Errno;

use crate::gate::{Gate, new_group};
use crate::opener::{Opener, until};
use crate::raw::respond;
use crate::scratch::Scratch;

#[test]
fn an_open_is_allowed_or_denied_by_its_answer() {
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);

    let opener = Opener::cat(&file);
    let event = gate.permission();
    assert_eq!(event.pid, opener.pid());
    event.answer(Answer::Allow).expect("answered");
    opener.finish().read("content");

    let opener = Opener::cat(&file);
    gate.permission().answer(Answer::Deny).expect("answered");
    opener.finish().was_denied();
}

/// Our own threads open guarded files while a guest's open waits for its answer.
#[test]
fn trap_1_our_own_opens_never_wait_for_us() {
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    let gate = Gate::on(&scratch);
    let own_pid = i32::try_from(std::process::id()).expect("PIDs are small");

    let mut held = Vec::new();
    let seen = gate.serving(
        |event| match event {
            Event::Permission(event) => {
                let pid = event.pid;
                // One of our own, should it be shown, is dropped and so denied: a failure, no hang.
                held.extend((pid != own_pid).then_some(event));
                ("open", pid)
            }
            Event::CloseWrite(event) => ("close-write", event.pid),
            Event::Overflow => ("overflow", 0),
        },
        || {
            let mut opener = Opener::cat(&file);
            assert_eq!(std::fs::read(&file).expect("our own open"), b"content");
            // Of one, a child that another test starts meanwhile may have the last close.
            for number in 0..10 {
                let ours = scratch.path(&format!("ours{number}"));
                std::fs::write(ours, b"new").expect("our own write");
            }
            assert!(opener.is_waiting(), "the guest's open has no answer yet");
        },
    );
    assert!(
        !seen.contains(&("open", own_pid)),
        "our own open was shown: {seen:?}"
    );
    assert!(
        seen.contains(&("close-write", own_pid)),
        "our own write was hidden: {seen:?}"
    );
}

#[test]
fn trap_9_a_refused_answer_is_replaced_by_a_plain_one() {
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);

    // The kernel refuses FAN_DENY_ERRNO(EACCES) and the opener goes on waiting; `Answer` cannot
    // say it, and what it can say is taken.
    let mut opener = Opener::cat(&file);
    let event = gate.permission();
    let deny_errno = libc::FAN_DENY | (libc::EACCES.cast_unsigned() << 24);
    let refused = respond(&gate.group, event.fd().as_raw_fd(), deny_errno);
    assert_eq!(refused, Err(Errno::INVAL));
    assert!(opener.is_waiting());
    event.answer(Answer::Deny).expect("a plain answer is taken");
    opener.finish().was_denied();

    // An answer that comes to nothing is told, and the fallback was tried too.
    let opener = Opener::cat(&file);
    let event = gate.permission();
    respond(&gate.group, event.fd().as_raw_fd(), libc::FAN_ALLOW)
        .expect("answered behind our back");
    let error = event
        .answer(Answer::Deny)
        .expect_err("nobody waits any more");
    assert_eq!(error.source.raw_os_error(), Some(libc::ENOENT));
    assert_eq!((error.wanted, error.fallback), (Answer::Deny, None));
    opener.finish().read("content");
}

#[test]
fn trap_10_the_answered_number_is_open_until_answered_and_as_long_as_it_is_read() {
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);

    // A duplicate is no answer: that is why the event hands out shares and not duplicates.
    let opener = Opener::cat(&file);
    let event = gate.permission();
    let duplicate = event.fd().try_clone_to_owned().expect("a duplicate");
    assert_eq!(
        respond(&gate.group, duplicate.as_raw_fd(), libc::FAN_ALLOW),
        Err(Errno::NOENT)
    );

    // A share dropped before the answer closes nothing; one kept after it can still be read.
    drop(event.file());
    let share = event.file();
    assert_eq!(share.as_raw_fd(), event.fd().as_raw_fd());
    event
        .answer(Answer::Allow)
        .expect("answered by the original number");
    opener.finish().read("content");
    let mut content = String::new();
    let last = Arc::into_inner(share).expect("the event gave up its share with the answer");
    std::fs::File::from(last)
        .read_to_string(&mut content)
        .expect("readable");
    assert_eq!(content, "content");
}

#[test]
fn a_dropped_event_is_answered_by_the_default() {
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    for default in [Answer::Allow, Answer::Deny] {
        let group = new_group(default);
        group
            .mark_filesystem(&scratch.root(), MarkMask::ALL)
            .expect("a mark");
        let opener = Opener::cat(&file);
        let mut buffer = EventBuffer::new(1);
        let events: Vec<Event> = group.read(&mut buffer).expect("an event").collect();
        assert_eq!(events.len(), 1);
        drop(events);
        let ended = opener.finish();
        match default {
            Answer::Allow => ended.read("content"),
            Answer::Deny => ended.was_denied(),
        }
    }
}

#[test]
fn a_panic_in_the_handler_answers_its_event_and_the_rest_of_the_read() {
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    let gate = Gate::on(&scratch);
    let openers = [Opener::cat(&file), Opener::cat(&file), Opener::cat(&file)];
    until("three events in the queue", || {
        rustix::io::ioctl_fionread(&gate.group).expect("the queue's length") == 3 * 24
    });
    let mut buffer = EventBuffer::new(8);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut events = gate.group.read(&mut buffer).expect("events");
        assert_eq!(events.len(), 3);
        let _event = events.next();
        panic!("planted");
    }));
    assert!(result.is_err());
    for opener in openers {
        opener.finish().was_denied();
    }
}

#[test]
fn an_event_is_answered_by_another_thread_than_the_readers() {
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);
    let opener = Opener::cat(&file);
    let event = gate.permission();
    let answered = std::thread::spawn(move || event.answer(Answer::Allow)).join();
    answered.expect("no panic").expect("answered");
    opener.finish().read("content");
}

#[test]
fn an_event_outlives_its_group() {
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);
    let mut opener = Opener::cat(&file);
    let event = gate.permission();
    drop(gate);
    assert!(opener.is_waiting());
    event.answer(Answer::Deny).expect("answered");
    opener.finish().was_denied();
}
