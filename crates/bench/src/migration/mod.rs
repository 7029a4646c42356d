//! `./x bench migration`: a guest with our agent opens files all the time while it is live-migrated
//! between two hosts with libvirt and QEMU, each with an appliance. Needs root and the packages of
//! [`testbed::LibvirtHost`] and [`testbed::GuestTree`].

mod guest;
mod hosts;
mod watch;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::report::Report;
use guest::{Guest, Tally};
use hosts::Hosts;
use watch::Lookout;

/// Migrations of a full run.
const MIGRATIONS: usize = 10;
/// Migrations of a quick one.
const QUICK_MIGRATIONS: usize = 2;
/// Opens that must have gone well between two migrations.
const OPENS_BETWEEN: u64 = 20;
/// A guest under TCG on a busy machine is slow; this is not a measure of speed.
const PATIENCE: Duration = Duration::from_secs(300);

/// How to run it.
#[derive(Args)]
pub(crate) struct Options {
    /// Two migrations.
    #[arg(long)]
    quick: bool,
    /// Copies the report to docs/bench/.
    #[arg(long)]
    publish: bool,
}

/// Migrates back and forth and reports; an open that failed is an error.
pub(crate) fn run(options: &Options) -> Result<()> {
    let migrations = if options.quick {
        QUICK_MIGRATIONS
    } else {
        MIGRATIONS
    };
    let dir = tempfile::tempdir()?;
    eprintln!("bench: two hosts, two appliances");
    let hosts = Hosts::start(dir.path())?;
    let mut guest = Guest::boot(dir.path(), &hosts)?;
    eprintln!("bench: the guest is up");
    let mut lookout = Lookout::start(&hosts)?;
    let before = guest.progress(OPENS_BETWEEN, PATIENCE)?;
    for round in 0..migrations {
        let to = (round + 1) % 2;
        hosts.migrate(guest::NAME, to)?;
        lookout.switched(to, PATIENCE)?;
        let tally = guest.progress(OPENS_BETWEEN, PATIENCE)?;
        eprintln!("bench: migration {} of {migrations}: {tally:?}", round + 1);
    }
    let status = guest.status(PATIENCE)?;
    let after = guest.progress(0, PATIENCE)?;
    let lags_ms = lookout.lags_ms(migrations)?;
    report(options, &[before, after], &status, lags_ms)?;
    check(&after, &status)
}

fn report(
    options: &Options,
    [before, after]: &[Tally; 2],
    status: &Value,
    mut lags_ms: Vec<f64>,
) -> Result<()> {
    lags_ms.sort_by(f64::total_cmp);
    let at = |share: f64| lags_ms[((lags_ms.len() - 1) as f64 * share).round() as usize];
    let mut report = Report::new("migration");
    report.note(
        "guest",
        "Debian's cloud kernel under TCG, 256 MiB; the agent and a shell that writes and opens \
         files with new content all the time",
    );
    report.note(
        "event_ms",
        "from libvirt's own time of the destination's Resumed Migrated, as virsh prints it, to the \
         connector's VmMoved Switched",
    );
    report.figure("migrations", lags_ms.len());
    report.figure("opens", after.opens - before.opens);
    report.figure("failed_opens", after.failed);
    report.figure("malicious_denied", after.denied);
    report.figure("malicious_let_through", after.let_through);
    report.figure("unscanned_opens", unscanned(status)?);
    let event_ms = json!({ "p50": at(0.5), "p99": at(0.99), "max": at(1.0) });
    report.figure("event_ms", event_ms.clone());
    report.write(None, options.publish)?;
    println!(
        "migration: {} migrations, {} opens, {} failed, {} unscanned; event_ms {event_ms}",
        lags_ms.len(),
        after.opens - before.opens,
        after.failed,
        unscanned(status)?
    );
    Ok(())
}

/// Opens that policy answered without a verdict.
fn unscanned(status: &Value) -> Result<u64> {
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64);
    let entries = number("/ledger/entries_total").context("no ledger")?;
    let overflow = number("/ledger/overflow_total").context("no ledger")?;
    Ok(entries + overflow)
}

fn check(after: &Tally, status: &Value) -> Result<()> {
    ensure!(
        after.failed == 0,
        "{} opens of good files failed",
        after.failed
    );
    ensure!(after.let_through == 0, "a malicious file was opened");
    ensure!(after.denied > 0, "no malicious file was denied");
    let unscanned = unscanned(status)?;
    ensure!(
        unscanned == 0,
        "{unscanned} opens were not scanned: {status}"
    );
    ensure!(status["link"] == "up", "the link is {}", status["link"]);
    Ok(())
}
