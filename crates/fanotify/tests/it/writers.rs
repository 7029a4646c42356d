//! Writers: who holds a file, who came meanwhile, and in which order it is told.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use fanotify::lease::{LeaseRefused, ReadLease, is_unwritten};
use fanotify::{Answer, Event, FileIdentity};

use crate::gate::Gate;
use crate::opener::{Opener, until};
use crate::raw::SharedMapping;
use crate::scratch::Scratch;

fn identity(file: &File) -> FileIdentity {
    FileIdentity::of(file.as_fd()).expect("an identity")
}

/// Opens `path` by a child, looks at the event's file, and lets it through.
fn with_event_file<T>(
    gate: &mut Gate,
    path: &std::path::Path,
    look: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> T,
) -> T {
    let opener = Opener::cat(path);
    let event = gate.permission();
    let seen = look(event.fd());
    event.answer(Answer::Allow).expect("answered");
    assert!(opener.finish().success);
    seen
}

/// An ignore mark would be refused without a word here; the lease test tells.
#[test]
fn trap_6_a_held_writer_is_seen_on_each_file_system() {
    for scratch in [
        Scratch::ext4(),
        Scratch::xfs(),
        Scratch::btrfs(),
        Scratch::tmpfs(),
    ] {
        let file = scratch.write("file", b"content");
        let writer = Opener::writer(&file);
        let mut gate = Gate::on(&scratch);
        assert!(!with_event_file(&mut gate, &file, is_unwritten));
        let refused = with_event_file(&mut gate, &file, |fd| ReadLease::try_take(fd).err());
        assert_eq!(refused, Some(LeaseRefused::WriterHeld));

        assert!(writer.finish().success);
        drop(gate.close_write());
        assert!(with_event_file(&mut gate, &file, is_unwritten));
    }
}

#[test]
fn trap_6_a_writable_shared_mapping_is_a_writer_without_descriptor() {
    for scratch in [
        Scratch::ext4(),
        Scratch::xfs(),
        Scratch::btrfs(),
        Scratch::tmpfs(),
    ] {
        let file = scratch.write("file", b"content");
        let mapping = SharedMapping::of(&file);
        let mut gate = Gate::on(&scratch);
        assert!(!with_event_file(&mut gate, &file, is_unwritten));
        drop(mapping);
        drop(gate.close_write());
        assert!(with_event_file(&mut gate, &file, is_unwritten));
    }
}

/// A lease taken before the first byte: the writer waits, the bytes stay, and the holder is told.
#[test]
fn trap_7_a_writer_that_comes_while_we_read_waits_and_is_told() {
    for scratch in [
        Scratch::ext4(),
        Scratch::xfs(),
        Scratch::btrfs(),
        Scratch::tmpfs(),
    ] {
        let path = scratch.write("file", b"GOOD");
        let mut gate = Gate::on(&scratch);
        let reader = Opener::cat(&path);
        let event = gate.permission();
        let before = event.identity().expect("an identity");
        let file = event.file();
        let lease = ReadLease::try_take(event.file()).expect("no writer");
        assert!(lease.is_intact());
        event.answer(Answer::Allow).expect("answered");
        reader.finish().read("GOOD");
        assert!(lease.is_intact(), "a reader breaks no lease");

        let mut writer = Opener::sh(&format!("printf EVIL > '{}'", path.display()));
        gate.permission().answer(Answer::Allow).expect("answered");
        until("the lease's break", || !lease.is_intact());
        assert!(writer.is_waiting());
        let mut content = [0; 8];
        let length = rustix::io::pread(&file, &mut content, 0).expect("readable");
        assert_eq!(content.get(..length), Some(&b"GOOD"[..]));

        drop(lease);
        assert!(writer.finish().success);
        let closed = gate.close_write();
        assert_ne!(closed.identity().expect("an identity"), before);
        let mut written = String::new();
        File::from(closed.into_file())
            .read_to_string(&mut written)
            .expect("readable");
        assert_eq!(written, "EVIL");
    }
}

#[test]
fn leases_of_two_events_on_one_file_are_independent() {
    let scratch = Scratch::tmpfs();
    let path = scratch.write("file", b"content");
    let (first, second) = (
        File::open(&path).expect("open"),
        File::open(&path).expect("open"),
    );
    let lease = ReadLease::try_take(first.as_fd()).expect("a lease");
    assert!(is_unwritten(second.as_fd()));
    assert!(
        lease.is_intact(),
        "the quick test ended another description's lease"
    );
}

#[test]
fn a_file_that_cannot_have_a_lease_is_told_apart_from_a_written_one() {
    let null = File::open("/dev/null").expect("a device");
    let refused = ReadLease::try_take(null.as_fd()).expect_err("not a regular file");
    assert_eq!(refused, LeaseRefused::Unsupported(libc::EINVAL));
    assert!(!is_unwritten(null.as_fd()));
}

#[test]
fn trap_8_a_close_write_is_read_before_the_next_open() {
    const ROUNDS: usize = 500;
    for scratch in [Scratch::ext4(), Scratch::tmpfs()] {
        let path = scratch.write("file", b"0\n");
        let gate = Gate::on(&scratch);
        let script = format!(
            "cd '{}'; i=0; while [ $i -lt {ROUNDS} ]; do echo $i > file; read x < file; i=$((i+1)); done",
            scratch.root().display()
        );
        let order = gate.serving(
            |event| match event {
                Event::Permission(event) => {
                    event.answer(Answer::Allow).expect("answered");
                    'o'
                }
                Event::CloseWrite(_) => 'c',
                Event::Overflow => '!',
            },
            || assert!(Opener::sh(&script).finish().success),
        );
        let order: String = order.into_iter().collect();
        assert_eq!(
            order,
            "oco".repeat(ROUNDS),
            "writer's open, close-write, reader's open"
        );
        drop(path);
    }
}

#[test]
fn a_write_changes_the_identity_and_a_read_does_not() {
    for scratch in [
        Scratch::ext4(),
        Scratch::xfs(),
        Scratch::btrfs(),
        Scratch::tmpfs(),
    ] {
        let path = scratch.write("file", b"one");
        let file = File::open(&path).expect("open");
        let before = identity(&file);
        assert_eq!(std::fs::read(&path).expect("readable"), b"one");
        assert_eq!(identity(&file), before);
        // Stamps are coarse: write until they have moved.
        until("a new stamp", || {
            std::fs::write(&path, b"two").expect("writable");
            identity(&file) != before
        });
        let other = File::open(scratch.write("other", b"one")).expect("open");
        assert_ne!(identity(&file).ino, identity(&other).ino);
    }
}

/// Other bytes of the same length, and the old modification time put back.
#[test]
fn a_forged_modification_time_does_not_restore_the_identity() {
    for scratch in [
        Scratch::ext4(),
        Scratch::xfs(),
        Scratch::btrfs(),
        Scratch::tmpfs(),
    ] {
        let path = scratch.write("file", b"GOOD");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open");
        let modified = file.metadata().and_then(|m| m.modified()).expect("a time");
        let before = identity(&file);
        until("a new stamp", || {
            std::fs::write(&path, b"EVIL").expect("writable");
            file.set_modified(modified).expect("our own file");
            identity(&file) != before
        });
        let after = identity(&file);
        assert_eq!((after.size, after.mtime_ns), (before.size, before.mtime_ns));
    }
}

#[test]
fn two_inodes_have_two_generations() {
    // tmpfs tells none.
    for scratch in [Scratch::ext4(), Scratch::xfs()] {
        let [one, two] = ["one", "two"].map(|name| {
            let file = File::open(scratch.write(name, b"same")).expect("open");
            identity(&file).generation
        });
        assert_ne!(one, two, "drawn at random from 32 bits");
    }
}
