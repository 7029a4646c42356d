//! Mount namespaces other than our own, seen when a program starts in one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::EventfdFlags;

/// Namespaces that wait to be looked at; more than that are seen with their next program.
const WAITING_MAX: usize = 1024;

/// A mount namespace, by the number of its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Namespace(u64);

impl Namespace {
    /// That of a process.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Self::at(&format!("/proc/{pid}/ns/mnt"))
    }

    fn at(link: &str) -> Option<Self> {
        // `mnt:[4026531841]`
        let name = rustix::fs::readlink(link, Vec::new()).ok()?;
        let name = name.to_str().ok()?;
        let number = name.strip_prefix("mnt:[")?.strip_suffix(']')?;
        number.parse().ok().map(Self)
    }
}

/// Who was seen, each by one of its processes, until somebody looks at what they have mounted.
pub(crate) struct Strangers {
    own: Option<Namespace>,
    waiting: Mutex<BTreeMap<Namespace, i32>>,
    wake: OwnedFd,
}

impl Strangers {
    /// # Errors
    /// As `eventfd`.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            own: Namespace::at("/proc/self/ns/mnt"),
            waiting: Mutex::default(),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// A program started there.
    pub(crate) fn saw(&self, namespace: Namespace, pid: i32) {
        if self.own == Some(namespace) {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX || waiting.contains_key(&namespace) {
            waiting.insert(namespace, pid);
        }
        drop(waiting);
        // Fails only if the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// A process of each that was seen since the last call.
    pub(crate) fn take(&self) -> Vec<i32> {
        let mut count = [0; 8];
        // EAGAIN: nobody was.
        let _ = rustix::io::read(&self.wake, &mut count);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting).into_values().collect()
    }
}

impl AsFd for Strangers {
    /// Becomes readable when somebody was seen.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_seen_once_and_we_are_none() {
        let strangers = Strangers::new().unwrap();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        strangers.saw(Namespace::of(own).unwrap(), own);
        assert_eq!(strangers.take(), [0; 0]);
        strangers.saw(Namespace(1), 5);
        strangers.saw(Namespace(1), 6);
        strangers.saw(Namespace(2), 7);
        assert_eq!(strangers.take(), [6, 7]);
        assert_eq!(strangers.take(), [0; 0]);
    }
}
