//! Clean verdicts that rest on a guest's own report: the content never came here whole, so nothing
//! but the guest's word ties them to its digest. Each counts for the guest that reported alone.
//! Where another guest asks about the same digest, the content is fetched whole and proved, and from
//! then on everybody profits.

use std::sync::Arc;

use model::{GuestId, Verdict};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use scan_core::CacheKey;

/// Of an entry without ranges, about.
const ENTRY_BYTES: u64 = 256;
/// For the size of the table, nothing depends on it.
const ENTRIES_EXPECTED: usize = 10_000;

/// What guests reported, within a bound.
#[derive(Debug)]
pub(crate) struct Reported {
    cache: Cache<CacheKey, Arc<Entry>, ByBytes>,
}

#[derive(Debug)]
struct Entry {
    guest: GuestId,
    verdict: Verdict,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<CacheKey, Arc<Entry>> for ByBytes {
    fn weight(&self, _: &CacheKey, entry: &Arc<Entry>) -> u64 {
        let range = size_of::<(u64, u64)>();
        ENTRY_BYTES + (entry.verdict.coverage.ranges.len() * range) as u64
    }
}

/// What is known of a content by reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// This guest reported it before.
    Own(Verdict),
    /// Another one did.
    OfAnother,
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
        Some(match entry.guest == guest {
            true => Earlier::Own(entry.verdict.clone()),
            false => Earlier::OfAnother,
        })
    }

    /// Of two guests that report at once the first is remembered.
    pub(crate) fn keep(&self, key: &CacheKey, guest: GuestId, verdict: &Verdict) {
        if self.cache.get(key).is_none() {
            let verdict = verdict.clone();
            self.cache.insert(*key, Arc::new(Entry { guest, verdict }));
        }
    }
}
