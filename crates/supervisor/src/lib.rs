//! The agent is two processes. The *worker* judges files. The *supervisor* does next to nothing:
//! it holds the fanotify group, knows which openers wait, and brings the worker back. So an opener
//! waits when the worker dies, where the kernel would let it through (trap 2).
//!
//! # How
//! - The worker is a clone of the supervisor with **the same descriptor table** (`CLONE_FILES`)
//!   and memory of its own. The descriptors of events that it was working on stay open when it is
//!   killed, with the numbers by which the kernel takes answers (trap 10), and the next worker
//!   goes on with them. Nothing is passed between processes for an open: no hop, no copy.
//! - Who waits is written to a shared `board`: two atomic stores for each event.
//! - The supervisor sleeps. The worker sets its alarm (a shared timer) when there is something to
//!   do and the alarm is off, so an idle machine has no wake-ups and a busy one has one in each
//!   budget's time.
//! - At the end of an opener's budget, where the worker should have answered long before, the
//!   supervisor answers by policy and keeps the file for the worker's ledger.
//! - A worker that answers nobody although somebody waits, or whose reader does not come back
//!   for more, is killed and replaced: it may well be alive.
//! - While there is no worker the supervisor reads the events itself: the next worker's own opens
//!   are allowed, all others wait for it.
//! - A new supervisor (an upgrade, or the service manager's after a kill) finds the board, has the
//!   old worker stop reading, takes the group and the waiting events out of it by `pidfd_getfd`,
//!   to the same numbers, and ends it. The kernel's queue holds who comes meanwhile.
//!
//! Nothing of the supervisor opens a file after its start, allocates much or parses anything.

mod board;
mod code;
mod dead;
mod process;
mod run;
mod sys;
mod takeover;
mod worker;

pub use board::{BoardError, Fallback, KEPT_MAX, SLOTS, wall_ms};
pub use code::give_back_code;
pub use process::{Process, since_boot};
pub use run::{Hooks, Options, SuperviseError, run};
pub use worker::{Inherited, Tally, Unguarded, Worker};
