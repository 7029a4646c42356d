//! Limits: descriptors and the kernel's queue.

use std::process::Command;

use fanotify::limits::{Reserve, make_room, raise_nofile};
use fanotify::{Answer, Event, MarkMask, ReadError};
use rustix::io::Errno;

use crate::gate::Gate;
use crate::opener::Opener;
use crate::scratch::Scratch;

/// Set in the process that runs a test's body alone.
const ALONE: &str = "FANOTIFY_TEST_ALONE";

const SOFT_LIMIT: u64 = 40;
const HARD_LIMIT: u64 = 64;

/// Descriptor limits are the process's, and the other tests run in this one: so the body runs in
/// a second process of this test program, with low limits.
#[test]
fn trap_3_without_descriptors_the_reserve_answers() {
    if std::env::var_os(ALONE).is_some() {
        return shed_load_with_the_reserve();
    }
    let limits =
        format!("ulimit -S -n {SOFT_LIMIT} && ulimit -H -n {HARD_LIMIT} && exec \"$0\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &limits])
        .arg(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "descriptors::trap_3_without_descriptors_the_reserve_answers",
        ])
        .args(["--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("a shell");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{stdout}\n{stderr}"
    );
}

#[test]
fn a_table_with_room_need_not_grow() {
    let limit = raise_nofile().expect("raised");
    let wanted = 3000.min(limit);
    make_room(wanted).expect("room");
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
    let size: u64 = size
        .and_then(|size| size.trim().parse().ok())
        .expect("a size");
    assert!(size >= wanted, "{size} of {wanted}");
    assert!(
        make_room(limit.saturating_add(1)).is_err(),
        "beyond the limit"
    );
}

fn shed_load_with_the_reserve() {
    assert_eq!(raise_nofile().expect("raised"), HARD_LIMIT);
    let scratch = Scratch::tmpfs();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);
    let mut reserve = Reserve::new(8).expect("a reserve");
    let openers = [Opener::cat(&file), Opener::cat(&file), Opener::cat(&file)];

    let too_many = Reserve::new(1000).expect_err("more than the limit");
    assert_eq!(too_many.raw_os_error(), Some(libc::EMFILE));
    let mut hog = Vec::new();
    while let Ok(descriptor) = rustix::io::fcntl_dupfd_cloexec(&gate.group, 0) {
        hog.push(descriptor);
    }
    match gate.try_next() {
        Err(ReadError::OutOfDescriptors(error)) => {
            assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE));
        }
        other => panic!("expected to be out of descriptors: {other:?}"),
    }

    reserve.release();
    assert_eq!(reserve.held(), 0);
    for _ in 0..2 {
        gate.permission().answer(Answer::Allow).expect("answered");
    }
    let ended = openers.map(Opener::finish);
    assert_eq!(
        ended.iter().filter(|ended| ended.success).count(),
        2,
        "{ended:?}"
    );
    ended
        .iter()
        .find(|ended| !ended.success)
        .expect("one denied by the kernel")
        .was_denied();

    drop(hog);
    reserve.retake().expect("spares are free again");
    assert_eq!(reserve.held(), 8);
}

#[test]
fn trap_4_a_full_queue_is_told_after_its_events() {
    let limit = std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events");
    let limit: usize = limit
        .expect("a kernel with fanotify")
        .trim()
        .parse()
        .expect("a number");
    let scratch = Scratch::tmpfs();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::unmarked();
    let close_write = MarkMask {
        open_perm: false,
        open_exec_perm: false,
        close_write: true,
    };
    gate.group
        .mark_filesystem(&scratch.root(), close_write)
        .expect("a mark");
    let root = scratch.root();
    let fill = Opener::sh(&format!(
        "cd '{}'; i=0; while [ $i -lt {} ]; do : > q$i; i=$((i+1)); done",
        root.display(),
        limit + 100
    ));
    assert!(fill.finish().success);

    // The trap: nobody reads, and yet the open is let through.
    gate.group
        .mark_filesystem(&root, MarkMask::ALL)
        .expect("a wider mark");
    Opener::cat(&file).finish().read("content");

    for _ in 0..limit {
        gate.close_write();
    }
    assert!(matches!(gate.next(), Event::Overflow));

    let opener = Opener::cat(&file);
    gate.permission().answer(Answer::Deny).expect("asked again");
    opener.finish().was_denied();
}
