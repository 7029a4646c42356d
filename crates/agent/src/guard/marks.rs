//! Which file systems carry a mark, kept up to date as mounts come and go.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use daemon::signal::Stop;
use fanotify::filesystem::FilesystemKind;
use fanotify::{Group, MarkError, MarkMask};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags};

use super::mountinfo::{self, Mount};
use super::strangers::Strangers;
use crate::gate::Gate;
use agent_config::Guard;

/// How long other mount namespaces are not looked at again.
const STRANGERS_PAUSE: Duration = Duration::from_millis(100);

/// Nothing can be guarded, or not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A folder that is to be guarded does not exist.
    #[error("guard.include: cannot reach {}", path.display())]
    Include {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's table of mounts cannot be read.
    #[error("cannot read {}", mountinfo::PATH)]
    Mounts(#[source] io::Error),
    /// A file system that holds a guarded folder cannot be guarded.
    #[error(transparent)]
    Mark(#[from] MarkError),
}

/// Where files are guarded, as of some moment.
#[derive(Debug, Default)]
pub(crate) struct Guarded {
    /// The kernel's numbers of mounts.
    pub(crate) mounts: HashSet<u64>,
    /// Device numbers.
    pub(crate) devices: HashSet<u64>,
}

/// Which file systems are tried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    All,
    /// Those that are not to be unmounted anyway.
    IfTheyStay,
}

/// The marks of one group.
pub(crate) struct Marks<'a> {
    group: &'a Group,
    guard: &'a Guard,
    table: File,
    /// Mounts that cannot be guarded, by device and place: tried and logged once.
    refused: BTreeSet<(String, PathBuf)>,
}

impl<'a> Marks<'a> {
    /// Opens what is needed; marks nothing yet.
    ///
    /// # Errors
    /// A guarded path does not exist, or the table of mounts cannot be read.
    pub(crate) fn new(group: &'a Group, guard: &'a Guard) -> Result<Self, GuardError> {
        for path in &guard.include {
            path.symlink_metadata().map_err(|source| {
                let path = path.clone();
                GuardError::Include { path, source }
            })?;
        }
        Ok(Self {
            group,
            guard,
            table: File::open(mountinfo::PATH).map_err(GuardError::Mounts)?,
            refused: BTreeSet::new(),
        })
    }

    /// Marks the file systems of the guarded paths. Those that may not be guarded are left out
    /// and logged, unless they hold a guarded path themselves.
    ///
    /// # Errors
    /// Then nothing must be said to be guarded.
    pub(crate) fn mark_all(&mut self, gate: &Gate) -> Result<(), GuardError> {
        let mounts = self.mounts()?;
        let own = |include: &PathBuf| {
            let concerned = mountinfo::concerned(&mounts, include);
            concerned.first().map(|mount| mount.id)
        };
        let must: Vec<u64> = self.guard.include.iter().filter_map(own).collect();
        for mount in self.concerned(&mounts) {
            if let Err(error) = self.mark(mount, gate)
                && must.contains(&mount.id)
            {
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Marks what was mounted since, until told to stop.
    pub(crate) fn follow(&mut self, gate: &Gate, strangers: &Strangers, stop: &Stop) {
        while self.wait_for_change(strangers, stop) {
            self.mark_strangers(gate, strangers);
            let mounts = match self.mounts() {
                Ok(mounts) => mounts,
                Err(error) => {
                    tracing::error!(%error, "new mounts are not guarded");
                    return;
                }
            };
            let places: BTreeSet<_> = mounts.iter().map(place).collect();
            self.refused.retain(|refused| places.contains(refused));
            let mut is_new = false;
            for mount in self.concerned(&mounts) {
                // An error is logged; nobody can be told here.
                is_new |= self.mark(mount, gate).unwrap_or(false);
            }
            if is_new {
                gate.mounts_changed();
            }
            // The others may be unmounted again at once, which an experiment would prevent.
            self.probe(gate, &mounts, Tried::IfTheyStay);
        }
    }

    /// What is marked now.
    ///
    /// # Errors
    /// As reading the table of mounts.
    pub(crate) fn guarded(&mut self) -> Result<Guarded, GuardError> {
        let mounts = self.mounts()?;
        let mut guarded = Guarded::default();
        for mount in self.concerned(&mounts) {
            guarded.mounts.insert(mount.id);
            if let (false, Ok(stat)) = (is_hidden(mount), rustix::fs::stat(&mount.at)) {
                guarded.devices.insert(stat.st_dev);
            }
        }
        Ok(guarded)
    }

    /// Marks what is mounted in other mount namespaces alone, as containers do: reached through
    /// one of the processes there. Ends with that process are of no interest.
    fn mark_strangers(&self, gate: &Gate, strangers: &Strangers) {
        let pids = strangers.take();
        if pids.is_empty() {
            return;
        }
        let mut is_new = false;
        for pid in pids {
            let Ok(table) = std::fs::read(format!("/proc/{pid}/mountinfo")) else {
                continue;
            };
            let root = PathBuf::from(format!("/proc/{pid}/root"));
            for mount in self.concerned(&mountinfo::parse(&table)) {
                let Ok(inside) = mount.at.strip_prefix("/") else {
                    continue;
                };
                let seen_from_here = Mount {
                    at: root.join(inside),
                    ..mount.clone()
                };
                match self.try_mark(&seen_from_here, gate) {
                    Ok(marked) => {
                        is_new |= marked;
                        if marked {
                            let at = seen_from_here.at.display();
                            tracing::info!(%at, kind = mount.kind, "guarding a file system");
                        }
                    }
                    Err(error) => tracing::debug!(%error, "not guarded"),
                }
            }
        }
        if is_new {
            gate.mounts_changed();
        }
        // Programs start more often than file systems are mounted.
        std::thread::sleep(STRANGERS_PAUSE);
    }

    /// Tries out what came, and has the gate use what was found to be sound.
    ///
    /// # Errors
    /// As reading the table of mounts.
    pub(crate) fn probe_all(&mut self, gate: &Gate) -> Result<(), GuardError> {
        let mounts = self.mounts()?;
        self.probe(gate, &mounts, Tried::All);
        Ok(())
    }

    fn probe(&self, gate: &Gate, mounts: &[Mount], tried: Tried) {
        let places = self.guard.standing_filesystems.iter();
        let device = |place: &PathBuf| Some(rustix::fs::stat(place).ok()?.st_dev);
        let held: HashSet<u64> = places.filter_map(device).collect();
        let concerned = self.concerned(mounts);
        let unseen = concerned.into_iter().filter(|mount| !is_hidden(mount));
        let mut probes = gate.probes.lock().unwrap_or_else(PoisonError::into_inner);
        probes.keep(mounts);
        for mount in unseen {
            let stays = || rustix::fs::stat(&mount.at).is_ok_and(|it| held.contains(&it.st_dev));
            if tried == Tried::All || stays() {
                probes.add(mount);
            }
        }
        let media = probes.media(|device| held.contains(&device));
        drop(probes);
        gate.know_media(media);
    }

    /// Takes all marks off: no opener comes any more.
    pub(crate) fn unmark_all(&mut self) {
        if let Err(error) = self.group.unmark_all() {
            tracing::error!(%error, "the marks cannot be taken off");
        }
    }

    /// Every mount that is to be guarded: a file system may be reached by one of its mounts only.
    fn concerned<'m>(&self, mounts: &'m [Mount]) -> Vec<&'m Mount> {
        let of = |include: &PathBuf| mountinfo::concerned(mounts, include);
        let mut concerned: Vec<&Mount> = self.guard.include.iter().flat_map(of).collect();
        concerned.retain(|mount| {
            let excluded = self.guard.exclude_filesystems.contains(&mount.kind);
            !excluded && !self.refused.contains(&place(mount))
        });
        concerned.sort_by_key(|mount| mount.id);
        concerned.dedup_by_key(|mount| mount.id);
        concerned
    }

    /// True if the file system had no mark before. The kernel is asked: what was unmounted lost
    /// its mark, and its device number may be another one's by now.
    fn mark(&mut self, mount: &Mount, gate: &Gate) -> Result<bool, MarkError> {
        let marked = self.try_mark(mount, gate);
        let (at, kind) = (mount.at.display(), &mount.kind);
        match &marked {
            Ok(false) => {}
            Ok(true) => tracing::info!(%at, kind, "guarding a file system"),
            Err(error) => {
                tracing::warn!(%error, %at, kind, "not guarded");
                self.refused.insert(place(mount));
            }
        }
        marked
    }

    fn try_mark(&self, mount: &Mount, gate: &Gate) -> Result<bool, MarkError> {
        let (at, kind) = (&mount.at, &mount.kind);
        if kind == "fuse" || kind.starts_with("fuse.") {
            // Not to be touched at all: to ask for its kind is to ask its process.
            return Err(MarkError::Refused {
                path: at.clone(),
                kind: FilesystemKind::Fuse,
            });
        }
        if is_hidden(mount) || self.group.is_marked(at)? {
            return Ok(false);
        }
        // It may have the device number of one that was found to be better.
        if let Ok(stat) = rustix::fs::stat(at) {
            gate.forget_medium(stat.st_dev);
        }
        self.group.mark_filesystem(at, MarkMask::ALL)?;
        Ok(true)
    }

    fn mounts(&mut self) -> Result<Vec<Mount>, GuardError> {
        let mut text = Vec::new();
        self.table
            .rewind()
            .and_then(|()| self.table.read_to_end(&mut text))
            .map_err(GuardError::Mounts)?;
        Ok(mountinfo::parse(&text))
    }

    /// False: stop.
    fn wait_for_change(&self, strangers: &Strangers, stop: &Stop) -> bool {
        let mut sources = [
            PollFd::new(&self.table, PollFlags::PRI),
            PollFd::new(strangers, PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None));
        if let Err(error) = polled {
            tracing::error!(%error, "new mounts are not guarded");
            return false;
        }
        !stop.is_set()
    }
}

fn place(mount: &Mount) -> (String, PathBuf) {
    (mount.device.clone(), mount.at.clone())
}

/// Another file system is mounted over it, so that its path leads there. Nor can an opener reach
/// it by this path.
fn is_hidden(mount: &Mount) -> bool {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let seen = rustix::fs::statx(CWD, &mount.at, flags, StatxFlags::MNT_ID);
    let has_id = |seen: &Statx| seen.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    seen.is_ok_and(|seen| has_id(&seen) && seen.stx_mnt_id != mount.id)
}
