//! Which guests hold this content: how long it takes to know, and what a sighting costs.
//!
//! A fleet of guests from a few images, each with files that all have, files of its image and
//! files of its own, is recorded in the embedded store and in PostgreSQL. The peers are the same
//! rows in a plain table: read whole, and with the index that one would give it.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use model::{Digest, GuestId};
use tokio::runtime::Runtime;
use verdict_store::{
    Address, BATCH_MAX, EmbeddedSightings, HOLDERS_MAX, Seen, SharedSettings, Sighting, Sightings,
};

use crate::report::Report;

/// Questions to each store.
const QUERIES: u64 = 3000;
/// Guests of one image.
const POOL: u64 = 250;
const SCANS: usize = 5;

/// How to run it.
#[derive(Args)]
pub(crate) struct Options {
    /// 300,000 sightings.
    #[arg(long)]
    quick: bool,
    /// Copies the report to docs/bench/.
    #[arg(long)]
    publish: bool,
    /// So many. Default: ten million.
    #[arg(long)]
    sightings: Option<u64>,
}

/// Guests, and the files that each holds.
struct Fleet {
    guests: u64,
    files: u64,
}

impl Fleet {
    fn of(sightings: u64) -> Self {
        let guests = (sightings / 5000).clamp(10, 2000);
        Self {
            guests,
            files: sightings / guests,
        }
    }

    /// A fiftieth of a guest's files is on all guests, a fifth of the rest is its own.
    fn digest(&self, guest: u64, file: u64) -> Digest {
        let owner = if file < self.files / 50 {
            u64::MAX
        } else if file.is_multiple_of(5) {
            guest
        } else {
            u64::MAX / 2 + guest / POOL
        };
        Digest::of(&[owner.to_be_bytes(), file.to_be_bytes()].concat())
    }

    fn guest(n: u64) -> GuestId {
        let digest = Digest::of(&n.to_be_bytes());
        GuestId(std::array::from_fn(|at| digest.0[at]))
    }

    fn sightings(&self) -> impl Iterator<Item = Sighting> {
        (0..self.guests * self.files).map(|n| {
            let (guest, file) = (n / self.files, n % self.files);
            Sighting {
                digest: self.digest(guest, file),
                guest: Self::guest(guest),
                seen: Seen::at(1_700_000_000 + (n / 1000) as u32),
            }
        })
    }

    /// What is asked: files of all kinds alike, spread over all guests.
    fn asked(&self, n: u64) -> (Digest, u64) {
        let guest = n * 7919 % self.guests;
        let common = self.files / 50;
        let pool_begins = guest / POOL * POOL;
        let pool = POOL.min(self.guests - pool_begins);
        let any = common + n * 104_729 % (self.files - common - 10);
        match n % 3 {
            0 => (self.digest(guest, n % common.max(1)), self.guests),
            1 => (self.digest(guest, any / 5 * 5 + 5), 1),
            _ => (self.digest(guest, any / 5 * 5 + 6), pool),
        }
    }
}

/// Fills all stores and asks them.
pub(crate) fn run(options: &Options) -> Result<()> {
    let wanted = options
        .sightings
        .unwrap_or(if options.quick { 300_000 } else { 10_000_000 });
    let fleet = Fleet::of(wanted);
    let total = (fleet.guests * fleet.files) as f64;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut report = Report::new("holders");
    report.figure("sightings", total);
    report.figure("guests", fleet.guests);
    report.note("queries", "a third each for files of all guests, of one, of an image's 250; every page up to 10,000 holders; the embedded store is opened anew before");

    let dir = tempfile::tempdir()?;
    let open = || EmbeddedSightings::open(dir.path(), 64 << 30);
    let embedded = open()?;
    let embedded_s = fill(&runtime, &embedded, &fleet)?;
    drop(embedded);
    let embedded = open()?;
    let embedded_ms = ask(&runtime, &embedded, &fleet)?;
    let embedded_bytes = embedded.disk_bytes() as f64 / total;
    let own = Stored {
        name: "embedded",
        built_s: embedded_s,
        each_ms: embedded_ms,
        bytes_each: embedded_bytes,
    };
    own.report(&mut report, total);

    let server = testbed::Postgres::start()?;
    let postgres = in_postgres(&runtime, &server)?;
    let postgres_s = fill(&runtime, &*postgres, &fleet)?;
    server.sql("VACUUM ANALYZE lazaret_sightings")?;
    let postgres_ms = ask(&runtime, &*postgres, &fleet)?;
    let size = |what: &str| -> Result<f64> {
        let size = server.sql(&format!("SELECT {what}"))?;
        Ok(size.trim().parse::<f64>()? / total)
    };
    let fleets = Stored {
        name: "postgres",
        built_s: postgres_s,
        each_ms: postgres_ms,
        bytes_each: size("pg_total_relation_size('lazaret_sightings')")?,
    };
    fleets.report(&mut report, total);

    server.sql(
        "CREATE TABLE plain AS SELECT guest, digest, to_timestamp(first_s) AS first_seen,
             to_timestamp(last_s) AS last_seen FROM lazaret_sightings",
    )?;
    server.sql("VACUUM ANALYZE plain")?;
    let scan_ms = full_scan_ms(&server, &fleet)?;
    report.figure("full_scan_p50_ms", scan_ms);
    server.sql("CREATE UNIQUE INDEX plain_index ON plain (digest, guest)")?;
    let plain_bytes = size("pg_total_relation_size('plain')")?;
    report.figure("plain_table_bytes_per_sighting", plain_bytes);

    let slowest = own.at(1.0).max(fleets.at(1.0));
    let slow = own.at(0.99).max(fleets.at(0.99));
    let speedup = scan_ms / slow;
    report.ratio("full_scan_p50_vs_slower_p99", speedup);
    report.ratio(
        "embedded_bytes_vs_plain_table",
        own.bytes_each / plain_bytes,
    );
    report.ratio(
        "postgres_bytes_vs_plain_table",
        fleets.bytes_each / plain_bytes,
    );
    report.write(None, options.publish)?;
    println!(
        "{total} sightings: slowest answer {slowest:.0} ms (goal: below 1000); a full scan takes {speedup:.0} times the slower store's p99"
    );
    // One answer of thousands may have waited for the machine: what is promised is measured by the
    // whole bench.
    let held_to = if options.quick { slow } else { slowest };
    ensure!(held_to < 1000.0, "an answer took a second or more");
    Ok(())
}

/// What one store took.
struct Stored {
    name: &'static str,
    built_s: f64,
    /// Sorted.
    each_ms: Vec<f64>,
    bytes_each: f64,
}

impl Stored {
    fn at(&self, quantile: f64) -> f64 {
        let last = self.each_ms.len().saturating_sub(1);
        let at = (last as f64 * quantile).round() as usize;
        self.each_ms.get(at).copied().unwrap_or(f64::NAN)
    }

    fn report(&self, report: &mut Report, total: f64) {
        let name = self.name;
        let figures = [
            ("p50_ms", self.at(0.5)),
            ("p99_ms", self.at(0.99)),
            ("max_ms", self.at(1.0)),
            ("recorded_per_s", total / self.built_s),
            ("bytes_per_sighting", self.bytes_each),
        ];
        for (key, value) in figures {
            report.figure(&format!("{name}_{key}"), value);
        }
    }
}

fn in_postgres(
    runtime: &Runtime,
    server: &testbed::Postgres,
) -> Result<std::sync::Arc<dyn Sightings>> {
    let _within = runtime.enter();
    let day = std::time::Duration::from_secs(86_400);
    let stores = server.url().parse::<Address>()?.open(&SharedSettings {
        password: None,
        ca_file: None::<PathBuf>,
        keep: day,
        entries_max: u64::MAX,
        sightings_max: u64::MAX,
        sightings_keep: day,
        connections_max: 4,
    })?;
    stores.sightings.context("PostgreSQL keeps sightings")
}

/// Records everything, in batches as an appliance does. Seconds.
fn fill(runtime: &Runtime, store: &dyn Sightings, fleet: &Fleet) -> Result<f64> {
    let begun = Instant::now();
    let mut sightings = fleet.sightings();
    loop {
        let batch: Vec<Sighting> = sightings.by_ref().take(BATCH_MAX).collect();
        if batch.is_empty() {
            return Ok(begun.elapsed().as_secs_f64());
        }
        runtime.block_on(store.record(&batch))?;
    }
}

/// Asks for holders and checks that all are found. Milliseconds for each question, sorted.
fn ask(runtime: &Runtime, store: &dyn Sightings, fleet: &Fleet) -> Result<Vec<f64>> {
    let mut each = Vec::new();
    for n in 0..QUERIES {
        let (digest, expected) = fleet.asked(n);
        let begun = Instant::now();
        let holders = runtime.block_on(store.holders(digest, None, HOLDERS_MAX))?;
        each.push(begun.elapsed().as_secs_f64() * 1000.0);
        let found = holders.guests.len() as u64;
        ensure!(
            found == expected,
            "question {n}: {found} of {expected} holders"
        );
    }
    each.sort_by(f64::total_cmp);
    Ok(each)
}

/// Median of a few, as psql has it, its own start included.
fn full_scan_ms(server: &testbed::Postgres, fleet: &Fleet) -> Result<f64> {
    let mut each = Vec::new();
    for n in 0..SCANS as u64 {
        let (digest, _) = fleet.asked(n * 3 + 2);
        let begun = Instant::now();
        server.sql(&format!(
            "SELECT count(*), min(first_seen) FROM plain WHERE digest = '\\x{digest}'"
        ))?;
        each.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    each.sort_by(f64::total_cmp);
    Ok(each[SCANS / 2])
}
