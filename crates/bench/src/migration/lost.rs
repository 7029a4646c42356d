//! Migrations that nobody tells of: the connector hears nothing of either host, and the two are some
//! way apart. The guest's agent measures the appliances of its list; that is all there is.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::guest::{self, Guest};
use super::hosts::{DISTANCE, Hosts};
use super::unheard::Unheard;
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
    guest: &Guest,
    lookout: &Lookout,
    migrations: usize,
) -> Result<Lost> {
    let mut lost = Lost {
        migrations,
        ..Lost::default()
    };
    let patience = Duration::from_secs(guest::MEASURE_S * MEASUREMENTS_MAX);
    for round in 1..=migrations {
        let number = migrations + round;
        hosts.fall_silent();
        let unheard = Unheard {
            number,
            told: number - 1,
            patience,
        };
        let arrived = unheard.run(hosts, guest, lookout)?;
        lost.corrected_s
            .extend(arrived.map(|it| it.after.as_secs_f64()));
        hosts.speak(guest::NAME, number % 2)?;
        let tally = guest.progress(OPENS_BETWEEN, PATIENCE)?;
        lookout.arrives(hosts, number % 2, PATIENCE)?;
        let still_since = lookout.arrived_at(hosts, number % 2);
        let was_undone = arrived.is_some_and(|it| still_since != Some(it.at));
        lost.undone += usize::from(was_undone);
        eprintln!(
            "bench: lost event {round} of {migrations}: {:?} s, undone: {was_undone}, {tally:?}",
            lost.corrected_s.last()
        );
    }
    Ok(lost)
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
