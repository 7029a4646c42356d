//! Verdicts that may be used again: in memory first, on disk behind it. Only clean and malicious
//! are kept, under everything they depend on.

mod disk;
mod encoding;

use std::path::Path;
use std::sync::Arc;

use model::{Generation, Verdict};
use quick_cache::Weighter;
use scan_core::{CacheKey, VerdictStore};

use disk::DiskStore;
pub use disk::StoreError;

/// The two tiers.
#[derive(Debug)]
pub(crate) struct Verdicts {
    memory: MemoryStore,
    disk: DiskStore,
}

impl Verdicts {
    pub(crate) fn open(
        dir: &Path,
        memory_bytes_max: u64,
        disk_entries_max: u64,
        generation: Generation,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            memory: MemoryStore::new(memory_bytes_max),
            disk: DiskStore::open(dir, disk_entries_max, generation)?,
        })
    }

    /// Verdicts of other generations are no longer found, and go as place is needed.
    pub(crate) fn use_generation(&self, generation: Generation) {
        self.disk.use_generation(generation);
    }

    /// Keeps a verdict in memory; cheap, so that it can be done before anybody is answered.
    pub(crate) fn keep_in_memory(&self, key: &CacheKey, verdict: &Verdict) {
        self.memory.keep(key, verdict);
    }

    /// Keeps it on disk too.
    pub(crate) fn keep_on_disk(&self, key: &CacheKey, verdict: &Verdict) {
        self.disk.keep(key, verdict);
    }

    pub(crate) fn stats(&self) -> StoreStats {
        StoreStats {
            memory_bytes: self.memory.cache.weight(),
            memory_entries: self.memory.cache.len() as u64,
            disk_entries: self.disk.entries(),
            disk_bytes: self.disk.bytes(),
            disk_failures: self.disk.failures(),
        }
    }
}

impl VerdictStore for Verdicts {
    fn find(&self, key: &CacheKey) -> Option<Verdict> {
        if let Some(verdict) = self.memory.find(key) {
            return Some(verdict);
        }
        let verdict = self.disk.find(key)?;
        self.memory.keep(key, &verdict);
        Some(verdict)
    }

    fn keep(&self, key: &CacheKey, verdict: &Verdict) {
        self.keep_in_memory(key, verdict);
        self.keep_on_disk(key, verdict);
    }
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreStats {
    pub(crate) memory_bytes: u64,
    pub(crate) memory_entries: u64,
    pub(crate) disk_entries: u64,
    pub(crate) disk_bytes: u64,
    /// Reads, writes and damaged entries that came to nothing.
    pub(crate) disk_failures: u64,
}

/// The tier in memory, bounded by bytes.
#[derive(Debug)]
struct MemoryStore {
    cache: quick_cache::sync::Cache<CacheKey, Arc<Verdict>, ByBytes>,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<CacheKey, Arc<Verdict>> for ByBytes {
    fn weight(&self, _: &CacheKey, verdict: &Arc<Verdict>) -> u64 {
        weight(verdict)
    }
}

/// Bytes that a kept verdict costs, roughly: the key twice, the verdict, what it points to.
fn weight(verdict: &Verdict) -> u64 {
    const FIXED: usize = 2 * CacheKey::BYTES + size_of::<Verdict>() + 64;
    let detections = match &verdict.outcome {
        model::Outcome::Malicious { detections, .. } => detections
            .iter()
            .map(|d| {
                let path: usize = d.path_inside.iter().map(|part| part.len() + 24).sum();
                size_of_val(d) + d.name.len() + d.engine.len() + path
            })
            .sum(),
        _ => 0usize,
    };
    (FIXED + detections) as u64
}

/// A clean verdict weighs about this much; only used to size the cache's tables.
const TYPICAL_WEIGHT: u64 = 448;

impl MemoryStore {
    fn new(bytes_max: u64) -> Self {
        let items = usize::try_from(bytes_max / TYPICAL_WEIGHT).unwrap_or(usize::MAX);
        Self {
            cache: quick_cache::sync::Cache::with_weighter(items, bytes_max, ByBytes),
        }
    }
}

impl VerdictStore for MemoryStore {
    fn find(&self, key: &CacheKey) -> Option<Verdict> {
        self.cache.get(key).map(|verdict| (*verdict).clone())
    }

    fn keep(&self, key: &CacheKey, verdict: &Verdict) {
        if verdict.outcome.is_cacheable() {
            self.cache.insert(*key, Arc::new(verdict.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Coverage, Digest, Outcome, UnscannedReason};
    use scan_core::{ContextClass, Settings};

    fn key(n: u32) -> CacheKey {
        CacheKey {
            digest: Digest::of(&n.to_be_bytes()),
            context: ContextClass::ANY,
            generation: Generation([1; 16]),
            settings: Settings::of(&[]),
        }
    }

    fn verdict(outcome: Outcome) -> Verdict {
        Verdict {
            outcome,
            coverage: Coverage::whole(4),
            generation: Generation([1; 16]),
            digest: None,
            sha256: None,
        }
    }

    #[test]
    fn memory_is_bounded_and_keeps_only_what_is_certain() {
        let store = MemoryStore::new(64 * 1024);
        for n in 0..10_000 {
            store.keep(&key(n), &verdict(Outcome::Clean));
        }
        assert!(store.cache.weight() <= 64 * 1024);
        assert!(store.cache.len() > 10);
        let unscanned = verdict(Outcome::unscanned(UnscannedReason::Encrypted));
        store.keep(&key(20_000), &unscanned);
        assert_eq!(store.find(&key(20_000)), None);
    }
}
