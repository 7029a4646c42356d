//! A file as it comes: what it is, whether a writer has it, and what its file system is good for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fanotify::FileIdentity;
use fanotify::lease::{LeaseRefused, ReadLease};

/// How old a file's last change must be before its time stamps tell every later one, where
/// stamps follow the clock's tick: two ticks of the slowest (100 Hz).
const TICKS: Duration = Duration::from_millis(20);

pub(super) type Lease = ReadLease<Arc<OwnedFd>>;

/// What a file system is good for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Medium {
    /// Verdicts on its files may be remembered.
    pub(crate) cacheable: bool,
    /// Its time stamps tell any two changes apart; those of others follow the clock's tick.
    pub(crate) fine_stamps: bool,
    /// Verdicts on its files may stand in the kernel.
    pub(crate) stands: bool,
}

/// A file as it is looked at: under a lease, unless a writer has it or there are none here.
pub(crate) struct Look {
    pub(super) lease: Option<Lease>,
    pub(super) held_by_writer: bool,
    pub(crate) identity: FileIdentity,
}

impl Look {
    /// The lease comes before the identity: a writer that ends in between shows in it.
    ///
    /// # Errors
    /// As `fstat`.
    pub(crate) fn at(file: &Arc<OwnedFd>) -> io::Result<Self> {
        let taken = ReadLease::try_take(Arc::clone(file));
        Ok(Self {
            held_by_writer: matches!(taken, Err(LeaseRefused::WriterHeld)),
            lease: taken.ok(),
            identity: FileIdentity::of(file.as_fd())?,
        })
    }

    /// No writer has it.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.lease.is_some()
    }
}

/// The last change lies so far back that a later one has another time stamp.
pub(super) fn is_settled(identity: &FileIdentity) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now_ns = now.map_or(0, |now| now.as_nanos() as i128);
    now_ns.saturating_sub(identity.ctime_ns) >= TICKS.as_nanos() as i128
}
