//! A file about to be removed: opened, hashed, and checked for changes until it is gone.
//!
//! There is no write lease here. The content is read twice instead: once to copy it, and once more
//! when the file has lost its name. A writer that still holds it open then writes to a file that is
//! going away, as if it had written a moment later; a lease could not save those bytes either.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use model::Digest;
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::IoError;
use crate::item::SEGMENT_BYTES;
use crate::place::Place;

/// The file that an order names is not fit to be removed.
#[derive(Debug, thiserror::Error)]
pub enum OriginalError {
    /// Nothing bears that name.
    #[error("{0:?} does not exist")]
    Missing(PathBuf),
    /// Directories, devices, FIFOs, sockets and symbolic links are never removed.
    #[error("{0:?} is not a regular file")]
    NotRegular(PathBuf),
    /// The order is about other content.
    #[error("{path:?} has content {found}, the order is about {ordered}")]
    OtherContent {
        /// The file.
        path: PathBuf,
        /// The digest in the order.
        ordered: Digest,
        /// The digest of the file.
        found: Digest,
    },
    /// Somebody wrote to it or replaced it while it was being read.
    #[error("{0:?} changed while it was being removed")]
    ChangedMeanwhile(PathBuf),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// An open regular file.
pub(crate) struct Original {
    pub(crate) file: File,
    pub(crate) stat: Stat,
    path: PathBuf,
}

impl Original {
    /// Opens the file that bears the name in that directory.
    pub(crate) fn open(place: &Place, name: &OsStr) -> Result<Self, OriginalError> {
        let path = place.sibling_path(name);
        let file = match place.open_regular(name) {
            Ok(Some(file)) => file,
            Ok(None) | Err(Errno::LOOP | Errno::NXIO) => {
                return Err(OriginalError::NotRegular(path));
            }
            Err(Errno::NOENT) => return Err(OriginalError::Missing(path)),
            Err(error) => return Err(IoError::new("open", &path, error).into()),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| IoError::new("look at", &path, e))?;
        Ok(Self { file, stat, path })
    }

    pub(crate) fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    /// Reads the content once, in pieces of at most [`SEGMENT_BYTES`] (all but the last have
    /// exactly that; an empty file gives one empty piece), and returns its digest.
    pub(crate) fn read<E: From<OriginalError>>(
        &self,
        mut piece: impl FnMut(&mut Vec<u8>, bool) -> Result<(), E>,
    ) -> Result<Digest, E> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = Vec::with_capacity(SEGMENT_BYTES + 64);
        let mut offset = 0;
        loop {
            let len = (self.size() - offset).min(SEGMENT_BYTES as u64);
            buffer.resize(len as usize, 0);
            self.file
                .read_exact_at(&mut buffer, offset)
                .map_err(|error| self.read_failed(error))?;
            hasher.update(&buffer);
            offset += len;
            let last = offset == self.size();
            piece(&mut buffer, last)?;
            if last {
                return Ok(Digest(*hasher.finalize().as_bytes()));
            }
        }
    }

    fn read_failed(&self, error: std::io::Error) -> OriginalError {
        match error.kind() {
            // It became shorter.
            std::io::ErrorKind::UnexpectedEof => OriginalError::ChangedMeanwhile(self.path.clone()),
            _ => IoError::new("read", &self.path, error).into(),
        }
    }

    /// Fails unless the content has the digest of the order.
    pub(crate) fn expect(&self, ordered: Digest, found: Digest) -> Result<(), OriginalError> {
        if ordered == found {
            return Ok(());
        }
        Err(OriginalError::OtherContent {
            path: self.path.clone(),
            ordered,
            found,
        })
    }

    /// Fails where the file was written to, or its owner, mode or attributes changed.
    pub(crate) fn expect_untouched(&self) -> Result<(), OriginalError> {
        let now = rustix::fs::fstat(&self.file);
        let now = now.map_err(|e| IoError::new("look at", &self.path, e))?;
        let ctime = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec);
        if self.same_content_times(&now) && ctime(&now) == ctime(&self.stat) {
            return Ok(());
        }
        Err(OriginalError::ChangedMeanwhile(self.path.clone()))
    }

    /// Fails unless what bears that name now is this file as it was opened: same content (it is
    /// read once more, times can miss a write), size, owner and mode. A rename moves the ctime, and
    /// on overlayfs even the inode, so neither is compared.
    pub(crate) fn expect_still(
        &self,
        place: &Place,
        name: &OsStr,
        ordered: Digest,
    ) -> Result<(), OriginalError> {
        let again = Self::open(place, name)?;
        let kept = |stat: &Stat| (stat.st_uid, stat.st_gid, stat.st_mode);
        if !self.same_content_times(&again.stat) || kept(&again.stat) != kept(&self.stat) {
            return Err(OriginalError::ChangedMeanwhile(self.path.clone()));
        }
        again.expect(ordered, again.digest()?)
    }

    /// The digest of the content.
    pub(crate) fn digest(&self) -> Result<Digest, OriginalError> {
        self.read(|_, _| Ok::<_, OriginalError>(()))
    }

    fn same_content_times(&self, now: &Stat) -> bool {
        let written = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        written(now) == written(&self.stat)
    }
}

/// Two names, one file.
pub(crate) fn same_file(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}
