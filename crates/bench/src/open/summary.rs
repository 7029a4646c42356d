//! From passes to figures, ratios, a table and a plot.

use anyhow::{Context, Result};
use serde_json::json;

use super::outcome::{Kind, Outcome, Part, Peer, State};
use super::stage::Stage;
use crate::measure::Summary;
use crate::plot::{self, Line};
use crate::report::Report;

const MIB: f64 = 1024.0 * 1024.0;

impl Outcome {
    fn summary(&self, kind: Kind) -> Result<Summary> {
        let passes = self.passes.get(&kind);
        let passes = passes.with_context(|| format!("no pass of {kind:?}"))?;
        Ok(Summary::of(passes))
    }

    fn p50_us(&self, peer: Peer, state: State) -> Result<f64> {
        Ok(self.summary((peer, state, 1))?.p50_us)
    }

    fn opens4_per_s(&self, peer: Peer) -> Result<f64> {
        Ok(self.summary((peer, State::Cold, 4))?.opens_per_s)
    }

    /// Lazaret's p50 in terms of clamonacc's, both cold: the headline.
    fn cold_ratio(&self, lazaret: Peer) -> Result<f64> {
        let clamonacc = self.p50_us(Peer::Clamonacc, State::Cold)?;
        Ok(self.p50_us(lazaret, State::Cold)? / clamonacc)
    }

    fn opens4_ratio(&self, lazaret: Peer) -> Result<f64> {
        Ok(self.opens4_per_s(lazaret)? / self.opens4_per_s(Peer::Clamonacc)?)
    }
}

/// Fills the report.
pub(crate) fn figures(outcome: &Outcome, report: &mut Report) -> Result<()> {
    for kind in outcome.passes.keys() {
        let summary = outcome.summary(*kind)?;
        let (name, threads) = (name(kind.0, kind.1), kind.2);
        let times = json!({"p50": summary.p50_us, "p99": summary.p99_us});
        report.figure(&format!("{name}_{threads}_threads_us"), times);
        let rate = summary.opens_per_s;
        report.figure(&format!("{name}_{threads}_threads_opens_per_s"), rate);
    }
    for (part, cost) in &outcome.costs {
        let (peer, name) = (peer_name(part.peer), part.name);
        report.figure(&format!("{peer}_{name}_cpu_us_per_open"), cost.cpu_us);
        let rss_mb = cost.rss_bytes as f64 / MIB;
        report.figure(&format!("{peer}_{name}_rss_mb"), rss_mb);
    }
    for ((peer, state), bytes) in &outcome.wire {
        let key = format!("wire_bytes_{}", name(*peer, *state));
        let ways = json!({"up": bytes.up, "down": bytes.down});
        report.figure(&key, ways);
    }
    // The keys that other documents refer to.
    let known = outcome.p50_us(Peer::Lazaret, State::Known)?;
    report.figure("known_first_p50_us", known);
    let agent = Part {
        peer: Peer::Lazaret,
        name: "agent",
    };
    let agent = outcome.costs.get(&agent).context("no cost of the agent")?;
    report.figure("agent_rss_mb", agent.rss_bytes as f64 / MIB);
    for (key, state) in [("cold", State::Cold), ("warm", State::Warm)] {
        let bytes = outcome.wire.get(&(Peer::Lazaret, state));
        let total = bytes.context("no bytes counted")?.total();
        report.figure(&format!("wire_bytes_{key}"), total);
    }
    ratios(outcome, report)
}

fn ratios(outcome: &Outcome, report: &mut Report) -> Result<()> {
    report.ratio("cold_p50_vs_clamonacc", outcome.cold_ratio(Peer::Lazaret)?);
    report.ratio("opens4_vs_clamonacc", outcome.opens4_ratio(Peer::Lazaret)?);
    let sends = Peer::LazaretSends;
    report.ratio("cold_p50_sends_vs_clamonacc", outcome.cold_ratio(sends)?);
    report.ratio("opens4_sends_vs_clamonacc", outcome.opens4_ratio(sends)?);
    let same_engine = Peer::LazaretClamd;
    report.ratio(
        "cold_p50_same_engine_vs_clamonacc",
        outcome.cold_ratio(same_engine)?,
    );
    report.ratio(
        "opens4_same_engine_vs_clamonacc",
        outcome.opens4_ratio(same_engine)?,
    );
    let unguarded = outcome.p50_us(Peer::Unguarded, State::Plain)?;
    let warm = outcome.p50_us(Peer::Lazaret, State::Warm)?;
    report.ratio("warm_p50_vs_unguarded", warm / unguarded);
    let floor = outcome.p50_us(Peer::Noop, State::Warm)?;
    report.ratio("warm_p50_vs_floor", warm / floor);
    report.ratio("floor_p50_vs_unguarded", floor / unguarded);
    let noop = outcome.p50_us(Peer::Noop, State::Plain)?;
    report.ratio("noop_p50_vs_unguarded", noop / unguarded);
    Ok(())
}

/// Prints the tables and, last, the headline ratio.
pub(crate) fn print(outcome: &Outcome) -> Result<()> {
    print_tables(outcome)?;
    println!();
    let (rate, ratio) = (
        outcome.opens4_ratio(Peer::Lazaret)?,
        outcome.cold_ratio(Peer::Lazaret)?,
    );
    println!("opens4_vs_clamonacc {rate:.2} (goal: at least 10)");
    println!("cold_p50_vs_clamonacc {ratio:.3} (goal: at most 0.5)");
    Ok(())
}

/// Prints what was measured.
pub(crate) fn print_tables(outcome: &Outcome) -> Result<()> {
    println!(
        "{:<26} {:>7} {:>10} {:>10} {:>10}",
        "", "threads", "p50 µs", "p99 µs", "opens/s"
    );
    for kind in outcome.passes.keys() {
        let summary = outcome.summary(*kind)?;
        println!(
            "{:<26} {:>7} {:>10.1} {:>10.1} {:>10.0}",
            name(kind.0, kind.1),
            kind.2,
            summary.p50_us,
            summary.p99_us,
            summary.opens_per_s
        );
    }
    println!("\n{:<26} {:>14} {:>10}", "", "CPU µs/open", "RSS MiB");
    for (part, cost) in &outcome.costs {
        let name = format!("{}: {}", peer_name(part.peer), part.name);
        let rss = cost.rss_bytes as f64 / MIB;
        println!("{name:<26} {:>14.0} {rss:>10.1}", cost.cpu_us);
    }
    println!("\n{:<26} {:>14} {:>14}", "", "bytes up", "bytes down");
    for ((peer, state), bytes) in &outcome.wire {
        let name = name(*peer, *state);
        println!("{name:<26} {:>14} {:>14}", bytes.up, bytes.down);
    }
    Ok(())
}

/// Distributions of all passes with one thread.
pub(crate) fn plot(outcome: &Outcome, stage: &Stage) -> String {
    let single = outcome.passes.iter().filter(|((_, _, n), _)| *n == 1);
    let lines: Vec<Line> = single
        .map(|((peer, state, _), passes)| Line {
            label: name(*peer, *state).replace('_', " "),
            sorted_us: Summary::of(passes).sorted_us,
        })
        .collect();
    let title = "What a guarded open costs, one thread";
    plot::distribution(title, &stage.description(), &lines)
}

fn name(peer: Peer, state: State) -> String {
    let state = match state {
        State::Plain => return peer_name(peer).to_owned(),
        State::Cold => "cold",
        State::Known => "known",
        State::Warm => "warm",
    };
    format!("{}_{state}", peer_name(peer))
}

fn peer_name(peer: Peer) -> &'static str {
    match peer {
        Peer::Unguarded => "unguarded",
        Peer::Noop => "noop_handler",
        Peer::Lazaret => "lazaret",
        Peer::LazaretSends => "lazaret_sends",
        Peer::LazaretClamd => "lazaret_clamd",
        Peer::Clamonacc => "clamonacc",
    }
}
