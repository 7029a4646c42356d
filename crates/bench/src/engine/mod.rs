//! `./x bench engine`: what the appliance's engine takes for a MB, against plain YARA-X with the
//! same rules and against yara 4.2, on clean files; and what the agent pays for the filter.

mod agent;
mod peers;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use engine_yara::{Planned, Whole};
use serde_json::json;

use crate::corpora::{self, Share};
use crate::report::Report;

/// Rounds over each corpus, planned and whole in turns.
const ROUNDS: usize = 3;
/// Rule sets, as they are called in the report.
const RULE_SETS: [(&str, &str); 2] = [
    ("signature_base", "../shared/rules/signature-base"),
    ("reversinglabs", "../shared/rules/reversinglabs"),
];

/// How to run it.
#[derive(Args)]
pub(crate) struct Options {
    /// One round over a few files.
    #[arg(long)]
    quick: bool,
    /// Copies the report to docs/bench/.
    #[arg(long)]
    publish: bool,
}

/// Files in memory, as a scan finds them.
pub(crate) struct Corpus {
    name: &'static str,
    files: Vec<(PathBuf, Vec<u8>)>,
    megabytes: f64,
}

/// Runs everything and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let megabytes = if options.quick { 40 } else { 300 };
    let rounds = if options.quick { 1 } else { ROUNDS };
    let share = Share {
        bytes: megabytes << 20,
        each: 32 << 20,
        ..Share::ALL
    };
    let wine = corpora::package("libwine")?;
    let corpora = [
        Corpus::read("usr", Path::new("/usr"), share)?,
        Corpus::read("pe", &wine, share)?,
    ];
    let mut report = Report::new("engine");
    report.note(
        "time",
        "processor time of one thread; files in memory; medians over the rounds",
    );
    report.note("rounds", rounds);
    let mut headline = f64::INFINITY;
    for (set, folder) in RULE_SETS {
        let sources = engine_yara::load_sources(&[PathBuf::from(folder)]).map_err(joined)?;
        let planned = Planned::compile(&sources).map_err(joined)?;
        let whole = Whole::compile(&sources).map_err(joined)?;
        for corpus in &corpora {
            let rates = corpus.rates(&planned, &whole, rounds)?;
            let yara = peers::yara_mb_per_s(Path::new(folder), corpus)?;
            report_rates(&mut report, corpus, set, &rates, yara);
            headline = headline.min(rates.planned / rates.whole);
        }
        agent::measure(&mut report, set, &planned, &corpora[0])?;
    }
    report.write(None, options.publish)?;
    println!("slowest vs_yarax ratio {headline:.2} (goal: at least 5)");
    Ok(())
}

fn joined(errors: Vec<String>) -> anyhow::Error {
    anyhow::anyhow!("{}", errors.join("\n"))
}

/// MB a second of processor time.
struct Rates {
    planned: f64,
    whole: f64,
    filter: f64,
    /// Rules a file that YARA-X had to run.
    open: f64,
}

fn report_rates(report: &mut Report, corpus: &Corpus, set: &str, rates: &Rates, yara: f64) {
    let name = format!("{}_{set}", corpus.name);
    let speeds = json!({
        "lazaret": rates.planned, "yara_x": rates.whole, "yara_4_2": yara, "filter": rates.filter,
    });
    report.figure(&format!("mb_per_s_{name}"), speeds);
    report.figure(&format!("open_rules_per_file_{name}"), rates.open);
    report.ratio(&format!("vs_yarax_{name}"), rates.planned / rates.whole);
    report.ratio(&format!("vs_yara42_{name}"), rates.planned / yara);
    println!(
        "{name:<24} {:>7.0} MB/s, YARA-X {:>5.0}, yara 4.2 {yara:>5.0}, the filter alone {:>5.0}: {:.2} times YARA-X",
        rates.planned,
        rates.whole,
        rates.filter,
        rates.planned / rates.whole
    );
}

impl Corpus {
    fn read(name: &'static str, folder: &Path, share: Share) -> Result<Self> {
        let mut files = Vec::new();
        for path in corpora::files(folder, share)? {
            if let Ok(bytes) = std::fs::read(&path) {
                files.push((path, bytes));
            }
        }
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        Ok(Self {
            name,
            files,
            megabytes: bytes as f64 / 1e6,
        })
    }

    /// The files.
    pub(crate) fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|(_, bytes)| bytes.as_slice())
    }

    fn rates(&self, planned: &Planned, whole: &Whole, rounds: usize) -> Result<Rates> {
        let mut by_plan = planned.scanner().map_err(anyhow::Error::msg)?;
        let mut by_whole = whole.scanner();
        let mut times: [Vec<f64>; 3] = Default::default();
        let mut open = 0;
        for _ in 0..rounds {
            let (mut verdicts, mut others) = (Vec::new(), Vec::new());
            open = 0;
            times[0].push(cpu_seconds(|| {
                for (path, bytes) in &self.files {
                    let path = path.as_os_str().as_encoded_bytes();
                    let judged = by_plan.scan(bytes, path).map_err(anyhow::Error::msg)?;
                    open += judged.stages.open;
                    verdicts.push(judged.matches);
                }
                Ok(())
            })?);
            times[1].push(cpu_seconds(|| {
                for (path, bytes) in &self.files {
                    let path = path.as_os_str().as_encoded_bytes();
                    others.push(
                        by_whole
                            .scan(bytes, path)
                            .map_err(anyhow::Error::msg)?
                            .matches,
                    );
                }
                Ok(())
            })?);
            ensure!(
                verdicts == others,
                "{}: the verdicts differ: run ./x differential",
                self.name
            );
            times[2].push(cpu_seconds(|| {
                self.contents()
                    .for_each(|bytes| agent::filter(planned, bytes));
                Ok(())
            })?);
        }
        let [planned, whole, filter] = times.map(|times| self.megabytes / median(times));
        Ok(Rates {
            planned,
            whole,
            filter,
            open: open as f64 / self.files.len() as f64,
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Processor time of this thread that the work takes.
pub(crate) fn cpu_seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = thread_cpu_seconds()?;
    work()?;
    Ok(thread_cpu_seconds()? - before)
}

fn thread_cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().context("no time in schedstat")?;
    Ok(nanos.parse::<f64>()? * 1e-9)
}
