//! Engines as killable, sandboxed child processes: the host's side ([`host`]) and the engine's
//! side ([`worker`]).
//!
//! ```text
//!  appliance (tokio)                      engine program
//!  ┌────────────┐  control (SEQPACKET)   ┌───────────────┐
//!  │ host       │◄──────────────────────►│ template      │ loads the rules once; never sees a file
//!  │  keeper    │                        └──────┬────────┘
//!  │  pool ─────┼── job socket ──────────┐      │ fork: shares the compiled rules
//!  └────────────┘  (one for each worker) │ ┌────┴────┐
//!                                        └►│ worker  │ confined; one file at a time
//!                                          └─────────┘
//! ```
//!
//! A worker reads hostile bytes with megabytes of parser code, so whatever it does is contained: it
//! has no file system, no network, no other process, bounded memory, and a deadline at which the
//! host kills it. What it answers is checked and capped by the host. A crash, a kill or a timeout
//! is *unscanned(reason)* for that one file, and a new worker is forked from the template in about
//! a millisecond, since the rules are already in memory.
//!
//! The messages are in `proto/lazaret/v1/engine.proto`.

pub mod host;
mod packet;
mod ranges;
mod sandbox;
pub mod sparse;
mod sys;
pub mod worker;

pub use sandbox::{Sandbox, SyscallRule};
