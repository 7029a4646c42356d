//! What a file is besides its bytes, and putting it back.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::IoError;

/// Most bytes of all extended attributes of a file, names included: what a guest's file can make
/// us hold in memory. ext4 allows 4 KiB to 64 KiB in all.
pub(crate) const XATTR_BYTES_MAX: usize = 512 * 1024;

/// A moment in a file's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Seconds since 1970 UTC; negative before.
    pub s: i64,
    /// Nanoseconds after that, below 1,000,000,000.
    pub ns: u32,
}

/// An extended attribute: its name with its namespace, and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Owner, mode, times and extended attributes (POSIX ACLs, capabilities and labels among them).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permissions with setuid, setgid and sticky bit; no file type.
    pub mode: u32,
    /// Last read.
    pub atime: Timestamp,
    /// Last written.
    pub mtime: Timestamp,
    /// Hard links when it was taken.
    pub links: u64,
    /// It had holes.
    pub sparse: bool,
    /// Every attribute that could be read.
    pub xattrs: Vec<Xattr>,
}

/// A file's metadata cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The item's header has no room for it.
    #[error("{path:?} has more than {XATTR_BYTES_MAX} bytes of extended attributes")]
    TooLarge {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Metadata {
    /// Reads everything that [`apply`](Self::apply) puts back.
    pub(crate) fn capture(file: &File, path: &Path) -> Result<Self, MetadataError> {
        let stat = file.metadata();
        let stat = stat.map_err(|error| IoError::new("look at", path, error))?;
        Ok(Self {
            uid: stat.uid(),
            gid: stat.gid(),
            mode: stat.mode() & 0o7777,
            atime: timestamp(stat.atime(), stat.atime_nsec()),
            mtime: timestamp(stat.mtime(), stat.mtime_nsec()),
            links: stat.nlink(),
            sparse: stat.blocks().saturating_mul(512) < stat.size(),
            xattrs: read_xattrs(file, path)?,
        })
    }

    /// Puts everything back on a file whose bytes are complete. The order matters: a change of
    /// owner drops capabilities and the setuid bit, so owner first, setuid bit late, times last.
    ///
    /// Returns the attributes that this file system has no place for (EOPNOTSUPP).
    pub(crate) fn apply(&self, file: &File, path: &Path) -> Result<Vec<Vec<u8>>, IoError> {
        let failed = |what| move |error: Errno| IoError::new(what, path, error);
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(failed("set the owner of"))?;
        let mut homeless = Vec::new();
        for (name, value) in &self.xattrs {
            let name_os = OsStr::from_bytes(name);
            match rustix::fs::fsetxattr(file, name_os, value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => homeless.push(name.clone()),
                Err(error) => return Err(failed("set an extended attribute of")(error)),
            }
        }
        let mode = Mode::from_raw_mode(self.mode);
        rustix::fs::fchmod(file, mode).map_err(failed("set the mode of"))?;
        let times = Timestamps {
            last_access: timespec(self.atime),
            last_modification: timespec(self.mtime),
        };
        rustix::fs::futimens(file, &times).map_err(failed("set the times of"))?;
        Ok(homeless)
    }
}

fn timestamp(s: i64, ns: i64) -> Timestamp {
    Timestamp {
        s,
        ns: u32::try_from(ns).unwrap_or(0),
    }
}

fn timespec(time: Timestamp) -> Timespec {
    Timespec {
        tv_sec: time.s,
        tv_nsec: time.ns.into(),
    }
}

fn read_xattrs(file: &File, path: &Path) -> Result<Vec<Xattr>, MetadataError> {
    let failed = |error| IoError::new("list the extended attributes of", path, error);
    let names = match read_growing(path, |buffer| rustix::fs::flistxattr(file.as_fd(), buffer))? {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error).into()),
    };
    let mut xattrs = Vec::new();
    let mut total = names.len();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name_os = OsStr::from_bytes(name);
        let read = |buffer: &mut [u8]| rustix::fs::fgetxattr(file.as_fd(), name_os, buffer);
        let value = match read_growing(path, read)? {
            Ok(value) => value,
            // Removed meanwhile, or listed but not ours to read: "all that can be read".
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => continue,
            Err(error) => return Err(failed(error).into()),
        };
        total = total.saturating_add(value.len());
        if total > XATTR_BYTES_MAX {
            return Err(MetadataError::TooLarge {
                path: path.to_owned(),
            });
        }
        xattrs.push((name.to_vec(), value));
    }
    Ok(xattrs)
}

/// Calls `read` with ever larger buffers until the value fits, up to [`XATTR_BYTES_MAX`].
fn read_growing(
    path: &Path,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Result<Vec<u8>, Errno>, MetadataError> {
    let mut buffer = vec![0; 1024];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(Ok(buffer));
            }
            Err(Errno::RANGE) if buffer.len() < XATTR_BYTES_MAX => {
                buffer = vec![0; buffer.len() * 8];
            }
            Err(Errno::RANGE) => {
                return Err(MetadataError::TooLarge {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Ok(Err(error)),
        }
    }
}
