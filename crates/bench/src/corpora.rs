//! Files to scan: those of this machine, of Debian packages, and made ones.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use testbed::run;

/// Where packages are unpacked once for all runs.
fn cache() -> Result<PathBuf> {
    let cache = match std::env::var_os("LAZARET_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("no HOME")?).join(".cache/lazaret"),
    };
    Ok(cache.join("corpora"))
}

/// The files of a Debian package, fetched and unpacked, not installed.
///
/// # Errors
/// apt or dpkg-deb failed, for example without a network.
pub(crate) fn package(name: &str) -> Result<PathBuf> {
    let cache = cache()?;
    let folder = cache.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&cache)?;
    let scratch = tempfile::tempdir_in(&cache)?;
    eprintln!("bench: fetching {name}");
    run(Command::new("apt-get")
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download", name])
        .current_dir(scratch.path()))?;
    let mut archives = std::fs::read_dir(scratch.path())?;
    let archive = archives.next().context("apt fetched nothing")??.path();
    let unpacked = scratch.path().join("unpacked");
    run(Command::new("dpkg-deb")
        .arg("-x")
        .args([&archive, &unpacked]))?;
    std::fs::rename(&unpacked, &folder)?;
    Ok(folder)
}

/// A Debian root without anything that is not needed, made once for all runs. Needs to be root.
///
/// # Errors
/// debootstrap failed, for example without a network.
pub(crate) fn debian_root(mirror: &str) -> Result<PathBuf> {
    let cache = cache()?;
    let root = cache.join("debian-bookworm");
    if root.is_dir() {
        return Ok(root);
    }
    std::fs::create_dir_all(&cache)?;
    let scratch = tempfile::tempdir_in(&cache)?;
    eprintln!("bench: making a Debian root");
    let part = scratch.path().join("root");
    run(Command::new("debootstrap")
        .args(["--variant=minbase", "bookworm"])
        .arg(&part)
        .arg(mirror))?;
    std::fs::rename(&part, &root)?;
    Ok(root)
}

/// What is taken of a folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Files at most.
    pub(crate) files: usize,
    /// Bytes of all together at most.
    pub(crate) bytes: u64,
    /// Bytes of one at most.
    pub(crate) each: u64,
}

impl Share {
    /// All that there is.
    pub(crate) const ALL: Self = Self {
        files: usize::MAX,
        bytes: u64::MAX,
        each: u64::MAX,
    };

    /// The first of these files that there is room for.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub(crate) fn of(self, files: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
        let sized = files.into_iter().map(|path| {
            let size = path.metadata()?.len();
            Ok((path, size))
        });
        Ok(self.of_sized(sized.collect::<Result<_>>()?))
    }

    fn of_sized(self, files: Vec<(PathBuf, u64)>) -> Vec<PathBuf> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for (path, size) in files {
            if size <= self.each && bytes + size <= self.bytes && taken.len() < self.files {
                bytes += size;
                taken.push(path);
            }
        }
        taken
    }
}

/// Regular files that are not empty below `folder`, without those below the kernel's own mounts:
/// a share that depends on their names alone.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn files(folder: &Path, share: Share) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(folder, &mut found)?;
    ensure!(!found.is_empty(), "no files in {}", folder.display());
    // Spread over the folder, and the same ones each time.
    found.sort_by_cached_key(|(path, _)| {
        *blake3::hash(path.as_os_str().as_encoded_bytes()).as_bytes()
    });
    Ok(share.of_sized(found))
}

fn walk(folder: &Path, found: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    let entries = std::fs::read_dir(folder);
    for entry in entries.with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            walk(&entry.path(), found)?;
        } else if metadata.is_file() && metadata.len() > 0 {
            found.push((entry.path(), metadata.len()));
        }
    }
    Ok(())
}

/// Writes documents, databases, pictures and archives of many sizes into `folder`, by Python's own
/// libraries.
///
/// # Errors
/// python3 failed.
pub(crate) fn make(folder: &Path) -> Result<()> {
    run(Command::new("python3").args(["-c", MAKE]).arg(folder)).map(drop)
}

const MAKE: &str = include_str!("make_corpus.py");
