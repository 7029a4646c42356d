//! The program that the appliance starts, see `engine::worker`.
//!
//! `lazaret-engine-yara --rules PATH…` with a control socket as standard input, or with `--check`
//! for people: compiles the rules and says what is wrong with them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use engine::Sandbox;
use engine::worker::Template;
use proto::v1;

use crate::planned::agent_pack;
use crate::rules::{self, RuleSet};
use crate::scan::{self, YaraWorker};

/// Scans files with YARA-X, for a Lazaret appliance.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Rule files, and folders searched for *.yar and *.yara.
    #[arg(long, required = true, num_args = 1..)]
    rules: Vec<PathBuf>,
    /// Compile the rules, say what they are, and end.
    #[arg(long)]
    check: bool,
    /// Say what identifies each rule, and end.
    #[arg(long, conflicts_with = "check")]
    manifest: bool,
    /// Run only rules that this manifest does not have.
    #[arg(long, value_name = "MANIFEST")]
    known: Option<PathBuf>,
}

/// The program: reads its arguments, serves until its control socket closes.
pub fn main() -> ExitCode {
    let args = Args::parse();
    if args.check {
        return check(&args.rules);
    }
    if args.manifest {
        return manifest(&args.rules);
    }
    engine::worker::run(|| {
        let rules = load(&args)?;
        let is_delta = args.known.is_some();
        Ok(Yara { rules, is_delta })
    })
}

fn load(args: &Args) -> Result<RuleSet, Vec<String>> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path);
        text.map_err(|error| vec![format!("{}: {error}", path.display())])
    };
    let known = args.known.as_ref().map(read).transpose()?;
    rules::load(&args.rules, known.as_deref())
}

fn manifest(paths: &[PathBuf]) -> ExitCode {
    match rules::manifest(paths) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(errors) => failed(&errors),
    }
}

fn failed(errors: &[String]) -> ExitCode {
    for error in errors {
        eprintln!("{error}");
    }
    ExitCode::FAILURE
}

fn check(paths: &[PathBuf]) -> ExitCode {
    match rules::load(paths, None) {
        Ok(set) => {
            for warning in &set.warnings {
                eprintln!("warning: {warning}");
            }
            let sensitive = if set.context.any() { "yes" } else { "no" };
            println!("{} rules, reading names or owners: {sensitive}", set.count);
            ExitCode::SUCCESS
        }
        Err(errors) => failed(&errors),
    }
}

/// The template: compiled rules.
struct Yara {
    rules: RuleSet,
    /// They are only what others do not have: no agent looks for that.
    is_delta: bool,
}

impl Template for Yara {
    type Worker = YaraWorker;

    fn ready(&self) -> v1::EngineReady {
        v1::EngineReady {
            name: scan::ENGINE.to_owned(),
            version: format!("YARA-X {}", rules::YARA_X_VERSION),
            generation: self.rules.generation.0.to_vec(),
            rules: self.rules.count,
            context_sensitive: self.rules.context.any(),
            warnings: self.rules.warnings.clone(),
            // Told with the filter.
            filter_bytes: 0,
        }
    }

    fn filter(&self) -> Result<Option<Vec<u8>>, String> {
        match self.is_delta {
            true => Ok(None),
            false => agent_pack(self.rules.planned.plan()).map(Some),
        }
    }

    fn worker(&self) -> Result<YaraWorker, String> {
        YaraWorker::new(&self.rules)
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox {
            reserved_bytes: scan::reserved_bytes(self.rules.planned),
            ..Sandbox::default()
        }
    }
}
