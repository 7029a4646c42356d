//! Lists from real files. Every digest that is listed was computed from bytes that were read.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::{Digest, Error, List, dpkg, parse_hex};

/// Bytes read at once.
const PIECE: usize = 128 * 1024;

/// A file that is not what its package database says; it is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differing {
    /// The file.
    pub path: PathBuf,
    /// In which way.
    pub why: String,
}

/// Gathers digests from sources.
#[derive(Debug, Default)]
pub struct Builder {
    digests: Vec<Digest>,
    differing: Vec<Differing>,
    one_file_system: bool,
}

impl Builder {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a walk stays on the file system that it began on.
    #[must_use]
    pub fn one_file_system(mut self, yes: bool) -> Self {
        self.one_file_system = yes;
        self
    }

    /// Adds every regular, non-empty file below `root`; symbolic links are not followed.
    ///
    /// # Errors
    /// [`Error::Io`] when `root` cannot be read. A file below it that cannot be read is reported
    /// by [`Builder::differing`] and left out.
    pub fn directory(&mut self, root: &Path) -> Result<(), Error> {
        let device = fs::symlink_metadata(root).map_err(Error::io(root))?.dev();
        fs::read_dir(root).map_err(Error::io(root))?;
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            match fs::read_dir(&folder) {
                Err(error) => self.differs(&folder, error.to_string()),
                Ok(entries) => {
                    for entry in entries {
                        match entry {
                            Err(error) => self.differs(&folder, error.to_string()),
                            Ok(entry) => self.entry(&entry.path(), device, &mut folders),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, device: u64, folders: &mut Vec<PathBuf>) {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) => return self.differs(path, error.to_string()),
        };
        if self.one_file_system && meta.dev() != device {
            return;
        }
        if meta.is_dir() {
            folders.push(path.to_owned());
        } else if meta.is_file() && meta.len() > 0 {
            self.file(path, &meta);
        }
    }

    fn file(&mut self, path: &Path, meta: &Metadata) {
        let mut hasher = blake3::Hasher::new();
        match read(path, meta, |piece| {
            hasher.update(piece);
        }) {
            Ok(()) => self.digests.push(hasher.finalize().into()),
            Err(why) => self.differs(path, why),
        }
    }

    /// Adds the files of dpkg's database below `root`, each read and its MD5 verified; of
    /// `packages` alone when there are any. Those that differ are reported and left out.
    ///
    /// # Errors
    /// [`Error::Io`] when the database cannot be read, [`Error::Line`] when it cannot be parsed.
    pub fn dpkg(&mut self, root: &Path, packages: &[String]) -> Result<(), Error> {
        for (path, md5) in dpkg::files(root, packages)? {
            match dpkg::verify(root, &path, md5) {
                Ok(Some(digest)) => self.digests.push(digest),
                Ok(None) => {}
                Err(why) => self.differs(&path, why),
            }
        }
        Ok(())
    }

    /// Adds a file of BLAKE3 digests: a line is 64 hexadecimal digits, then nothing, or blanks
    /// and a path as `b3sum` writes it. Empty lines and those that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Line`]; nothing of the file is added then.
    pub fn digest_list(&mut self, path: &Path) -> Result<(), Error> {
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        let mut digests = Vec::new();
        for (line, content) in text.lines().enumerate() {
            let Some(word) = content.split_whitespace().next() else {
                continue;
            };
            if word.starts_with('#') {
                continue;
            }
            digests.push(parse_hex(word).ok_or_else(|| Error::Line {
                path: path.to_owned(),
                line: line + 1,
                what: "no BLAKE3 digest of 64 hexadecimal digits",
            })?);
        }
        self.digests.append(&mut digests);
        Ok(())
    }

    /// What was left out, and why.
    #[must_use]
    pub fn differing(&self) -> &[Differing] {
        &self.differing
    }

    /// The list of what was gathered.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn finish(self, name: &str, serial: u64, created: u64) -> Result<List, Error> {
        List::new(name, serial, created, self.digests, Vec::new())
    }

    fn differs(&mut self, path: &Path, why: impl Into<String>) {
        self.differing.push(Differing {
            path: path.to_owned(),
            why: why.into(),
        });
    }
}

/// Hands the content of the regular file at `path`, which `meta` was of, to `take`.
pub(crate) fn read(
    path: &Path,
    meta: &Metadata,
    mut take: impl FnMut(&[u8]),
) -> Result<(), String> {
    let mut file = open(path, meta)?;
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).map_err(|error| error.to_string())? {
            0 => break,
            n => take(&piece[..n]),
        }
    }
    let after = file.metadata().map_err(|error| error.to_string())?;
    if (after.len(), after.mtime_nsec(), after.mtime())
        != (meta.len(), meta.mtime_nsec(), meta.mtime())
    {
        return Err("changed while it was read".to_owned());
    }
    Ok(())
}

/// Opens what `meta` was of: neither a link nor a pipe that came in its place.
fn open(path: &Path, meta: &Metadata) -> Result<File, String> {
    use rustix::fs::OFlags;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)
        .map_err(|error| error.to_string())?;
    let now = file.metadata().map_err(|error| error.to_string())?;
    if !now.is_file() || (now.dev(), now.ino()) != (meta.dev(), meta.ino()) {
        return Err("replaced while it was opened".to_owned());
    }
    Ok(file)
}
