//! The filter that was fetched last, as it is kept in the state folder: after a restart it need not
//! be fetched again, and of the next one only what changed.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use literal_filter::{FilterError, Pack};

use crate::AgentConfig;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterFileError {
    /// The system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More than a filter may have.
    #[error("{}: more than the {max} bytes of limits.filter_bytes_max", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// It is no filter.
    #[error("{}: damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        source: FilterError,
    },
}

/// Where it is kept, and how large it may be.
#[derive(Debug, Clone)]
pub(crate) struct FilterFile {
    path: PathBuf,
    bytes_max: u64,
}

impl FilterFile {
    pub(crate) fn of(config: &AgentConfig) -> Self {
        Self {
            path: config.filter_file(),
            bytes_max: config.limits.filter_bytes_max,
        }
    }

    /// Its bytes; `None`: there is no file.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, FilterFileError> {
        let (path, max) = (self.path.clone(), self.bytes_max);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file,
        };
        let mut bytes = Vec::new();
        let read = file.and_then(|file| file.take(max.saturating_add(1)).read_to_end(&mut bytes));
        match read {
            Ok(len) if len as u64 <= max => Ok(Some(bytes)),
            Ok(_) => Err(FilterFileError::TooLarge { path, max }),
            Err(source) => Err(FilterFileError::Read { path, source }),
        }
    }

    /// The filter; `None`: there is no file.
    pub(crate) fn load(&self) -> Result<Option<Pack>, FilterFileError> {
        let damaged = |source| FilterFileError::Damaged {
            path: self.path.clone(),
            source,
        };
        let bytes = self.read()?;
        bytes
            .map(|bytes| Pack::read(&bytes).map_err(damaged))
            .transpose()
    }

    /// Replaces it whole, for root alone.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), pki::FileError> {
        pki::write_atomic(&self.path, 0o600, bytes)
    }

    /// It is of no use any more.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
