//! Where the time goes: `stages RULES FOLDER [MB] [HOW]`. Scans files below FOLDER by plan and says
//! how far each kind of file gets; `perf record` it. HOW is `filter`: nothing but the filter;
//! `whole`: plain YARA-X instead; a number: so many rounds by plan.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine_yara::{Planned, Stages, Whole};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rules, folder, rest @ ..] = arguments.as_slice() else {
        return Err("stages RULES FOLDER [MB] [whole|filter|ROUNDS]".into());
    };
    let mut left = rest.first().map_or(Ok(64), |mb| mb.parse::<usize>())? << 20;
    let sources = engine_yara::load_sources(&[PathBuf::from(rules)]).map_err(|e| e.join("\n"))?;
    let mut found = Vec::new();
    list(Path::new(folder), &mut found)?;
    // The same ones each time, spread over the folder.
    found.sort_by_key(|path: &PathBuf| {
        let name = path.as_os_str().as_encoded_bytes();
        name.iter().fold(7u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
    });
    let mut files = Vec::new();
    for path in found {
        let Ok(bytes) = std::fs::read(&path) else {
            continue;
        };
        if !bytes.is_empty() && bytes.len() <= left {
            left -= bytes.len();
            files.push((path, bytes));
        }
    }
    let megabytes = files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() as f64 / 1e6;
    match rest.get(1).map(String::as_str) {
        Some("whole") => whole(&sources, &files, megabytes),
        Some("filter") => planned(&sources, &files, megabytes, 0),
        rounds => {
            let rounds = rounds.map_or(Ok(1), str::parse)?;
            planned(&sources, &files, megabytes, rounds)
        }
    }
}

type Files = [(PathBuf, Vec<u8>)];

fn whole(sources: &[(String, Vec<u8>)], files: &Files, mb: f64) -> Result<(), Box<dyn Error>> {
    let whole = Whole::compile(sources).map_err(|e| e.join("\n"))?;
    let mut scanner = whole.scanner();
    let start = cpu_seconds()?;
    for (path, bytes) in files {
        scanner.scan(bytes, path.as_os_str().as_encoded_bytes())?;
    }
    println!(
        "whole {mb:.0} MB: {:.1} MB/s",
        mb / (cpu_seconds()? - start)
    );
    Ok(())
}

fn planned(
    sources: &[(String, Vec<u8>)],
    files: &Files,
    mb: f64,
    rounds: usize,
) -> Result<(), Box<dyn Error>> {
    let planned = Planned::compile(sources).map_err(|e| e.join("\n"))?;
    let plan = planned.plan();
    let start = cpu_seconds()?;
    let mut hits = 0;
    for (_, bytes) in files {
        let _ = plan.filter().scan(bytes, &mut |_, _| {
            hits += 1;
            ControlFlow::Continue(())
        });
    }
    let filter = cpu_seconds()? - start;
    println!("filter {mb:.0} MB: {:.1} MB/s, {hits} hits", mb / filter);
    if rounds == 0 {
        return Ok(());
    }
    let mut scanner = planned.scanner()?;
    // Scanners and expressions are made when they are first needed.
    for (path, bytes) in files {
        scanner.scan(bytes, path.as_os_str().as_encoded_bytes())?;
    }
    // Of each file the quickest round: others had to share the processor.
    let mut best: Vec<(Duration, Stages)> = vec![(Duration::MAX, Stages::default()); files.len()];
    let start = cpu_seconds()?;
    for _ in 0..rounds {
        for ((path, bytes), best) in files.iter().zip(&mut best) {
            let start = Instant::now();
            let judged = scanner.scan(bytes, path.as_os_str().as_encoded_bytes())?;
            *best = (start.elapsed().min(best.0), judged.stages);
        }
    }
    let seconds = cpu_seconds()? - start;
    println!(
        "planned {mb:.0} MB: {:.1} MB/s of CPU time",
        mb * rounds as f64 / seconds
    );
    let mut by_kind: BTreeMap<&str, (usize, usize, f64, Stages)> = BTreeMap::new();
    for ((_, bytes), (best, one)) in files.iter().zip(best) {
        let kind = match bytes.as_slice() {
            [b'M', b'Z', ..] => "PE",
            [0x7f, b'E', b'L', b'F', ..] => "ELF",
            _ if bytes.len() < 4096 => "small",
            _ => "other",
        };
        let (count, size, time, sum) = by_kind.entry(kind).or_default();
        (*count, *size) = (*count + 1, *size + bytes.len());
        *time += best.as_secs_f64();
        sum.hits += one.hits;
        sum.open_after_filter += one.open_after_filter;
        sum.probes += one.probes;
        sum.open += one.open;
        sum.shards += one.shards;
    }
    for (kind, (count, size, time, sum)) in by_kind {
        let each = |n: usize| n as f64 / count as f64;
        println!(
            "{kind:<6} {count} files, {:.1} MB, {:.0} MB/s, {:.0} us; a file: {:.1} hits, {:.1} open after filter, {:.2} groups of probes, {:.2} open, {:.2} shards",
            size as f64 / 1e6,
            size as f64 / 1e6 / time,
            time * 1e6 / count as f64,
            each(sum.hits),
            each(sum.open_after_filter),
            each(sum.probes),
            each(sum.open),
            each(sum.shards),
        );
    }
    Ok(())
}

fn list(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match std::fs::symlink_metadata(&path)?.file_type() {
            kind if kind.is_dir() => list(&path, found)?,
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    Ok(())
}

/// CPU time of this thread.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: f64 = text.split(' ').next().ok_or("no time")?.parse()?;
    Ok(nanos * 1e-9)
}
