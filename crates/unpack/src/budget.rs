//! Time: the caller says when to stop, the crate asks often enough.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};

/// Bytes of work between two questions to the caller. At the slowest decoder's ~10 MB/s this is
/// a question every 25 ms at least.
const WORK_PER_QUESTION: u64 = 256 << 10;

/// What any read, entry or header costs besides its bytes, so that work on empty things counts.
const WORK_PER_STEP: u64 = 256;

/// Bounds the time of a walk without a clock: `should_stop` is asked every 256 KiB of work (bytes
/// read or written, plus a charge for each step), and once it has said yes the walk ends.
pub struct Budget<'a> {
    should_stop: &'a dyn Fn() -> bool,
    work: Cell<u64>,
    stopped: Cell<bool>,
}

impl<'a> Budget<'a> {
    /// A budget that lasts until `should_stop` says yes.
    pub fn new(should_stop: &'a dyn Fn() -> bool) -> Self {
        Self {
            should_stop,
            work: Cell::new(0),
            stopped: Cell::new(false),
        }
    }

    /// A budget that never ends; the sizes in [`Limits`](crate::Limits) still hold.
    pub fn unlimited() -> Self {
        Self::new(&|| false)
    }

    /// Notes `bytes` of work. True: the walk must end.
    pub(crate) fn spend(&self, bytes: u64) -> bool {
        let work = self.work.get().saturating_add(bytes + WORK_PER_STEP);
        if work < WORK_PER_QUESTION {
            self.work.set(work);
        } else {
            self.work.set(0);
            if (self.should_stop)() {
                self.stopped.set(true);
            }
        }
        self.stopped.get()
    }

    /// The caller wanted an end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }
}

impl std::fmt::Debug for Budget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget")
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

/// Content handed to a third-party parser: each of its reads is paid from the budget and fails
/// once that is used up, so that no loop inside the parser can outlast it.
#[derive(Debug, Clone)]
pub(crate) struct Source<'a> {
    bytes: &'a [u8],
    at: u64,
    budget: &'a Budget<'a>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8], budget: &'a Budget<'a>) -> Self {
        Self {
            bytes,
            at: 0,
            budget,
        }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.at)
            .ok()
            .and_then(|at| self.bytes.get(at..))
            .unwrap_or_default();
        let len = rest.len().min(buf.len());
        if self.budget.spend(len as u64) {
            return Err(io::Error::other("stopped by the caller"));
        }
        buf[..len].copy_from_slice(&rest[..len]);
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => (self.bytes.len() as u64).checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
