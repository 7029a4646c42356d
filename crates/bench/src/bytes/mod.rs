//! `./x bench bytes`: what a fleet of clones sends and what it costs the appliance, one means after
//! the other, with the real daemons.

mod fleet;
mod golden;

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use crate::corpora::{self, Share};
use crate::report::Report;
use fleet::{Cost, Fleet, Setup};
use golden::{Golden, ROUNDS, bytes_below};

/// Rule sets that unknown files are judged by, as they are called in the report.
const RULE_SETS: [(&str, &str); 2] = [
    ("signature_base", "../shared/rules/signature-base"),
    ("reversinglabs", "../shared/rules/reversinglabs"),
];
/// Neither compression nor chunks.
const PLAIN: &str =
    "[policy]\nreport_min_bytes = 0\ncompress = false\n[chunks]\nsize_min_bytes = 0\n";
/// All of what is unknown is sent.
const SENT: &str = "[policy]\nreport_min_bytes = 0\n";
/// The stage with everything, each guest's content compared with its own and the image's.
const ALL: &str = "image_chunks";
/// Nothing but very small files rides along: a slow link.
const REPORTS: &str = "[policy]\nreport_min_bytes = 2048\n";
const SHARED: &str = "[policy]\nreport_min_bytes = 2048\n[chunks]\nshare = \"all\"\n";

/// How to run it.
#[derive(Args)]
pub(crate) struct Options {
    /// A few clones of a small image.
    #[arg(long)]
    quick: bool,
    /// Copies the report to docs/bench/.
    #[arg(long)]
    publish: bool,
    /// Clones. 100, or 4 in a quick run.
    #[arg(long)]
    clones: Option<usize>,
}

/// What one means takes, besides those before it.
struct Stage {
    name: &'static str,
    server: &'static str,
    allowlist: bool,
    /// The appliance has the image's chunks.
    image: bool,
    /// Its name and its folder.
    rules: (&'static str, &'static str),
}

/// What a stage took.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    filter: Cost,
    first_boot: Cost,
    other_boots: Cost,
    first_upgrade: Cost,
    other_upgrades: Cost,
    changes: Cost,
}

impl Taken {
    fn all(&self) -> Cost {
        let mut all = self.filter;
        all += self.first_boot;
        all += self.other_boots;
        all += self.first_upgrade;
        all += self.other_upgrades;
        all += self.changes;
        all
    }

    /// Of files that nobody had seen: the upgrade of the first clone, and all changes.
    fn unknown(&self) -> Cost {
        let mut unknown = self.first_upgrade;
        unknown += self.changes;
        unknown
    }
}

/// What there is to judge, in bytes.
struct Sizes {
    boot: u64,
    upgrade: u64,
    changes: u64,
}

/// Runs everything and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let clones = options
        .clones
        .unwrap_or(if options.quick { 4 } else { 100 });
    let share = Share {
        files: if options.quick { 60 } else { 600 },
        bytes: if options.quick { 16 << 20 } else { 128 << 20 },
        each: 8 << 20,
    };
    let dir = tempfile::Builder::new()
        .prefix("lazaret-bench-")
        .tempdir()?;
    let golden = Golden::make(dir.path(), share, clones)?;
    let changed = (0..clones).flat_map(|clone| (0..ROUNDS).map(move |round| (clone, round)));
    let changes: Result<Vec<u64>> = changed
        .map(|(clone, round)| bytes_below(&golden.changed(clone, round)))
        .collect();
    let sizes = Sizes {
        boot: bytes_below(&golden.boot)?,
        upgrade: bytes_below(&golden.upgrade)?,
        changes: changes?.iter().sum(),
    };
    let mut report = Report::new("bytes");
    describe(&mut report, &sizes, clones);
    let allowlist = fleet::allowlist(dir.path(), &golden.boot)?;
    let images = fleet::images(dir.path(), &golden.boot)?;
    // What compiles fast is enough where only bytes are of interest.
    let [base, other] = if options.quick {
        [RULE_SETS[1], RULE_SETS[0]]
    } else {
        RULE_SETS
    };
    report.note("rules", base.0);
    let stage = |name, server, allowlist, image, rules| Stage {
        name,
        server,
        allowlist,
        image,
        rules,
    };
    let stages = [
        stage("digest_cache", PLAIN, false, false, base),
        stage("allowlist", PLAIN, true, false, base),
        stage("chunks", SENT, true, false, base),
        stage("plans", REPORTS, true, false, base),
        stage(ALL, REPORTS, true, true, base),
        stage("chunks_of_all_guests", SHARED, true, false, base),
        stage("other_rules", REPORTS, true, true, other),
    ];
    let mut taken = Vec::new();
    for stage in &stages {
        let agents = if stage.allowlist { &allowlist[..] } else { "" };
        let images = if stage.image { &images[..] } else { "" };
        let setup = Setup {
            rules: Path::new(stage.rules.1),
            server: &format!("{}{}", stage.server, images),
            agents,
            clones,
            filter: !stage.server.contains("report_min_bytes = 0"),
        };
        eprintln!("bench: {}", stage.name);
        let dir = dir.path().join(stage.name);
        taken.push(measure(&dir, &golden, &setup).context(stage.name)?);
    }
    let headline = report_all(&mut report, &stages, &taken, &sizes, clones as u64);
    report.write(None, options.publish)?;
    println!("storm_bytes_vs_whole {headline:.4} (goal: at most 0.01)");
    Ok(())
}

fn describe(report: &mut Report, sizes: &Sizes, clones: usize) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    report.note(
        "image",
        format!(
            "programs, libraries and settings of a Debian root (debootstrap minbase), a log, a database and a document: {:.1} MB that each clone opens when it boots",
            megabytes(sizes.boot)
        ),
    );
    report.note(
        "changes",
        format!(
            "{ROUNDS} rounds for each clone: log appended, SQLite database changed, docx saved again, a new program; {:.1} MB of {clones} clones. Packages upgraded on all: {:.1} MB",
            megabytes(sizes.changes),
            megabytes(sizes.upgrade)
        ),
    );
    report.note(
        "wire",
        "payload of TCP in both directions, TLS and its handshakes included, counted by a relay on loopback; `lazaret-agent scan` of each clone, with an identity of its own",
    );
    report.note(
        "whole",
        "computed: every file of every clone once, as clamonacc sends them; processor time that of the first clone, times clones",
    );
    report.note(
        "filter",
        "the first clone's agent fetches the appliance's filter; the others are clones of an image that has it",
    );
    report.note("cpu", "processor time of the appliance and all its engines");
    report.figure("clones", clones);
}

fn measure(dir: &Path, golden: &Golden, setup: &Setup<'_>) -> Result<Taken> {
    let mut fleet = Fleet::start(dir, setup)?;
    let count = |folder: &Path| Ok::<_, anyhow::Error>(corpora::files(folder, Share::ALL)?.len());
    let (boot, upgrade) = (count(&golden.boot)?, count(&golden.upgrade)?);
    let mut taken = Taken::default();
    if setup.filter {
        taken.filter = fleet.fetch_filter()?;
    }
    taken.first_boot = fleet.scan(0, &golden.boot, boot)?;
    for clone in 1..setup.clones {
        taken.other_boots += fleet.scan(clone, &golden.boot, boot)?;
    }
    for round in 0..ROUNDS {
        for clone in 0..setup.clones {
            let changed = golden.changed(clone, round);
            taken.changes += fleet.scan(clone, &changed, count(&changed)?)?;
        }
    }
    taken.first_upgrade = fleet.scan(0, &golden.upgrade, upgrade)?;
    for clone in 1..setup.clones {
        taken.other_upgrades += fleet.scan(clone, &golden.upgrade, upgrade)?;
    }
    Ok(taken)
}

/// The headline: all means against whole files.
fn report_all(
    report: &mut Report,
    stages: &[Stage],
    taken: &[Taken],
    sizes: &Sizes,
    clones: u64,
) -> f64 {
    let whole = (sizes.boot + sizes.upgrade) * clones + sizes.changes;
    let cold = taken.first().copied().unwrap_or_default();
    let whole_cpu_s =
        (cold.first_boot.cpu_s + cold.first_upgrade.cpu_s) * clones as f64 + cold.changes.cpu_s;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    report.figure(
        "whole",
        json!({ "wire_mb": megabytes(whole), "cpu_s": whole_cpu_s }),
    );
    println!(
        "{:<22} {:>9.1} MB  {whole_cpu_s:>7.1} CPU-s",
        "whole",
        megabytes(whole)
    );
    let unknown = sizes.upgrade + sizes.changes;
    let mut headline = 1.0;
    for (stage, taken) in stages.iter().zip(taken) {
        let all = taken.all();
        let boots = taken.first_boot.wire_bytes + taken.other_boots.wire_bytes;
        let vs_whole = all.wire_bytes as f64 / whole as f64;
        let of_unknown = taken.unknown().wire_bytes as f64 / unknown as f64;
        report.figure(
            stage.name,
            json!({
                "wire_mb": megabytes(all.wire_bytes),
                "cpu_s": all.cpu_s,
                "filter_mb": megabytes(taken.filter.wire_bytes),
                "boots_mb": megabytes(boots),
                "upgrades_mb": megabytes(taken.first_upgrade.wire_bytes + taken.other_upgrades.wire_bytes),
                "changes_mb": megabytes(taken.changes.wire_bytes),
                "vs_whole": vs_whole,
                "unknown_vs_whole": of_unknown,
            }),
        );
        println!(
            "{:<22} {:>9.1} MB  {:>7.1} CPU-s  {:>8.4} of whole, unknown files {of_unknown:.3}",
            stage.name,
            megabytes(all.wire_bytes),
            all.cpu_s,
            vs_whole
        );
        if stage.name == ALL {
            headline = vs_whole;
            report.ratio("storm_bytes_vs_whole", vs_whole);
            let boots_of_whole = boots as f64 / (sizes.boot * clones) as f64;
            report.ratio("boot_bytes_vs_whole", boots_of_whole);
            report.ratio("storm_cpu_vs_whole", all.cpu_s / whole_cpu_s);
        }
        if stage.image && stage.server == REPORTS {
            report.ratio(&format!("unknown_bytes_{}", stage.rules.0), of_unknown);
        }
    }
    headline
}
