//! The on-demand scan: `lazaret-agent scan PATH…`.
//!
//! One thread walks the paths, in an order that stays the same, and opens the files; a few workers
//! hash them and ask the appliance over a session of their own; a watch thread draws the bar,
//! writes the journal and listens to the agent that runs beside. Verdicts, policy and removal
//! orders are the appliance's, as for the gate.
//!
//! Exit codes are clamscan's: 0 nothing found, 1 something found, 2 something could not be scanned
//! or the scan is incomplete.

mod args;
mod content;
mod control;
mod directory;
mod exclude;
mod filter;
mod halt;
mod journal;
mod judge;
mod pace;
mod progress;
mod removal;
mod report;
mod run;
mod session;
mod totals;
mod tracker;
mod turn;
mod walk;

use std::process::ExitCode;

use daemon::signal::Stop;

use crate::AgentConfig;

pub use args::{ProgressMode, ScanArgs, SizeError, TimeError};
pub use exclude::{Glob, GlobError};
pub use journal::JournalError;
pub use run::{Ended, ScanError, Setup, scan};
pub use totals::Totals;

/// Priority of a scan's threads: whatever else the guest has to do goes first. Where nothing else
/// is said, the kernel derives the priority of their disk reads from it: the lowest best-effort one.
const NICE: i32 = 19;

/// Runs a scan as the process it is: results on standard output, exit code as clamscan's. Stops at
/// SIGINT and SIGTERM, leaving its journal.
#[must_use]
pub fn run(args: &ScanArgs, config: &AgentConfig) -> ExitCode {
    // For this thread and those that it starts.
    let _as_it_is = rustix::process::setpriority_process(None, NICE);
    let ended = Stop::install()
        .map_err(ScanError::Thread)
        .and_then(|stop| scan(args, &Setup::of(config), &stop, Box::new(std::io::stdout())));
    match ended {
        Ok(ended) => ExitCode::from(ended.exit_code()),
        Err(error) => {
            eprintln!("lazaret-agent scan: {}", removal::chain(&error));
            ExitCode::from(2)
        }
    }
}
