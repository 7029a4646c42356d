//! Contents that an administrator let through although engines call them malicious.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::Digest;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::state_dir::replace_file;

/// Version of the file.
const VERSION: u32 = 1;
/// A longer reason is refused.
pub(crate) const REASON_MAX_BYTES: usize = 1024;

/// Releases cannot be read or changed; what was in force stays.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The file cannot be read or written.
    #[error("{}: cannot use the list of released contents", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what this version wrote. It is not overwritten: each line is a decision.
    #[error("{}: not a list of released contents: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No reason was given, or a very long one.
    #[error("a release needs a reason of 1 to {REASON_MAX_BYTES} bytes")]
    Reason,
    /// There are too many.
    #[error("limit released_max ({0}) reached")]
    Full(usize),
    /// There is nothing to take back.
    #[error("this content is not released")]
    NotReleased,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    released: BTreeMap<String, Release>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    reason: String,
    at_ms: u64,
}

/// The list, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Released {
    path: PathBuf,
    list: RwLock<BTreeMap<Digest, Release>>,
}

impl Released {
    pub(crate) fn open(path: PathBuf) -> Result<Self, ReleaseError> {
        let list = match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(ReleaseError::Io { path, source }),
        };
        Ok(Self {
            path,
            list: RwLock::new(list),
        })
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.list.read().contains_key(digest)
    }

    /// Waits for the disk.
    pub(crate) fn release(
        &self,
        digest: Digest,
        reason: &str,
        now_ms: u64,
        max: usize,
    ) -> Result<(), ReleaseError> {
        if reason.trim().is_empty() || reason.len() > REASON_MAX_BYTES {
            return Err(ReleaseError::Reason);
        }
        self.change(|list| {
            if list.len() >= max && !list.contains_key(&digest) {
                return Err(ReleaseError::Full(max));
            }
            let reason = reason.to_owned();
            let at_ms = now_ms;
            list.insert(digest, Release { reason, at_ms });
            Ok(())
        })
    }

    /// Waits for the disk.
    pub(crate) fn revoke(&self, digest: Digest) -> Result<(), ReleaseError> {
        self.change(|list| match list.remove(&digest) {
            Some(_) => Ok(()),
            None => Err(ReleaseError::NotReleased),
        })
    }

    /// On disk first: what is in force survives a crash.
    fn change(
        &self,
        edit: impl FnOnce(&mut BTreeMap<Digest, Release>) -> Result<(), ReleaseError>,
    ) -> Result<(), ReleaseError> {
        let mut list = self.list.write();
        let mut next = list.clone();
        edit(&mut next)?;
        let file = File {
            version: VERSION,
            released: next
                .iter()
                .map(|(digest, release)| (digest.to_string(), release.clone()))
                .collect(),
        };
        let io = |source| ReleaseError::Io {
            path: self.path.clone(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(&file).map_err(|error| io(error.into()))?;
        replace_file(&self.path, &bytes).map_err(io)?;
        *list = next;
        Ok(())
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<Digest, Release>, ReleaseError> {
    let damaged = |problem: String| ReleaseError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let file: File = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if file.version != VERSION {
        return Err(damaged(format!(
            "version {}, this program knows {VERSION}",
            file.version
        )));
    }
    let entries = file.released.into_iter();
    entries
        .map(|(text, release)| match text.parse() {
            Ok(digest) => Ok((digest, release)),
            Err(_) => Err(damaged(format!("{text:?} is no digest"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_survive_and_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("released.json");
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let released = Released::open(path.clone()).unwrap();
        released.release(one, "false alarm", 5, 1).unwrap();
        let full = released.release(two, "x", 5, 1).unwrap_err();
        assert!(matches!(full, ReleaseError::Full(1)));
        let released = Released::open(path.clone()).unwrap();
        assert!(released.contains(&one) && !released.contains(&two));
        released.revoke(one).unwrap();
        assert!(matches!(
            released.revoke(one),
            Err(ReleaseError::NotReleased)
        ));
        assert!(!Released::open(path).unwrap().contains(&one));
    }

    #[test]
    fn a_reason_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let released = Released::open(dir.path().join("released.json")).unwrap();
        let refused = released.release(Digest::of(b"1"), "  ", 5, 9).unwrap_err();
        assert!(matches!(refused, ReleaseError::Reason));
    }

    #[test]
    fn a_damaged_list_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("released.json");
        for text in ["", "{}", r#"{"version":9,"released":{}}"#] {
            fs::write(&path, text).unwrap();
            let error = Released::open(path.clone()).unwrap_err();
            assert!(matches!(error, ReleaseError::Damaged { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let released = Released::open(dir.path().join("gone/released.json")).unwrap();
        let digest = Digest::of(b"1");
        assert!(released.release(digest, "x", 5, 9).is_err());
        assert!(!released.contains(&digest));
    }
}
