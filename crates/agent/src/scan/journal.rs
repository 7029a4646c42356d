//! How far a scan has come, kept on disk so that a later run can go on from there.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use daemon::lock::LockedFile;
use model::{Digest, Generation};
use prost::Message;

use super::totals::Totals;
use super::walk::Position;

const MAGIC: &[u8; 8] = b"LAZARETS";
const VERSION: u32 = 1;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Two scans of the same paths would write the same journal.
    #[error("a scan of the same paths is running already ({0:?} is locked)")]
    Running(PathBuf),
    /// The system refused.
    #[error("cannot use the scan journal {path:?}")]
    Io {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was not written.
    #[error("cannot write the scan journal")]
    Write(#[source] pki::FileError),
}

/// What a scan remembers of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The rules that have judged so far. Under others everything has to be judged again.
    pub(crate) generation: Generation,
    /// Everything up to here is done.
    pub(crate) position: Position,
    /// What that came to.
    pub(crate) totals: Totals,
}

/// The journal of one set of paths and options. Holds a lock as long as it lives.
pub(crate) struct Journal {
    path: PathBuf,
    _lock: LockedFile,
}

#[derive(Clone, PartialEq, Message)]
struct ProgressV1 {
    #[prost(bytes = "vec", tag = "1")]
    generation: Vec<u8>,
    #[prost(uint64, tag = "2")]
    root: u64,
    #[prost(bytes = "vec", tag = "3")]
    path: Vec<u8>,
    #[prost(message, required, tag = "4")]
    totals: Totals,
}

impl Journal {
    /// Opens the journal for scans with that key, which says all that decides what is walked.
    pub(crate) fn open(state_dir: &Path, key: Digest) -> Result<Self, JournalError> {
        let dir = state_dir.join("scans");
        let io = |path: &Path, source| JournalError::Io {
            path: path.to_owned(),
            source,
        };
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir);
        made.map_err(|source| io(&dir, source))?;
        let lock_path = dir.join(format!("{key}.lock"));
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| io(&lock_path, source))?;
        let lock = match LockedFile::try_lock(lock) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => return Err(JournalError::Running(lock_path)),
            Err(TryLockError::Error(source)) => return Err(io(&lock_path, source)),
        };
        let path = dir.join(format!("{key}.journal"));
        Ok(Self { path, _lock: lock })
    }

    /// What the last run left; `None`: nothing, or nothing that can be read.
    pub(crate) fn load(&self) -> Option<Progress> {
        decode(&fs::read(&self.path).ok()?)
    }

    /// Writes it, durably: after a crash the last whole one is there.
    pub(crate) fn save(&self, progress: &Progress) -> Result<(), JournalError> {
        pki::write_atomic(&self.path, 0o600, &encode(progress)).map_err(JournalError::Write)
    }

    /// The scan is complete: the next one begins anew.
    pub(crate) fn clear(&self) -> Result<(), JournalError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(JournalError::Io {
                path: self.path.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// `LAZARETS`, version, the message, and BLAKE3 of all that.
fn encode(progress: &Progress) -> Vec<u8> {
    let message = ProgressV1 {
        generation: progress.generation.0.to_vec(),
        root: progress.position.root as u64,
        path: progress.position.path.as_os_str().as_bytes().to_vec(),
        totals: progress.totals,
    };
    let mut bytes = [MAGIC.as_slice(), &VERSION.to_be_bytes()].concat();
    bytes.extend(message.encode_to_vec());
    let check = Digest::of(&bytes);
    bytes.extend(check.0);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Progress> {
    let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if Digest::of(body).0 != check {
        return None;
    }
    let message = body
        .strip_prefix(MAGIC)?
        .strip_prefix(&VERSION.to_be_bytes())?;
    let message = ProgressV1::decode(message).ok()?;
    Some(Progress {
        generation: Generation::from_slice(&message.generation)?,
        position: Position {
            root: usize::try_from(message.root).ok()?,
            path: std::ffi::OsString::from_vec(message.path).into(),
        },
        totals: message.totals,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress {
            generation: Generation([3; 16]),
            position: Position {
                root: 1,
                path: std::ffi::OsString::from_vec(b"a\xff/b\n".to_vec()).into(),
            },
            totals: Totals {
                files: 7,
                ..Totals::default()
            },
        }
    }

    #[test]
    fn kept_until_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let key = Digest::of(b"key");
        let journal = Journal::open(dir.path(), key).unwrap();
        assert_eq!(journal.load(), None);
        journal.save(&progress()).unwrap();
        let second = Journal::open(dir.path(), key);
        assert!(matches!(second, Err(JournalError::Running(_))));
        drop(journal);
        let journal = Journal::open(dir.path(), key).unwrap();
        assert_eq!(journal.load(), Some(progress()));
        journal.clear().unwrap();
        journal.clear().unwrap();
        assert_eq!(journal.load(), None);
    }

    #[test]
    fn damage_is_no_position() {
        let bytes = encode(&progress());
        assert_eq!(decode(&bytes), Some(progress()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None);
            assert_eq!(decode(&bytes[..at]), None);
        }
    }
}
