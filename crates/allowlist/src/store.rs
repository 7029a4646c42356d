//! Files read within a bound and replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use crate::Error;

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([i128; 5]);

impl Stamp {
    /// Of what is at `path` now.
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        let meta = fs::metadata(path).map_err(Error::io(path))?;
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Ok(Self([
            meta.dev().into(),
            meta.ino().into(),
            meta.len().into(),
            ns(meta.mtime(), meta.mtime_nsec()),
            ns(meta.ctime(), meta.ctime_nsec()),
        ]))
    }
}

/// Reads a regular file of at most `bytes_max` bytes; neither a pipe nor a file that grows makes
/// it wait or hold more.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(flags).open(path);
    let file = opened.map_err(Error::io(path))?;
    let meta = file.metadata().map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::NoFile { path: path.into() });
    }
    let too_large = |found| Error::TooLarge {
        path: path.into(),
        found,
        max: bytes_max,
    };
    if meta.len() > bytes_max {
        return Err(too_large(meta.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    let mut within = file.take(bytes_max.saturating_add(1));
    within.read_to_end(&mut bytes).map_err(Error::io(path))?;
    match bytes.len() as u64 {
        found if found > bytes_max => Err(too_large(found)),
        _ => Ok(bytes),
    }
}

/// Writes `bytes` beside `path` and moves them there: a crash leaves the old or the new.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = Path::new(&beside);
    let written = File::create(beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(beside, path)
    });
    if let Err(source) = written {
        // What is half written is of no use to anybody; the error that counts is the first.
        let _ = fs::remove_file(beside);
        return Err(Error::io(path)(source));
    }
    sync_folder(path)
}

/// Has the name of `path` survive a crash.
pub(crate) fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(Error::io(folder))
}
