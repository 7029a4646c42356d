//! Wakes the keeper when there is something to do, so that an idle agent has no rounds to make.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};

/// Rung by any thread, heard by one.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    /// Rung and not heard yet: no further system call is needed.
    is_rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_rung: AtomicBool::new(false),
        })
    }

    pub(crate) fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::AcqRel) {
            // Fails only if the counter is full, and then it is readable already.
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    /// Sleeps until it is rung, one of `others` can be read, or so much time has passed. Whether it
    /// was only the time.
    pub(crate) fn wait(&self, others: &[BorrowedFd<'_>], at_most: Duration) -> bool {
        let own = std::iter::once(self.fd.as_fd());
        let all = own.chain(others.iter().copied());
        let mut sources: Vec<_> = all
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let at_most = Timespec::try_from(at_most).ok();
        // An interrupted sleep is a short one.
        let woken = rustix::event::poll(&mut sources, at_most.as_ref());
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.fd, &mut count);
        // After the reading: a ring in between is heard by whoever looks round next.
        self.is_rung.store(false, Ordering::Release);
        woken == Ok(0)
    }
}

/// Sleeps until this can be read, or so much time has passed.
pub(crate) fn wait(fd: BorrowedFd<'_>, at_most: Duration) {
    let mut sources = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let at_most = Timespec::try_from(at_most).ok();
    let _ = rustix::event::poll(&mut sources, at_most.as_ref());
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_ring_before_the_wait_is_heard_and_only_once() {
        let bell = Bell::new().unwrap();
        bell.ring();
        bell.ring();
        bell.wait(&[], LONG);
        bell.wait(&[], Duration::ZERO);
        assert!(!bell.is_rung.load(Ordering::Relaxed));
        bell.ring();
        bell.wait(&[], LONG);
    }

    #[test]
    fn others_wake_too() {
        let (bell, other) = (Bell::new().unwrap(), Bell::new().unwrap());
        other.ring();
        bell.wait(&[other.fd.as_fd()], LONG);
    }
}
