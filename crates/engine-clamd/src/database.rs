//! The files that clamd judges by, as far as this program is told of them: its databases, and its
//! configuration. clamd gives a version to ClamAV's official databases only.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The files as they were when their content was read.
pub(crate) struct Database {
    paths: Vec<PathBuf>,
    settle: Duration,
    stamps: Vec<Stamp>,
    /// clamd has had the time to load them.
    is_settled: bool,
    content: blake3::Hash,
}

/// What differs once a file was replaced or written.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    /// Nobody can set it, unlike the time above. Seconds and nanoseconds.
    ctime: (i64, i64),
}

impl Database {
    /// Reads the files, and those in the folders; the error is for people. `settle`: how long
    /// after a change clamd may judge by what it had before.
    pub(crate) fn read(paths: Vec<PathBuf>, settle: Duration) -> Result<Self, String> {
        // Before the content: what changes meanwhile is seen the next time.
        let stamps = stamps(&paths)?;
        let mut hasher = blake3::Hasher::new();
        for stamp in &stamps {
            let failed = |error| format!("{}: {error}", stamp.path.display());
            let file = std::fs::File::open(&stamp.path).map_err(failed)?;
            let mut content = blake3::Hasher::new();
            content.update_reader(file).map_err(failed)?;
            let name = stamp.path.file_name().unwrap_or_default();
            let name = name.as_encoded_bytes();
            hasher
                .update(&(name.len() as u64).to_le_bytes())
                .update(name)
                .update(content.finalize().as_bytes());
        }
        Ok(Self {
            is_settled: is_settled(&stamps, settle, SystemTime::now()),
            content: hasher.finalize(),
            paths,
            settle,
            stamps,
        })
    }

    /// Adds what verdicts depend on. Those given before clamd can be expected to have loaded the
    /// files are apart from later ones: nobody can tell which files they were given by.
    pub(crate) fn add_to(&self, hasher: &mut blake3::Hasher) {
        hasher.update(self.content.as_bytes());
        hasher.update(&[u8::from(self.is_settled)]);
    }

    /// True where [`read`](Self::read) would say something else now. Files that cannot be looked at
    /// (one was just replaced) are looked at again the next time.
    pub(crate) fn has_changed(&self) -> bool {
        stamps(&self.paths).is_ok_and(|stamps| {
            is_settled(&stamps, self.settle, SystemTime::now()) != self.is_settled
                || stamps != self.stamps
        })
    }
}

fn is_settled(stamps: &[Stamp], settle: Duration, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let now_s = i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
    let settle_s = i64::try_from(settle.as_secs()).unwrap_or(i64::MAX);
    stamps
        .iter()
        .all(|stamp| now_s.saturating_sub(stamp.ctime.0) > settle_s)
}

fn stamps(paths: &[PathBuf]) -> Result<Vec<Stamp>, String> {
    let mut stamps = Vec::new();
    for path in paths {
        let failed = |error| format!("{}: {error}", path.display());
        let metadata = path.metadata().map_err(failed)?;
        if !metadata.is_dir() {
            stamps.push(stamp(path.clone(), &metadata));
            continue;
        }
        let first = stamps.len();
        for entry in path.read_dir().map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let metadata = path.metadata().map_err(failed)?;
            if metadata.is_file() && !is_freshclams(&path) {
                stamps.push(stamp(path, &metadata));
            }
        }
        if let Some(folder) = stamps.get_mut(first..) {
            folder.sort_by(|a, b| a.path.cmp(&b.path));
        }
    }
    Ok(stamps)
}

fn stamp(path: PathBuf, metadata: &Metadata) -> Stamp {
    Stamp {
        path,
        ino: metadata.ino(),
        size: metadata.size(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        ctime: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// freshclam's own notes and its half-loaded files, which clamd does not read.
fn is_freshclams(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.ends_with(b".dat") || name.starts_with(b"tmp.") || name.starts_with(b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(100);

    fn read(folder: &Path) -> Database {
        Database::read(vec![folder.to_owned()], SETTLE).expect("read")
    }

    fn digest(database: &Database) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        database.add_to(&mut hasher);
        hasher.finalize()
    }

    #[test]
    fn each_change_is_seen_and_freshclams_notes_are_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        write("a.hdb", "one");
        let first = read(folder.path());
        write("freshclam.dat", "x");
        write("tmp.123", "x");
        assert!(!first.has_changed());
        assert_eq!(digest(&first), digest(&read(folder.path())));
        // Same size, and put in place with the old time.
        let old = folder.path().join("a.hdb").metadata().expect("metadata");
        write("tmp.new", "two");
        let new = std::fs::File::open(folder.path().join("tmp.new")).expect("opened");
        new.set_modified(old.modified().expect("time"))
            .expect("set");
        std::fs::rename(folder.path().join("tmp.new"), folder.path().join("a.hdb"))
            .expect("renamed");
        assert!(first.has_changed());
        let second = read(folder.path());
        assert_ne!(digest(&first), digest(&second));
        write("b.hdb", "");
        assert!(second.has_changed());
        assert_ne!(digest(&second), digest(&read(folder.path())));
        std::fs::remove_dir_all(folder.path()).expect("removed");
        assert!(!second.has_changed());
        assert!(Database::read(vec![folder.path().to_owned()], SETTLE).is_err());
    }

    #[test]
    fn verdicts_before_clamd_has_loaded_a_file_are_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a.hdb"), "one").expect("written");
        let mut database = read(folder.path());
        let written = SystemTime::now();
        let settled = |after_s| {
            let now = written + Duration::from_secs(after_s);
            is_settled(&database.stamps, SETTLE, now)
        };
        assert!(!settled(0) && !settled(90) && settled(110));
        assert!(is_settled(&[], SETTLE, written));
        assert!(!database.is_settled);
        let fresh = digest(&database);
        database.is_settled = true;
        assert!(database.has_changed());
        assert_ne!(fresh, digest(&database));
    }
}
