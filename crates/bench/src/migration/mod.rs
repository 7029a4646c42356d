//! `./x bench migration`: a guest with our agent opens files all the time while it is live-migrated
//! between two hosts with libvirt and QEMU, each with an appliance. The controller's connector sees
//! the switch, and the guest is sent to the appliance beside it. Then the same while the connector
//! hears of nothing: what the guest's agent measures alone brings it there. Then again while nothing but
//! the guest's virtio-serial port tells. Needs root and the packages of [`testbed::LibvirtHost`] and
//! [`testbed::GuestTree`].

mod guest;
mod hosts;
mod lost;
mod port;
mod unheard;
mod watch;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::report::Report;
use guest::{Guest, Tally};
use hosts::Hosts;
use lost::Lost;
use port::Port;
use watch::{Lags, Lookout};

/// Migrations of a full run.
const MIGRATIONS: usize = 10;
/// Migrations of a quick one.
const QUICK_MIGRATIONS: usize = 2;
/// Opens that must have gone well between two migrations.
const OPENS_BETWEEN: u64 = 20;
/// Guests that may break before there is a run.
const GUESTS_MAX: usize = 3;
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
    for broken in 0..GUESTS_MAX {
        if let Some((of_run, lost, port)) = measure(options)? {
            report(options, of_run, broken, &lost, &port)?;
            check(&port.tally, &port.status)?;
            return lost.check();
        }
        eprintln!("bench: the guest's own kernel is broken: all is begun anew with another one");
    }
    bail!("the kernels of {GUESTS_MAX} guests broke")
}

/// `None`: the guest's kernel broke, and what was measured says nothing.
fn measure(options: &Options) -> Result<Option<(Figures, Lost, Port)>> {
    let migrations = if options.quick {
        QUICK_MIGRATIONS
    } else {
        MIGRATIONS
    };
    let dir = tempfile::tempdir()?;
    eprintln!("bench: two hosts, two appliances");
    let hosts = Hosts::start(dir.path())?;
    let guest = Guest::boot(dir.path(), &hosts)?;
    eprintln!("bench: the guest is up");
    let lookout = Lookout::start(dir.path(), &hosts)?;
    let measured = series(&hosts, &guest, &lookout, migrations);
    if measured.is_err() && guest.is_broken() {
        return Ok(None);
    }
    measured.map(Some)
}

/// The three series.
fn series(
    hosts: &Hosts,
    guest: &Guest,
    lookout: &Lookout,
    migrations: usize,
) -> Result<(Figures, Lost, Port)> {
    lookout.arrives(hosts, 0, PATIENCE)?;
    let before = guest.progress(OPENS_BETWEEN, PATIENCE)?;
    for round in 1..=migrations {
        let to = round % 2;
        hosts.migrate(guest::NAME, to)?;
        lookout.arrives(hosts, to, PATIENCE)?;
        let tally = guest.progress(OPENS_BETWEEN, PATIENCE)?;
        eprintln!("bench: migration {round} of {migrations}: {tally:?}");
    }
    let lags = lookout.lags(hosts, migrations)?;
    let lost = lost::run(hosts, guest, lookout, migrations)?;
    let status = guest.status(PATIENCE)?;
    let after = guest.progress(0, PATIENCE)?;
    let port = port::run(hosts, guest, lookout, migrations, 2 * migrations)?;
    let of_run = Figures {
        opens: after.opens - before.opens,
        after,
        status,
        lags,
    };
    Ok((of_run, lost, port))
}

/// Of the migrations that the connector told, at once or late.
struct Figures {
    opens: u64,
    after: Tally,
    status: Value,
    lags: Lags,
}

fn report(
    options: &Options,
    of_run: Figures,
    broken: usize,
    lost: &Lost,
    port: &Port,
) -> Result<()> {
    let Figures {
        opens,
        after,
        status,
        lags,
    } = of_run;
    let migrations = lags.redirect_ms.len();
    let (event_ms, redirect_ms) = (spread(lags.event_ms), spread(lags.redirect_ms));
    let unscanned = unscanned(&status)?;
    let mut report = Report::new("migration");
    report.note(
        "guest",
        "Debian's cloud kernel under TCG, 256 MiB; the agent and a shell that writes and opens \
         files with new content all the time",
    );
    report.note(
        "event_ms",
        "from libvirt's own time of the destination's Resumed Migrated, as virsh prints it, to the \
         controller's event vm_moved",
    );
    report.note(
        "redirect_ms",
        "from that time to the guest's session with the appliance on its new host, as the \
         controller sees it, looked at every 10 ms; the guest's TLS handshake under TCG is in it",
    );
    report.note(
        "guests_broken",
        "guests whose own kernel said that its memory is corrupt, before this run was begun anew \
         with another: QEMU's emulation may lose writes of a guest that is live-migrated",
    );
    report.figure("migrations", migrations);
    report.figure("guests_broken", broken);
    report.figure("opens", opens);
    report.figure("failed_opens", after.failed);
    report.figure("malicious_denied", after.denied);
    report.figure("malicious_let_through", after.let_through);
    report.figure("unscanned_opens", unscanned);
    report.figure("moves", status["moves"].clone());
    report.figure("event_ms", event_ms.clone());
    report.figure("redirect_ms", redirect_ms.clone());
    lost.report(&mut report);
    port.report(&mut report);
    report.write(None, options.publish)?;
    println!(
        "migration: {migrations} migrations, {opens} opens, {} failed, {unscanned} unscanned; \
         event_ms {event_ms}, redirect_ms {redirect_ms}",
        after.failed
    );
    Ok(())
}

/// The middle, the worst of a hundred, the worst.
fn spread(mut lags_ms: Vec<f64>) -> Value {
    lags_ms.sort_by(f64::total_cmp);
    let at = |share: f64| lags_ms[((lags_ms.len() - 1) as f64 * share).round() as usize];
    json!({ "p50": at(0.5), "p99": at(0.99), "max": at(1.0) })
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
