//! What the passes measured, by what was measured.

use std::collections::BTreeMap;

use anyhow::Result;
use testbed::{RelayBytes, Usage};

use super::stage::Stage;
use crate::measure::Pass;

/// Who answered the opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// Nobody.
    Unguarded,
    /// A handler that says yes; warm: for good.
    Noop,
    /// Lazaret with YARA-X, as it comes: agents report on unknown content.
    Lazaret,
    /// The same, where policy has agents send all unknown content.
    LazaretSends,
    /// Lazaret with clamd behind it: the same engine as clamonacc.
    LazaretClamd,
    /// clamonacc with a clamd on TCP.
    Clamonacc,
}

/// What was known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// There is nothing to know.
    Plain,
    /// Nothing.
    Cold,
    /// The appliance knows every file, the agent none.
    Known,
    /// Everything: the same files a second time.
    Warm,
}

/// A kind of pass: peer, state, threads.
pub(crate) type Kind = (Peer, State, usize);

/// A process of a peer, as reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    /// The peer it belongs to.
    pub(crate) peer: Peer,
    /// Its name in the report.
    pub(crate) name: &'static str,
}

/// Processor time and memory of a part; the largest of all rounds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// For each open, in µs.
    pub(crate) cpu_us: f64,
    /// After the pass, in bytes.
    pub(crate) rss_bytes: u64,
}

/// Everything measured.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) passes: BTreeMap<Kind, Vec<Pass>>,
    pub(crate) costs: BTreeMap<Part, Cost>,
    pub(crate) wire: BTreeMap<(Peer, State), RelayBytes>,
}

impl Outcome {
    /// Runs one pass.
    pub(crate) fn pass(&mut self, stage: &Stage, kind: Kind) -> Result<()> {
        let pass = Pass::run(&stage.corpus.files, kind.2, stage.guest)?;
        self.passes.entry(kind).or_default().push(pass);
        Ok(())
    }

    /// Runs one pass and measures what it costs these processes (name, process id).
    pub(crate) fn pass_with_cost(
        &mut self,
        stage: &Stage,
        kind: Kind,
        processes: &[(&'static str, u32)],
    ) -> Result<()> {
        let usage = || -> Vec<Usage> {
            let pids = processes.iter().map(|(_, pid)| *pid);
            pids.map(Usage::of_tree).collect()
        };
        let before = usage();
        self.pass(stage, kind)?;
        for (((name, _), before), after) in processes.iter().zip(before).zip(usage()) {
            let part = Part { peer: kind.0, name };
            let cost = self.costs.entry(part).or_default();
            let cpu_s = after.cpu_s - before.cpu_s;
            let cpu_us = cpu_s * 1e6 / stage.corpus.files.len() as f64;
            cost.cpu_us = cost.cpu_us.max(cpu_us);
            cost.rss_bytes = cost.rss_bytes.max(after.rss_bytes);
        }
        Ok(())
    }
}
