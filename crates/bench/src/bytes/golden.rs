//! A golden image, and what its clones make of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use testbed::run;

use crate::corpora::{self, Share};

const CHANGE: &str = include_str!("change_clones.py");
const MIRROR: &str = "http://deb.debian.org/debian";
/// Packages whose current version is newer than that of the release.
const UPGRADED: [&str; 4] = ["libssl3", "libc6", "libgnutls30", "libsystemd0"];
/// Rounds of changes: the first to what the image had, the others to what they had made of it.
pub(crate) const ROUNDS: usize = 2;

/// Files of the image and of its clones.
pub(crate) struct Golden {
    /// What every clone opens when it boots.
    pub(crate) boot: PathBuf,
    /// Files of packages that every clone gets a new version of.
    pub(crate) upgrade: PathBuf,
    changes: PathBuf,
}

impl Golden {
    /// Makes all of it below `dir`: `share` of a Debian root, changes of so many clones.
    pub(crate) fn make(dir: &Path, share: Share, clones: usize) -> Result<Self> {
        let root = corpora::debian_root(MIRROR)?;
        let golden = Self {
            boot: dir.join("boot"),
            upgrade: dir.join("upgrade"),
            changes: dir.join("changes"),
        };
        let of_boot = |path: &PathBuf| is_opened_at_boot(path.strip_prefix(&root).unwrap_or(path));
        let mut files = corpora::files(&root, Share::ALL)?;
        files.retain(of_boot);
        copy(&share.of(files)?, &golden.boot)?;
        let programs = dir.join("programs");
        let of_machine = Share {
            files: clones * ROUNDS,
            each: 1 << 20,
            ..Share::ALL
        };
        let mut binaries = corpora::files(Path::new("/usr/lib/x86_64-linux-gnu"), Share::ALL)?;
        // Programs bear bytes behind their end; archives do not.
        binaries.retain(|path| is_library(path) && !is_in(&root, path));
        copy(&of_machine.of(binaries)?, &programs)?;
        golden.change(&programs, 0)?;
        golden.change(&programs, clones)?;
        golden.upgrade(&root)?;
        Ok(golden)
    }

    /// What a clone has changed in a round.
    pub(crate) fn changed(&self, clone: usize, round: usize) -> PathBuf {
        self.changes.join(clone.to_string()).join(round.to_string())
    }

    fn change(&self, programs: &Path, clones: usize) -> Result<()> {
        run(Command::new("python3")
            .args(["-c", CHANGE])
            .args([&self.boot, &self.changes])
            .args([clones.to_string(), ROUNDS.to_string()])
            .arg(programs))?;
        Ok(())
    }

    fn upgrade(&self, root: &Path) -> Result<()> {
        let mut files = Vec::new();
        for name in UPGRADED {
            let package = corpora::package(name)?;
            for file in corpora::files(&package, Share::ALL)? {
                let old = root.join(file.strip_prefix(&package)?);
                if std::fs::read(old).ok() != std::fs::read(&file).ok() {
                    files.push(file);
                }
            }
        }
        copy(&files, &self.upgrade)
    }
}

/// Programs, libraries and settings: what runs and what it reads, not manuals and package lists.
fn is_opened_at_boot(path: &Path) -> bool {
    let path = path.as_os_str().as_encoded_bytes();
    let below = ["usr/bin/", "usr/sbin/", "usr/lib/x86_64-linux-gnu/", "etc/"];
    below
        .iter()
        .any(|folder| path.starts_with(folder.as_bytes()))
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.windows(3).any(|part| part == b".so")
}

fn is_in(root: &Path, path: &Path) -> bool {
    root.join(path.strip_prefix("/").unwrap_or(path)).exists()
}

fn copy(files: &[PathBuf], to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for (number, file) in files.iter().enumerate() {
        let name = file.file_name().context("no name")?.to_string_lossy();
        std::fs::copy(file, to.join(format!("{number:04}-{name}")))?;
    }
    Ok(())
}

/// Bytes of all files below a folder.
pub(crate) fn bytes_below(folder: &Path) -> Result<u64> {
    let files = corpora::files(folder, Share::ALL)?;
    files.iter().map(|file| Ok(file.metadata()?.len())).sum()
}
