//! Side-by-side measurements of the real programs against their peers, on one machine, in one
//! run, alternating. `./x bench NAME` builds and runs this.

mod bytes;
mod corpora;
mod corpus;
mod differential;
mod engine;
mod fleet;
mod footprint;
mod holders;
mod measure;
mod migration;
mod noop;
mod open;
mod plot;
mod report;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "lazaret-bench")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// What a guarded open costs: unguarded, no-op handler, Lazaret, clamonacc.
    Open(open::Options),
    /// What a fleet of clones sends and costs the appliance, one means after the other.
    Bytes(bytes::Options),
    /// What the appliance's engine takes for a MB, against plain YARA-X and yara 4.2.
    Engine(engine::Options),
    /// Which guests hold a content, among ten million sightings, against plain tables.
    Holders(holders::Options),
    /// Placement of 100,000 VMs, against what products do; how long an evacuation takes to place.
    Fleet(fleet::Options),
    /// A guest opens files while it is live-migrated between two hosts.
    Migration(migration::Options),
    /// What the agent takes from its guest, idle and in a storm, beside clamonacc.
    Footprint(footprint::Options),
    /// Ordinary work in the guarded root of a Debian: apt-get, tar, git, PostgreSQL.
    Workload(workload::Options),
    /// Verdicts by read plan against those of whole-file YARA-X, rule by rule.
    Differential(differential::Options),
    /// Answers every open below a mount point with yes; a part of `open`.
    #[command(hide = true)]
    Noop {
        /// A directory on the file system to mark.
        at: PathBuf,
        /// What was opened once raises no event any more.
        #[arg(long)]
        stand: bool,
    },
}

fn main() -> Result<ExitCode> {
    let good = match Cli::parse().bench {
        Bench::Open(options) => open::run(&options).map(|()| true),
        Bench::Bytes(options) => bytes::run(&options).map(|()| true),
        Bench::Engine(options) => engine::run(&options).map(|()| true),
        Bench::Holders(options) => holders::run(&options).map(|()| true),
        Bench::Fleet(options) => fleet::run(&options).map(|()| true),
        Bench::Migration(options) => migration::run(&options).map(|()| true),
        Bench::Footprint(options) => footprint::run(&options).map(|()| true),
        Bench::Workload(options) => workload::run(&options).map(|()| true),
        Bench::Differential(options) => differential::run(&options),
        Bench::Noop { at, stand } => noop::run(&at, stand).map(|()| true),
    };
    Ok(if good? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
