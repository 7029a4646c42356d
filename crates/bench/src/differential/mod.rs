//! `./x differential`: a rule set by its read plan, and the same whole by YARA-X, over every file
//! of a corpus: the verdicts must be the same, rule by rule. The last line is `violations: N`.

mod plant;
mod ranged;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use engine_yara::{Planned, PlannedScanner, Whole, WholeScanner};
use readplan::Plan;

use crate::corpora::{self, Share};
use plant::Plants;
use ranged::Travel;

/// Rule sets that are tried without `--rules`.
const RULE_SETS: &str = "../shared/rules";
/// Differences that are printed.
const PRINTED_MAX: usize = 50;
/// Bytes of a file of a corpus that is given.
const FILE_MAX: u64 = 256 << 20;

/// What to compare.
#[derive(Args)]
pub(crate) struct Options {
    /// A folder of rule files (*.yar, *.yara). Without: each folder of ../shared/rules.
    #[arg(long)]
    rules: Vec<PathBuf>,
    /// A folder of files. Without: files of this machine, of Debian packages, and made ones.
    #[arg(long)]
    corpus: Vec<PathBuf>,
    /// Makes no files from the rules.
    #[arg(long)]
    no_plants: bool,
}

/// Compares; false where there is a violation.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let scratch = tempfile::tempdir()?;
    let files = match options.corpus.as_slice() {
        [] => own_corpus(scratch.path())?,
        folders => {
            let share = Share {
                each: FILE_MAX,
                ..Share::ALL
            };
            let found = folders.iter().map(|folder| corpora::files(folder, share));
            found.collect::<Result<Vec<_>>>()?.concat()
        }
    };
    let mut violations = 0;
    for rules in rule_sets(options)? {
        violations += compare(&rules, &files, !options.no_plants)?;
    }
    println!("violations: {violations}");
    Ok(violations == 0)
}

fn rule_sets(options: &Options) -> Result<Vec<PathBuf>> {
    if !options.rules.is_empty() {
        return Ok(options.rules.clone());
    }
    let entries = std::fs::read_dir(RULE_SETS).with_context(|| RULE_SETS.to_owned())?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut sets: Vec<_> = paths.collect::<Result<_>>()?;
    sets.retain(|path| path.is_dir());
    sets.sort();
    ensure!(!sets.is_empty(), "no rule sets in {RULE_SETS}");
    Ok(sets)
}

/// Programs, libraries, scripts, texts, PE files, pictures, sound, PDFs, documents, databases,
/// archives.
fn own_corpus(scratch: &Path) -> Result<Vec<PathBuf>> {
    corpora::make(scratch)?;
    let mut files = corpora::files(scratch, Share::ALL)?;
    let share = |files, megabytes: u64| Share {
        files,
        bytes: megabytes << 20,
        each: 8 << 20,
    };
    files.extend(corpora::files(Path::new("/usr"), share(4500, 200))?);
    for (package, share) in [
        ("libwine", share(400, 120)),
        ("sound-theme-freedesktop", share(50, 20)),
        ("adwaita-icon-theme", share(300, 20)),
        ("r-doc-pdf", share(20, 20)),
    ] {
        files.extend(corpora::files(&corpora::package(package)?, share)?);
    }
    ensure!(files.len() >= 5000, "only {} files", files.len());
    Ok(files)
}

/// Namespace and name.
type Rule = (String, String);

/// Both sides of the comparison.
struct Sides<'a> {
    planned: PlannedScanner<'a>,
    whole: WholeScanner<'a>,
    files: usize,
    bytes: u64,
    /// Rules matched, of all files.
    matches: usize,
    /// Files in which some rule matched.
    matched: usize,
    /// Rules that matched somewhere.
    rules: BTreeSet<Rule>,
    violations: usize,
    /// Scans where only ranges travel.
    travel: Travel,
    plan: &'a Plan,
}

fn compare(rules: &Path, files: &[PathBuf], plants: bool) -> Result<usize> {
    let failed = |errors: Vec<String>| anyhow::anyhow!("{}", errors.join("\n"));
    let start = Instant::now();
    let sources = engine_yara::load_sources(&[rules.to_owned()]).map_err(failed)?;
    let planned = Planned::compile(&sources).map_err(failed)?;
    let whole = Whole::compile(&sources).map_err(failed)?;
    let mut sides = Sides {
        planned: planned.scanner().map_err(anyhow::Error::msg)?,
        whole: whole.scanner(),
        files: 0,
        bytes: 0,
        matches: 0,
        matched: 0,
        rules: BTreeSet::new(),
        violations: 0,
        travel: Travel::new(planned.plan())?,
        plan: planned.plan(),
    };
    for path in files {
        // Files of a live system come and go.
        if let Ok(bytes) = std::fs::read(path) {
            sides.compare(path, &bytes)?;
        }
    }
    if plants {
        for (name, bytes) in Plants::new(planned.plan()) {
            sides.compare(Path::new(&name), &bytes)?;
        }
    }
    println!(
        "{}: {} rules, {} files, {} MB: {} matches of {} rules in {} files, {} violations, {:.0} s",
        rules.display(),
        planned.plan().len(),
        sides.files,
        sides.bytes >> 20,
        sides.matches,
        sides.rules.len(),
        sides.matched,
        sides.violations,
        start.elapsed().as_secs_f64()
    );
    sides.travel.print();
    Ok(sides.violations)
}

impl Sides<'_> {
    fn compare(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        let name = path.as_os_str().as_encoded_bytes();
        let by_plan = self.planned.scan(bytes, name).map_err(anyhow::Error::msg)?;
        let whole = self.whole.scan(bytes, name).map_err(anyhow::Error::msg)?;
        self.files += 1;
        self.bytes += bytes.len() as u64;
        self.matches += whole.matches.len();
        self.matched += usize::from(!whole.matches.is_empty());
        self.note(path, "by plan", &by_plan.matches, &whole.matches);
        let travel = &mut self.travel;
        let by_ranges = travel.judge(&mut self.planned, self.plan, path, bytes)?;
        self.note(path, "by ranges", &by_ranges, &whole.matches);
        self.rules.extend(whole.matches);
        Ok(())
    }

    fn note(&mut self, path: &Path, how: &str, found: &[Rule], whole: &[Rule]) {
        if found == whole {
            return;
        }
        self.violations += 1;
        if self.violations <= PRINTED_MAX {
            let lost = whole.iter().filter(|rule| !found.contains(rule));
            let invented = found.iter().filter(|rule| !whole.contains(rule));
            println!("{} {how}:", path.display());
            lost.for_each(|(file, rule)| println!("  lost {rule} of {file}"));
            invented.for_each(|(file, rule)| println!("  invented {rule} of {file}"));
        }
    }
}
