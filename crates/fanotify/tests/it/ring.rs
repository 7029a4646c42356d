//! Opens through io_uring: another way into the kernel, the same question.
#![expect(
    unsafe_code,
    reason = "a ring takes pointers that its caller keeps alive, and gives bare descriptors"
)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fanotify::Answer;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, types};

use crate::gate::Gate;
use crate::opener::Opener;
use crate::scratch::Scratch;

/// The file that a process of this test opens, and what it says when it got in.
const OPENS: &str = "LAZARET_RING_OPENS";
const GOT: &str = "read: content";

/// `how`: empty, or `ASYNC`, so that another thread of the kernel's opens it.
fn open(path: &Path, how: Flags) -> io::Result<File> {
    let mut ring = IoUring::new(2)?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(libc::O_RDONLY | libc::O_CLOEXEC)
        .build()
        .flags(how);
    // SAFETY: the entry points at `path`, which outlives it: it is done when the wait ends.
    unsafe { ring.submission().push(&open) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next();
    let done = done.ok_or(io::ErrorKind::UnexpectedEof)?.result();
    if done < 0 {
        return Err(io::Error::from_raw_os_error(-done));
    }
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { File::from_raw_fd(done) })
}

/// In a process of its own, for a group shows no opens by its own process.
fn opener(path: &Path, test: &str) -> Opener {
    let program = std::env::current_exe().expect("this program");
    Opener::sh(&format!(
        "{OPENS}='{}' RUST_BACKTRACE=0 exec '{}' --exact ring::{test} --nocapture",
        path.display(),
        program.display()
    ))
}

fn asked_for(test: &str, how: Flags) {
    if let Some(path) = std::env::var_os(OPENS) {
        let mut content = String::new();
        let mut file = open(Path::new(&path), how).expect("an open through the ring");
        file.read_to_string(&mut content).expect("readable");
        println!("read: {content}");
        return;
    }
    let scratch = Scratch::ext4();
    let file = scratch.write("file", b"content");
    let mut gate = Gate::on(&scratch);
    for answer in [Answer::Allow, Answer::Deny] {
        let opener = opener(&file, test);
        let event = gate.permission();
        assert_eq!(event.pid, opener.pid());
        event.answer(answer).expect("answered");
        let ended = opener.finish();
        let got = ended.stdout.contains(GOT);
        assert_eq!(got, answer == Answer::Allow, "{ended:?}");
        if answer == Answer::Deny {
            ended.was_denied();
        }
    }
}

#[test]
fn an_open_through_a_ring_is_asked_for() {
    asked_for("an_open_through_a_ring_is_asked_for", Flags::empty());
}

#[test]
fn an_open_by_a_rings_own_thread_is_asked_for() {
    asked_for("an_open_by_a_rings_own_thread_is_asked_for", Flags::ASYNC);
}
