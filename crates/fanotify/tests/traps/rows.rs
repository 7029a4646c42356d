//! The rows. Each test uses the mitigation as the agent does, and fails without it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use fanotify::filesystem::FilesystemKind;
use fanotify::lease::{LeaseRefused, ReadLease};
use fanotify::limits::Reserve;
use fanotify::standing::{Breaks, NotPlaced, StandingVerdict};
use fanotify::{Answer, Event, FileIdentity, MarkError, MarkMask, OpenKind, ReadError};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::fuse::FuseServer;
use crate::gate::{Gate, new_group};
use crate::ground::{Ground, Kind};
use crate::opener::{Opener, until};
use crate::raw::respond;
use crate::scratch::Scratch;

/// One row of the table of kernel traps.
pub(crate) struct Row {
    pub(crate) number: u8,
    pub(crate) name: &'static str,
    pub(crate) kinds: &'static [Kind],
    pub(crate) test: fn(&Ground),
}

const fn row(number: u8, name: &'static str, test: fn(&Ground)) -> Row {
    Row {
        number,
        name,
        kinds: &Kind::LOCAL,
        test,
    }
}

/// Those that are this crate's to mitigate.
pub(crate) const ROWS: &[Row] = &[
    row(1, "own_opens_never_wait_for_us", own_opens),
    row(3, "without_descriptors_the_reserve_answers", no_descriptors),
    row(4, "a_full_queue_is_told", full_queue),
    row(
        5,
        "a_mapped_store_comes_after_the_verdict_is_gone",
        mapped_store,
    ),
    row(6, "no_verdict_stands_beside_a_writer", silent_refusal),
    row(
        7,
        "a_writer_during_the_reading_is_seen",
        writer_during_reading,
    ),
    row(8, "closes_and_opens_come_in_order", close_then_open),
    row(9, "no_opener_is_left_without_an_answer", refused_answer),
    row(10, "answers_go_by_the_events_own_number", number_of_answer),
    row(
        11,
        "openers_in_other_mount_namespaces_are_seen",
        mount_namespace,
    ),
    row(12, "an_overlay_shows_the_real_file_once", overlay_once),
    row(
        14,
        "a_script_given_to_its_interpreter_is_asked_about",
        interpreter,
    ),
    row(16, "only_the_descriptor_names_the_file", other_file_by_path),
    Row {
        number: 17,
        name: "what_a_process_serves_is_not_marked",
        kinds: &[Kind::Fuse],
        test: fuse_refused,
    },
];

/// Those that the agent mitigates, and where their tests are.
pub(crate) const ELSEWHERE: [(u8, &str, &str); 3] = [
    (
        2,
        "death_of_the_groups_last_holder",
        "crates/agent: supervisor",
    ),
    (
        13,
        "execution_of_a_memfd_is_reported",
        "crates/agent: everywhere",
    ),
    (
        15,
        "what_was_open_before_the_marks_is_judged",
        "crates/agent: everywhere",
    ),
];

fn allow(gate: &mut Gate) {
    gate.permission().answer(Answer::Allow).expect("answered");
}

/// The next opener's event; closes of writers before it are of no interest.
fn next_open(gate: &mut Gate) -> fanotify::PermissionEvent {
    loop {
        match gate.next() {
            Event::Permission(event) => return event,
            Event::CloseWrite(_) => {}
            Event::Overflow => panic!("a short queue is full"),
        }
    }
}

fn place(gate: &mut Gate, breaks: &Breaks, path: &Path) -> Result<StandingVerdict, NotPlaced> {
    let opener = Opener::cat(path);
    let event = next_open(gate);
    let (file, judged) = (event.file(), event.identity().expect("an identity"));
    event.answer(Answer::Allow).expect("answered");
    assert!(opener.finish().success);
    gate.group
        .place(file, breaks.owner(), |identity| *identity == judged)
}

fn own_opens(ground: &Ground) {
    let path = ground.write("file", b"content");
    let gate = ground.guarded();
    // Whatever is shown is dropped, and so denied.
    gate.serving(drop, || {
        assert_eq!(std::fs::read(&path).expect("our own open"), b"content");
        Opener::cat(&path).finish().was_denied();
    });
}

fn no_descriptors(ground: &Ground) {
    const LIMIT: u64 = 64;
    let path = ground.write("file", b"content");
    let openers = {
        let mut gate = ground.guarded();
        let mut reserve = Reserve::new(8).expect("a reserve");
        let openers = [Opener::cat(&path), Opener::cat(&path), Opener::cat(&path)];
        let limit = Rlimit {
            current: Some(LIMIT),
            maximum: Some(LIMIT),
        };
        setrlimit(Resource::Nofile, limit).expect("lowered");
        let mut hog = Vec::new();
        while let Ok(descriptor) = rustix::io::fcntl_dupfd_cloexec(&gate.group, 0) {
            hog.push(descriptor);
        }
        let error = gate.try_next().expect_err("no descriptor");
        assert!(matches!(error, ReadError::OutOfDescriptors(_)), "{error}");
        reserve.release();
        allow(&mut gate);
        allow(&mut gate);
        openers
    };
    let ended = openers.map(Opener::finish);
    let passed = ended.iter().filter(|ended| ended.success).count();
    assert_eq!(passed, 2, "one was denied by the kernel: {ended:?}");
}

fn full_queue(ground: &Ground) {
    let limit = std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events");
    let limit: usize = limit
        .expect("a kernel with fanotify")
        .trim()
        .parse()
        .expect("a number");
    let path = ground.write("file", b"content");
    let mut gate = Gate::unmarked();
    let closes = MarkMask {
        open_perm: false,
        open_exec_perm: false,
        close_write: true,
    };
    ground.mark(&gate, closes);
    let fill = Opener::sh(&format!(
        "cd '{}'; i=0; while [ $i -lt {} ]; do : > q$i; i=$((i+1)); done",
        ground.root().display(),
        limit + 100
    ));
    assert!(fill.finish().success);
    ground.mark(&gate, MarkMask::ALL);
    // The trap: nobody reads, and yet the open is let through.
    Opener::cat(&path).finish().read("content");
    for _ in 0..limit {
        drop(gate.close_write());
    }
    // A later open, so that there is an event in any case.
    let opener = Opener::cat(&path);
    assert!(matches!(gate.next(), Event::Overflow), "not told");
    gate.permission().answer(Answer::Deny).expect("asked again");
    opener.finish().was_denied();
}

fn mapped_store(ground: &Ground) {
    let breaks = Breaks::here().expect("a signalfd");
    let path = ground.write("file", b"GOOD");
    let mut gate = ground.guarded();
    let verdict = place(&mut gate, &breaks, &path).expect("placed");
    Opener::cat(&path).finish().read("GOOD");
    let script = format!(
        "import mmap, os; f = os.open('{}', os.O_RDWR); m = mmap.mmap(f, 4); os.close(f); \
         m[0:4] = b'EVIL'",
        path.display()
    );
    let mut writer = Opener::sh(&format!("exec python3 -c \"{script}\""));
    let mut told = false;
    until("the writer", || {
        breaks.take(|_| told = true).expect("readable");
        told || !writer.is_waiting()
    });
    assert!(
        told && writer.is_waiting(),
        "it was let in beside the verdict"
    );
    Opener::cat(&path).finish().read("GOOD");
    drop(verdict);
    assert!(writer.finish().success);
    let opener = Opener::cat(&path);
    next_open(&mut gate)
        .answer(Answer::Allow)
        .expect("asked again");
    opener.finish().read("EVIL");
}

fn silent_refusal(ground: &Ground) {
    let breaks = Breaks::here().expect("a signalfd");
    let path = ground.write("file", b"content");
    let writer = Opener::writer(&path);
    let mut gate = ground.guarded();
    let refused = place(&mut gate, &breaks, &path).expect_err("a writer");
    assert_eq!(refused, NotPlaced::Lease(LeaseRefused::WriterHeld));
    assert!(writer.finish().success);
}

fn writer_during_reading(ground: &Ground) {
    let path = ground.write("file", b"GOOD");
    let mut gate = ground.guarded();
    let reader = Opener::cat(&path);
    let event = gate.permission();
    let lease = ReadLease::try_take(event.file()).expect("no writer");
    event.answer(Answer::Allow).expect("answered");
    reader.finish().read("GOOD");
    let mut writer = Opener::sh(&format!("printf EVIL > '{}'", path.display()));
    next_open(&mut gate)
        .answer(Answer::Allow)
        .expect("answered");
    until("the lease's break", || !lease.is_intact());
    assert!(writer.is_waiting());
    drop(lease);
    assert!(writer.finish().success);
}

fn close_then_open(ground: &Ground) {
    const ROUNDS: usize = 100;
    ground.write("file", b"0\n");
    let gate = ground.guarded();
    let script = format!(
        "cd '{}'; i=0; while [ $i -lt {ROUNDS} ]; do echo $i > file; read x < file; i=$((i+1)); done",
        ground.root().display()
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
    assert_eq!(order, "oco".repeat(ROUNDS));
}

fn refused_answer(ground: &Ground) {
    let path = ground.write("file", b"content");
    let mut gate = ground.guarded();
    let mut opener = Opener::cat(&path);
    let event = gate.permission();
    let deny_errno = libc::FAN_DENY | (libc::EACCES.cast_unsigned() << 24);
    let refused = respond(&gate.group, event.fd().as_raw_fd(), deny_errno);
    assert_eq!(refused, Err(Errno::INVAL));
    assert!(opener.is_waiting());
    drop(event);
    opener.finish().was_denied();
}

fn number_of_answer(ground: &Ground) {
    let path = ground.write("file", b"content");
    let mut gate = ground.guarded();
    let opener = Opener::cat(&path);
    let event = gate.permission();
    drop(event.file());
    event.answer(Answer::Allow).expect("answered by its number");
    opener.finish().read("content");
}

fn mount_namespace(ground: &Ground) {
    let path = ground.write("file", b"content");
    let mut gate = ground.guarded();
    let mut opener = Opener::sh(&format!("exec unshare --mount cat '{}'", path.display()));
    until("an event", || {
        let queued = rustix::io::ioctl_fionread(&gate.group).expect("the queue's length") > 0;
        queued || !opener.is_waiting()
    });
    assert!(opener.is_waiting(), "it passed unseen");
    gate.permission().answer(Answer::Deny).expect("answered");
    opener.finish().was_denied();
}

fn overlay_once(ground: &Ground) {
    let overlay = Scratch::overlay(&ground.base);
    let lower = ground.base.write("lower/file", b"content");
    let mut gate = ground.guarded();
    match gate.group.mark_filesystem(&overlay.root(), MarkMask::ALL) {
        Err(MarkError::Refused { kind, .. }) => assert_eq!(kind, FilesystemKind::Stacked),
        other => panic!("expected a refusal: {other:?}"),
    }
    let mut identity_at_open = |path: &Path| {
        let opener = Opener::cat(path);
        let event = gate.permission();
        assert_eq!(event.pid, opener.pid());
        let identity = event.identity().expect("an identity");
        event.answer(Answer::Allow).expect("answered");
        opener.finish().read("content");
        identity
    };
    let direct = identity_at_open(&lower);
    assert_eq!(identity_at_open(&overlay.path("file")), direct);
    assert_eq!(identity_at_open(&lower), direct);
}

fn interpreter(ground: &Ground) {
    let script = ground.write("script", b"echo ran\n");
    let mut gate = ground.guarded();
    let opener = Opener::sh(&format!("exec sh '{}'", script.display()));
    let event = gate.permission();
    assert_eq!(event.kind, OpenKind::Open);
    event.answer(Answer::Allow).expect("answered");
    opener.finish().read("ran\n");
}

fn other_file_by_path(ground: &Ground) {
    let path = ground.write("file", b"evil");
    let decoy = ground.write("decoy", b"a longer, harmless file");
    let before = File::open(&path).expect("open");
    let before = FileIdentity::of(before.as_fd()).expect("an identity");
    let mut gate = ground.guarded();
    let opener = Opener::cat(&path);
    let event = gate.permission();
    std::fs::rename(&decoy, &path).expect("renamed over what is being opened");
    let seen = event.identity().expect("of the file that is being opened");
    assert_eq!(seen.size, before.size);
    event.answer(Answer::Allow).expect("answered");
    opener.finish().read("evil");
}

fn fuse_refused(ground: &Ground) {
    let root = ground.base.root();
    let _server = FuseServer::mounted_at(&root);
    match new_group(Answer::Deny).mark_filesystem(&root, MarkMask::ALL) {
        Err(MarkError::Refused { kind, .. }) => assert_eq!(kind, FilesystemKind::Fuse),
        other => panic!("expected a refusal: {other:?}"),
    }
}
