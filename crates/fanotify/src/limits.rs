//! Descriptors: each event in flight holds one. Without any left, reading the group fails and the
//! kernel denies opens system-wide (trap 3).

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;
use rustix::process::{Resource, Rlimit};

use crate::without::is_off;

/// Raises the soft limit on open descriptors to the hard one and returns it (`u64::MAX` for
/// unlimited). Bound the events in flight well below it: the limit less the events of one read,
/// less what the process needs otherwise.
///
/// # Errors
/// As `setrlimit`.
pub fn raise_nofile() -> io::Result<u64> {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, raised)?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Lowers the limits on open descriptors to this number, where they are above it.
///
/// # Errors
/// As `setrlimit`.
pub fn bound_nofile(most: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    let bound = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    let bounded = Rlimit {
        current: bound(current),
        maximum: bound(maximum),
    };
    Ok(rustix::process::setrlimit(Resource::Nofile, bounded)?)
}

/// Makes the process's table of descriptors large enough for this many, once and for good. A table
/// that several threads share grows by waiting for an RCU grace period (`expand_fdtable` in the
/// kernel's `fs/file.c`): 5 to 15 ms, measured, in which whoever needs the next number, and an opener
/// behind it, waits.
///
/// # Errors
/// `EINVAL`, `EMFILE`: it is more than may be open.
pub fn make_room(descriptors: u64) -> io::Result<()> {
    let last = i32::try_from(descriptors.saturating_sub(1)).unwrap_or(i32::MAX);
    let any = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    Ok(rustix::io::fcntl_dupfd_cloexec(&any, last).map(drop)?)
}

/// Spare descriptors, held so that they can be given up at need.
///
/// On [`crate::ReadError::OutOfDescriptors`]: release them, read the queue empty and answer by
/// policy until others have come back, then take them again.
#[derive(Debug)]
pub struct Reserve {
    /// A descriptor that opened no file. The spares are its duplicates, which takes a number and
    /// nothing else.
    original: OwnedFd,
    spares: Vec<OwnedFd>,
    count: usize,
}

impl Reserve {
    /// Holds `count` spare descriptors; at least one read's worth of events is a good number.
    ///
    /// # Errors
    /// `EMFILE`: not that many are left.
    pub fn new(count: usize) -> io::Result<Self> {
        let mut reserve = Self {
            original: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
            spares: Vec::with_capacity(count),
            count,
        };
        reserve.retake()?;
        Ok(reserve)
    }

    /// How many spares are held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.spares.len()
    }

    /// Gives all spares up; allocates nothing.
    pub fn release(&mut self) {
        if is_off(3) {
            return;
        }
        self.spares.clear();
    }

    /// Takes spares again, up to the full count.
    ///
    /// # Errors
    /// `EMFILE`: there are too few as yet. Those it got are kept; try again later.
    pub fn retake(&mut self) -> io::Result<()> {
        while self.spares.len() < self.count {
            let spare = rustix::io::fcntl_dupfd_cloexec(&self.original, 0)?;
            self.spares.push(spare);
        }
        Ok(())
    }
}
