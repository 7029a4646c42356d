//! Clean verdicts that rest on a guest's own report: the content never came here whole, so nothing
//! but the guest's word ties them to its digest. Each counts for the guest that reported alone; the
//! next that asks about the same digest reports itself. Once the reports on one content have cost
//! about what a proof does, it is fetched whole and proved, and from then on everybody profits.

use std::sync::Arc;

use model::{GuestId, Verdict};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use scan_core::CacheKey;

/// Of an entry without verdicts, and of a verdict without ranges, about.
const ENTRY_BYTES: u64 = 128;
const VERDICT_BYTES: u64 = 192;
/// For the size of the table, nothing depends on it.
const ENTRIES_EXPECTED: usize = 10_000;
/// Guests that report on one content.
const GUESTS_MAX: usize = 8;
/// With this part of the content sent in all reports, the whole is worth its bytes.
const PART_MAX: u64 = 4;

/// What guests reported, within a bound.
#[derive(Debug)]
pub(crate) struct Reported {
    cache: Cache<CacheKey, Arc<Entry>, ByBytes>,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    reports: Vec<(GuestId, Verdict)>,
}

impl Entry {
    /// Another report would cost more than it saves.
    fn is_enough(&self) -> bool {
        let coverages = || self.reports.iter().map(|(_, verdict)| &verdict.coverage);
        let size = coverages().map(|it| it.bytes_total).max().unwrap_or(0);
        let sent: u64 = coverages().map(|it| it.bytes_judged).sum();
        self.reports.len() >= GUESTS_MAX || sent.saturating_mul(PART_MAX) >= size
    }
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<CacheKey, Arc<Entry>> for ByBytes {
    fn weight(&self, _: &CacheKey, entry: &Arc<Entry>) -> u64 {
        let of = |verdict: &Verdict| {
            let ranges = verdict.coverage.ranges.len() * size_of::<(u64, u64)>();
            VERDICT_BYTES + ranges as u64
        };
        let verdicts = entry.reports.iter().map(|(_, verdict)| of(verdict));
        ENTRY_BYTES + verdicts.sum::<u64>()
    }
}

/// What is known of a content by reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// This guest reported it before.
    Own(Verdict),
    /// So many others did that it is to be proved.
    Enough,
}

impl Reported {
    /// Keeps at most so many bytes.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            cache: Cache::with_weighter(ENTRIES_EXPECTED, bytes_max, ByBytes),
        }
    }

    pub(crate) fn find(&self, key: &CacheKey, guest: GuestId) -> Option<Earlier> {
        let entry = self.cache.get(key)?;
        let own = entry.reports.iter().find(|(of, _)| *of == guest);
        match own {
            Some((_, verdict)) => Some(Earlier::Own(verdict.clone())),
            None => entry.is_enough().then_some(Earlier::Enough),
        }
    }

    /// Of guests that report at once one may be forgotten, and reports again.
    pub(crate) fn keep(&self, key: &CacheKey, guest: GuestId, verdict: &Verdict) {
        let mut entry = self
            .cache
            .get(key)
            .map(Arc::unwrap_or_clone)
            .unwrap_or_default();
        let is_of_another = |(of, _): &(GuestId, Verdict)| *of != guest;
        if entry.reports.len() < GUESTS_MAX && entry.reports.iter().all(is_of_another) {
            entry.reports.push((guest, verdict.clone()));
            self.cache.insert(*key, Arc::new(entry));
        }
    }
}
