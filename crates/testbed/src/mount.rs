//! Loop mounts: a file system of its own for each guarded tree, so that no mark ever lies on the
//! machine's root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::run;

/// What to make the image with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// The default of Debian.
    Ext4,
    /// With reflinks.
    Xfs,
    /// With subvolumes.
    Btrfs,
}

impl FileSystem {
    fn make(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f"]),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
        }
    }
}

/// A file system in a sparse image, mounted through a loop device. Dropped, it is unmounted and
/// the image deleted.
#[derive(Debug)]
pub struct LoopMount {
    at: PathBuf,
    // After `at` is unmounted (see Drop), the fields go: image and mount point with them.
    _dir: TempDir,
}

impl LoopMount {
    /// Makes and mounts one of `size_bytes`; needs root.
    ///
    /// # Errors
    /// Says which command failed and what it printed.
    pub fn new(file_system: FileSystem, size_bytes: u64) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("lazaret-mount-")
            .tempdir()?;
        let image = dir.path().join("image");
        std::fs::File::create(&image)?.set_len(size_bytes)?;
        let (program, args) = file_system.make();
        run(Command::new(program).args(args).arg(&image))?;
        let at = dir.path().join("fs");
        std::fs::create_dir(&at)?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&at))?;
        Ok(Self { at, _dir: dir })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        // A process that ends may still hold a file for a moment; afterwards the kernel
        // unmounts as soon as the last holder is gone.
        let unmounted = crate::wait_until(std::time::Duration::from_secs(2), || {
            run(Command::new("umount").arg(&self.at)).is_ok()
        });
        if !unmounted {
            let _best_effort = run(Command::new("umount").arg("-l").arg(&self.at));
        }
    }
}
