//! Compiles YARA rules into what of a file can still change their verdict. No I/O.
//!
//! Conditions are evaluated in three values over what is known of a file: its size, some bytes,
//! and which literals of the rules occur where (the literal filter). A rule that comes to *false*
//! cannot match, whatever the rest of the file is; everything that this crate does not understand
//! is *unknown*, which leaves the rule open. What is open is decided by YARA-X itself.
//! See `docs/decisions/0011-read-plans.md`.

mod compile;
mod eval;
mod expr;
mod gate;
mod hex;
mod hidden;
mod known;
mod look;
mod needle;
mod open;
mod pattern;
mod want;

pub use compile::{Plan, PlanError, RuleId, Source};
pub use expr::Probe;
pub use known::{Bytes, HITS_MAX, Head, Hits, View};
pub use open::Known;
pub use want::Wants;
