//! What all scenarios share: files on a file system of their own, and rules.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rustix::io::Errno;
use tempfile::TempDir;
use testbed::{FileSystem, LoopMount, Pin, samples};

use crate::corpus::Corpus;

/// The three marks that the rules of all peers look for; none of them stands in a real file.
const MARKS: [&str; 3] = ["ONE", "TWO", "THREE"];
/// Room for the files, sparse.
const IMAGE_BYTES: u64 = 1 << 30;

/// The stage.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The files to open.
    pub(crate) corpus: Corpus,
    /// A file that every peer must deny.
    pub(crate) probe: PathBuf,
    /// The opener and what answers it.
    pub(crate) guest: Pin,
    /// What judges.
    pub(crate) appliance: Pin,
    /// Lines of the appliance's policy.
    pub(crate) policy: Vec<String>,
    mount: LoopMount,
}

impl Stage {
    /// Copies the files and writes the rules.
    pub(crate) fn set(files: usize, (guest, appliance): (Pin, Pin)) -> Result<Self> {
        let mount = LoopMount::new(FileSystem::Ext4, IMAGE_BYTES)?;
        let guarded = mount.path().join("guarded");
        let corpus = Corpus::copy(Path::new("/usr"), &guarded, files)?;
        let probe = guarded.join("probe");
        std::fs::write(&probe, samples::marked(MARKS[0]))?;
        Ok(Self {
            corpus,
            probe,
            guest,
            appliance,
            policy: Vec::new(),
            mount,
        })
    }

    /// The folder to guard, with all files.
    pub(crate) fn guarded(&self) -> PathBuf {
        self.mount.path().join("guarded")
    }

    /// A fresh folder outside the guarded file system.
    pub(crate) fn scratch(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new()
            .prefix("lazaret-bench-")
            .tempdir()?)
    }

    /// For people.
    pub(crate) fn description(&self) -> String {
        format!(
            "{} files of 4 KiB to 1 MiB with different content from /usr, {:.1} MB, on ext4 on a loop device",
            self.corpus.files.len(),
            self.corpus.bytes as f64 / 1e6
        )
    }

    /// Checks that the guard works at all: the probe is denied.
    pub(crate) fn check_denied(&self) -> Result<()> {
        let opened = std::fs::File::open(&self.probe);
        let denied = opened.is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::PERM));
        ensure!(denied, "{} is not denied", self.probe.display());
        Ok(())
    }
}

/// The rules for YARA-X.
pub(crate) fn yara_rules() -> String {
    let rule = |mark: &&str| {
        let planted = samples::planted(mark);
        format!("rule Planted_{mark} {{ strings: $mark = \"{planted}\" condition: $mark }}\n")
    };
    MARKS.iter().map(rule).collect()
}

/// The same rules for ClamAV, as a file of its database: name and content.
pub(crate) fn clamav_signatures() -> (&'static str, String) {
    let line = |mark: &&str| {
        let planted = samples::planted(mark);
        let hex: String = planted.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("Planted.{mark}:0:*:{hex}\n")
    };
    ("planted.ndb", MARKS.iter().map(line).collect())
}
