//! Compiles YARA rules into what of a file can still change their verdict. No I/O.
//!
//! Conditions are evaluated in three values over what is known of a file: its size, some bytes,
//! and which literals of the rules occur where (the literal filter). A rule that comes to *false*
//! cannot match, whatever the rest of the file is; everything that this crate does not understand
//! is *unknown*, which leaves the rule open. What is open is decided by YARA-X itself.
//! See `docs/decisions/0011-read-plans.md`.

mod bits;
mod candidates;
mod class;
mod compile;
mod eval;
mod expr;
mod expressions;
mod filters;
mod gate;
mod glance;
mod guard;
mod hex;
mod hidden;
mod known;
mod look;
mod needle;
mod open;
mod pattern;
mod presence;
mod probe;
mod required;
mod value;
mod want;

pub use compile::{Plan, PlanError, RuleId, Source};
pub use known::{Bytes, HITS_MAX, Head, Hits, View};
pub use open::Known;
pub use probe::Probe;
pub use want::Wants;
