//! What goes in and what comes out.

use std::time::Duration;

use model::{AccessClass, Digest, Disposition, Generation, Policy, UnscannedReason, Verdict};

use crate::standing::{Fallen, StandingId};

/// Names one file that the caller holds: an event, or a file opened to be looked at again.
/// Given by the caller, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// An inode, whatever it holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileNode {
    /// The file system.
    pub fs: u64,
    /// The inode number there.
    pub ino: u64,
}

/// What tells one state of a file from another, as read from a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// The inode.
    pub node: FileNode,
    /// The inode's generation; 0 where the file system does not tell.
    pub generation: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of content, nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Last change of content or attributes, nanoseconds since 1970.
    pub ctime_ns: i128,
}

/// A hash of what rules may read besides the content: path, owner, mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContextHash(pub [u8; 16]);

impl ContextHash {
    /// Stands for "no rule reads the context".
    pub const NONE: Self = Self([0; 16]);
}

/// A file to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Names it from here on.
    pub ticket: Ticket,
    /// Why it is looked at; decides whether somebody waits.
    pub class: AccessClass,
    /// Its identity now.
    pub key: FileKey,
    /// Its context; ignored while policy is not context sensitive.
    pub context: ContextHash,
    /// The lease test says that nobody has it open for writing, and the file system's time
    /// stamps can be relied on.
    pub writer_free: bool,
    /// A clean verdict on it may stand in the kernel: leases and ignore marks were seen to work
    /// on its file system, and it may be held open.
    pub may_stand: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A file is to be judged.
    Opened(Opened),
    /// A writer closed this inode. Comes before the [`Input::Opened`] of class close-write.
    Written {
        /// The inode.
        node: FileNode,
    },
    /// Events went unseen (the kernel's queue overflowed), or a file system came whose device
    /// number another one may have had: nothing remembered counts any more.
    EventsLost,
    /// The content of a ticket was read and hashed, as [`Action::Digest`] asked.
    Digested {
        /// Whose.
        ticket: Ticket,
        /// Identity when the reading was done; its size is the number of bytes hashed.
        key: FileKey,
        /// What was read.
        digest: Digest,
        /// A read lease was held from before the first byte until after the last, and the
        /// identity did not change meanwhile.
        writer_free: bool,
    },
    /// The content of a ticket could not be read.
    DigestFailed {
        /// Whose.
        ticket: Ticket,
        /// Why; [`UnscannedReason::Changed`] is tried again.
        reason: UnscannedReason,
    },
    /// A check could not be handed to the link, which is full or was just lost.
    NotSent {
        /// Which check.
        request_id: u64,
    },
    /// The appliance wants the content.
    Needed {
        /// Of which check.
        request_id: u64,
    },
    /// What was wanted is about to be complete; said before its last frame, since the appliance
    /// may want something else after it.
    Sent {
        /// Of which check.
        request_id: u64,
    },
    /// The appliance judged.
    Reply {
        /// Which check.
        request_id: u64,
        /// What it says.
        verdict: Verdict,
        /// An administrator lets this content through although it is malicious.
        released: bool,
        /// Those of [`Core::tickets_of`](crate::Core::tickets_of) whose identity is no longer
        /// what was hashed. A clean verdict does not count for them.
        changed: Vec<Ticket>,
    },
    /// There is a session with an appliance.
    LinkUp {
        /// Its content generation.
        generation: Generation,
        /// Its policy.
        policy: Policy,
        /// Checks that it takes at once.
        in_flight_max: usize,
    },
    /// Another appliance has taken the place of the one before, which still answers what it was
    /// asked.
    LinkMoved {
        /// Its content generation.
        generation: Generation,
        /// Its policy.
        policy: Policy,
        /// Checks that it takes at once.
        in_flight_max: usize,
    },
    /// The session ended.
    LinkDown,
    /// Rules or engines changed.
    ContentChanged {
        /// The generation now in force.
        generation: Generation,
    },
    /// The [`Allowlist`](crate::Allowlist) is another one.
    AllowlistChanged,
    /// These were recalled: the [`Allowlist`](crate::Allowlist) has none of them any more.
    Recalled {
        /// Contents.
        digests: Vec<Digest>,
    },
    /// A verdict that was to stand in the kernel does not.
    Fallen {
        /// Which.
        standing: StandingId,
        /// Why.
        why: Fallen,
    },
    /// Descriptors run out: none is held for a verdict any more.
    DescriptorsScarce,
    /// Policy changed.
    PolicyChanged {
        /// The policy now in force.
        policy: Policy,
    },
    /// The caller ends: everybody is answered by policy now.
    Stop,
    /// Time has passed; wanted at the time that [`Core::next_deadline`](crate::Core::next_deadline) names.
    Tick,
}

/// What is said to an opener, and to metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answered {
    /// A clean verdict, or listed content.
    Clean,
    /// A malicious verdict.
    Malicious,
    /// A malicious verdict on content that an administrator released.
    Released,
    /// No full verdict; policy decided.
    Unscanned(UnscannedReason),
    /// Something of ours is broken; policy decided.
    Error,
}

impl Answered {
    /// The outcome's stable name; released content is still malicious, and says so.
    #[must_use]
    pub fn outcome_name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Malicious => "malicious",
            Self::Released => "released",
            Self::Unscanned(_) => "unscanned",
            Self::Error => "error",
        }
    }
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// An appliance's reply.
    Verdict,
    /// The verdict cache.
    Cache,
    /// The allowlist: the content is known to be good, nobody was asked.
    Allowlist,
    /// This agent alone: a limit, a deadline, no appliance.
    Local,
}

/// Why an opener got its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Why {
    /// The outcome.
    pub answered: Answered,
    /// Where it came from.
    pub source: Source,
}

/// What the caller has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer the opener. Once for each ticket of class exec or open.
    Answer {
        /// The opener.
        ticket: Ticket,
        /// What it gets.
        disposition: Disposition,
        /// For metrics and logs.
        why: Why,
    },
    /// The opener of this ticket is about to be let through by policy, though a malicious verdict
    /// may still come: remember who it is. Comes before its answer.
    Provisional {
        /// The opener.
        ticket: Ticket,
    },
    /// Take a read lease, read and hash the content, read the identity again; then
    /// [`Input::Digested`] or [`Input::DigestFailed`].
    Digest {
        /// Whose.
        ticket: Ticket,
        /// How urgent.
        class: AccessClass,
    },
    /// Place this clean verdict in the kernel: take a read lease on the ticket's descriptor,
    /// compare the identity with `key` under it, then mark. Where that fails, or once a writer
    /// comes, [`Input::Fallen`].
    Place {
        /// Whose descriptor.
        ticket: Ticket,
        /// The verdict's name from here on.
        standing: StandingId,
        /// The identity of what was judged.
        key: FileKey,
    },
    /// Take these verdicts out of the kernel, in any order. One that is not placed yet must not be
    /// placed any more; one that fell meanwhile is done with.
    Lift(Vec<StandingId>),
    /// Ask the appliance. The content may ride along where it is at hand.
    Check {
        /// The exchange: odd, rising, never used twice.
        request_id: u64,
        /// A ticket with this content.
        ticket: Ticket,
        /// The content.
        digest: Digest,
        /// Bytes of content.
        size: u64,
        /// How urgent.
        class: AccessClass,
        /// How long the first opener still waits; `None`: nobody waits.
        patience: Option<Duration>,
    },
    /// Send the content of a ticket.
    Upload {
        /// The exchange.
        request_id: u64,
        /// Whose content.
        ticket: Ticket,
        /// How urgent.
        class: AccessClass,
    },
    /// Tell the appliance that nobody waits for this any more.
    Cancel {
        /// The exchange.
        request_id: u64,
    },
    /// Write an answer without verdict into the ledger.
    LedgerAdd {
        /// Whose file.
        ticket: Ticket,
        /// Why there was no verdict.
        reason: UnscannedReason,
    },
    /// What the ledger says of this file, if anything, is paid: there is a verdict now.
    LedgerPaid {
        /// Whose file.
        ticket: Ticket,
    },
    /// Paying back failed; try again later.
    LedgerUnpaid {
        /// Whose file.
        ticket: Ticket,
    },
    /// A malicious verdict came after an opener had been let through by policy, in this run or an
    /// earlier one.
    Late {
        /// Whose file.
        ticket: Ticket,
        /// What it is.
        digest: Digest,
    },
    /// The content of this ticket is needed no more. Once for each ticket, after its answer
    /// unless the ticket merely waits on another one's content.
    Release {
        /// Whose.
        ticket: Ticket,
    },
}
