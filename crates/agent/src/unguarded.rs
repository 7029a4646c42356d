//! The time in which nobody guarded: both processes had been killed, so that the kernel let every
//! opener through. It is told, and what was changed or opened in it is judged first.
//!
//! When it began is known from the board, which is written with each event: after the last one
//! nothing was opened that a guard would have seen. Where the board is lost with its folder, the
//! start of the agent that did not end in order counts.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use daemon::signal::Stop;
use model::UnscannedReason;
use supervisor::Unguarded;

use crate::AgentConfig;
use crate::gate::Gate;
use crate::guard::mountinfo;
use crate::guard::scope::Scope;
use crate::machine::boot_id;

/// There while somebody guards, and after that if the end was not in order. Holds the boot.
const MARK: &str = "guarding";

/// What is known of the last such interval, for status and metrics.
#[derive(Debug, Default)]
pub(crate) struct Gap {
    /// Wall-clock milliseconds; 0: there was none.
    pub(crate) from_ms: AtomicU64,
    pub(crate) until_ms: AtomicU64,
    /// Files found so far that were changed or opened in it.
    pub(crate) files: AtomicU64,
    pub(crate) is_swept: AtomicBool,
    is_told: AtomicBool,
}

impl Gap {
    pub(crate) fn length_ms(&self) -> u64 {
        let until = self.until_ms.load(Ordering::Relaxed);
        until.saturating_sub(self.from_ms.load(Ordering::Relaxed))
    }

    fn set(&self, unguarded: Unguarded) {
        self.until_ms.store(unguarded.until_ms, Ordering::Relaxed);
        self.from_ms.store(unguarded.from_ms, Ordering::Relaxed);
    }
}

/// A time without a guard that the mark alone tells of; `None`: the last end was in order, or it
/// was another boot's, in which nothing of this one can have been opened.
pub(crate) fn by_mark(state_dir: &Path) -> Option<u64> {
    let path = state_dir.join(MARK);
    let written = std::fs::read(&path).ok()?;
    let boot = boot_id()?;
    if written != boot.to_vec() {
        tracing::warn!("the agent did not end in order in an earlier boot");
        return None;
    }
    let since = path.metadata().ok()?;
    u64::try_from(since.mtime().saturating_mul(1000)).ok()
}

/// Says that somebody guards from now on.
pub(crate) fn mark(state_dir: &Path) -> io::Result<()> {
    let boot = boot_id().map_or_else(Vec::new, |id| id.to_vec());
    std::fs::write(state_dir.join(MARK), boot)
}

/// Says that the end was in order.
pub(crate) fn unmark(state_dir: &Path) {
    // One that stays makes the next agent look once too often.
    let _ = std::fs::remove_file(state_dir.join(MARK));
}

/// Tells the appliance; for when there is a link.
pub(crate) fn tell(gate: &Gate) {
    let gap = &gate.gap;
    let from_ms = gap.from_ms.load(Ordering::Relaxed);
    if from_ms == 0 || gap.is_told.swap(true, Ordering::Relaxed) {
        return;
    }
    let detail = format!(
        "nothing was guarded for {} ms from {from_ms} ms after 1970 on",
        gap.length_ms()
    );
    gate.send_alert("unguarded", &detail, b"");
}

/// Enters every guarded file that was changed or opened in the interval in the ledger, whose
/// entries are judged at once.
pub(crate) fn sweep(
    gate: &Arc<Gate>,
    config: &AgentConfig,
    scope: &Scope,
    unguarded: Unguarded,
    stop: &Stop,
) {
    gate.gap.set(unguarded);
    let length_ms = gate.gap.length_ms();
    tracing::error!(
        length_ms,
        "nothing was guarded; what changed or was opened is judged now"
    );
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let excluded = mountinfo::parse(&table)
        .into_iter()
        .filter(|mount| config.guard.exclude_filesystems.contains(&mount.kind))
        .map(|mount| mount.at);
    let sweep = Sweep {
        gate,
        scope,
        unguarded,
        excluded: excluded.collect(),
    };
    let mut folders: Vec<PathBuf> = config.guard.include.clone();
    while let Some(folder) = folders.pop() {
        if stop.is_set() {
            return;
        }
        sweep.look_into(&folder, &mut folders);
    }
    gate.gap.is_swept.store(true, Ordering::Relaxed);
    let files = gate.gap.files.load(Ordering::Relaxed);
    tracing::warn!(files, "the unguarded interval is accounted for");
    if let Some(worker) = gate.worker() {
        worker.accounted_for();
    }
}

struct Sweep<'a> {
    gate: &'a Gate,
    scope: &'a Scope,
    unguarded: Unguarded,
    excluded: Vec<PathBuf>,
}

impl Sweep<'_> {
    /// A folder, or a single file that is guarded by name.
    fn look_into(&self, path: &Path, folders: &mut Vec<PathBuf>) {
        let Ok(listed) = path.read_dir() else {
            if let Ok(metadata) = path.symlink_metadata() {
                self.look_at(path, &metadata);
            }
            return;
        };
        for entry in listed.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if !metadata.is_dir() {
                self.look_at(&path, &metadata);
            } else if !self.excluded.contains(&path) {
                folders.push(path);
            }
        }
    }

    fn look_at(&self, path: &Path, metadata: &Metadata) {
        let bytes = path.as_os_str().as_bytes();
        if !metadata.is_file() || metadata.len() == 0 || !self.scope.holds(bytes) {
            return;
        }
        if is_touched(metadata, self.unguarded.from_ms) {
            self.gate.gap.files.fetch_add(1, Ordering::Relaxed);
            self.gate.books.add(bytes, UnscannedReason::QueueOverflow);
        }
    }
}

/// Changed, or read as far as the file system keeps that, since then. No upper end: what came
/// after it was seen, and is known or judged soon.
fn is_touched(metadata: &Metadata, from_ms: u64) -> bool {
    let from_s = i64::try_from(from_ms / 1000).unwrap_or(i64::MAX);
    [metadata.ctime(), metadata.mtime(), metadata.atime()]
        .into_iter()
        .any(|at| at >= from_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_tells_of_this_boot_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(by_mark(dir.path()), None);
        mark(dir.path()).unwrap();
        assert!(by_mark(dir.path()).is_some());
        std::fs::write(dir.path().join(MARK), b"another boot").unwrap();
        assert_eq!(by_mark(dir.path()), None);
        mark(dir.path()).unwrap();
        unmark(dir.path());
        assert_eq!(by_mark(dir.path()), None);
    }

    #[test]
    fn touched_is_changed_or_read_since() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        let metadata = path.metadata().unwrap();
        let now_ms = u64::try_from(metadata.ctime()).unwrap() * 1000;
        assert!(is_touched(&metadata, now_ms - 5_000));
        assert!(!is_touched(&metadata, now_ms + 5_000));
    }
}
