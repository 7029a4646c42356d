//! `lazaret-agent`: guards a guest's files.

use std::process::ExitCode;

use agent::cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let failure = cli.failure();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lazaret-agent: {error:#}");
            failure
        }
    }
}
