//! Safe, owned types over fanotify, leases and file identity: the guest kernel as the agent sees it.
//!
//! A [`Group`] marks whole file systems and yields [`Event`]s. A [`PermissionEvent`] stands for a
//! process that waits inside `open`; whoever owns it answers it exactly once, and dropping it (a
//! panic included) answers it too. [`lease`] tells whether a file has a writer, [`FileIdentity`]
//! names the file behind a descriptor, [`filesystem`] tells which file systems may be guarded.
//!
//! What the kernel really does, and what this crate does about it (the numbers are those of the
//! design's table of kernel traps; the tests in `tests/it` carry the same numbers):
//!
//! | # | trap | here |
//! |---|---|---|
//! | 1 | our own open waits for our own answer | [`Group::read`] allows this process's opens at once; the reader's thread itself must open nothing |
//! | 2 | the last holder of the group dies: every waiting opener is let through | [`Pending`], [`Group::shared`]: a second process holds the group and answers |
//! | 3 | no descriptor left: every opener gets `EPERM` | [`ReadError::OutOfDescriptors`], [`limits::Reserve`], [`limits::raise_nofile`] |
//! | 4 | queue full: opens pass unscanned | [`Event::Overflow`]; the kernel's bounded queue is kept |
//! | 5 | a shared mapping changes a file under an ignore mark | [`standing::StandingVerdict`]: no mark without a lease |
//! | 6, 7 | a writer holds the file | [`lease::ReadLease`], [`lease::is_unwritten`] |
//! | 8 | order of close-write and open | one group carries both masks |
//! | 9, 10 | a refused or misdirected answer | [`PermissionEvent::answer`] |
//! | 12 | overlayfs shows a file twice, or stops the reader for ever | stacked file systems are refused; their layers are marked, so the event's descriptor is the real file |
//! | 14 | scripts and loaders pass an exec-only mask | [`MarkMask::ALL`] |
//! | 16 | a path names another file by now | only descriptors here; [`path_of`] is for people |
//! | 17 | remote writers, file systems served by guest processes | [`MarkError::Refused`] |
//! | – | the file of an event is opened *inside* the reader's `read`: a write lease or a FIFO would stop it there | event descriptors are opened with `O_NONBLOCK`; [`ReadError::Unopenable`] |
//!
//! [`probe`] tries out what of all this holds on a kernel and a file system.
//!
//! A verdict may also be placed in the kernel, so that opens of a file raise no event at all as long
//! as nobody can change it: [`standing`].

mod event;
mod group;
mod identity;
mod parse;
mod pending;
mod sys;
#[cfg(not(feature = "without"))]
mod without;
#[cfg(feature = "without")]
pub mod without;

pub mod filesystem;
pub mod lease;
pub mod limits;
pub mod probe;
pub mod standing;

pub use event::{Answer, AnswerError, CloseEvent, Event, OpenKind, PermissionEvent};
pub use group::{
    EventBuffer, Events, Group, GroupError, GroupOptions, Interrupter, MarkError, MarkMask,
    ReadError, Shared,
};
pub use identity::{FileIdentity, FileKind, path_of};
pub use parse::ParseError;
pub use pending::Pending;
