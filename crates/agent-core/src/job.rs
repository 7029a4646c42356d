//! One file on its way to a verdict, and the openers that wait for it.

use std::time::Duration;

use model::{AccessClass, Digest};

use crate::cache::Remembered;
use crate::{ContextHash, FileKey, Ticket};

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for a place among those in flight.
    Queued,
    /// It changed under the hashing, and rests until it is hashed anew.
    Resting { until: Duration },
    /// Its content is being hashed.
    Digesting,
    /// Hashed; nobody to ask, or too many questions are under way.
    Hashed,
    /// The appliance was asked.
    Asked { request_id: u64 },
}

/// Named by its leading ticket, whose content is the one that is read.
#[derive(Debug)]
pub(crate) struct Job {
    /// The most urgent of those who want to know.
    pub(crate) class: AccessClass,
    pub(crate) key: FileKey,
    pub(crate) context: ContextHash,
    /// No writer when last looked at; only then may the verdict be remembered.
    pub(crate) writer_free: bool,
    /// Its verdict may stand in the kernel.
    pub(crate) may_stand: bool,
    /// What of it went into the cache.
    pub(crate) remembered: Option<Remembered>,
    /// A writer closed the inode after the hashing began: the digest may be of old content.
    pub(crate) stale: bool,
    /// Openers not answered yet.
    pub(crate) waiting: Vec<Ticket>,
    pub(crate) phase: Phase,
    /// Of the content as last hashed.
    pub(crate) digest: Option<Digest>,
    /// Holds a place among those in flight.
    pub(crate) admitted: bool,
    /// That place is one of the background's.
    pub(crate) background: bool,
    /// Times it was hashed anew.
    pub(crate) restarts: u32,
    /// The ledger has an entry because of it.
    pub(crate) ledgered: bool,
    /// It pays such an entry back.
    pub(crate) payback: bool,
    /// Somebody was let through before the verdict.
    pub(crate) let_through: bool,
    /// When it is given up.
    pub(crate) end: Duration,
}

impl Job {
    /// True if somebody who wants to know about this file may wait for this job. Before the
    /// hashing began any state of the file will do; after that only the one that was hashed.
    pub(crate) fn serves(&self, key: &FileKey, context: ContextHash, writer_free: bool) -> bool {
        let same_file = self.key.node == key.node && self.context == context;
        let unread = self.phase == Phase::Queued;
        let same_state = self.key == *key && self.writer_free && writer_free && !self.stale;
        same_file && (unread || same_state)
    }
}

/// One who waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opener {
    /// The job it waits for.
    pub(crate) lead: Ticket,
    /// When policy answers.
    pub(crate) deadline: Duration,
}

/// What a point in time is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Policy answers this opener.
    Opener(Ticket),
    /// This job is given up.
    Job(Ticket),
    /// This job is hashed anew.
    Rehash(Ticket),
}
