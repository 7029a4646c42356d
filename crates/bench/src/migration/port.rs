//! Migrations of which only the guest's virtio-serial port tells: its other end is the appliance on
//! whatever host the guest is. The connector hears nothing all the while.

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use testbed::wait_until;

use super::guest::{self, Guest, Tally};
use super::hosts::Hosts;
use super::unheard::Unheard;
use super::watch::Lookout;
use super::{PATIENCE, spread, unscanned};
use crate::report::Report;

/// What became of them, and how the guest was after the last.
pub(super) struct Port {
    redirect_ms: Vec<f64>,
    opens: u64,
    failed: u64,
    unscanned: u64,
    pub(super) tally: Tally,
    pub(super) status: Value,
}

/// Migrates back and forth, `told` migrations into the run; an even number, so that it begins on
/// the first host.
pub(super) fn run(
    hosts: &Hosts,
    guest: &Guest,
    lookout: &Lookout,
    migrations: usize,
    told: usize,
) -> Result<Port> {
    hosts.fall_silent();
    hosts.show_channels()?;
    if let Err(error) = is_attached(hosts, told % 2) {
        bail!("{error}\n{}", guest.status(PATIENCE)?);
    }
    let (status, tally) = (guest.status(PATIENCE)?, guest.progress(0, PATIENCE)?);
    let mut redirect_ms = Vec::new();
    for round in 1..=migrations {
        let unheard = Unheard {
            number: told + round,
            told,
            patience: PATIENCE,
        };
        let arrived = unheard.run(hosts, guest, lookout)?;
        is_attached(hosts, unheard.number % 2)?;
        redirect_ms.extend(arrived.map(|it| it.after.as_secs_f64() * 1000.0));
        eprintln!(
            "bench: by the port {round} of {migrations}: {:?} ms",
            redirect_ms.last()
        );
    }
    ensure!(
        redirect_ms.len() == migrations,
        "{} of {migrations} migrations were told by the port",
        redirect_ms.len()
    );
    let (status_after, after) = (guest.status(PATIENCE)?, guest.progress(0, PATIENCE)?);
    Ok(Port {
        redirect_ms,
        opens: after.opens - tally.opens,
        failed: after.failed - tally.failed,
        unscanned: unscanned(&status_after)? - unscanned(&status)?,
        tally: after,
        status: status_after,
    })
}

/// Waits until the controller knows by the port that the guest is on this host.
fn is_attached(hosts: &Hosts, host: usize) -> Result<()> {
    let why = || hosts.fleet(&["why", guest::NAME]).unwrap_or_default();
    let is_it = wait_until(PATIENCE, || {
        why()["attached"] == hosts.appliances[host].as_str()
    });
    ensure!(is_it, "its port leads elsewhere: {}", why());
    Ok(())
}

impl Port {
    pub(super) fn report(&self, report: &mut Report) {
        report.note(
            "port",
            "port_redirect_ms, port_opens, port_failed_opens, port_unscanned_opens: as many \
             migrations again, while the connector is cut off from both hosts and the guest has a \
             virtio-serial port that libvirt makes; from libvirt's own time of the switch to the \
             guest's session with the appliance on its new host",
        );
        let redirect_ms = spread(self.redirect_ms.clone());
        println!(
            "migration: {} by the port alone, {} opens, {} failed, {} unscanned, \
             port_redirect_ms {redirect_ms}",
            self.redirect_ms.len(),
            self.opens,
            self.failed,
            self.unscanned
        );
        report.figure("port_redirect_ms", redirect_ms);
        report.figure("port_opens", self.opens);
        report.figure("port_failed_opens", self.failed);
        report.figure("port_unscanned_opens", self.unscanned);
    }
}
