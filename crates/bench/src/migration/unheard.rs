//! A migration of which the connector hears nothing.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use testbed::wait_until;

use super::guest::{self, Guest};
use super::hosts::{Hosts, host_name};
use super::watch::Lookout;
use super::{OPENS_BETWEEN, PATIENCE};

/// One of them. Migration `n` of a run, from 1 on, goes to host `n % 2`.
pub(super) struct Unheard {
    pub(super) number: usize,
    /// The last migration that the connector has told of.
    pub(super) told: usize,
    /// How long the guest may take to the appliance beside it.
    pub(super) patience: Duration,
}

/// The guest came to the appliance on its new host and opened files there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    pub(super) at: SystemTime,
    /// Since the switch, by libvirt's own time of that.
    pub(super) after: Duration,
}

impl Unheard {
    /// Migrates, while the connector is silent. `None`: the guest did not come there, or did not stay.
    pub(super) fn run(
        &self,
        hosts: &Hosts,
        guest: &Guest,
        lookout: &Lookout,
    ) -> Result<Option<Arrived>> {
        let to = self.number % 2;
        hosts.migrate(guest::NAME, to)?;
        let switched = lookout.last_switch(self.number)?;
        let is_there = wait_until(self.patience, || lookout.arrived_at(hosts, to).is_some());
        let told = hosts.told_host(guest::NAME);
        ensure!(
            told == Some(host_name(self.told % 2)),
            "somebody told of the move: {told:?}"
        );
        guest.progress(OPENS_BETWEEN, PATIENCE)?;
        let at = lookout.arrived_at(hosts, to).filter(|_| is_there);
        Ok(at.map(|at| Arrived {
            at,
            after: at.duration_since(switched).unwrap_or_default(),
        }))
    }
}
