//! Lists from real files. Every digest that is listed was computed from bytes that were read, or
//! stands in a list of BLAKE3 digests that somebody named.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::rpm::Package;
use crate::sums::Sum;
use crate::tree::{self, Met, Root};
use crate::{Digest, Error, List, dpkg, parse_hex, read_text};

/// A file that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differing {
    /// The file.
    pub path: PathBuf,
    /// Why: it is not what its package database says, or cannot be read.
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
        let one_file_system = self.one_file_system;
        tree::walk(root, one_file_system, |path, met| {
            let mut hasher = blake3::Hasher::new();
            let read = read_met(path, met, |piece| {
                hasher.update(piece);
            });
            match read {
                Ok(()) => self.digests.push(hasher.finalize().into()),
                Err(why) => self.differs(path, why),
            }
        })
    }

    /// Adds those regular, non-empty files below `root` whose SHA-256 `known` gives back: it is
    /// called once with all of them, rising and each once.
    ///
    /// # Errors
    /// As [`Builder::directory`], and what `known` says; nothing is added then.
    pub fn known<E: From<Error>>(
        &mut self,
        root: &Path,
        known: impl FnOnce(&[Digest]) -> Result<HashSet<Digest>, E>,
    ) -> Result<(), E> {
        let mut met_files: Vec<(Digest, Digest)> = Vec::new();
        let one_file_system = self.one_file_system;
        tree::walk(root, one_file_system, |path, met| {
            let (mut ours, mut theirs) = (blake3::Hasher::new(), Sha256::new());
            let read = read_met(path, met, |piece| {
                ours.update(piece);
                theirs.update(piece);
            });
            match read {
                Ok(()) => met_files.push((theirs.finalize().into(), ours.finalize().into())),
                Err(why) => self.differs(path, why),
            }
        })?;
        met_files.sort_unstable();
        met_files.dedup();
        let sums: Vec<Digest> = met_files.iter().map(|(sum, _)| *sum).collect();
        let known = known(&sums)?;
        let listed = met_files.iter().filter(|(sum, _)| known.contains(sum));
        self.digests.extend(listed.map(|(_, digest)| digest));
        Ok(())
    }

    /// Adds the files of dpkg's database below `root`, each read and its MD5 verified; of
    /// `packages` alone when there are any. Those that differ are reported and left out.
    ///
    /// # Errors
    /// [`Error::Io`] when the database cannot be read, [`Error::Line`] when it cannot be parsed,
    /// [`Error::Package`] when it lacks a package.
    pub fn dpkg(&mut self, root: &Path, packages: &[String]) -> Result<(), Error> {
        let files = dpkg::files(root, packages)?;
        let root = Root::open(root)?;
        for (path, sum) in files {
            self.verified(&root, &path, &sum);
        }
        Ok(())
    }

    /// Adds the files of one package of rpm's database: `header` is as the database holds it.
    /// With `packages`, only if it is one of these. Files that differ are reported and left out.
    /// Returns the package's name.
    ///
    /// # Errors
    /// [`Error::RpmHeader`]; nothing is added then.
    pub fn rpm_header(
        &mut self,
        root: &Path,
        header: &[u8],
        packages: &[String],
    ) -> Result<String, Error> {
        let package = Package::parse(header).map_err(Error::RpmHeader)?;
        if packages.is_empty() || packages.contains(&package.name) {
            let root = Root::open(root)?;
            for (path, sum) in package.files {
                match sum {
                    Ok(sum) => self.verified(&root, &path, &sum),
                    Err(why) => self.differs(&root.path().join(path), why),
                }
            }
        }
        Ok(package.name)
    }

    fn verified(&mut self, root: &Root, path: &Path, sum: &Sum) {
        match root.open_file(path).and_then(|file| sum.verify(file)) {
            Ok(Some(digest)) => self.digests.push(digest),
            Ok(None) => {}
            Err(why) => self.differs(&root.path().join(path), why),
        }
    }

    /// Adds a file of BLAKE3 digests: a line is 64 hexadecimal digits, then nothing, or blanks
    /// and a path as `b3sum` writes it. Empty lines and those that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Line`]; nothing of the file is added then.
    pub fn digest_list(&mut self, path: &Path) -> Result<(), Error> {
        self.digests.append(&mut read_digests(path)?);
        Ok(())
    }

    /// Digests gathered so far, equal ones counted each time.
    #[must_use]
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether nothing was gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
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

fn read_met(path: &Path, met: Met, take: impl FnMut(&[u8])) -> Result<(), String> {
    match met {
        Met::File(meta) => tree::read(tree::open_met(path, &meta)?, take).map(drop),
        Met::Trouble(why) => Err(why),
    }
}

/// The digests of a file with one on each line: 64 hexadecimal digits, then nothing, or blanks
/// and a path. Empty lines and those that begin with `#` are skipped.
///
/// # Errors
/// [`Error::Io`], [`Error::Line`].
pub fn read_digests(path: &Path) -> Result<Vec<Digest>, Error> {
    let text = read_text(path)?;
    let mut digests = Vec::new();
    for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let mut words = line.split(u8::is_ascii_whitespace);
        let Some(word) = words.find(|word| !word.is_empty()) else {
            continue;
        };
        if word.starts_with(b"#") {
            continue;
        }
        let digest = str::from_utf8(word).ok().and_then(parse_hex);
        digests.push(digest.ok_or_else(|| Error::Line {
            path: path.to_owned(),
            line: at + 1,
            what: "no digest of 64 hexadecimal digits",
        })?);
    }
    Ok(digests)
}
