//! Which file a descriptor is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::path::DecInt;
use rustix::process::{Pid, getpid};

use crate::sys;

/// What kind of object a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file: the only kind with content to scan.
    Regular,
    /// A directory.
    Directory,
    /// A device, FIFO or socket. Never read it: reading has effects, or does not end.
    Special,
}

/// A file and the state it is in, by its descriptor alone.
///
/// Equality says "the same inode, and nothing that the kernel stamps has changed". That is not
/// "the same bytes": stamps are coarse, and a shared mapping changes bytes without moving them. It
/// takes [`crate::lease`] and the close-write order to make it so. Nor does it outlive a mount:
/// device numbers are reused, see [`crate::Group::mark_filesystem`].
///
/// On overlayfs the events come from the layers' file systems, so this is the real inode, the same
/// whichever way the file is opened (trap 12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device number of the file system (of the subvolume on btrfs).
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Inode generation, which differs when an inode number is reused; 0 where the file system
    /// tells none, and for anything but regular files.
    pub generation: u32,
    /// What kind of object it is.
    pub kind: FileKind,
    /// Its owner.
    pub uid: u32,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last modification, nanoseconds since 1970. Its owner can set it to anything.
    pub mtime_ns: i128,
    /// Last status change, nanoseconds since 1970, by the kernel's clock.
    pub ctime_ns: i128,
}

impl FileIdentity {
    /// Identity of the open file `fd`.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let seen = Self::stamped(fd)?;
        let generation = match seen.kind {
            FileKind::Regular => sys::generation(fd).unwrap_or(0),
            FileKind::Directory | FileKind::Special => 0,
        };
        Ok(Self { generation, ..seen })
    }

    /// The identity now of the open file whose identity this was while the same descriptor was open:
    /// its inode is still that one, and whoever sets another generation moves `ctime_ns`.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn again(&self, fd: BorrowedFd<'_>) -> io::Result<Self> {
        let generation = self.generation;
        Ok(Self {
            generation,
            ..Self::stamped(fd)?
        })
    }

    /// Without the generation.
    fn stamped(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::Regular,
            FileType::Directory => FileKind::Directory,
            _ => FileKind::Special,
        };
        Ok(Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            generation: 0,
            kind,
            uid: stat.st_uid,
            mode: stat.st_mode,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

impl FileIdentity {
    /// What is found under the name of the open file, as one would do without descriptors.
    pub(crate) fn of_path(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let path = std::ffi::OsString::from_vec(path_of(fd)?);
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let named = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
        Self::of(named.as_fd())
    }
}

/// Wide enough for any time a guest can set: two different times never become one.
fn nanoseconds(seconds: i64, nanoseconds: u64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

/// The path of an open file as the kernel would print it now, for people and for include and
/// exclude lists. Any bytes may be in it; a deleted file's ends in ` (deleted)`, and a file outside
/// our mount namespace shows a path that means nothing here. Opens nothing but a folder of procfs, once.
///
/// # Errors
/// As `readlink` on `/proc/self/fd/N`.
pub fn path_of(fd: impl AsFd) -> io::Result<Vec<u8>> {
    let number = fd.as_fd().as_raw_fd();
    let link = match own_descriptors() {
        Some(folder) => rustix::fs::readlinkat(folder, DecInt::new(number), Vec::new()),
        None => rustix::fs::readlink(format!("/proc/self/fd/{number}"), Vec::new()),
    };
    Ok(link?.into_bytes())
}

/// `/proc/self/fd`: to walk there takes a quarter of the time that reading a link in it does. It is
/// that of the process that opened it, so a child that was forked off later goes without.
fn own_descriptors() -> Option<&'static OwnedFd> {
    static FOLDER: OnceLock<Option<(Pid, OwnedFd)>> = OnceLock::new();
    let opened = FOLDER.get_or_init(|| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open("/proc/self/fd", flags, Mode::empty()).ok()?;
        Some((getpid(), folder))
    });
    let (owner, folder) = opened.as_ref()?;
    (*owner == getpid()).then_some(folder)
}
