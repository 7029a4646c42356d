//! A name in a directory, reached without following a single symbolic link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::IoError;

/// A path that leads nowhere safe.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Orders name files by absolute paths without `..`.
    #[error("{0:?} is not an absolute path without '..'")]
    NotAbsolute(PathBuf),
    /// The root directory, for instance.
    #[error("{0:?} names no file")]
    NoName(PathBuf),
    /// Something on the way is not there.
    #[error("{0:?} does not exist")]
    Missing(PathBuf),
    /// A symbolic link on the way could lead anywhere.
    #[error("{0:?} is a symbolic link; those are not followed")]
    Symlink(PathBuf),
    /// Something on the way is not a directory.
    #[error("{0:?} is not a directory")]
    NotDirectory(PathBuf),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// A name in an open directory. The name itself may or may not exist.
pub(crate) struct Place {
    pub(crate) parent: OwnedFd,
    pub(crate) path: PathBuf,
    name: OsString,
}

impl Place {
    /// Opens the directory of `path`, component by component: any length, no symbolic links.
    pub(crate) fn resolve(path: &Path) -> Result<Self, PlaceError> {
        let (Some(parent_path), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(PlaceError::NoName(path.to_owned()));
        };
        let mut components = parent_path.components();
        if components.next() != Some(Component::RootDir) {
            return Err(PlaceError::NotAbsolute(path.to_owned()));
        }
        let mut walked = PathBuf::from("/");
        let mut parent = open_dir(rustix::fs::CWD, OsStr::new("/"), &walked)?;
        for component in components {
            let Component::Normal(component) = component else {
                return Err(PlaceError::NotAbsolute(path.to_owned()));
            };
            walked.push(component);
            parent = open_dir(&parent, component, &walked)?;
        }
        Ok(Self {
            parent,
            path: path.to_owned(),
            name: name.to_owned(),
        })
    }

    /// What bears the place's own name; `None`: nothing does.
    pub(crate) fn stat(&self) -> Result<Option<Stat>, IoError> {
        self.stat_sibling(&self.name)
    }

    /// What bears that name in the same directory; `None`: nothing does.
    pub(crate) fn stat_sibling(&self, name: &OsStr) -> Result<Option<Stat>, IoError> {
        match rustix::fs::statat(&self.parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(IoError::new("look at", &self.sibling_path(name), error)),
        }
    }

    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    pub(crate) fn sibling_path(&self, name: &OsStr) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// Renames within the directory; fails with EEXIST where `to` is taken.
    pub(crate) fn rename(&self, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        let parent = &self.parent;
        match rustix::fs::renameat_with(parent, from, parent, to, RenameFlags::NOREPLACE) {
            // The file system has no such flag: a link never replaces anything either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::linkat(parent, from, parent, to, AtFlags::empty())?;
                rustix::fs::unlinkat(parent, from, AtFlags::empty())
            }
            result => result,
        }
    }

    pub(crate) fn unlink(&self, name: &OsStr) -> Result<(), IoError> {
        rustix::fs::unlinkat(&self.parent, name, AtFlags::empty())
            .map_err(|error| IoError::new("unlink", &self.sibling_path(name), error))
    }

    /// Makes renames and links in the directory durable.
    pub(crate) fn sync(&self) -> Result<(), IoError> {
        rustix::fs::fsync(&self.parent)
            .map_err(|error| IoError::new("sync the directory of", &self.path, error))
    }

    /// Opens the file of that name for reading; `None`: it is not a regular file. Never opens a
    /// device or waits on a FIFO, and leaves the access time alone where it may.
    pub(crate) fn open_regular(&self, name: &OsStr) -> Result<Option<File>, Errno> {
        let stat = rustix::fs::statat(&self.parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_regular(&stat) {
            return Ok(None);
        }
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::openat(&self.parent, name, flags, Mode::empty());
        let fd = match open(flags | OFlags::NOATIME) {
            // Only the owner and root may leave the access time alone.
            Err(Errno::PERM) => open(flags)?,
            other => other?,
        };
        Ok(is_regular(&rustix::fs::fstat(&fd)?).then(|| File::from(fd)))
    }
}

pub(crate) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Read-only rather than `O_PATH`: the last one is synced.
fn open_dir(
    parent: impl std::os::fd::AsFd,
    name: &OsStr,
    walked: &Path,
) -> Result<OwnedFd, PlaceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(Errno::NOENT) => Err(PlaceError::Missing(walked.to_owned())),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
            let is_link = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
            Err(if stat.is_ok_and(is_link) {
                PlaceError::Symlink(walked.to_owned())
            } else {
                PlaceError::NotDirectory(walked.to_owned())
            })
        }
        Err(error) => Err(IoError::new("open the directory", walked, error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths() {
        let refused = |path: &str| Place::resolve(Path::new(path)).err();
        assert!(matches!(refused("a/b"), Some(PlaceError::NotAbsolute(_))));
        assert!(matches!(refused("b"), Some(PlaceError::NotAbsolute(_))));
        assert!(matches!(refused("/"), Some(PlaceError::NoName(_))));
        assert!(matches!(refused("/etc/.."), Some(PlaceError::NoName(_))));
        let dots = refused("/etc/../etc/passwd");
        assert!(matches!(dots, Some(PlaceError::NotAbsolute(_))));
        let missing = refused("/no/such/file");
        assert!(matches!(missing, Some(PlaceError::Missing(p)) if p == Path::new("/no")));
        let not_dir = refused("/etc/passwd/file");
        assert!(matches!(not_dir, Some(PlaceError::NotDirectory(_))));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let refused = Place::resolve(&dir.path().join("link/passwd")).err();
        assert!(matches!(refused, Some(PlaceError::Symlink(_))));
    }
}
