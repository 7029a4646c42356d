//! The project's automation. `./x` is a thin script over this.

mod cargo;
mod check;
mod demo;
mod fuzz;
mod generate;
mod package;
#[cfg(test)]
mod reference;
mod tally;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use tally::Tally;

/// Builds, tests, measures and shows Lazaret.
#[derive(Parser)]
#[command(name = "./x", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Lists the tasks.
    Help,
    /// Starts the daemons on a scratch file system and shows what they do; ends with Ctrl-C.
    Demo {
        /// Ends when everything was shown.
        #[arg(long)]
        exit: bool,
    },
    /// Formatting, lints, generated code, licences, tests, documentation, end-to-end tests.
    Test {
        /// Only these: lint, gen, deny, tests, traps, doc, races (the long hunt), or the name of a
        /// crate (such as e2e).
        suites: Vec<String>,
    },
    /// Everything a submission must pass: test, the demo, a quick bench, a moment of each fuzz target.
    Ci,
    /// Runs a bench; writes target/bench/NAME.json and .svg.
    Bench {
        /// Which, such as open.
        name: String,
        /// Under a minute, for a first idea.
        #[arg(long)]
        quick: bool,
        /// Copies figures and plot to docs/bench/.
        #[arg(long)]
        publish: bool,
    },
    /// Compares verdicts by read plan with those of whole-file YARA-X; the last line is
    /// `violations: N`. Takes --rules DIR and --corpus DIR.
    Differential {
        /// As `lazaret-bench differential --help` tells.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Plays the whole fleet by seeds; says which seed broke what.
    Sim {
        /// So many seeds.
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Builds the Debian packages into target/package.
    Package {
        /// Installs, upgrades and purges them in a fresh Debian, too. Needs root.
        #[arg(long)]
        test: bool,
    },
    /// Generates crates/proto's code from proto/.
    Gen {
        /// Only compares.
        #[arg(long)]
        check: bool,
    },
    /// cargo-deny: licences, bans, sources.
    Deny {
        /// Advisories too; fetches the RustSec database.
        #[arg(long)]
        advisories: bool,
    },
    /// Formatting and clippy.
    Lint,
    /// Builds the documentation of all crates.
    Doc,
    /// Fuzzes one target; without a name, lists them.
    Fuzz {
        /// Which.
        target: Option<String>,
        /// For how long.
        #[arg(default_value_t = 60)]
        seconds: u32,
    },
}

fn main() -> Result<ExitCode> {
    let cli = Cli::try_parse().unwrap_or_else(|error| error.exit());
    match cli.task.unwrap_or(Task::Help) {
        Task::Help => help().map(|()| ExitCode::SUCCESS),
        Task::Demo { exit } => {
            anyhow::ensure!(cargo::build_programs()?, "it does not build");
            demo::run(exit).map(|()| ExitCode::SUCCESS)
        }
        Task::Test { suites } => Ok(test::run(&suites)?.finish()),
        Task::Ci => Ok(test::ci()?.finish()),
        Task::Bench {
            name,
            quick,
            publish,
        } => done(cargo::bench(&name, quick, publish)?),
        Task::Differential { arguments } => done(cargo::differential(&arguments)?),
        Task::Sim { seeds, from } => done(cargo::sim(seeds, from)?),
        Task::Package { test } => done(package::package(test)?),
        Task::Gen { check } => generate::run(check).map(|()| ExitCode::SUCCESS),
        Task::Deny { advisories } => done(check::deny(advisories)?),
        Task::Lint => {
            let mut tally = Tally::default();
            check::lint(&mut tally)?;
            Ok(tally.finish())
        }
        Task::Doc => done(check::doc()?),
        Task::Fuzz {
            target: None,
            seconds: _,
        } => {
            fuzz::targets()?.iter().for_each(|name| println!("{name}"));
            Ok(ExitCode::SUCCESS)
        }
        Task::Fuzz {
            target: Some(target),
            seconds,
        } => done(fuzz::run(&target, seconds)?),
    }
}

fn help() -> Result<()> {
    use clap::CommandFactory;
    Cli::command().print_help()?;
    Ok(())
}

fn done(good: bool) -> Result<ExitCode> {
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
