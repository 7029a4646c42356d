//! Bytes on the wire, counted by a relay in passes of their own that are not timed.

use anyhow::{Context, Result};
use testbed::Relay;

use super::outcome::{Outcome, Peer, State};
use super::scenarios::{ClamPeer, Judge, LazaretPeer};
use super::stage::Stage;
use crate::measure::Pass;

/// For the report.
pub(crate) const HOW: &str = "payload of TCP in both directions (TLS records and framing included, \
    TCP and IP headers not), counted by a relay on loopback in passes that are not timed";

/// Counts for clamonacc and for Lazaret.
pub(crate) fn count(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    let peer = ClamPeer::start(stage, true)?;
    let relay = peer.relay.as_ref().context("no relay")?;
    for state in [State::Cold, State::Warm] {
        through(relay, stage, outcome, (Peer::Clamonacc, state))?;
    }
    drop(peer);

    let mut peer = LazaretPeer::start(stage, Judge::Yara, true)?;
    let relay = peer.relay.take().context("no relay")?;
    for state in [State::Cold, State::Warm] {
        through(&relay, stage, outcome, (Peer::Lazaret, state))?;
    }
    peer.restart_agent(stage)?;
    through(&relay, stage, outcome, (Peer::Lazaret, State::Known))
}

fn through(relay: &Relay, stage: &Stage, outcome: &mut Outcome, what: (Peer, State)) -> Result<()> {
    let before = relay.bytes();
    Pass::run(&stage.corpus.files, 1, stage.guest)?;
    outcome.wire.insert(what, relay.bytes().since(before));
    Ok(())
}
