//! Real files to open: a sample of the machine's own.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Sizes of the files, in bytes.
const SIZES: RangeInclusive<u64> = 4096..=1 << 20;
/// Files in a folder of the copy: as many as a folder of documents may have.
const FOLDER_FILES: usize = 100;

/// Files of a bench, all of different content.
#[derive(Debug)]
pub(crate) struct Corpus {
    /// Their paths.
    pub(crate) files: Vec<PathBuf>,
    /// Their bytes in all.
    pub(crate) bytes: u64,
}

impl Corpus {
    /// Copies `count` files evenly spread over those of `from` in order of path, so that a run
    /// on the same machine takes the same ones.
    pub(crate) fn copy(from: &Path, to: &Path, count: usize) -> Result<Self> {
        let mut candidates = Vec::new();
        collect(from, &mut candidates)?;
        candidates.sort();
        let mut corpus = Self {
            files: Vec::with_capacity(count),
            bytes: 0,
        };
        let mut seen = HashSet::new();
        // Whole passes with a stride each start one further, so that the files that are copies of
        // others (and are skipped) are made up for by their neighbours.
        let stride = (candidates.len() / count).max(1);
        let order = (0..stride).flat_map(|start| (start..candidates.len()).step_by(stride));
        for index in order {
            if corpus.files.len() == count {
                break;
            }
            corpus.add(&candidates[index], to, &mut seen)?;
        }
        ensure!(
            corpus.files.len() == count,
            "{}: only {} files of {SIZES:?} bytes with different content",
            from.display(),
            corpus.files.len()
        );
        Ok(corpus)
    }

    fn add(&mut self, file: &Path, to: &Path, seen: &mut HashSet<blake3::Hash>) -> Result<()> {
        let content = std::fs::read(file)?;
        if !seen.insert(blake3::hash(&content)) {
            return Ok(());
        }
        let number = self.files.len();
        let folder = to.join(format!("{:03}", number / FOLDER_FILES));
        std::fs::create_dir_all(&folder)?;
        let copy = folder.join(format!("{number:05}"));
        std::fs::write(&copy, &content)?;
        self.bytes += content.len() as u64;
        self.files.push(copy);
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() && SIZES.contains(&entry.metadata()?.size()) {
            files.push(entry.path());
        }
    }
    Ok(())
}
