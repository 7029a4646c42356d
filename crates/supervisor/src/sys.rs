//! The crate's only unsafe code: a process that shares the descriptor table, shared memory,
//! descriptors by number, a descriptor for signals.
#![expect(
    unsafe_code,
    reason = "clone with CLONE_FILES, shared mappings and descriptors by number have no safe form"
)]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use rustix::process::Pid;

use crate::code::FixedRange;

/// Shows that the process has one thread. Whoever holds it starts none.
#[derive(Debug)]
pub(crate) struct OneThread(());

impl OneThread {
    /// `None`: there are more.
    pub(crate) fn proven() -> io::Result<Option<Self>> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        Ok((threads == 1).then_some(Self(())))
    }
}

/// Which process this is.
pub(crate) enum Cloned {
    Child,
    Parent(Pid),
}

/// Forks a child with memory of its own and *the same* descriptor table: what either opens or
/// closes the other has opened or closed too, and what is open stays so when either dies.
///
/// The child must start a thread and do its work there: this call goes round the C library, which
/// believes the child's first thread to have its parent's number.
pub(crate) fn fork_sharing_files(_proof: &OneThread) -> io::Result<Cloned> {
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child runs on a copy of this memory and stack, as after a fork.
    // This process has one thread (the proof), so no lock is held by a thread that the child
    // lacks. The other arguments are unused with these flags.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid).ok().map(Pid::from_raw) {
        Some(None) => Ok(Cloned::Child),
        Some(Some(pid)) if pid.as_raw_nonzero().get() > 0 => Ok(Cloned::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps the first `words` words of a file, shared with whoever maps it too, for the life of the
/// process.
pub(crate) fn map_shared(file: &File, words: usize) -> io::Result<&'static [AtomicU64]> {
    let len = words * size_of::<AtomicU64>();
    if file.metadata()?.len() < len as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
    let start = unsafe {
        mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file,
            0,
        )
    }?;
    // SAFETY: the mapping has `len` bytes (the file has them, and it is a private file of root's
    // that nobody truncates), is page-aligned and never unmapped. Every word is only ever accessed
    // atomically, by all processes that map it.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), words) })
}

/// An open descriptor by its number. The caller knows that nobody in this process owns it.
pub(crate) fn own(number: i32) -> Option<OwnedFd> {
    is_open(number).then(|| {
        // SAFETY: it is open, and by the caller's promise it gets one owner.
        unsafe { OwnedFd::from_raw_fd(number) }
    })
}

/// An open descriptor by its number, looked at for a moment.
pub(crate) fn with<T>(number: i32, look: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    is_open(number).then(|| {
        // SAFETY: it is open now. Should another process that shares the table close it meanwhile,
        // the calls made on it fail: none of them reads or writes memory by it.
        look(unsafe { BorrowedFd::borrow_raw(number) })
    })
}

pub(crate) fn is_open(number: i32) -> bool {
    // SAFETY: F_GETFD takes no argument and reads no memory; a number that is not open is an error.
    number >= 0 && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0
}

/// The kind of lease held on it, if any.
pub(crate) fn is_leased(number: i32) -> bool {
    // SAFETY: F_GETLEASE takes no argument and reads no memory.
    let kind = unsafe { libc::fcntl(number, libc::F_GETLEASE) };
    kind == libc::F_RDLCK || kind == libc::F_WRLCK
}

/// Gives up any lease held on it: a writer waits for that.
pub(crate) fn unlease(number: i32) {
    // SAFETY: F_SETLEASE takes an integer and reads no memory.
    unsafe { libc::fcntl(number, libc::F_SETLEASE, libc::F_UNLCK) };
}

/// Closes a number that nobody in this process owns.
pub(crate) fn close(number: i32) {
    // SAFETY: closing reads no memory; by the caller's promise nobody relies on the number.
    unsafe { libc::close(number) };
}

/// Has these signals wait in a descriptor instead of being delivered.
pub(crate) fn signals(wanted: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(wanted);
    // SAFETY: `set` is an initialised signal set that outlives both calls; no old set is asked for.
    let number = unsafe {
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the number is open and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has these signals delivered again.
pub(crate) fn deliver(wanted: &[i32]) -> io::Result<()> {
    let set = set_of(wanted);
    // SAFETY: `set` is an initialised signal set that outlives the call.
    let result =
        unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given; sigaddset then changes it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// No core dump of this process: writing one opens files, and who would answer?
pub(crate) fn never_dump_core() {
    // SAFETY: PR_SET_DUMPABLE takes an integer and reads no memory.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Gives back the pages of such a range. Those still needed come again, one by one, from the file.
pub(crate) fn give_back(range: &FixedRange) {
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: `code::note` alone makes ranges, of code and constants that the process began with,
    // which are never unloaded nor written: what is dropped comes back from the file as it was.
    let _unchanged_if_refused = unsafe { madvise(start, range.len, Advice::LinuxDontNeed) };
}
