//! The reader: interrupted, and not to be stopped by what a guest opens.

use fanotify::{Answer, Event, EventBuffer, MarkMask, ReadError};

use crate::gate::{Gate, new_group};
use crate::opener::Opener;
use crate::raw::with_write_lease;
use crate::scratch::Scratch;

#[test]
fn a_blocked_reader_is_interrupted_for_good() {
    let group = new_group(Answer::Deny);
    let interrupter = group.interrupter();
    let reader = std::thread::spawn(move || {
        let mut buffer = EventBuffer::new(1);
        let first = group.read(&mut buffer).map(|events| events.len());
        let second = group.read(&mut buffer).map(|events| events.len());
        (first, second)
    });
    interrupter.interrupt();
    let results = reader.join().expect("the reader");
    assert!(
        matches!(
            results,
            (Err(ReadError::Interrupted), Err(ReadError::Interrupted))
        ),
        "{results:?}"
    );
}

/// The kernel opens the event's file inside our read. A write lease of any user on a file of his
/// would hold the reader there for `lease-break-time`, and all openers with it.
#[test]
fn a_guests_write_lease_does_not_stop_the_reader() {
    let scratch = Scratch::ext4();
    let leased = scratch.write("leased", b"content");
    let other = scratch.write("other", b"content");
    // Sets SIGIO to be ignored, as this test's own lease will be broken.
    let file = std::fs::File::open(&other).expect("open");
    assert!(fanotify::lease::is_unwritten(std::os::fd::AsFd::as_fd(
        &file
    )));
    let lease = with_write_lease(&leased);
    let mut gate = Gate::on(&scratch);

    let opener = Opener::cat(&leased);
    match gate.try_next() {
        Err(ReadError::Unopenable(error)) => {
            assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        }
        result => panic!("expected that the file cannot be opened: {result:?}"),
    }
    opener.finish().was_denied();

    let opener = Opener::cat(&other);
    gate.permission().answer(Answer::Allow).expect("answered");
    opener.finish().read("content");

    drop(lease);
    drop(gate.close_write());
    let opener = Opener::cat(&leased);
    gate.permission()
        .answer(Answer::Allow)
        .expect("asked, now that the lease is gone");
    opener.finish().read("content");
}

/// Kernels that ask about FIFOs would open them inside our read, and wait there for a writer.
#[test]
fn a_fifo_does_not_stop_the_reader() {
    let scratch = Scratch::ext4();
    let path = scratch.path("fifo");
    let path = path.display();
    assert!(Opener::sh(&format!("mkfifo '{path}'")).finish().success);
    let gate = Gate::on(&scratch);
    gate.serving(
        |event| {
            if let Event::Permission(event) = event {
                event.answer(Answer::Allow).expect("answered");
            }
        },
        || {
            Opener::sh(&format!("echo through > '{path}' & cat '{path}'"))
                .finish()
                .read("through\n")
        },
    );
}

#[test]
fn an_unmarked_file_system_raises_nothing() {
    let scratch = Scratch::tmpfs();
    let file = scratch.write("file", b"content");
    let gate = Gate::on(&scratch);
    gate.group.unmark_all().expect("unmarked");
    // Nobody reads: an event would hang it.
    Opener::cat(&file).finish().read("content");
}

#[test]
fn marks_are_told_by_the_kernel() {
    let scratch = Scratch::tmpfs();
    let root = scratch.root();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);
    assert!(gate.group.is_marked(&root).expect("known"));
    // To ask changes nothing: events still come.
    let opener = Opener::cat(&file);
    let event = gate.permission();
    event.answer(Answer::Allow).expect("answered");
    opener.finish().read("content");
    gate.group.unmark_all().expect("unmarked");
    assert!(!gate.group.is_marked(&root).expect("known"));
    let missing = gate.group.is_marked(&scratch.path("missing"));
    assert!(matches!(missing, Err(fanotify::MarkError::Open { .. })));
}

#[test]
fn a_path_that_cannot_be_marked_is_named() {
    let scratch = Scratch::tmpfs();
    let file = scratch.write("file", b"content");
    let group = new_group(Answer::Deny);
    for path in [file, scratch.path("missing")] {
        let error = group
            .mark_filesystem(&path, MarkMask::ALL)
            .expect_err("not a directory");
        assert!(
            error.to_string().contains(path.to_str().expect("UTF-8")),
            "{error}"
        );
    }
}
