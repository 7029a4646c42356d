//! The crate's only unsafe code: fork, dealing with inherited descriptors, mapping content, leaving.

#![expect(
    unsafe_code,
    reason = "fork, close_range, mmap and _exit have no safe form; each block says why it holds"
)]

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of a fork this is.
pub(crate) enum Forked {
    Child,
    Parent(Pid),
}

/// Forks. Refused where the process has more than one thread: the child would have only this one,
/// and a lock that another held (the allocator's, say) would stay locked in it for ever.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let what = format!("cannot fork with {threads} threads");
        return Err(io::Error::other(what));
    }
    // SAFETY: the process has one thread, this one, and threads are made only by threads; so the
    // child's memory is consistent and it may go on as any program may.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Pid::from_raw(pid)
            .map(Forked::Parent)
            .ok_or_else(io::Error::last_os_error),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor from 3 on but this one.
///
/// Only for the child of a fork that never returns to its template's code: owners of the closed
/// descriptors still exist in its copy of the memory, and are never used or dropped there, since a
/// worker ends by [`exit`].
pub(crate) fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = u32::try_from(kept.as_raw_fd()).map_err(io::Error::other)?;
    let ranges = [(3, kept.saturating_sub(1)), (kept.max(2) + 1, u32::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: close_range reads no memory of ours. What it closes has no user left, as the
        // documentation of this function demands.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes standard input, output and error mean this file.
pub(crate) fn replace_standard_streams(file: BorrowedFd<'_>) -> io::Result<()> {
    for stream in 0..=2 {
        // SAFETY: dup2 reads no memory of ours; nobody owns the numbers 0 to 2, which the
        // standard library keeps open for the life of the process, and they stay open.
        if unsafe { libc::dup2(file.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Lets tokio tell when a socket (non-blocking, ours) can be read.
pub(crate) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open until it is dropped, which AsyncFd does after deregistering it,
    // and it always has the same number.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Gives free heap back to the kernel: what compiling needed, every worker would inherit.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time; it touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Ends this process at once, without destructors or exit handlers inherited from the template.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit never returns and has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Content mapped read-only.
pub(crate) struct Mapping {
    start: *mut core::ffi::c_void,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes (not 0) of a file which nobody truncates or writes: the host
    /// hands out sealed memory files, and unlinked spool files that it has stopped writing.
    /// The caller has checked that the file has that many bytes.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing. Its bytes
        // do not change, as the host promises (see above), so shared references are sound.
        // MAP_PRIVATE, since the seccomp filter of a worker knows no shared mappings.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                fd,
                0,
            )
        }?;
        Ok(Self { start, len })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `len` are those of a live, readable mapping (unmapped only by drop)
        // of bytes that do not change.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and slices into it borrow `self`.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

/// Bytes that are 0 until they are written, and take no memory until then.
pub(crate) struct Zeros {
    start: *mut core::ffi::c_void,
    len: usize,
}

impl Zeros {
    /// `len` of them (not 0). An error where the address space has no room, unlike with a vector.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        Ok(Self { start, len })
    }
}

impl Deref for Zeros {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `len` are those of a live, readable mapping (unmapped only by drop);
        // who writes to it borrows `self` mutably.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>(), self.len) }
    }
}

impl DerefMut for Zeros {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the mapping is writable, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<u8>(), self.len) }
    }
}

impl Drop for Zeros {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and slices into it borrow `self`.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn maps_what_the_file_holds() {
        let file = tempfile::tempfile().expect("a temporary file");
        rustix::io::pwrite(&file, b"some bytes", 0).expect("written");
        let mapping = Mapping::new(file.as_fd(), 10).expect("mapped");
        assert_eq!(&*mapping, b"some bytes");
    }

    #[test]
    fn zeros_are_written_or_refused() {
        let mut zeros = Zeros::new(10_000).expect("mapped");
        zeros[9_999] = 7;
        assert_eq!(zeros.iter().filter(|byte| **byte != 0).count(), 1);
        assert!(Zeros::new(usize::MAX / 2).is_err());
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // The test runner's own thread makes this process one of several threads.
        let done = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| done.wait());
            assert!(matches!(fork(), Err(error) if error.to_string().contains("threads")));
            done.wait();
        });
    }
}
