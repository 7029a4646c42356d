//! `lazaret-sim`: many seeds, or one again.

use std::process::ExitCode;

use clap::Parser;

/// Plays the fleet by seeds; says which seed broke what.
#[derive(Parser)]
struct Cli {
    /// So many seeds.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (mut moves, mut unscanned, mut work, mut stopped, mut corrected) = (0, 0, 0, 0, 0);
    let (mut rekeyed, mut restored) = (0, 0);
    for seed in cli.from..cli.from + cli.seeds {
        match sim::run(seed) {
            Ok(outcome) => {
                moves += outcome.moves;
                unscanned += outcome.unscanned;
                work += outcome.work;
                stopped += outcome.stopped;
                corrected += outcome.corrected;
                rekeyed += outcome.rekeyed;
                restored += outcome.restored;
            }
            Err(broken) => {
                eprintln!("seed {seed}: {broken}");
                eprintln!("again: ./x sim --from {seed} --seeds 1");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{moves} moves, {unscanned} opens unscanned and paid back, {work} turns of work");
    println!("{stopped} turns taken back after a move, {corrected} lost moves found by measuring");
    println!("{rekeyed} copies got an identity of their own, {restored} machines were set back");
    println!("seeds: {}, violations: 0", cli.seeds);
    ExitCode::SUCCESS
}
