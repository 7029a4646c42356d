//! A file of chunks, made of what is below some folders.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use chunks::{CHUNK_BYTES_MAX, Chunk, ChunkId, Kind, Lister, PieceCompressor};
use tempfile::NamedTempFile;
use walkdir::WalkDir;

use crate::Error;
use crate::format::{CHUNKS_MAX, Entry, Trailer, header};

/// Bytes read at a time.
const READ_BYTES: usize = 256 * 1024;

/// Makes a file of chunks. Nothing is where it will be before [`finish`](Self::finish).
pub struct Builder {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    /// Bytes written.
    at: u64,
    /// Where the chunk under a name and a length is, and its bytes there.
    known: HashMap<(ChunkId, u32), (u64, u32)>,
    compressor: PieceCompressor,
    made: Made,
}

/// What was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Made {
    /// Files that were read.
    pub files: u64,
    /// Files that could not be.
    pub left_out: u64,
    /// Bytes of those that were read.
    pub bytes: u64,
    /// Different chunks.
    pub chunks: u64,
    /// Bytes of the file that was made.
    pub file_bytes: u64,
}

impl Builder {
    /// For a file at `path`, written beside it until it is finished.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let file = NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
        let mut builder = Self {
            path: path.to_owned(),
            out: BufWriter::new(file),
            at: 0,
            known: HashMap::new(),
            compressor: PieceCompressor::default(),
            made: Made::default(),
        };
        builder.write(&header())?;
        Ok(builder)
    }

    /// Adds the regular files of at least `size_min` bytes below a folder, on its file system alone.
    /// Symbolic links are not followed. `left_out` hears of what cannot be read.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be read or the file not be written;
    /// [`Error::TooMany`].
    pub fn directory(
        &mut self,
        folder: &Path,
        size_min: u64,
        mut left_out: impl FnMut(&Path, &io::Error),
    ) -> Result<(), Error> {
        std::fs::read_dir(folder).map_err(Error::io(folder))?;
        let walk = WalkDir::new(folder).same_file_system(true);
        for entry in walk.sort_by_file_name() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(folder).to_owned();
                    self.made.left_out += 1;
                    left_out(&path, &error.into());
                    continue;
                }
            };
            if !entry.file_type().is_file() {
                continue;
            }
            match self.file(entry.path(), size_min) {
                Ok(()) => {}
                Err(Failed::Read(error)) => {
                    self.made.left_out += 1;
                    left_out(entry.path(), &error);
                }
                Err(Failed::Write(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the index and puts the file where it belongs, in place of what is there.
    ///
    /// # Errors
    /// [`Error::Io`]; what was there still is.
    pub fn finish(mut self) -> Result<Made, Error> {
        let entry = |(&(id, len), &(offset, stored)): (&_, &_)| Entry {
            id,
            len,
            offset,
            stored,
        };
        let mut index: Vec<Entry> = self.known.iter().map(entry).collect();
        index.sort_unstable_by_key(Entry::key);
        let (index_at, mut hasher) = (self.at, blake3::Hasher::new());
        for entry in &index {
            let bytes = entry.encode();
            hasher.update(&bytes);
            self.write(&bytes)?;
        }
        let trailer = Trailer {
            index_at,
            entries: index.len() as u64,
            digest: *hasher.finalize().as_bytes(),
        };
        self.write(&trailer.encode())?;
        let io = || Error::io(&self.path);
        let file = self.out.into_inner().map_err(|it| io()(it.into_error()))?;
        file.as_file().sync_all().map_err(io())?;
        file.persist(&self.path).map_err(|it| io()(it.error))?;
        Ok(Made {
            chunks: index.len() as u64,
            file_bytes: self.at,
            ..self.made
        })
    }

    fn file(&mut self, path: &Path, size_min: u64) -> Result<(), Failed> {
        let file = File::open(path)?;
        let size = file.metadata()?.size();
        if size < size_min.max(1) {
            return Ok(());
        }
        let mut lister = None;
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        while offset < size {
            let read = file.read_at(&mut buffer, offset)?;
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                return Err(io::Error::other("became shorter while it was read").into());
            }
            if lister.is_none() {
                // `None`: too large for any list, so that it is never asked for by one.
                let Some(kind) = Kind::of(size, bytes) else {
                    return Ok(());
                };
                lister = Some(Lister::new(kind));
            }
            if let Some(lister) = &mut lister {
                lister.update(bytes);
            }
            offset += read as u64;
        }
        if let Some(lister) = lister {
            let manifest = lister.finish().0;
            for chunk in manifest.chunks() {
                self.chunk(&file, manifest.kind(), chunk)?;
            }
        }
        self.made.files += 1;
        self.made.bytes += offset;
        Ok(())
    }

    /// Stores a chunk under the name that its bytes have now.
    fn chunk(&mut self, file: &File, kind: Kind, chunk: &Chunk) -> Result<(), Failed> {
        if self.known.contains_key(&(chunk.id, chunk.len)) || chunk.len > CHUNK_BYTES_MAX {
            return Ok(());
        }
        if self.known.len() >= CHUNKS_MAX {
            let path = self.path.clone();
            return Err(Failed::Write(Error::TooMany { path }));
        }
        let mut bytes = vec![0; chunk.len as usize];
        file.read_exact_at(&mut bytes, chunk.offset)?;
        if kind.name(chunk.offset, &bytes) != chunk.id {
            return Err(io::Error::other("changed while it was read").into());
        }
        let small = self.compressor.compress(&bytes);
        let stored = small.as_deref().unwrap_or(&bytes);
        let offset = self.at;
        self.write(stored).map_err(Failed::Write)?;
        let place = (offset, stored.len() as u32);
        self.known.insert((chunk.id, chunk.len), place);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(Error::io(&self.path))?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// A file that cannot be read is left out; one that cannot be written ends it all.
enum Failed {
    Read(io::Error),
    Write(Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}
