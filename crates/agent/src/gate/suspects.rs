//! Openers that policy let through before the verdict: who they are, in case that it is bad.
//!
//! A process is held by a pidfd taken while it waits in its open, so it is never mistaken for
//! another that got its number. The opener may have been killed while it waited and its number
//! given away, though: who started after the open is not the opener.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent_core::FileKey;
use supervisor::Process;

/// Openers remembered; each is a descriptor. The oldest goes first.
const SUSPECTS_MAX: usize = 256;

struct Suspect {
    key: FileKey,
    pid: i32,
    process: Process,
    /// How long after the boot the open was.
    opened: Duration,
}

/// The last of them.
#[derive(Default)]
pub(crate) struct Suspects(Mutex<VecDeque<Suspect>>);

/// What became of those who opened a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Killed {
    /// These were killed.
    pub(crate) pids: Vec<i32>,
    /// This many have ended, or are not the ones that opened it.
    pub(crate) gone: usize,
}

impl Suspects {
    /// Remembers a process that waits now, or `age` ago did, for this file. Opens no file.
    pub(crate) fn add(&self, pid: i32, key: FileKey, age: Duration) {
        // 0 is nobody we can see; 1 nobody kills.
        let Some(process) = (pid > 1).then(|| Process::of(pid)).flatten() else {
            return;
        };
        let opened = supervisor::since_boot().saturating_sub(age);
        let suspect = Suspect {
            key,
            pid,
            process,
            opened,
        };
        let mut suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = if suspects.len() >= SUSPECTS_MAX {
            suspects.pop_front()
        } else {
            None
        };
        suspects.push_back(suspect);
        drop(suspects);
        drop(dropped);
    }

    /// Kills whoever opened this state of a file.
    pub(crate) fn kill(&self, key: &FileKey) -> Killed {
        let mut killed = Killed::default();
        for suspect in self.take(key) {
            // Its start is read while the pidfd shows that it has not been waited for.
            let is_opener = suspect.process.started_before(suspect.pid, suspect.opened);
            if is_opener && !suspect.process.has_ended(Duration::ZERO) {
                suspect.process.kill();
                killed.pids.push(suspect.pid);
            } else {
                killed.gone += 1;
            }
        }
        killed
    }

    fn take(&self, key: &FileKey) -> Vec<Suspect> {
        let same = |suspect: &Suspect| {
            let other = &suspect.key;
            // Not ctime, which a link or a change of owner moves.
            (other.node, other.generation, other.size, other.mtime_ns)
                == (key.node, key.generation, key.size, key.mtime_ns)
        };
        let mut suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (taken, left) = suspects.drain(..).partition(same);
        *suspects = left;
        Vec::from(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use agent_core::FileNode;

    use super::*;

    fn key(ino: u64) -> FileKey {
        FileKey {
            node: FileNode { fs: 1, ino },
            generation: 0,
            size: 10,
            mtime_ns: 5,
            ctime_ns: 5,
        }
    }

    fn sleeper() -> (Child, i32) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    #[test]
    fn whoever_opened_the_file_is_killed_and_nobody_else() {
        let (mut bad, bad_pid) = sleeper();
        let (mut other, other_pid) = sleeper();
        let suspects = Suspects::default();
        suspects.add(bad_pid, key(1), Duration::ZERO);
        suspects.add(other_pid, key(2), Duration::ZERO);
        let killed = suspects.kill(&key(1));
        assert_eq!(killed.pids, [bad_pid]);
        assert!(!bad.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        assert_eq!(suspects.kill(&key(1)), Killed::default(), "once");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_process_younger_than_the_open_is_another() {
        let (mut child, pid) = sleeper();
        let suspects = Suspects::default();
        suspects.add(pid, key(1), Duration::from_secs(3600));
        let killed = suspects.kill(&key(1));
        assert!(killed.pids.is_empty() && killed.gone == 1);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn another_content_is_no_reason() {
        let (mut child, pid) = sleeper();
        let suspects = Suspects::default();
        suspects.add(pid, key(1), Duration::ZERO);
        let changed = FileKey {
            mtime_ns: 6,
            ..key(1)
        };
        assert_eq!(suspects.kill(&changed), Killed::default());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn they_are_bounded_and_spare_the_system() {
        let suspects = Suspects::default();
        suspects.add(0, key(1), Duration::ZERO);
        suspects.add(1, key(1), Duration::ZERO);
        assert_eq!(suspects.kill(&key(1)), Killed::default());
        let (mut child, pid) = sleeper();
        for ino in 0..SUSPECTS_MAX as u64 + 10 {
            suspects.add(pid, key(ino), Duration::ZERO);
        }
        assert_eq!(suspects.0.lock().unwrap().len(), SUSPECTS_MAX);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
