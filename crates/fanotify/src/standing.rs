//! Standing verdicts: clean verdicts placed in the kernel.
//!
//! A standing verdict is an ignore mark on a file and a read lease on the descriptor of the file's
//! event, held together. The mark spares the file's opens the way through the gate; the lease is
//! what makes the mark true. By itself a mark is cleared by `write` and `truncate` but not by
//! stores through a shared mapping (trap 5), and is refused without a word while a writer holds the
//! file (trap 6).
//!
//! # Why it is sound
//! - The lease is taken first. Granted, it says that nobody has the file open for writing or
//!   mapped shared and writable (trap 7).
//! - Under it, the identity is compared with that of the content that was judged: whoever wrote
//!   between the judgement and the lease has moved it (see `agent-core` for when that is certain).
//! - Only then comes the mark. Whoever opens the file for writing from now on waits in the kernel
//!   until the lease is gone, even if the mark is not there yet.
//! - When a writer comes, the kernel tells the thread that has a [`Breaks`], which drops the
//!   standing verdict: first the mark, then the lease, which lets the writer go on. The next reader
//!   raises an event again, and finds a writer or a close-write before it.
//! - The lease lives as long as the descriptor, which this value shares: the mark can never be
//!   left without it but by the end of the process (see [`crate::Group::lift_all`]).
//!
//! A mark is on the inode, so it speaks for each of the file's names. It says nothing about rules:
//! whoever placed it takes it back when what it was judged by is no longer in force.
//!
//! # What it costs
//! A descriptor, so the file system cannot be unmounted, a deleted file keeps its space
//! ([`StandingVerdict::is_deleted`]), and nobody gets a write lease (as Samba's oplocks are). A
//! writer waits for a wake-up of ours; with `O_NONBLOCK` it gets `EWOULDBLOCK` and must try again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use crate::event::Answering;
use crate::identity::FileIdentity;
use crate::lease::{self, LeaseRefused};
use crate::sys;
use crate::without::is_off;

/// What opens raise events for, and a standing verdict keeps quiet.
const OPENS: u64 = libc::FAN_OPEN_PERM | libc::FAN_OPEN_EXEC_PERM;

/// A clean verdict in the kernel. Its drop takes the mark off, then the lease.
#[derive(Debug)]
pub struct StandingVerdict {
    answering: Arc<Answering>,
    file: Arc<OwnedFd>,
}

/// No verdict was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotPlaced {
    /// A writer holds the file, or leases do not work here.
    #[error(transparent)]
    Lease(#[from] LeaseRefused),
    /// The file is no longer the one that was judged.
    #[error("the file has changed since it was judged")]
    Changed,
    /// The kernel refuses the mark. `EINVAL`: no evictable marks (before 5.19). `ENOSPC`: this user
    /// has too many marks.
    #[error("the kernel refused an ignore mark: {}", io::Error::from_raw_os_error(*.0))]
    Mark(i32),
}

impl StandingVerdict {
    pub(crate) fn place(
        answering: Arc<Answering>,
        file: Arc<OwnedFd>,
        breaks: BreakOwner,
        is_judged: impl FnOnce(&FileIdentity) -> bool,
    ) -> Result<Self, NotPlaced> {
        // Before the lease, so that no break goes elsewhere.
        let unsupported = |errno: Errno| LeaseRefused::Unsupported(errno.raw_os_error());
        sys::send_signals_of(file.as_fd(), signal(), breaks.thread).map_err(unsupported)?;
        if !is_off(5) {
            lease::take(file.as_fd())?;
        }
        // From here on its drop cleans up; a mark that is not there is no harm.
        let standing = Self { answering, file };
        let identity = FileIdentity::of(standing.file.as_fd());
        if !identity.is_ok_and(|identity| is_judged(&identity)) {
            return Err(NotPlaced::Changed);
        }
        standing.mark(libc::FAN_MARK_ADD).map_err(|errno| {
            let errno = errno.raw_os_error();
            NotPlaced::Mark(errno)
        })?;
        Ok(standing)
    }

    fn mark(&self, action: libc::c_uint) -> Result<(), Errno> {
        let evictable = match action {
            libc::FAN_MARK_ADD => FAN_MARK_EVICTABLE,
            _ => 0,
        };
        // Without FAN_MARK_IGNORED_SURV_MODIFY: a write clears it, though none can happen.
        let flags = action | libc::FAN_MARK_IGNORED_MASK | evictable;
        let group = &self.answering.group;
        sys::mark_object(group, flags, OPENS, self.file.as_fd())
    }

    /// The descriptor's number, by which a [`Break`] names it.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Whether no writer has come. One that came waits until this is dropped.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        sys::lease_kind(self.file.as_fd()) == Ok(libc::F_RDLCK)
    }

    /// Whether the file has no name any more: it takes up space only because it is held here.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

impl Drop for StandingVerdict {
    fn drop(&mut self) {
        // ENOENT: a write or the inode's eviction took it off already.
        let _ = self.mark(libc::FAN_MARK_REMOVE);
        // The only failure is that the kernel took the lease away already.
        let _ = sys::set_lease(self.file.as_fd(), libc::F_UNLCK);
    }
}

/// Not in libc: since Linux 5.19 the mark does not keep the inode in memory.
const FAN_MARK_EVICTABLE: libc::c_uint = 0x200;

/// The thread that hears of broken leases. Only that thread can read what this is told.
#[derive(Debug)]
pub struct Breaks {
    signals: OwnedFd,
    owner: BreakOwner,
}

/// Names the thread that hears of broken leases.
#[derive(Debug, Clone, Copy)]
pub struct BreakOwner {
    thread: i32,
}

/// A writer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// For the lease on the descriptor of this number. By now it may be another file's: look
    /// whether [`StandingVerdict::is_intact`].
    Of(i32),
    /// For one or more leases that the kernel could not name, as too many signals were queued.
    /// Look at all of them.
    Some,
}

impl Breaks {
    /// The calling thread hears of breaks from now on, and must go on to do so. No handler runs:
    /// the signals are blocked here, ignored elsewhere, and read from a descriptor.
    ///
    /// # Errors
    /// As `signalfd`.
    pub fn here() -> io::Result<Self> {
        static IGNORED: OnceLock<Result<(), Errno>> = OnceLock::new();
        // Blocked before it is ignored or not: a signal that comes early waits.
        let signals = sys::signals_of_this_thread(&[signal(), libc::SIGIO])?;
        let ignored = *IGNORED.get_or_init(|| sys::ignore_signal(signal()));
        ignored?;
        let owner = BreakOwner {
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
        };
        Ok(Self { signals, owner })
    }

    /// What standing verdicts are placed with, to be heard here.
    #[must_use]
    pub fn owner(&self) -> BreakOwner {
        self.owner
    }

    /// The breaks so far; does not wait. Wait by polling this.
    ///
    /// # Errors
    /// As `read`.
    pub fn take(&self, mut each: impl FnMut(Break)) -> io::Result<()> {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        const FD_AT: usize = std::mem::offset_of!(libc::signalfd_siginfo, ssi_fd);
        let mut buffer = [0; 16 * SIZE];
        loop {
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.signals, &mut buffer));
            let length = match read {
                Ok(length) => length,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let infos = buffer.get(..length).unwrap_or_default().chunks_exact(SIZE);
            for info in infos {
                let field = |at: usize| {
                    let bytes = info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                    i32::from_ne_bytes(bytes.unwrap_or_default())
                };
                each(if field(0) == signal() {
                    Break::Of(field(FD_AT))
                } else {
                    Break::Some
                });
            }
        }
    }
}

impl AsFd for Breaks {
    /// Becomes readable with the next break.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// A real-time signal: queued once for each break, with the descriptor's number. SIGIO is what the
/// kernel sends instead when its queue is full.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}
