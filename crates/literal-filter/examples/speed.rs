//! How fast a filter is: `speed RULES FILES [RULES FILES]...`, both folders (or `zeros` for 100 MB of zeros).
//!
//! The literals are taken from YARA rules in a crude way: quoted strings of 5 bytes and more with
//! their `nocase` and `wide`, and the longest fixed run of each hex string.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use literal_filter::{Filter, LITERAL_MAX, Literal};

/// Files are read in batches of about this size before the clock starts.
const BATCH: usize = 256 << 20;
/// No more than this is scanned.
const ENOUGH: usize = 3 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    for pair in arguments.chunks_exact(2) {
        let literals = extract(&pair[0])?;
        let start = Instant::now();
        let filter = Filter::build(&literals)?;
        let built = start.elapsed();
        let bytes = filter.to_bytes().len();
        println!(
            "{}: {} literals, {bytes} bytes, built in {built:.0?}",
            pair[0].display(),
            filter.len()
        );
        measure(&filter, &pair[1])?;
    }
    Ok(())
}

fn measure(filter: &Filter, folder: &Path) -> Result<(), Box<dyn Error>> {
    let (mut bytes, mut hits, mut nanos) = (0, 0, 0);
    let mut run = |batch: &mut Vec<Vec<u8>>| -> Result<(), Box<dyn Error>> {
        let start = cpu_nanos()?;
        for file in batch.iter() {
            let _ = filter.scan(file, &mut |_, _| {
                hits += 1;
                ControlFlow::Continue(())
            });
            bytes += file.len();
        }
        nanos += cpu_nanos()? - start;
        batch.clear();
        Ok(())
    };
    let mut batch = Vec::new();
    if folder == Path::new("zeros") {
        batch.push(vec![0; 100_000_000]);
    } else {
        let (mut size, mut total) = (0, 0);
        for path in files(folder)? {
            let Ok(file) = std::fs::read(path) else {
                continue;
            };
            size += file.len();
            total += file.len();
            batch.push(file);
            if size >= BATCH {
                run(&mut batch)?;
                size = 0;
            }
            if total >= ENOUGH {
                break;
            }
        }
    }
    run(&mut batch)?;
    let (mb, speed) = (bytes as f64 / 1e6, bytes as f64 / nanos as f64);
    println!(
        "  {}: {mb:.0} MB, {speed:.2} GB/s of CPU time, {:.1} hits/MB",
        folder.display(),
        f64::from(hits) / mb
    );
    Ok(())
}

/// Nanoseconds that this thread was on a processor.
fn cpu_nanos() -> Result<u64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split(' ').next().unwrap_or("").parse()?)
}

/// All regular files, in a fixed order.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

fn extract(folder: &Path) -> Result<Vec<Literal>, Box<dyn Error>> {
    let mut literals = BTreeSet::new();
    for path in files(folder)? {
        if path
            .extension()
            .is_none_or(|ending| ending != "yar" && ending != "yara")
        {
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with('$'))
        {
            let Some((_, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.trim_start();
            if let Some(quoted) = value.strip_prefix('"') {
                let (bytes, rest) = unescape(quoted);
                add_text(&mut literals, bytes, rest);
            } else if let Some(hex) = value.strip_prefix('{') {
                let run = longest_run(hex);
                literals.insert((run, false));
            }
        }
    }
    // Nobody would choose a run of one byte, which is everywhere.
    let varied = |bytes: &[u8]| bytes.iter().collect::<BTreeSet<_>>().len() >= 3;
    let usable = literals.into_iter().filter(|(bytes, _)| bytes.len() >= 5 && varied(bytes));
    Ok(usable
        .map(|(mut bytes, nocase)| {
            bytes.truncate(LITERAL_MAX);
            Literal { bytes, nocase }
        })
        .collect())
}

fn add_text(literals: &mut BTreeSet<(Vec<u8>, bool)>, bytes: Vec<u8>, rest: &str) {
    let words: Vec<&str> = rest
        .split("//")
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let nocase = words.contains(&"nocase");
    let wide = words.contains(&"wide");
    if wide && bytes.len() >= 3 {
        literals.insert((bytes.iter().flat_map(|byte| [*byte, 0]).collect(), nocase));
    }
    if !wide || words.contains(&"ascii") {
        literals.insert((bytes, nocase));
    }
}

/// The bytes up to the closing quote, and what follows it.
fn unescape(quoted: &str) -> (Vec<u8>, &str) {
    let mut bytes = Vec::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (bytes, &quoted[at + 1..]),
            '\\' => match chars.next() {
                Some((_, 'x')) => {
                    let digits: String = chars.by_ref().take(2).map(|(_, digit)| digit).collect();
                    bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(0));
                }
                Some((_, 'n')) => bytes.push(b'\n'),
                Some((_, 't')) => bytes.push(b'\t'),
                Some((_, 'r')) => bytes.push(b'\r'),
                Some((_, other)) => bytes.extend(other.to_string().bytes()),
                None => {}
            },
            _ => bytes.extend(char.to_string().bytes()),
        }
    }
    (bytes, "")
}

/// The longest run of plain bytes of a hex string on one line.
fn longest_run(hex: &str) -> Vec<u8> {
    let hex = hex.split('}').next().unwrap_or("").replace(' ', "");
    let (mut best, mut run) = (Vec::new(), Vec::new());
    let digits: Vec<char> = hex.chars().collect();
    let mut at = 0;
    while at < digits.len() {
        let pair: String = digits[at..digits.len().min(at + 2)].iter().collect();
        match u8::from_str_radix(&pair, 16) {
            Ok(byte) if pair.len() == 2 => run.push(byte),
            _ => run.clear(),
        }
        let step = if "[]()|".contains(digits[at]) { 1 } else { 2 };
        at += step;
        if run.len() > best.len() {
            best.clone_from(&run);
        }
    }
    best
}
