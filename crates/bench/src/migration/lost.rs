//! Migrations that nobody tells of: the connector hears nothing of either host, and the two are some
//! way apart. The guest's agent measures the appliances of its list; that is all there is.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use serde_json::json;
use testbed::wait_until;

use super::guest::{self, Guest};
use super::hosts::{DISTANCE, Hosts, host_name};
use super::watch::Lookout;
use super::{OPENS_BETWEEN, PATIENCE, spread};
use crate::report::Report;

/// A correction that takes longer than so many measurements is none.
const MEASUREMENTS_MAX: u64 = 6;

/// What became of migrations whose event was lost.
#[derive(Debug, Default)]
pub(super) struct Lost {
    migrations: usize,
    /// From each switch to the session with the appliance beside the guest; those that came to one.
    corrected_s: Vec<f64>,
    /// Times that a guest which was right went elsewhere once the connector told.
    undone: usize,
}

/// Migrates back and forth as often as before, with nobody telling.
pub(super) fn run(
    hosts: &Hosts,
    guest: &mut Guest,
    lookout: &Lookout,
    migrations: usize,
) -> Result<Lost> {
    let mut lost = Lost {
        migrations,
        ..Lost::default()
    };
    for round in 0..migrations {
        // The told migrations were as many: it is where it began if that number is even.
        let (from, to) = ((migrations + round) % 2, (migrations + round + 1) % 2);
        hosts.fall_silent();
        hosts.migrate(guest::NAME, to)?;
        let switched = lookout.last_switch(migrations + round + 1)?;
        let patience = Duration::from_secs(guest::MEASURE_S * MEASUREMENTS_MAX);
        let right = wait_until(patience, || lookout.arrived_at(hosts, to).is_some());
        let told = hosts.told_host(guest::NAME);
        ensure!(
            told == Some(host_name(from)),
            "somebody told of the move: {told:?}"
        );
        guest.progress(OPENS_BETWEEN, PATIENCE)?;
        let arrived = lookout.arrived_at(hosts, to).filter(|_| right);
        lost.corrected_s
            .extend(arrived.map(|at| seconds_between(switched, at)));
        hosts.speak(guest::NAME, to)?;
        let tally = guest.progress(OPENS_BETWEEN, PATIENCE)?;
        lookout.arrives(hosts, to, PATIENCE)?;
        lost.undone += usize::from(right && lookout.arrived_at(hosts, to) != arrived);
        eprintln!(
            "bench: lost event {} of {migrations}: {:?} s, {tally:?}",
            round + 1,
            lost.corrected_s.last()
        );
    }
    Ok(lost)
}

fn seconds_between(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64()
}

impl Lost {
    pub(super) fn report(&self, report: &mut Report) {
        report.note(
            "lost_events",
            format!(
                "migrations while the connector is cut off from both hosts; \
                 lost_events_corrected of them came to the appliance on their host by what the \
                 agent measures. In the whole run the hosts are {} ms apart (each way; a wire in \
                 user space)",
                DISTANCE.as_millis()
            ),
        );
        report.note(
            "correction_s",
            format!(
                "from libvirt's own time of the switch to the session there; the agent measures \
                 every {} s here, every 60 s as it ships",
                guest::MEASURE_S
            ),
        );
        report.figure("lost_events", self.migrations);
        report.figure("lost_events_corrected", self.corrected_s.len());
        report.figure("lost_events_undone", self.undone);
        let correction_s = if self.corrected_s.is_empty() {
            json!(null)
        } else {
            spread(self.corrected_s.clone())
        };
        println!(
            "migration: {} of {} lost events corrected, correction_s {correction_s}",
            self.corrected_s.len(),
            self.migrations
        );
        report.figure("correction_s", correction_s);
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.corrected_s.len() == self.migrations,
            "{} of {} lost events were corrected",
            self.corrected_s.len(),
            self.migrations
        );
        Ok(())
    }
}
