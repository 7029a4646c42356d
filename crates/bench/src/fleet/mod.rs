//! `./x bench fleet`: placement in a fleet of 100,000 VMs, against what products do, over one
//! trace; how long the evacuation of a host takes to place; how long a controller that was killed
//! takes until it knows of all agents again.

mod crowd;
mod reconnect;
mod rivals;
mod trace;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use crate::report::Report;
use reconnect::Scale;
use rivals::{Lazaret, LocalElse, Pick, Placer};
use trace::{Phase, Size, World};

/// Hosts that are evacuated, one after the other.
const EVACUATIONS: usize = 40;

/// How to run it.
#[derive(Args)]
pub(crate) struct Options {
    /// A tenth of the fleet.
    #[arg(long)]
    quick: bool,
    /// Only how agents come back to a controller.
    #[arg(long)]
    reconnect: bool,
    /// Copies the report to docs/bench/.
    #[arg(long)]
    publish: bool,
}

/// Runs everything and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let size = if options.quick {
        Size::of(200, 100, 10_000)
    } else {
        Size::of(2000, 1000, 100_000)
    };
    let mut report = Report::new("fleet");
    let scale = Scale {
        hosts: size.hosts,
        vms: size.vms,
        agents: size.vms / 2,
        appliances: size.appliances / 5,
    };
    reconnect::run(scale, &mut report)?;
    if !options.reconnect {
        place(size, &mut report)?;
    }
    report.write(None, options.publish)
}

/// The trace, and evacuations.
fn place(size: Size, report: &mut Report) -> Result<()> {
    report.note("trace", "start; 5 % of the VMs migrate within their cluster; one host is evacuated; 1 % of the appliances die and return; one cluster works four times as hard");
    report.note(
        "far",
        "share of VMs whose appliance is not in their cluster",
    );
    report.figure(
        "fleet",
        json!({"hosts": size.hosts, "appliances": size.appliances, "vms": size.vms}),
    );
    let world = World::new(size);
    let ours = evaluate("lazaret", &world, &mut Lazaret::new(&world), report);
    let fewest = evaluate(
        "fewest_agents",
        &world,
        &mut LocalElse::new(&world, Pick::Fewest),
        report,
    );
    let two = evaluate(
        "two_choices",
        &world,
        &mut LocalElse::new(&world, Pick::BetterOfTwo),
        report,
    );
    let evacuate_ms = evacuate(&world, report)?;
    report.ratio(
        "moves_vs_fewest_agents",
        ours.moves as f64 / fewest.moves as f64,
    );
    report.ratio("moves_vs_two_choices", ours.moves as f64 / two.moves as f64);
    report.ratio("max_over_mean", ours.max_over_mean);
    report.ratio("max_over_mean_fewest_agents", fewest.max_over_mean);
    report.ratio("max_over_mean_two_choices", two.max_over_mean);
    println!(
        "evacuate_ms {evacuate_ms:.2}; moves_vs_fewest_agents {:.3}; max_over_mean {:.2}",
        ours.moves as f64 / fewest.moves as f64,
        ours.max_over_mean
    );
    Ok(())
}

/// What came of a whole trace.
struct Outcome {
    moves: usize,
    max_over_mean: f64,
}

fn evaluate(name: &str, world: &World, placer: &mut dyn Placer, report: &mut Report) -> Outcome {
    let mut world = world.clone();
    let started = Instant::now();
    let (mut moves, mut worst, mut phases) = (0, 0.0_f64, serde_json::Map::new());
    for phase in Phase::ALL {
        let before = placer.firsts();
        world.play(phase, placer);
        let after = placer.firsts();
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(a, b)| a.is_some() && a != b)
            .count();
        let state = world.measure(&after);
        println!(
            "{name:<14} {:<12} {moved:>6} moves, {:>5.1} % same host, {:>5.1} % far, max/mean {:.2}",
            phase.name(),
            state.local_percent,
            state.far_percent,
            state.max_over_mean
        );
        moves += moved;
        worst = worst.max(state.max_over_mean);
        phases.insert(
            phase.name().into(),
            json!({
                "moves": moved, "same_host_percent": state.local_percent,
                "far_percent": state.far_percent, "max_over_mean": state.max_over_mean,
            }),
        );
    }
    report.figure(&format!("{name}_seconds"), started.elapsed().as_secs_f64());
    report.figure(name, phases);
    Outcome {
        moves,
        max_over_mean: worst,
    }
}

/// Every VM of a host goes to another one of its cluster: how long until all have their lists.
fn evacuate(world: &World, report: &mut Report) -> Result<f64> {
    let mut world = world.clone();
    let mut placer = Lazaret::new(&world);
    world.play(Phase::Start, &mut placer);
    placer.changes();
    let mut times_ms = Vec::new();
    for number in 0..EVACUATIONS {
        let host = number * world.size.hosts / EVACUATIONS;
        let moves = world.evacuation(host);
        let start = Instant::now();
        for (vm, to) in &moves {
            placer.migrate(*vm, *to);
        }
        let lists = placer.changes();
        times_ms.push(start.elapsed().as_secs_f64() * 1e3);
        world.apply(&moves);
        // Those whose appliance is as near as any keep theirs.
        ensure!(lists <= moves.len(), "more lists than VMs");
    }
    times_ms.sort_by(f64::total_cmp);
    let max = times_ms.last().copied().unwrap_or_default();
    report.figure(
        "evacuate_ms",
        json!({"p50": times_ms[times_ms.len() / 2], "max": max}),
    );
    Ok(max)
}
