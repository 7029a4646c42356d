//! Leases: does this file have a writer, and did one come while it was read?
//!
//! A read lease is granted only while no process has the file open for writing or mapped shared
//! and writable. While it is held, an open for writing waits (or, with `O_NONBLOCK`, fails with
//! `EWOULDBLOCK`) until the lease is dropped or `/proc/sys/fs/lease-break-time` (45 s) is over.
//! So hold one no longer than a scan lasts, and look at [`ReadLease::is_intact`] meanwhile.
//!
//! The kernel sends SIGIO to the holder when a writer comes, and SIGIO's default action ends the
//! process. The first lease taken here therefore sets SIGIO to be ignored, once, for the whole
//! process (children inherit it); the break is seen by asking.
//!
//! A lease belongs to the open file description: the descriptor of one event has at most one, and
//! leases of other events on the same file are independent of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::io::Errno;

use crate::sys;
use crate::without::is_off;

/// A read lease on an open file, released when dropped.
///
/// Generic over the owner of the descriptor: a [`BorrowedFd`] for a moment, an
/// `Arc<OwnedFd>` (as [`crate::PermissionEvent::file`] gives) for a scan.
#[derive(Debug)]
pub struct ReadLease<Fd: AsFd> {
    file: Fd,
}

impl<Fd: AsFd> ReadLease<Fd> {
    /// Takes a read lease, never waits. Take it *before* reading: bytes read earlier may have been
    /// replaced by a writer that is gone by now (trap 7).
    ///
    /// # Errors
    /// A writer has the file, or leases do not work here. Either way what is read may change, and
    /// the verdict must not be cached.
    pub fn try_take(file: Fd) -> Result<Self, LeaseRefused> {
        take(file.as_fd())?;
        Ok(Self { file })
    }

    /// Whether no writer has come so far. Once false, always false: the lease is being broken, or
    /// was taken away after the break time, and a writer may have been let in. Ask after the last
    /// byte was read.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        sys::lease_kind(self.file.as_fd()) == Ok(libc::F_RDLCK) || is_off(7)
    }
}

impl<Fd: AsFd> Drop for ReadLease<Fd> {
    fn drop(&mut self) {
        // The only failure is that the kernel took the lease away already.
        let _ = sys::set_lease(self.file.as_fd(), libc::F_UNLCK);
    }
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefused {
    /// A process has the file open for writing, mapped shared and writable, or leased for writing.
    #[error("a writer holds the file")]
    WriterHeld,
    /// This file or file system has no leases, or we may not take one.
    #[error("leases are not supported here: {}", io::Error::from_raw_os_error(*.0))]
    Unsupported(i32),
}

/// Whether the file has no writer at this moment, by taking a lease and dropping it at once. For a
/// file whose verdict is cached: no writer now, and no close-write since, means the same bytes.
///
/// Do not use it on a descriptor that a [`ReadLease`] is on: it would release that one.
#[must_use]
pub fn is_unwritten(fd: BorrowedFd<'_>) -> bool {
    ReadLease::try_take(fd).is_ok()
}

pub(crate) fn take(fd: BorrowedFd<'_>) -> Result<(), LeaseRefused> {
    static SIGIO_IGNORED: OnceLock<Result<(), Errno>> = OnceLock::new();
    let ignored = *SIGIO_IGNORED.get_or_init(|| sys::ignore_signal(libc::SIGIO));
    ignored
        .and_then(|()| sys::set_lease(fd, libc::F_RDLCK))
        .or_else(|errno| if is_off(6) { Ok(()) } else { Err(errno) })
        .map_err(|errno| match errno {
            Errno::AGAIN => LeaseRefused::WriterHeld,
            other => LeaseRefused::Unsupported(other.raw_os_error()),
        })
}
