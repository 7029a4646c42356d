//! Digests that no list allows any more because content of theirs was found malicious. They are
//! kept in a file: eight bytes of magic, then 32 for each digest, appended. A crash can leave a
//! part of the last one, which is cut off.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Digest, Error, store};

const MAGIC: &[u8; 8] = b"LZRECAL\0";
/// A larger file is none of ours.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What was recalled. No look-up waits for the disk: an agent's own writes may wait for a thread
/// of its own that waits for a look-up.
#[derive(Debug)]
pub(crate) struct Recalls {
    max: usize,
    held: RwLock<Held>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Held {
    known: HashSet<Digest>,
    /// In memory, not yet on disk.
    unsaved: Vec<Digest>,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    /// Digests in the file.
    saved: usize,
}

impl Recalls {
    /// What is kept at `path`; nothing where there is no file. When `max` are held, which ones
    /// were recalled is no longer sure.
    pub(crate) fn open(path: &Path, max: usize) -> Result<Self, Error> {
        let bytes = match store::read(path, BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        // A crash while it was made may have left less than the magic.
        let digests = match bytes.strip_prefix(MAGIC) {
            Some(digests) => digests.as_chunks::<32>().0,
            None if MAGIC.starts_with(&bytes) => &[],
            None => {
                return Err(Error::Damaged {
                    path: path.to_owned(),
                    what: "not a file of recalled digests",
                });
            }
        };
        let held = Held {
            known: digests.iter().copied().collect(),
            unsaved: Vec::new(),
        };
        let kept = Kept {
            path: path.to_owned(),
            saved: digests.len(),
        };
        Ok(Self {
            max,
            held: RwLock::new(held),
            kept: Mutex::new(kept),
        })
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        let held = self.held();
        held.known.len() >= self.max || held.known.contains(digest)
    }

    /// As many as may be held: there may have been others.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.max
    }

    pub(crate) fn all(&self) -> Vec<Digest> {
        let mut all: Vec<Digest> = self.held().known.iter().copied().collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.held().known.len()
    }

    /// Holds `digests` in memory; returns those that are new.
    pub(crate) fn add(&self, digests: &[Digest]) -> Vec<Digest> {
        let mut held = self.held_mut();
        let mut new = Vec::new();
        for digest in digests {
            if held.known.len() >= self.max {
                break;
            }
            if held.known.insert(*digest) {
                new.push(*digest);
            }
        }
        held.unsaved.extend_from_slice(&new);
        new
    }

    /// Writes what is not on disk yet. After an error it is tried again by the next one.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let unsaved = self.held().unsaved.clone();
        if unsaved.is_empty() {
            return Ok(());
        }
        kept.append(&unsaved).map_err(Error::io(&kept.path))?;
        store::sync_folder(&kept.path)?;
        kept.saved += unsaved.len();
        // Others may have come meanwhile, behind these.
        self.held_mut().unsaved.drain(..unsaved.len());
        Ok(())
    }

    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn append(&self, digests: &[Digest]) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let mut file = options.open(&self.path)?;
        // Over the part of a digest that a crash left, and over what a failed write left.
        let end = match self.saved {
            0 => 0,
            saved => (MAGIC.len() + saved * 32) as u64,
        };
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        if end == 0 {
            file.write_all(MAGIC)?;
        }
        file.write_all(digests.as_flattened())?;
        File::sync_all(&file)
    }
}
