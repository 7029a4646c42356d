//! The ledger: in memory where opens are answered, and on disk behind that.

mod file;

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use agent_core::{Ledger, LedgerAdded, LedgerTotals};
use model::UnscannedReason;

use crate::bell::Bell;

pub(crate) use file::{LedgerFile, LedgerFileError};

/// A single report of unnamed opens counts for no more: one is enough to say that a scan is due.
const OVERFLOWS_MAX: u64 = 65_536;

/// The debt, shared by all threads.
pub(crate) struct Books {
    inner: Mutex<Inner>,
    /// Rung when there is something to write, report or pay back.
    bell: OnceLock<Arc<Bell>>,
}

struct Inner {
    ledger: Ledger,
    /// Where changes are appended at once, so that a killed agent's debts are known to the next.
    journal: File,
    /// Changes that could not be appended yet.
    lines: String,
    /// Bytes appended since the file was last written as a whole.
    appended: u64,
    /// Something was appended that may not be on the disk yet.
    unsynced: bool,
    /// The file is being written as a whole: what was appended meanwhile.
    meanwhile: Option<String>,
    /// The totals when last written.
    written: LedgerTotals,
}

impl Inner {
    /// Hands the changes to the kernel, which keeps them if this process dies.
    fn append(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        self.journal.write_all(self.lines.as_bytes())?;
        self.appended += self.lines.len() as u64;
        self.unsynced = true;
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.push_str(&self.lines);
        }
        self.lines.clear();
        Ok(())
    }

    fn overflowed(&mut self) {
        let is_first = self.ledger.totals().overflow_total == self.written.overflow_total;
        self.ledger.overflowed();
        if is_first {
            // Of a flood only the first at once: one tells that there were some.
            self.lines.push_str(&self.ledger.totals_line());
            // What fails is tried again by the keeper, which reports it.
            let _ = self.append();
        }
    }
}

impl Books {
    pub(crate) fn new(ledger: Ledger, journal: File) -> Self {
        Self {
            inner: Mutex::new(Inner {
                written: ledger.totals(),
                ledger,
                journal,
                lines: String::new(),
                appended: 0,
                unsynced: false,
                meanwhile: None,
            }),
            bell: OnceLock::new(),
        }
    }

    /// From now on this bell is rung when something changes; once.
    pub(crate) fn ring(&self, bell: Arc<Bell>) {
        let _ = self.bell.set(bell);
    }

    fn changed(&self) {
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open is answered without a verdict. Returns when the kernel has the entry: after that
    /// not even this process's death loses it. A file without a path cannot be found again, so the
    /// guest needs a full scan.
    pub(crate) fn add(&self, path: &[u8], reason: UnscannedReason) {
        self.changed();
        let mut inner = self.lock();
        if path.first() != Some(&b'/') {
            return inner.overflowed();
        }
        let Inner { ledger, lines, .. } = &mut *inner;
        match ledger.add(path, reason, lines) {
            LedgerAdded::New => {
                // What fails is tried again by the keeper, which reports it.
                let _ = inner.append();
            }
            LedgerAdded::Known => {}
            LedgerAdded::Overflowed => tracing::debug!("the ledger is full"),
        }
    }

    /// There is a verdict, or nothing left to judge.
    pub(crate) fn paid(&self, path: &[u8]) {
        let was_open = {
            let Inner { ledger, lines, .. } = &mut *self.lock();
            ledger.paid(path, lines)
        };
        if was_open {
            self.changed();
        }
    }

    pub(crate) fn unpaid(&self, path: &[u8], now: Duration) {
        self.lock().ledger.unpaid(path, now);
        self.changed();
    }

    pub(crate) fn overflowed(&self) {
        self.lock().overflowed();
        self.changed();
    }

    /// So many opens went unseen, or were answered by others, and nothing names them.
    pub(crate) fn overflowed_by(&self, count: u64) {
        (0..count.min(OVERFLOWS_MAX)).for_each(|_| self.lock().overflowed());
        self.changed();
    }

    pub(crate) fn forgive(&self, now: Duration) {
        self.lock().ledger.forgive(now);
        self.changed();
    }

    pub(crate) fn totals(&self) -> LedgerTotals {
        self.lock().ledger.totals()
    }

    /// When the next file may be judged again; `None`: none waits for that.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.lock().ledger.next_due()
    }

    /// Files to be judged again, so many that at most `in_flight_max` are under way.
    pub(crate) fn due(&self, now: Duration, in_flight_max: usize) -> Vec<Vec<u8>> {
        let ledger = &mut self.lock().ledger;
        let room = in_flight_max.saturating_sub(ledger.under_way());
        ledger.due(now, room)
    }

    /// Whether a file is due for which there is no room: `in_flight_max` are under way.
    pub(crate) fn is_full(&self, now: Duration, in_flight_max: usize) -> bool {
        let ledger = &self.lock().ledger;
        ledger.under_way() >= in_flight_max && ledger.next_due().is_some_and(|due| due <= now)
    }

    /// Whether a file is due, or under way.
    pub(crate) fn has_work(&self, now: Duration) -> bool {
        let ledger = &self.lock().ledger;
        ledger.under_way() > 0 || ledger.next_due().is_some_and(|due| due <= now)
    }

    /// Appends what is not appended yet. True if something may not be on the disk.
    pub(crate) fn append(&self) -> io::Result<bool> {
        let inner = &mut *self.lock();
        let totals = inner.ledger.totals();
        if totals.overflow_total != inner.written.overflow_total {
            inner.lines.push_str(&inner.ledger.totals_line());
        }
        inner.written = totals;
        inner.append()?;
        Ok(std::mem::take(&mut inner.unsynced))
    }

    /// Something is not on the disk yet.
    pub(crate) fn is_unwritten(&self) -> bool {
        let inner = self.lock();
        let is_counted = inner.ledger.totals() == inner.written;
        inner.unsynced || !inner.lines.is_empty() || !is_counted
    }

    pub(crate) fn appended(&self) -> u64 {
        self.lock().appended
    }

    /// The whole as it is now, which stands for everything written before. What comes after it
    /// is given to [`replace`](Self::replace).
    pub(crate) fn snapshot(&self) -> String {
        let mut inner = self.lock();
        inner.lines.clear();
        inner.meanwhile = Some(String::new());
        inner.written = inner.ledger.totals();
        inner.ledger.snapshot()
    }

    /// Goes on with another file, which `put` brings up to date and into its place: nothing is
    /// appended to either in between.
    pub(crate) fn replace(&self, put: impl FnOnce(&str) -> io::Result<File>) -> io::Result<()> {
        let inner = &mut *self.lock();
        let meanwhile = inner.meanwhile.take().unwrap_or_default();
        inner.journal = put(&meanwhile)?;
        inner.appended = meanwhile.len() as u64;
        Ok(())
    }
}
