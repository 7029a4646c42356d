//! `./x bench open`: what a guarded open costs, side by side with clamonacc and a remote clamd.

mod outcome;
mod scenarios;
pub(crate) mod stage;
mod summary;
mod wire;

use anyhow::Result;
use clap::Args;
use testbed::Pin;

use crate::report::Report;
use outcome::Outcome;
use stage::Stage;

/// Files that are opened in each pass.
const FILES: usize = 2000;
/// Rounds of a full run; each runs every scenario, starting with another one.
const ROUNDS: usize = 5;

/// How to run it.
#[derive(Args)]
pub(crate) struct Options {
    /// One round: under a minute, for a first idea.
    #[arg(long)]
    quick: bool,
    /// Copies report and plot to docs/bench/.
    #[arg(long)]
    publish: bool,
    /// Lets the scheduler place everything. Otherwise opener and agent (the guest) share
    /// processor 0, and the appliance or clamd has processor 1, as if they were two machines.
    #[arg(long)]
    free: bool,
    /// Only scenarios whose name holds this text; prints, and writes no report.
    #[arg(long, value_name = "TEXT", conflicts_with = "publish")]
    only: Option<String>,
    /// A line of the appliance's `[policy]`, in place of a default.
    #[arg(long, value_name = "TOML", conflicts_with = "publish")]
    policy: Vec<String>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|text| name.contains(text))
    }

    fn pins(&self) -> (Pin, Pin) {
        if self.free {
            (Pin::Free, Pin::Free)
        } else {
            (Pin::Cpu(0), Pin::Cpu(1))
        }
    }
}

/// Runs all scenarios in turns and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut stage = Stage::set(FILES, options.pins())?;
    stage.policy.clone_from(&options.policy);
    let rounds = if options.quick { 1 } else { ROUNDS };
    let mut outcome = Outcome::default();
    for round in 0..rounds {
        let mut order = scenarios::ALL;
        order.rotate_left(round % scenarios::ALL.len());
        for (name, scenario) in order {
            if !options.wants(name) {
                continue;
            }
            eprintln!("bench: round {} of {rounds}: {name}", round + 1);
            scenario(&stage, &mut outcome)?;
        }
    }
    if options.only.is_some() {
        return summary::print_tables(&outcome);
    }
    eprintln!("bench: bytes on the wire");
    wire::count(&stage, &mut outcome)?;

    let mut report = Report::new("open");
    report.note("files", stage.description());
    report.note("rounds", rounds);
    report.note("pinning", if options.free { FREE } else { PINNED });
    report.note("time", TIME);
    report.note("wire", wire::HOW);
    report.note("usage", USAGE);
    summary::figures(&outcome, &mut report)?;
    report.write(Some(&summary::plot(&outcome, &stage)), options.publish)?;
    summary::print(&outcome)
}

const PINNED: &str = "opener, agent, no-op handler and clamonacc on processor 0 (the guest); \
    appliance with engines, and clamd, on processor 1";
const FREE: &str = "none: the scheduler places every process";
const TIME: &str = "open(2) + close(2) as the opener sees them, files in the page cache; cold: \
    caches of the peers empty; known: the appliance knows every file and the agent none; warm: the \
    same files a second time";
const USAGE: &str = "processor time over the cold pass with one thread, and resident memory after it, \
    from /proc/PID/stat; the appliance with its engine processes, shared pages counted in each";
