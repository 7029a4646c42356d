//! What the gate decides, without I/O: events in, actions out.
//!
//! [`Core`] is called under one lock by the threads of the agent. The caller gives each file that
//! it holds a [`Ticket`] and carries out the [`Action`]s in their order. `now` is the time since
//! some start of the caller's choosing; it never runs backwards.
//!
//! # What holds
//! - A ticket of an opener (class exec or open) gets exactly one [`Action::Answer`].
//! - Every ticket gets exactly one [`Action::Release`]; until then its content may be asked for.
//! - An opener is answered *clean* only from a clean verdict, from an appliance or from the cache,
//!   or because the [`Allowlist`] has exactly the content that was hashed.
//! - What the [`Allowlist`] has costs no question, and is answered without an appliance too.
//! - After [`Input::Recalled`] nothing is allowed because of an earlier look into the list.
//! - What was answered without a verdict is never remembered as one. It goes to the [`Ledger`].
//! - Every collection is bounded by a field of [`CoreLimits`].
//!
//! # Why the verdict cache is sound
//! An entry says "the file with this [`FileKey`] has content that was judged so". It is made only
//! if a read lease was held from before the first byte was read until after the digest, so no
//! writer (not even a shared mapping) existed meanwhile, and if no close of a writer of that
//! inode was read since. It is used only if
//! 1. the identity is equal: file system, inode, inode generation, size, mtime *and* ctime. Every
//!    write and every first store through a mapping moves ctime; `utime` cannot set it back;
//! 2. the lease test on the event's descriptor succeeds now: there is no writer whose later
//!    stores would move nothing. The caller says so with [`Opened::writer_free`], tests it
//!    *before* it reads the identity, and says no where the file system's time stamps are too
//!    coarse for a quick write to be seen;
//! 3. no `CLOSE_WRITE` of that inode was read since ([`Input::Written`]): both event kinds come
//!    through one group and one reader, so their order is the kernel's;
//! 4. generation and policy are those under which the verdict was given; where the [`Allowlist`]
//!    allowed it, the list is the one that was looked into, and the policy the same.
//!
//! # Verdicts that stand in the kernel
//! A clean verdict that is remembered may also be placed in the kernel ([`Action::Place`]), which
//! then raises no event for the file. The caller places it only while it holds a lease under which
//! the identity is still the one named, and takes it back when a writer comes, so that content
//! never changes behind it. What it was judged by is the core's to watch over: each input that
//! makes the cache forget brings an [`Action::Lift`] of exactly the verdicts that it touches. A
//! mark holds for all names of an inode, so a verdict of rules that read names never stands; one
//! by the [`Allowlist`], which knows only contents, may.
//!
//! Network file systems, where remote writers are invisible, are the caller's to keep out.

mod allow;
mod cache;
mod core;
mod counters;
mod event;
mod job;
mod ledger;
mod limits;
mod queue;
mod request;
mod standing;

pub use crate::core::Core;
pub use allow::{Allowlist, NothingListed};
pub use counters::Counters;
pub use event::{
    Action, Answered, ContextHash, FileKey, FileNode, Input, Opened, Source, Ticket, Why,
};
pub use ledger::{Ledger, LedgerAdded, LedgerLineError, LedgerTotals};
pub use limits::CoreLimits;
pub use standing::{Fallen, StandingId};
