//! A file of chunks, opened.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use chunks::{ChunkId, decompress};

use crate::Error;
use crate::format::{
    ENTRY_BYTES, Entry, HEADER_BYTES, MAGIC, TRAILER_BYTES, Trailer, VERSION, part,
};

/// Entries of the index read at a time.
const ENTRIES_READ: usize = 4096;

/// A file of chunks; its index is in memory.
#[derive(Debug)]
pub struct ImageChunks {
    path: PathBuf,
    file: File,
    /// Rising by name and length.
    index: Vec<Entry>,
}

impl ImageChunks {
    /// Opens a file and checks all of it but the chunks, which are checked when they are used.
    ///
    /// # Errors
    /// [`Error`]: it cannot be read, or is not what [`Builder`](crate::Builder) writes.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |error| Error::io(path)(error);
        let damaged = |what| Error::Damaged {
            path: path.to_owned(),
            what,
        };
        let magic = || Error::Magic {
            path: path.to_owned(),
        };
        // Before it is opened: a pipe would be waited for.
        if !path.metadata().map_err(io)?.is_file() {
            return Err(magic());
        }
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if meta.len() < HEADER_BYTES {
            return Err(magic());
        }
        let mut header = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut header, 0).map_err(io)?;
        if part::<8>(&header, 0) != *MAGIC {
            return Err(magic());
        }
        let found = u32::from_le_bytes(part(&header, 8));
        if found != VERSION {
            let path = path.to_owned();
            return Err(Error::Version { path, found });
        }
        let Some(trailer_at) = meta.len().checked_sub(TRAILER_BYTES as u64) else {
            return Err(damaged("no trailer at its end"));
        };
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, trailer_at).map_err(io)?;
        let trailer = Trailer::decode(path, &trailer, meta.len())?;
        Ok(Self {
            index: read_index(path, &file, &trailer)?,
            path: path.to_owned(),
            file,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Chunks in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it has no chunk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of all its chunks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.index.iter().map(|entry| u64::from(entry.len)).sum()
    }

    /// What is stored under this name: `len` bytes that **the caller has to check** by that name.
    /// `None`: nothing, or it cannot be read. Blocks on the disk.
    #[must_use]
    pub fn read(&self, id: ChunkId, len: u32) -> Option<Vec<u8>> {
        let found = self.index.binary_search_by_key(&(id.0, len), Entry::key);
        let entry = self.index.get(found.ok()?)?;
        let mut stored = vec![0; entry.stored as usize];
        self.file.read_exact_at(&mut stored, entry.offset).ok()?;
        if entry.stored == entry.len {
            return Some(stored);
        }
        decompress(&stored, entry.len as usize).ok()
    }
}

fn read_index(path: &Path, file: &File, trailer: &Trailer) -> Result<Vec<Entry>, Error> {
    let mut hasher = blake3::Hasher::new();
    let mut index: Vec<Entry> = Vec::with_capacity(trailer.entries as usize);
    let mut piece = vec![0; ENTRIES_READ * ENTRY_BYTES];
    let mut at = trailer.index_at;
    while index.len() < trailer.entries as usize {
        let entries = ENTRIES_READ.min(trailer.entries as usize - index.len());
        let piece = piece.get_mut(..entries * ENTRY_BYTES).unwrap_or_default();
        file.read_exact_at(piece, at).map_err(Error::io(path))?;
        hasher.update(piece);
        at += piece.len() as u64;
        for entry in piece.as_chunks::<ENTRY_BYTES>().0 {
            let entry = Entry::decode(entry);
            let is_above = index.last().is_none_or(|last| last.key() < entry.key());
            let unsorted = (!is_above).then_some("not above the one before it");
            if let Some(what) = entry.fault(trailer.index_at).or(unsorted) {
                return Err(Error::Entry {
                    path: path.to_owned(),
                    entry: index.len(),
                    what,
                });
            }
            index.push(entry);
        }
    }
    if *hasher.finalize().as_bytes() != trailer.digest {
        let path = path.to_owned();
        let what = "its index is not the one that was written";
        return Err(Error::Damaged { path, what });
    }
    Ok(index)
}
