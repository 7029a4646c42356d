//! Files below a root: walked or named by a database, opened without leaving the root, read once.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::Error;

/// Bytes read at once.
const PIECE: usize = 128 * 1024;

/// Neither a link nor a pipe that came in a file's place is followed or waited for.
const SAFELY: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// What a walk met.
pub(crate) enum Met {
    /// A regular file that is not empty.
    File(Metadata),
    /// Something that could not be looked at.
    Trouble(String),
}

/// Calls `take` for every regular, non-empty file below `root`; symbolic links are not followed.
///
/// # Errors
/// [`Error::Io`] when `root` is no folder that can be read.
pub(crate) fn walk(
    root: &Path,
    one_file_system: bool,
    mut take: impl FnMut(&Path, Met),
) -> Result<(), Error> {
    let device = fs::metadata(root).map_err(Error::io(root))?.dev();
    fs::read_dir(root).map_err(Error::io(root))?;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                take(&folder, Met::Trouble(error.to_string()));
                continue;
            }
        };
        for entry in entries {
            let looked = entry.and_then(|entry| {
                let path = entry.path();
                fs::symlink_metadata(&path).map(|meta| (path, meta))
            });
            match looked {
                Err(error) => take(&folder, Met::Trouble(error.to_string())),
                Ok((_, meta)) if one_file_system && meta.dev() != device => {}
                Ok((path, meta)) if meta.is_dir() => folders.push(path),
                Ok((path, meta)) if meta.is_file() && meta.len() > 0 => {
                    take(&path, Met::File(meta));
                }
                Ok(_) => {}
            }
        }
    }
    Ok(())
}

/// Opens what `meta` was of.
pub(crate) fn open_met(path: &Path, meta: &Metadata) -> Result<File, String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(SAFELY.bits().cast_signed())
        .open(path)
        .map_err(|error| error.to_string())?;
    let now = file.metadata().map_err(|error| error.to_string())?;
    if !now.is_file() || (now.dev(), now.ino()) != (meta.dev(), meta.ino()) {
        return Err("replaced while it was opened".to_owned());
    }
    Ok(file)
}

/// A root whose files are opened by the names that a database gives them.
pub(crate) struct Root {
    folder: OwnedFd,
    path: PathBuf,
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| Error::io(path)(errno.into()))?;
        Ok(Self {
            folder,
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file. Links on the way lead about as they would if the root were `/`
    /// (`/bin` is one), so none leads out of it; what they end in must not be a link itself.
    pub(crate) fn open_file(&self, path: &Path) -> Result<File, String> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = SAFELY | OFlags::RDONLY;
        let opened = rustix::fs::openat2(&self.folder, path, flags, Mode::empty(), within);
        let file = match opened {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::LOOP) => return Err("not a regular file".to_owned()),
            Err(errno) => return Err(std::io::Error::from(errno).to_string()),
        };
        let meta = file.metadata().map_err(|error| error.to_string())?;
        if meta.is_file() {
            Ok(file)
        } else {
            Err("not a regular file".to_owned())
        }
    }
}

/// Hands the content of `file` to `take`; returns its size in bytes.
pub(crate) fn read(mut file: File, mut take: impl FnMut(&[u8])) -> Result<u64, String> {
    let before = file.metadata().map_err(|error| error.to_string())?;
    let mut piece = vec![0; PIECE];
    let mut size = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => {
                size += n as u64;
                take(&piece[..n]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    let after = file.metadata().map_err(|error| error.to_string())?;
    let stamp = |meta: &Metadata| {
        let times = (
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        (meta.len(), times)
    };
    if stamp(&before) != stamp(&after) || size != after.len() {
        return Err("changed while it was read".to_owned());
    }
    Ok(size)
}
