//! Writing a file whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// An operation failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried, such as "read".
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others than the owner may read a secret.
    #[error("{path}: mode {mode:o} lets others read a secret; use chmod 600")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is there but does not hold what it should.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl FileError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    pub(crate) fn content(path: &Path, problem: impl Into<String>) -> Self {
        Self::Content {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// Whether a file that exists may be replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Replace,
    /// Fails with `AlreadyExists`, also where another process was first by a moment.
    Keep,
}

/// Writes `bytes` to `path` with permission bits `mode`: after a crash at any moment the old
/// content or the new one is there, whole.
///
/// # Errors
/// [`FileError::Io`]; the file is then unchanged.
pub fn write_atomic(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
    write(path, mode, bytes, Existing::Replace)
}

pub(crate) fn write(
    path: &Path,
    mode: u32,
    bytes: &[u8],
    existing: Existing,
) -> Result<(), FileError> {
    let temporary = temporary_beside(path);
    let written = write_new(&temporary, mode, bytes).and_then(|()| match existing {
        Existing::Replace => fs::rename(&temporary, path).map_err(FileError::io("replace", path)),
        // A link fails where the name is taken; a rename would not.
        Existing::Keep => fs::hard_link(&temporary, path).map_err(FileError::io("create", path)),
    });
    if existing == Existing::Keep || written.is_err() {
        // Nothing is lost where this fails: the name is never read.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(FileError::io("sync", folder))
}

/// A name in the same folder that no other writer uses now.
fn temporary_beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.{number}.new", std::process::id()));
    PathBuf::from(name)
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
    // Left by a process of the same id that died; its content counts for nothing.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(FileError::io("create", path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(FileError::io("write", path))
}

/// Reads a file that holds a secret; refused where others may read it.
///
/// # Errors
/// [`FileError`], naming the file.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    use std::os::unix::fs::PermissionsExt;
    let read = FileError::io("read", path);
    let metadata = fs::metadata(path).map_err(read)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    fs::read(path).map_err(FileError::io("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replaced_whole_with_its_mode_and_nothing_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, 0o600, b"one").unwrap();
        write_atomic(&path, 0o600, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn kept_where_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, 0o600, b"one", Existing::Keep).unwrap();
        let again = write(&path, 0o600, b"two", Existing::Keep).unwrap_err();
        assert!(again.to_string().contains(path.to_str().unwrap()));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomic(&path, 0o644, b"secret").unwrap();
        let refused = read_secret(&path).unwrap_err();
        assert!(matches!(refused, FileError::Exposed { mode: 0o644, .. }));
    }
}
