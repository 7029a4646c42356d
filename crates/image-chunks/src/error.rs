//! What can be wrong with a file of chunks, or with making one.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file was refused, or could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or a folder could not be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not begin like a file of chunks.
    #[error("{path}: not a file of image chunks", path = .path.display())]
    Magic {
        /// The file.
        path: PathBuf,
    },
    /// A format that this program does not know.
    #[error("{path}: unknown format version {found} at byte 8; this program reads version {known}", path = .path.display(), known = crate::format::VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in the header.
        found: u32,
    },
    /// Its end is not where it says, or its index is not the one that was written.
    #[error("{path}: {what}: truncated or damaged", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry of the index that no program of ours writes.
    #[error("{path}: entry {entry} of the index: {what}", path = .path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Its number, from 0.
        entry: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// More chunks than one file may have.
    #[error("{path}: more than {max} chunks; leave folders out, or make several files", path = .path.display(), max = crate::format::CHUNKS_MAX)]
    TooMany {
        /// The file.
        path: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
