//! Digests that no list allows any more because content of theirs was found malicious. They are
//! kept in a file: eight bytes of magic, then 32 for each digest, appended. A crash can leave a
//! part of the last one, which is cut off.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::{Digest, Error, store};

const MAGIC: &[u8; 8] = b"LZRECAL\0";
/// A larger file is none of ours.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What was recalled.
#[derive(Debug)]
pub(crate) struct Recalls {
    path: PathBuf,
    max: usize,
    known: HashSet<Digest>,
    /// In memory, not yet on disk.
    unsaved: Vec<Digest>,
}

impl Recalls {
    /// What is kept at `path`; nothing where there is no file. When `max` are held, which ones
    /// were recalled is no longer sure.
    pub(crate) fn open(path: &Path, max: usize) -> Result<Self, Error> {
        let mut recalls = Self {
            path: path.to_owned(),
            max,
            known: HashSet::new(),
            unsaved: Vec::new(),
        };
        let bytes = match store::read(path, BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(recalls);
            }
            Err(error) => return Err(error),
        };
        // A crash while it was made may have left less than the magic.
        if MAGIC.starts_with(&bytes) {
            return Ok(recalls);
        }
        let digests = bytes.strip_prefix(MAGIC).ok_or_else(|| Error::Damaged {
            path: path.to_owned(),
            what: "not a file of recalled digests",
        })?;
        recalls.known.extend(digests.as_chunks::<32>().0);
        Ok(recalls)
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.is_full() || self.known.contains(digest)
    }

    /// As many as may be held: there may have been others.
    pub(crate) fn is_full(&self) -> bool {
        self.known.len() >= self.max
    }

    pub(crate) fn all(&self) -> Vec<Digest> {
        let mut all: Vec<Digest> = self.known.iter().copied().collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Holds `digests` in memory; returns those that are new.
    pub(crate) fn add(&mut self, digests: &[Digest]) -> Vec<Digest> {
        let mut new = Vec::new();
        for digest in digests {
            if self.is_full() {
                break;
            }
            if self.known.insert(*digest) {
                new.push(*digest);
            }
        }
        self.unsaved.extend_from_slice(&new);
        new
    }

    /// Writes what is not on disk yet. After an error it is tried again by the next one.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        self.append().map_err(Error::io(&self.path))?;
        store::sync_folder(&self.path)?;
        self.unsaved.clear();
        Ok(())
    }

    fn append(&self) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let mut file = options.open(&self.path)?;
        // Over the part of a digest that a crash left, and over what a failed write left.
        let saved = self.known.len() - self.unsaved.len();
        let end = if file.metadata()?.len() < MAGIC.len() as u64 {
            0
        } else {
            (MAGIC.len() + saved * 32) as u64
        };
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        if end == 0 {
            file.write_all(MAGIC)?;
        }
        file.write_all(self.unsaved.as_flattened())?;
        File::sync_all(&file)
    }
}
