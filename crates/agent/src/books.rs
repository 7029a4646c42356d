//! The ledger: in memory where opens are answered, and on disk behind that.

mod file;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_core::{Ledger, LedgerAdded, LedgerTotals};
use model::UnscannedReason;

pub(crate) use file::{LedgerFile, LedgerFileError};

/// The debt, shared by all threads.
pub(crate) struct Books {
    inner: Mutex<Inner>,
}

struct Inner {
    ledger: Ledger,
    /// Changes not yet on disk.
    lines: String,
    /// The totals when last written.
    written: LedgerTotals,
}

/// What is to be written.
pub(crate) struct Unwritten {
    pub(crate) lines: String,
}

impl Books {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self {
            inner: Mutex::new(Inner {
                written: ledger.totals(),
                ledger,
                lines: String::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open was answered without a verdict. A file without a path cannot be found again, so
    /// the guest needs a full scan.
    pub(crate) fn add(&self, path: &[u8], reason: UnscannedReason) {
        let Inner { ledger, lines, .. } = &mut *self.lock();
        if path.first() != Some(&b'/') {
            ledger.overflowed();
            return;
        }
        if ledger.add(path, reason, lines) == LedgerAdded::Overflowed {
            tracing::debug!("the ledger is full");
        }
    }

    /// There is a verdict, or nothing left to judge.
    pub(crate) fn paid(&self, path: &[u8]) {
        let Inner { ledger, lines, .. } = &mut *self.lock();
        ledger.paid(path, lines);
    }

    pub(crate) fn unpaid(&self, path: &[u8], now: Duration) {
        self.lock().ledger.unpaid(path, now);
    }

    pub(crate) fn overflowed(&self) {
        self.lock().ledger.overflowed();
    }

    pub(crate) fn forgive(&self, now: Duration) {
        self.lock().ledger.forgive(now);
    }

    pub(crate) fn totals(&self) -> LedgerTotals {
        self.lock().ledger.totals()
    }

    /// Files to be judged again, so many that at most `in_flight_max` are under way.
    pub(crate) fn due(&self, now: Duration, in_flight_max: usize) -> Vec<Vec<u8>> {
        let ledger = &mut self.lock().ledger;
        let room = in_flight_max.saturating_sub(ledger.under_way());
        ledger.due(now, room)
    }

    /// Whether a file is due, or under way.
    pub(crate) fn has_work(&self, now: Duration) -> bool {
        let ledger = &self.lock().ledger;
        ledger.under_way() > 0 || ledger.is_due(now)
    }

    /// Takes what changed since the last call; `None`: nothing.
    pub(crate) fn take_unwritten(&self) -> Option<Unwritten> {
        let mut inner = self.lock();
        let totals = inner.ledger.totals();
        if totals == inner.written && inner.lines.is_empty() {
            return None;
        }
        let mut lines = std::mem::take(&mut inner.lines);
        if totals.overflow_total != inner.written.overflow_total {
            lines.push_str(&inner.ledger.totals_line());
        }
        inner.written = totals;
        Some(Unwritten { lines })
    }

    /// The whole, which stands for everything written before.
    pub(crate) fn snapshot(&self) -> String {
        let mut inner = self.lock();
        inner.lines.clear();
        inner.written = inner.ledger.totals();
        inner.ledger.snapshot()
    }
}
