//! YARA-X as an engine: rule files compiled, planned ([`readplan`]) and run, each file against no
//! more rules than can match it. The program beside this library wraps it for an appliance; the
//! differential harness and the benches use it directly.

mod context;
mod delta;
mod pe;
mod planned;
mod probes;
mod program;
mod rules;
mod scan;
mod whole;

pub use planned::{HEAD_BYTES, Judged, Planned, PlannedScanner, Stages, Step, Why};
pub use program::main;
pub use rules::load_sources;
pub use whole::{Whole, WholeScanner};
