//! Side-by-side measurements of the real programs against their peers, on one machine, in one
//! run, alternating. `./x bench NAME` builds and runs this.

mod corpus;
mod measure;
mod noop;
mod open;
mod plot;
mod report;

use std::path::PathBuf;

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
    /// Answers every open below a mount point with yes; a part of `open`.
    #[command(hide = true)]
    Noop {
        /// A directory on the file system to mark.
        at: PathBuf,
    },
}

fn main() -> Result<()> {
    match Cli::parse().bench {
        Bench::Open(options) => open::run(&options),
        Bench::Noop { at } => noop::run(&at),
    }
}
