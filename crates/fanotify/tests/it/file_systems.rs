//! Which file an event is about, on plain, stacked and foreign file systems.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fanotify::filesystem::FilesystemKind;
use fanotify::lease::is_unwritten;
use fanotify::{Answer, Event, FileIdentity, FileKind, MarkError, MarkMask, OpenKind, path_of};

use crate::fuse::FuseServer;
use crate::gate::{Gate, new_group};
use crate::opener::Opener;
use crate::raw::SharedMapping;
use crate::scratch::Scratch;

/// The one event that a child's reading of `path` raises.
fn identity_at_open(gate: &mut Gate, path: &Path) -> FileIdentity {
    let opener = Opener::cat(path);
    let event = gate.permission();
    assert_eq!(event.pid, opener.pid());
    let identity = event.identity().expect("an identity");
    event.answer(Answer::Allow).expect("answered");
    assert!(opener.finish().success);
    identity
}

#[test]
fn each_local_file_system_is_guarded_and_cacheable() {
    for scratch in [
        Scratch::ext4(),
        Scratch::xfs(),
        Scratch::btrfs(),
        Scratch::tmpfs(),
    ] {
        let path = scratch.write("file", b"content");
        let mut gate = Gate::on(&scratch);
        let opener = Opener::cat(&path);
        let event = gate.permission();
        assert_eq!(
            FilesystemKind::of(event.fd()).expect("a kind"),
            FilesystemKind::Local
        );
        let identity = event.identity().expect("an identity");
        assert_eq!((identity.kind, identity.size), (FileKind::Regular, 7));
        assert_eq!(
            path_of(event.fd()).expect("a path"),
            path.as_os_str().as_bytes()
        );
        event.answer(Answer::Deny).expect("answered");
        opener.finish().was_denied();
    }
}

#[test]
fn an_opener_in_another_mount_namespace_is_guarded() {
    let scratch = Scratch::ext4();
    let path = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);
    let opener = Opener::sh(&format!("exec unshare --mount cat '{}'", path.display()));
    gate.permission().answer(Answer::Deny).expect("answered");
    opener.finish().was_denied();
}

/// Both layers' file system and the overlay could raise events. Marked together they would stop
/// the reader for ever, so the layers are marked alone: one event an open, and always the real file.
#[test]
fn trap_12_an_overlay_is_refused_and_its_layers_show_the_real_file_once() {
    let layers = Scratch::ext4();
    let overlay = Scratch::overlay(&layers);
    let lower = layers.write("lower/file", b"content");
    let merged = overlay.path("file");
    let mut gate = Gate::on(&layers);
    match gate.group.mark_filesystem(&overlay.root(), MarkMask::ALL) {
        Err(MarkError::Refused { kind, .. }) => assert_eq!(kind, FilesystemKind::Stacked),
        other => panic!("expected a refusal: {other:?}"),
    }

    // Each call takes one event, of its own child: so an open raises exactly one.
    let direct = identity_at_open(&mut gate, &lower);
    assert_eq!(identity_at_open(&mut gate, &merged), direct);
    assert_eq!(identity_at_open(&mut gate, &lower), direct);

    // Written through the overlay it becomes another real file, in the upper layer.
    let copied_up = gate.serving(
        |event| match event {
            Event::Permission(event) => event.answer(Answer::Allow).expect("answered"),
            Event::CloseWrite(_) | Event::Overflow => {}
        },
        || {
            let append = format!("echo more >> '{}'", merged.display());
            assert!(Opener::sh(&append).finish().success);
        },
    );
    assert!(!copied_up.is_empty());
    let mut gate = Gate::on(&layers);
    let upper = identity_at_open(&mut gate, &layers.path("upper/file"));
    assert_ne!(upper.ino, direct.ino);
    assert_eq!(identity_at_open(&mut gate, &merged), upper);
}

/// Why verdicts from an overlay's own descriptors may not be cached, and those from the layers may.
#[test]
fn trap_12_a_mapping_made_through_the_overlay_is_seen_on_the_real_file() {
    let layers = Scratch::ext4();
    let overlay = Scratch::overlay(&layers);
    let merged = overlay.write("file", b"content");
    let mapping = SharedMapping::of(&merged);
    let through = File::open(&merged).expect("open");
    assert!(
        is_unwritten(through.as_fd()),
        "the overlay's own inode shows no writer"
    );
    assert!(
        !FilesystemKind::of(&through)
            .expect("a kind")
            .verdicts_may_be_cached()
    );
    drop(through);

    let mut gate = Gate::on(&layers);
    let mut is_unwritten_at_open = || {
        let opener = Opener::cat(&merged);
        let event = loop {
            match gate.next() {
                Event::Permission(event) => break event,
                Event::CloseWrite(_) => {}
                Event::Overflow => panic!("a short queue is full"),
            }
        };
        let unwritten = is_unwritten(event.fd());
        event.answer(Answer::Allow).expect("answered");
        opener.finish().read("content");
        unwritten
    };
    assert!(!is_unwritten_at_open());
    drop(mapping);
    assert!(is_unwritten_at_open());
}

#[test]
fn trap_14_a_script_given_to_its_interpreter_is_asked_about() {
    let scratch = Scratch::ext4();
    let script = scratch.write("script", b"echo ran\n");
    let mut gate = Gate::on(&scratch);
    let opener = Opener::sh(&format!("exec sh '{}'", script.display()));
    let event = gate.permission();
    assert_eq!(
        event.kind,
        OpenKind::Open,
        "an exec-only mask would have missed it"
    );
    event.answer(Answer::Allow).expect("answered");
    opener.finish().read("ran\n");
}

#[test]
fn trap_14_an_exec_raises_two_events_of_one_process_and_file() {
    let layers = Scratch::ext4();
    let overlay = Scratch::overlay(&layers);
    let program = overlay.path("program");
    std::fs::copy("/bin/true", &program).expect("a program");
    let mut gate = Gate::on(&layers);
    for path in [layers.path("upper/program"), program] {
        let opener = Opener::sh(&format!("exec '{}'", path.display()));
        let exec = gate.permission();
        let (kind, pid) = (exec.kind, exec.pid);
        let identity = exec.identity().expect("an identity");
        assert_eq!((kind, pid), (OpenKind::OpenExec, opener.pid()));
        exec.answer(Answer::Allow).expect("answered");
        let open = gate.permission();
        assert_eq!((open.kind, open.pid), (OpenKind::Open, pid));
        assert_eq!(open.identity().expect("an identity"), identity);
        open.answer(Answer::Allow).expect("answered");
        assert!(opener.finish().success);
    }
}

#[test]
fn trap_16_the_descriptor_is_the_opened_file_when_the_path_is_another() {
    let scratch = Scratch::ext4();
    let path = scratch.write("file", b"evil");
    let decoy = scratch.write("decoy", b"a longer, harmless file");
    let real = FileIdentity::of(File::open(&path).expect("open").as_fd()).expect("an identity");
    let mut gate = Gate::on(&scratch);
    let opener = Opener::cat(&path);
    let event = gate.permission();
    std::fs::rename(&decoy, &path).expect("renamed over the file that is being opened");

    let identity = event.identity().expect("an identity");
    assert_eq!((identity.ino, identity.size), (real.ino, 4));
    let mut content = [0; 8];
    let length = rustix::io::pread(event.fd(), &mut content, 0).expect("readable");
    assert_eq!(content.get(..length), Some(&b"evil"[..]));
    let shown = path_of(event.fd()).expect("a path");
    assert!(shown.ends_with(b" (deleted)"), "{}", shown.escape_ascii());

    event.answer(Answer::Allow).expect("answered");
    opener.finish().read("evil");
}

#[test]
fn trap_17_a_fuse_file_system_is_refused() {
    let scratch = Scratch::unmounted();
    let server = FuseServer::mounted_at(&scratch.root());
    let group = new_group(Answer::Deny);
    match group.mark_filesystem(&scratch.root(), MarkMask::ALL) {
        Err(
            error @ MarkError::Refused {
                kind: FilesystemKind::Fuse,
                ..
            },
        ) => {
            assert!(error.to_string().contains("is not guarded"), "{error}");
        }
        other => panic!("expected a refusal: {other:?}"),
    }
    drop(scratch);
    server.join().expect("the server ends with its mount");
}
