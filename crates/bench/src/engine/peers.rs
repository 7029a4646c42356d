//! yara 4.2, Debian's, as its command line runs it.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Corpus;

/// Variables that rule sets expect.
const VARIABLES: [&str; 5] = ["filename", "filepath", "extension", "filetype", "owner"];

/// MB a second of processor time, without the time to load the rules.
pub(crate) fn yara_mb_per_s(rules: &Path, corpus: &Corpus) -> Result<f64> {
    let scratch = tempfile::tempdir()?;
    let compiled = scratch.path().join("rules.yac");
    let mut compiler = Command::new("yarac");
    compiler.arg("-w");
    for name in VARIABLES {
        compiler.arg("-d").arg(format!("{name}="));
    }
    let sources = engine_yara::load_sources(&[rules.to_owned()]).map_err(super::joined)?;
    for (number, (path, _)) in sources.iter().enumerate() {
        compiler.arg(format!("n{number}:{path}"));
    }
    testbed::run(compiler.arg(&compiled))?;
    let list = scratch.path().join("list");
    let empty = scratch.path().join("empty");
    std::fs::write(&empty, "")?;
    let loading = scan(&compiled, std::iter::once(empty.as_path()), &list)?;
    let all = corpus.files.iter().map(|(path, _)| path.as_path());
    let scanning = scan(&compiled, all, &list)?;
    Ok(corpus.megabytes / (scanning - loading).max(1e-6))
}

/// Processor seconds of a run over these files.
fn scan<'a>(compiled: &Path, files: impl Iterator<Item = &'a Path>, list: &Path) -> Result<f64> {
    let mut out = std::fs::File::create(list)?;
    for file in files {
        writeln!(out, "{}", file.display())?;
    }
    let before = children_cpu_seconds()?;
    let output = Command::new("yara")
        .args(["-w", "-p", "1", "-C", "--scan-list"])
        .args([compiled, list])
        .output()
        .context("yara")?;
    ensure!(
        output.status.success(),
        "yara: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(children_cpu_seconds()? - before)
}

/// Of children that were waited for: fields 16 and 17 of /proc/self/stat, in ticks.
fn children_cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().context("no stat")?;
    let mut fields = fields.split_whitespace().skip(13);
    let mut ticks = || -> Result<f64> { Ok(fields.next().context("no field")?.parse()?) };
    let ticks = ticks()? + ticks()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}
