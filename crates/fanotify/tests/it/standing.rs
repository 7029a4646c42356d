//! Verdicts in the kernel: what they keep quiet, and what brings them down.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use fanotify::lease::LeaseRefused;
use fanotify::standing::{Break, Breaks, NotPlaced, StandingVerdict};
use fanotify::{Answer, Event};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::gate::Gate;
use crate::opener::{Opener, until};
use crate::scratch::Scratch;

fn each_file_system() -> [Scratch; 4] {
    [
        Scratch::ext4(),
        Scratch::xfs(),
        Scratch::btrfs(),
        Scratch::tmpfs(),
    ]
}

/// A child reads `path`, is let through, and the verdict is placed.
fn place(gate: &mut Gate, breaks: &Breaks, path: &Path) -> Result<StandingVerdict, NotPlaced> {
    let opener = Opener::cat(path);
    let event = gate.permission();
    let (file, judged) = (event.file(), event.identity().expect("an identity"));
    event.answer(Answer::Allow).expect("answered");
    assert!(opener.finish().success);
    gate.group
        .place(file, breaks.owner(), |identity| *identity == judged)
}

fn read_without_event(path: &Path, content: &str) {
    // Nobody reads the group: with an event it would hang.
    Opener::cat(path).finish().read(content);
}

#[track_caller]
fn read_with_event(gate: &mut Gate, path: &Path, content: &str) {
    let opener = Opener::cat(path);
    gate.permission().answer(Answer::Allow).expect("answered");
    opener.finish().read(content);
}

/// A writer has come to `verdict`, and we were told.
#[track_caller]
fn told_of_writer(breaks: &Breaks, verdict: &StandingVerdict) {
    let mut told = Vec::new();
    until("a writer", || {
        breaks.take(|it| told.push(it)).expect("readable");
        !told.is_empty()
    });
    assert_eq!(told, [Break::Of(verdict.number())]);
    assert!(!verdict.is_intact());
}

#[test]
fn trap_5_a_writer_waits_until_mark_and_lease_are_gone() {
    let breaks = Breaks::here().expect("a signalfd");
    for scratch in each_file_system() {
        let path = scratch.write("file", b"GOOD");
        let mut gate = Gate::on(&scratch);
        let verdict = place(&mut gate, &breaks, &path).expect("placed");
        read_without_event(&path, "GOOD");
        assert!(verdict.is_intact());

        // Maps it shared, closes it, and stores without any call that the kernel could tell of.
        let script = format!(
            "import mmap,os,sys; f = os.open('{}', os.O_RDWR); m = mmap.mmap(f, 4); os.close(f); \
             m[0:4] = b'EVIL'; print('stored', flush=True); sys.stdin.readline()",
            path.display()
        );
        let mut writer = Opener::sh(&format!("exec python3 -c \"{script}\""));
        told_of_writer(&breaks, &verdict);
        assert!(writer.is_waiting());
        read_without_event(&path, "GOOD");
        drop(verdict);
        writer.says("stored");
        read_with_event(&mut gate, &path, "EVIL");
        assert!(writer.finish().success);
        drop(gate.close_write());
    }
}

#[test]
fn trap_6_nothing_stands_while_a_writer_holds_the_file() {
    let breaks = Breaks::here().expect("a signalfd");
    for scratch in each_file_system() {
        let path = scratch.write("file", b"content");
        let writer = Opener::writer(&path);
        let mut gate = Gate::on(&scratch);
        let refused = place(&mut gate, &breaks, &path).expect_err("a writer");
        assert_eq!(refused, NotPlaced::Lease(LeaseRefused::WriterHeld));
        read_with_event(&mut gate, &path, "content");
        assert!(writer.finish().success);
    }
}

#[test]
fn trap_7_content_written_since_it_was_judged_does_not_stand() {
    let breaks = Breaks::here().expect("a signalfd");
    for scratch in each_file_system() {
        let path = scratch.write("file", b"GOOD");
        let mut gate = Gate::on(&scratch);
        let opener = Opener::cat(&path);
        let event = gate.permission();
        let (file, judged) = (event.file(), event.identity().expect("an identity"));
        event.answer(Answer::Allow).expect("answered");
        opener.finish().read("GOOD");
        let writer = Opener::sh(&format!("printf EVIL > '{}'", path.display()));
        gate.permission().answer(Answer::Allow).expect("answered");
        assert!(writer.finish().success);
        drop(gate.close_write());
        let same = |identity: &_| *identity == judged;
        let refused = gate.group.place(file, breaks.owner(), same);
        assert_eq!(refused.expect_err("changed"), NotPlaced::Changed);
        read_with_event(&mut gate, &path, "EVIL");
    }
}

#[test]
fn trap_14_execution_is_quiet_too_and_comes_back_with_the_drop() {
    let breaks = Breaks::here().expect("a signalfd");
    let scratch = Scratch::ext4();
    let path = scratch.write("script", b"#!/bin/sh\necho ran\n");
    assert!(
        Opener::sh(&format!("chmod +x '{}'", path.display()))
            .finish()
            .success
    );
    let mut gate = Gate::on(&scratch);
    let verdict = place(&mut gate, &breaks, &path).expect("placed");
    let run = || Opener::sh(&format!("exec '{}'", path.display()));
    run().finish().read("ran\n");
    drop(verdict);
    let running = run();
    let mut kinds = Vec::new();
    // The exec itself, its open, and the interpreter's.
    for _ in 0..3 {
        let event = gate.permission();
        kinds.push(event.kind);
        event.answer(Answer::Allow).expect("answered");
    }
    running.finish().read("ran\n");
    assert!(kinds.contains(&fanotify::OpenKind::OpenExec), "{kinds:?}");
}

#[test]
fn it_holds_for_the_inode_whatever_its_name() {
    let breaks = Breaks::here().expect("a signalfd");
    let scratch = Scratch::ext4();
    let path = scratch.write("file", b"one");
    let new = scratch.write("new", b"two");
    let link = scratch.path("link");
    let mut gate = Gate::on(&scratch);
    let verdict = place(&mut gate, &breaks, &path).expect("placed");
    std::fs::hard_link(&path, &link).expect("a link");
    read_without_event(&link, "one");
    std::fs::rename(&new, &path).expect("renamed over");
    read_with_event(&mut gate, &path, "two");
    assert!(!verdict.is_deleted());
    std::fs::remove_file(&link).expect("removed");
    assert!(verdict.is_deleted());
}

#[test]
fn a_writer_that_does_not_wait_is_told_to_try_again() {
    let breaks = Breaks::here().expect("a signalfd");
    let scratch = Scratch::ext4();
    let path = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);
    let verdict = place(&mut gate, &breaks, &path).expect("placed");
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    let open = || rustix::fs::open(&path, flags, Mode::empty());
    assert_eq!(open().err(), Some(Errno::AGAIN));
    told_of_writer(&breaks, &verdict);
    drop(verdict);
    let writer = Opener::sh(&format!("printf x >> '{}'", path.display()));
    gate.permission().answer(Answer::Allow).expect("answered");
    assert!(writer.finish().success);
}

#[test]
fn trap_2_who_takes_a_group_over_lifts_what_stands() {
    let breaks = Breaks::here().expect("a signalfd");
    let scratch = Scratch::ext4();
    let path = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);
    let verdict = place(&mut gate, &breaks, &path).expect("placed");
    read_without_event(&path, "content");
    gate.group.lift_all().expect("flushed");
    read_with_event(&mut gate, &path, "content");
    // What is gone already is no harm.
    drop(verdict);
    read_with_event(&mut gate, &path, "content");
}

/// Each writer is told of, and none is lost among many.
#[test]
fn many_writers_at_once() {
    const FILES: usize = 200;
    let breaks = Breaks::here().expect("a signalfd");
    let scratch = Scratch::tmpfs();
    let paths: Vec<_> = (0..FILES)
        .map(|n| scratch.write(&n.to_string(), b"content"))
        .collect();
    let files: Vec<OwnedFd> = paths
        .iter()
        .map(|path| File::open(path).expect("open").into())
        .collect();
    let gate = Gate::on(&scratch);
    let mut verdicts = Vec::new();
    for file in files {
        let placed = gate.group.place(file.into(), breaks.owner(), |_| true);
        verdicts.push(placed.expect("placed"));
    }
    let mut writers: Vec<_> = paths
        .iter()
        .map(|path| {
            std::thread::spawn({
                let path = path.clone();
                move || File::options().write(true).open(path).map(drop)
            })
        })
        .collect();
    until("all writers", || {
        breaks
            .take(|told| match told {
                Break::Of(number) => verdicts.retain(|it| it.number() != number),
                Break::Some => verdicts.retain(StandingVerdict::is_intact),
            })
            .expect("readable");
        verdicts.is_empty()
    });
    for writer in writers.drain(..) {
        writer.join().expect("a writer").expect("let in");
    }
}

/// The layers' real inodes carry the verdict, whichever way they are opened (trap 12).
#[test]
fn trap_12_it_holds_through_an_overlay_and_falls_with_a_writer_there() {
    let breaks = Breaks::here().expect("a signalfd");
    let layers = Scratch::ext4();
    let overlay = Scratch::overlay(&layers);
    layers.write("lower/file", b"lower");
    layers.write("upper/written", b"upper");
    let mut gate = Gate::on(&layers);
    let lower = place(&mut gate, &breaks, &overlay.path("file")).expect("placed");
    let upper = place(&mut gate, &breaks, &overlay.path("written")).expect("placed");
    read_without_event(&overlay.path("file"), "lower");
    read_without_event(&layers.path("lower/file"), "lower");
    read_without_event(&overlay.path("written"), "upper");

    let append = format!("printf more >> '{}'", overlay.path("written").display());
    let writer = Opener::sh(&append);
    told_of_writer(&breaks, &upper);
    drop(upper);
    assert!(writer.finish().success);
    drop(gate.close_write());
    read_with_event(&mut gate, &overlay.path("written"), "uppermore");

    // Copied up first: another inode, which raises its own events.
    let append = format!("printf more >> '{}'", overlay.path("file").display());
    let gate = {
        let writer = Opener::sh(&append);
        let handler = |event| {
            if let Event::Permission(event) = event {
                event.answer(Answer::Allow).expect("answered");
                return true;
            }
            false
        };
        let asked = gate.serving(handler, || {
            assert!(writer.finish().success);
            Opener::cat(&overlay.path("file"))
                .finish()
                .read("lowermore");
        });
        asked.into_iter().filter(|asked| *asked).count()
    };
    assert!(gate > 0, "the copy was asked about");
    assert!(lower.is_intact(), "the lower file was not written");
}

#[test]
fn a_file_without_leases_does_not_stand() {
    let breaks = Breaks::here().expect("a signalfd");
    let gate = Gate::unmarked();
    let null: OwnedFd = File::open("/dev/null").expect("a device").into();
    let refused = gate.group.place(null.into(), breaks.owner(), |_| true);
    let unsupported = NotPlaced::Lease(LeaseRefused::Unsupported(libc::EINVAL));
    assert_eq!(refused.expect_err("not a regular file"), unsupported);
}
