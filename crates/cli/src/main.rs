//! `lazaret`: runs the controller and appliance, and speaks to a running one.

mod apart;
mod args;
mod chunks;
mod commands;
mod controller;
mod desk;
mod fleet;
mod gauges;
mod inventory;
mod json;
mod keys;
mod lists;
mod members;
mod membership;
mod place;
mod serve;
mod show;
mod stream;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Args, Command, PkiCommand};
use crate::place::{ConfigFailure, Place};

/// Something failed.
const EXIT_FAILED: u8 = 1;
/// The configuration cannot be used.
const EXIT_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lazaret: {}", chain(&error));
            let is_config = error.downcast_ref::<ConfigFailure>().is_some();
            ExitCode::from(if is_config { EXIT_CONFIG } else { EXIT_FAILED })
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let place = || Place::find(args.config.as_deref(), args.state.as_deref());
    match &args.command {
        Command::Up => serve::serve(place()?, up::run),
        Command::Appliance => serve::serve(place()?, apart::run),
        Command::CheckConfig => place::check(&place()?),
        Command::Pki(PkiCommand::Init) => keys::init(&place()?),
        Command::Token(token) => commands::token(&place()?, token),
        Command::Status(output) => commands::status(&place()?, output),
        Command::Detections(detections) => commands::detections(&place()?, detections),
        Command::Holders(holders) => commands::holders(&place()?, holders),
        Command::Quarantine(quarantine) => commands::quarantine(&place()?, quarantine),
        Command::Release(release) => commands::release(&place()?, release),
        Command::Reload => commands::reload(&place()?),
        Command::Fleet(command) => fleet::run(&place()?, command),
        // Made where images are made, which need not be where lazaret runs.
        Command::Allowlist(command) => lists::run(command),
        Command::Chunks(command) => chunks::run(command),
        Command::Manual { folder } => Ok(daemon::manual::write(Args::command(), folder)?),
    }
}

/// An error with its causes on one line; each may hold hostile names.
fn chain(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join(": ")
}
