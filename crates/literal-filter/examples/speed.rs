//! How fast a filter is: `speed LITERALS FOLDER`. LITERALS has one literal a line: `c` or `i`
//! (case ignored), then its bytes in hexadecimal digits.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use literal_filter::{Filter, Literal};

/// No more than this is scanned.
const ENOUGH: usize = 256 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [literals, folder] = arguments.as_slice() else {
        return Err("speed LITERALS FOLDER".into());
    };
    let filter = Filter::build(&read_literals(literals)?)?;
    let mut files = Vec::new();
    let mut left = ENOUGH;
    read_files(folder, &mut left, &mut files)?;
    let (mut hits, start) = (0u64, cpu_seconds()?);
    for file in &files {
        let _ = filter.scan(file, &mut |_, _| {
            hits += 1;
            ControlFlow::Continue(())
        });
    }
    let seconds = cpu_seconds()? - start;
    let megabytes = (ENOUGH - left) as f64 / 1e6;
    println!(
        "{} literals, {megabytes:.0} MB, {:.2} GB/s of CPU time, {:.1} hits/MB",
        filter.len(),
        megabytes / 1e3 / seconds,
        hits as f64 / megabytes
    );
    Ok(())
}

fn read_literals(path: &Path) -> Result<Vec<Literal>, Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    let literal = |line: &str| -> Result<Literal, Box<dyn Error>> {
        let (kind, digits) = line.split_at_checked(1).ok_or("an empty line")?;
        let bytes: Result<Vec<u8>, _> = (0..digits.len() / 2)
            .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16))
            .collect();
        Ok(Literal {
            bytes: bytes?,
            nocase: kind == "i",
        })
    };
    text.lines().map(literal).collect()
}

fn read_files(
    folder: &Path,
    left: &mut usize,
    files: &mut Vec<Vec<u8>>,
) -> Result<(), Box<dyn Error>> {
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_files(&entry.path(), left, files)?;
        } else if kind.is_file() {
            let file = std::fs::read(entry.path())?;
            if file.len() <= *left {
                *left -= file.len();
                files.push(file);
            }
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
