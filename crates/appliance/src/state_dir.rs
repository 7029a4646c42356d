//! Where an appliance keeps what must outlive it.
//!
//! ```text
//! STATE/            0700
//!   lock            held while a process uses the folder
//!   admin.sock      0600, for the lazaret command (in the runtime folder, where one is set)
//!   pki/            the controller's CA, tokens and guests
//!   verdicts/       the appliance's own verdict store; may be removed while nothing runs
//!   verdict.key     what its entries are sealed with
//!   rules.manifest  what identifies the rules in force, to know what is new in the next
//!   sightings/      which guests were seen with which content
//!   spool/          nameless files only, so it always looks empty
//!   detections.jsonl, detections.jsonl.1 …
//!   rules/          the rules built in, for a start without any configuration
//!   released.json   contents that an administrator let through
//!   allowlist.serials    the serial of each allowlist that was in force
//!   allowlist.recalled   allowlisted contents that were found malicious
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use daemon::lock::LockedFile;

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made or read.
    #[error("{}: cannot use the state folder", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("{}: another lazaret uses this state folder", .0.display())]
    InUse(PathBuf),
}

/// The folder, locked for this process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: LockedFile,
}

impl StateDir {
    /// Makes the folder where it is missing, and locks it.
    ///
    /// # Errors
    /// [`StateDirError`].
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StateDirError::Io { path, source }
        };
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(path).map_err(io(path))?;
        let spool = path.join("spool");
        private.create(&spool).map_err(io(&spool))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        let lock = match LockedFile::try_lock(lock) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => return Err(StateDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io(&lock_path)(source)),
        };
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The controller's part.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.path.join("pki")
    }

    pub(crate) fn verdicts(&self) -> PathBuf {
        self.path.join("verdicts")
    }

    pub(crate) fn rule_manifest(&self) -> PathBuf {
        self.path.join("rules.manifest")
    }

    pub(crate) fn sightings(&self) -> PathBuf {
        self.path.join("sightings")
    }

    pub(crate) fn verdict_key(&self) -> PathBuf {
        self.path.join("verdict.key")
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    pub(crate) fn detections(&self) -> PathBuf {
        self.path.join("detections.jsonl")
    }

    pub(crate) fn released(&self) -> PathBuf {
        self.path.join("released.json")
    }
}

/// The socket of the `lazaret` command, for a daemon with these folders.
#[must_use]
pub fn admin_socket(state_dir: &Path, runtime_dir: Option<&Path>) -> PathBuf {
    runtime_dir.unwrap_or(state_dir).join("admin.sock")
}

/// Replaces a small file so that a crash leaves the old one or the new one, never half of either.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = StateDir::open(&path).unwrap();
        let second = StateDir::open(&path).unwrap_err();
        assert!(matches!(second, StateDirError::InUse(_)));
        drop(first);
        assert!(StateDir::open(&path).is_ok());
    }
}
