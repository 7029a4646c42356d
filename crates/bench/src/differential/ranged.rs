//! The same verdict where only some ranges of a file travel, as between an agent and an appliance:
//! the filter's report goes first, then what is asked for.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use engine::host::Content;
use engine::sparse::{self, SparseView};
use engine_yara::{HEAD_BYTES, PlannedScanner, Reported, Step, Why, agent_pack};
use literal_filter::{Pack, PackScan};
use model::Ranges;
use readplan::Plan;

/// How often an appliance asks for ranges before it asks for the whole file.
const ROUNDS_MAX: u32 = 8;
/// Bytes of a question and what goes with it.
const QUESTION_BYTES: u64 = 120;
/// Bytes of a range in a question, and of the head of its data.
const RANGE_BYTES: u64 = 16;

/// Reasons that are printed.
const WHYS_MAX: usize = 60;

/// How a file travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The report decided.
    Report,
    /// Ranges did.
    Ranges,
    Whole,
}

/// What travelled, by the kind of file.
pub(crate) struct Travel {
    pack: Pack,
    kinds: BTreeMap<&'static str, Tally>,
    /// Why files travelled whole, in bytes.
    whys: BTreeMap<String, u64>,
}

#[derive(Default)]
struct Tally {
    files: u64,
    bytes: u64,
    travelled: u64,
    report: u64,
    ranges: u64,
    whole: u64,
    whole_bytes: u64,
    rounds: u64,
}

impl Travel {
    /// With what agents look for.
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        let pack = agent_pack(plan).map_err(anyhow::Error::msg)?;
        Ok(Self {
            pack: Pack::read(&pack)?,
            kinds: BTreeMap::new(),
            whys: BTreeMap::new(),
        })
    }

    /// Judges a file as an appliance does that has asked an agent for it, and that unpacks
    /// containers: what may be one travels whole.
    pub(crate) fn judge(
        &mut self,
        scanner: &mut PlannedScanner<'_>,
        plan: &Plan,
        path: &Path,
        bytes: &[u8],
    ) -> Result<Vec<(String, String)>> {
        let name = path.as_os_str().as_encoded_bytes();
        let size = bytes.len() as u64;
        let mut travelled = QUESTION_BYTES;
        let mut rounds = 0;
        let whole = |scanner: &mut PlannedScanner<'_>| {
            let judged = scanner.scan(bytes, name).map_err(anyhow::Error::msg)?;
            anyhow::Ok(judged.matches)
        };
        let tally = self.kinds.entry(kind(path, bytes)).or_default();
        tally.files += 1;
        tally.bytes += size;
        let Some(report) = report(&self.pack, bytes) else {
            tally.count(Way::Whole, size, 0, size);
            *self
                .whys
                .entry("a report too large".to_owned())
                .or_default() += size;
            return whole(scanner);
        };
        travelled += report.len() as u64;
        let reported = Reported::read(plan, &report, size)?;
        let mut known = Ranges::of(0..HEAD_BYTES.min(size));
        let why = loop {
            let view = view(bytes, &known)?;
            let step = scanner.scan_reported(&view, &reported, name, true);
            match step.map_err(anyhow::Error::msg)? {
                Step::Judged(matches) => {
                    let way = if rounds == 0 {
                        Way::Report
                    } else {
                        Way::Ranges
                    };
                    tally.count(way, travelled + known.bytes(), rounds, size);
                    return Ok(matches);
                }
                Step::Ask(ranges) => {
                    let new = ranges.without(&known);
                    if new.is_empty() {
                        bail!("{}: asked for what is known", path.display());
                    }
                    travelled += QUESTION_BYTES + RANGE_BYTES * new.len() as u64;
                    known.extend(&new);
                    rounds += 1;
                    if rounds > ROUNDS_MAX {
                        break vec!["too many rounds".to_owned()];
                    }
                    if known.bytes() > size / 2 {
                        break vec!["more than half of it".to_owned()];
                    }
                }
                Step::Whole(Why::Container) => break vec!["containers".to_owned()],
                Step::Whole(Why::Zeros) => break vec!["zeros".to_owned()],
                Step::Whole(Why::Rules(rules)) => {
                    let names = rules.iter().map(|rule| plan.name(*rule).1.to_owned());
                    break names.collect();
                }
            }
        };
        for why in why {
            *self.whys.entry(why).or_default() += size;
        }
        tally.count(Way::Whole, size.max(travelled), rounds, size);
        whole(scanner)
    }

    /// Percent of the bytes that travelled.
    pub(crate) fn percent(&self) -> f64 {
        let sum = |field: fn(&Tally) -> u64| self.kinds.values().map(field).sum::<u64>();
        100.0 * sum(|t| t.travelled) as f64 / sum(|t| t.bytes).max(1) as f64
    }

    pub(crate) fn print(&self) {
        println!("  by ranges: {:.2} % of the bytes travel", self.percent());
        for (kind, tally) in &self.kinds {
            println!(
                "    {kind:<10} {:>6} files {:>6} MB: {:>6.2} %; decided by report {}, by ranges {} (rounds {}), whole {} ({} MB)",
                tally.files,
                tally.bytes >> 20,
                100.0 * tally.travelled as f64 / tally.bytes.max(1) as f64,
                tally.report,
                tally.ranges,
                tally.rounds,
                tally.whole,
                tally.whole_bytes >> 20,
            );
        }
        let mut whys: Vec<_> = self.whys.iter().collect();
        whys.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        for (why, bytes) in whys.iter().take(WHYS_MAX) {
            println!("    whole for {why}: {:.1} MB", **bytes as f64 / 1e6);
        }
    }
}

impl Tally {
    fn count(&mut self, way: Way, travelled: u64, rounds: u32, size: u64) {
        self.travelled += travelled;
        self.rounds += u64::from(rounds);
        match way {
            Way::Report => self.report += 1,
            Way::Ranges => self.ranges += 1,
            Way::Whole => {
                self.whole += 1;
                self.whole_bytes += size;
            }
        }
    }
}

/// What an agent finds; `None`: too much to tell.
fn report(pack: &Pack, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut scan = PackScan::new(pack);
    let _ = scan.push(bytes);
    scan.finish()?.to_bytes()
}

fn view(bytes: &[u8], known: &Ranges) -> Result<SparseView> {
    let size = bytes.len() as u64;
    let mut read = |offset: u64, buffer: &mut [u8]| {
        let from = usize::try_from(offset).map_err(std::io::Error::other)?;
        let part = bytes.get(from..from + buffer.len());
        buffer.copy_from_slice(part.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    let Content::Sealed { fd, .. } = sparse::lay_out(size, known, &mut read)? else {
        bail!("sparse content is not a descriptor");
    };
    let fd = fd.try_clone().context("a descriptor")?;
    SparseView::open(fd, size, known.clone()).map_err(anyhow::Error::msg)
}

/// The kind of a file, for the table.
fn kind(path: &Path, bytes: &[u8]) -> &'static str {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    if path.starts_with("/plants") {
        "planted"
    } else if starts(b"MZ") {
        "pe"
    } else if starts(b"\x7fELF") {
        "elf"
    } else if starts(b"%PDF") {
        "pdf"
    } else if starts(b"PK\x03\x04") || starts(b"\x1f\x8b") || starts(b"!<arch>") || starts(b"BZh") {
        "archive"
    } else if starts(b"\x89PNG") || starts(b"\xff\xd8") || starts(b"OggS") || starts(b"RIFF") {
        "media"
    } else if starts(b"SQLite") || ["log", "img", "db"].contains(&extension) {
        "data"
    } else if bytes.iter().take(512).all(|b| *b >= 9 && *b != 127) {
        "text"
    } else {
        "other"
    }
}
