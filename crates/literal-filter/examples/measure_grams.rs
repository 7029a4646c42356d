//! Measures how often pairs of bytes occur in files: `measure_grams OUT FOLDER…` writes what
//! `src/pairs.bin` is. Kinds of files weigh the same, however many bytes of each there are.

use std::error::Error;
use std::path::{Path, PathBuf};

/// Programs for Windows, programs for Linux, texts, the rest.
const KINDS: usize = 4;
/// Bytes of one file that count.
const FILE_MAX: usize = 4 << 20;
/// What a pair that never occurs counts as, in occurrences.
const UNSEEN: f64 = 0.1;

type Counts = Vec<f64>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [out, folders @ ..] = arguments.as_slice() else {
        return Err("measure_grams OUT FOLDER…".into());
    };
    let mut kinds: Vec<Counts> = vec![vec![UNSEEN; 1 << 14]; KINDS];
    for folder in folders {
        count(folder, &mut kinds)?;
    }
    let mut shares = vec![0.0; 1 << 14];
    for counts in &kinds {
        let all: f64 = counts.iter().sum();
        for (share, count) in shares.iter_mut().zip(counts) {
            *share += count / all / KINDS as f64;
        }
    }
    let rarity = |share: &f64| (share.log2() * -4.0).round().clamp(0.0, 255.0) as u8;
    std::fs::write(out, shares.iter().map(rarity).collect::<Vec<u8>>())?;
    Ok(())
}

fn count(folder: &Path, kinds: &mut [Counts]) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let kind = std::fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            count(&path, kinds)?;
        } else if kind.is_file() {
            let Ok(mut bytes) = std::fs::read(&path) else {
                continue;
            };
            bytes.truncate(FILE_MAX);
            let counts = &mut kinds[kind_of(&bytes)];
            for two in bytes.windows(2) {
                counts[number(two[0]) << 7 | number(two[1])] += 1.0;
            }
        }
    }
    Ok(())
}

fn kind_of(bytes: &[u8]) -> usize {
    match bytes {
        [b'M', b'Z', ..] => 0,
        [0x7f, b'E', b'L', b'F', ..] => 1,
        _ if bytes.iter().take(4096).all(|byte| *byte >= b'\t') => 2,
        _ => 3,
    }
}

/// As `grams.rs` numbers folded bytes.
fn number(byte: u8) -> usize {
    usize::from(byte & 0x1f | (byte & 0xc0) >> 1)
}
