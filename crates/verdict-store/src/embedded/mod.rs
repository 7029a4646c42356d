//! The store of a single machine: two LSM trees, one of verdicts and one of sightings, each in
//! segments that are dropped whole, oldest first, so that its size is bounded without ever looking
//! for something to evict.

mod segments;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fjall::PersistMode;
use model::{Digest, Generation, GuestId};
use parking_lot::Mutex;
use scan_core::CacheKey;
use tokio::sync::Semaphore;

use crate::Sealed;
use crate::store::{
    HOLDERS_MAX, Holder, Holders, Sighting, Sightings, StoreError, StoreFuture, VerdictStore,
    check_batch,
};
use segments::Segments;

const NAME: &str = "embedded";
/// Threads at most that wait for the disk; the others wait as tasks, which may be given up.
const THREADS_MAX: usize = 8;
/// Sightings are of no generation.
const NO_GENERATION: Generation = Generation([0; 16]);
const DIGEST_BYTES: usize = 32;
const SIGHTING_KEY_BYTES: usize = DIGEST_BYTES + 16;

/// Limits of an [`Embedded`] store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedSettings {
    /// Bytes of keys and verdicts; beyond it the oldest eighth goes. The trees need up to about
    /// 1.5 times as much while they compact.
    pub verdict_bytes_max: u64,
    /// The same for sightings: 64 bytes each. What goes is what was not seen again for longest.
    pub sighting_bytes_max: u64,
}

impl Default for EmbeddedSettings {
    fn default() -> Self {
        Self {
            verdict_bytes_max: 4 << 30,
            sighting_bytes_max: 4 << 30,
        }
    }
}

/// The store of a single machine.
#[derive(Debug)]
pub struct Embedded {
    inner: Arc<Inner>,
    threads: Arc<Semaphore>,
}

#[derive(Debug)]
struct Inner {
    verdicts: Segments,
    sightings: Segments,
    /// Recording reads what is known before it writes.
    recording: Mutex<()>,
}

impl Embedded {
    /// Opens or begins a store in a folder of its own. A tree that cannot be read is put aside as
    /// `*.damaged` with an error in the log, and begun anew. Blocks.
    ///
    /// # Errors
    /// [`StoreError`]: in use by another process, of a newer version, or the folder is unusable.
    pub fn open(dir: &Path, settings: EmbeddedSettings) -> Result<Self, StoreError> {
        segments::check_format(dir)?;
        let inner = Inner {
            verdicts: Segments::open(&dir.join("verdicts"), settings.verdict_bytes_max)?,
            sightings: Segments::open(&dir.join("sightings"), settings.sighting_bytes_max)?,
            recording: Mutex::new(()),
        };
        Ok(Self {
            inner: Arc::new(inner),
            threads: Arc::new(Semaphore::new(THREADS_MAX)),
        })
    }

    /// Bytes on disk of both trees, journals included.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.inner.verdicts.disk_bytes() + self.inner.sightings.disk_bytes()
    }

    fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, fjall::Error> + Send + 'static,
    ) -> StoreFuture<'static, T> {
        let inner = Arc::clone(&self.inner);
        let threads = Arc::clone(&self.threads);
        Box::pin(async move {
            let permit = threads.acquire_owned().await;
            let permit = permit.map_err(|error| StoreError::failed(NAME, doing, error))?;
            let worked = tokio::task::spawn_blocking(move || {
                // Goes with the thread, not with the caller, who may give up waiting.
                let _permit = permit;
                work(&inner).map_err(|error| StoreError::failed(NAME, doing, error))
            });
            let worked = worked.await;
            worked.unwrap_or_else(|error| Err(StoreError::failed(NAME, doing, error)))
        })
    }
}

impl VerdictStore for Embedded {
    fn name(&self) -> &'static str {
        NAME
    }

    fn get_many<'a>(&'a self, keys: &'a [CacheKey]) -> StoreFuture<'a, Vec<Option<Sealed>>> {
        if let Err(error) = check_batch(keys.len()) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let keys = keys.to_vec();
        self.blocking("get verdicts", move |inner| {
            let found = keys.iter().map(|key| {
                let value = inner.verdicts.newest(key.generation, &key.to_bytes())?;
                Ok(value.map(|value| Sealed(value.to_vec())))
            });
            found.collect()
        })
    }

    fn put_many<'a>(&'a self, entries: &'a [(CacheKey, Sealed)]) -> StoreFuture<'a, ()> {
        if let Err(error) = check_batch(entries.len()) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let mut of: BTreeMap<Generation, Vec<(Vec<u8>, Vec<u8>)>> = BTreeMap::new();
        for (key, sealed) in entries {
            let item = (key.to_bytes().to_vec(), sealed.0.clone());
            of.entry(key.generation).or_default().push(item);
        }
        self.blocking("keep verdicts", move |inner| {
            of.into_iter().try_for_each(|(generation, items)| {
                // A verdict that a power failure takes is judged again: no need to wait for the disk.
                inner.verdicts.insert(generation, items, None)
            })
        })
    }

    fn forget_generation(&self, generation: Generation) -> StoreFuture<'_, ()> {
        self.blocking("forget a generation", move |inner| {
            inner.verdicts.forget(generation)
        })
    }
}

impl Sightings for Embedded {
    fn name(&self) -> &'static str {
        NAME
    }

    fn record<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
        if let Err(error) = check_batch(sightings.len()) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let mut merged = BTreeMap::new();
        for sighting in sightings {
            merge(
                &mut merged,
                sighting_key(&sighting.digest, &sighting.guest),
                (sighting.first_seen, sighting.last_seen),
            );
        }
        self.blocking("record sightings", move |inner| inner.record(merged))
    }

    fn holders(
        &self,
        digest: Digest,
        after: Option<GuestId>,
        limit: usize,
    ) -> StoreFuture<'_, Holders> {
        let limit = limit.min(HOLDERS_MAX);
        self.blocking("list holders", move |inner| {
            inner.holders(&digest, after, limit)
        })
    }
}

impl Inner {
    fn record(
        &self,
        mut merged: BTreeMap<[u8; SIGHTING_KEY_BYTES], (u64, u64)>,
    ) -> Result<(), fjall::Error> {
        let _recording = self.recording.lock();
        for (key, times) in &mut merged {
            let known = self.sightings.newest(NO_GENERATION, key)?;
            if let Some((first, last)) = known.as_deref().and_then(times_of) {
                *times = (times.0.min(first), times.1.max(last));
            }
        }
        let items = merged.into_iter().map(|(key, (first, last))| {
            let times = [first.to_be_bytes(), last.to_be_bytes()].concat();
            (key.to_vec(), times)
        });
        let mode = Some(PersistMode::SyncData);
        self.sightings
            .insert(NO_GENERATION, items.collect(), mode)
    }

    /// The first `limit` + 1 of each segment are enough to know the first `limit` of all.
    fn holders(
        &self,
        digest: &Digest,
        after: Option<GuestId>,
        limit: usize,
    ) -> Result<Holders, fjall::Error> {
        let end = sighting_key(digest, &GuestId([0xff; 16]));
        let begin = sighting_key(digest, &after.unwrap_or_default());
        let skips = |key: &[u8]| after.is_some() && key == begin;
        let mut merged = BTreeMap::new();
        for segment in self.sightings.of(NO_GENERATION) {
            let found = segment.range(begin..=end).map(fjall::Guard::into_inner);
            let found = found.filter(|item| !matches!(item, Ok((key, _)) if skips(key)));
            for item in found.take(limit + 1) {
                let (key, value) = item?;
                let guest = key.get(DIGEST_BYTES..).and_then(GuestId::from_slice);
                if let (Some(guest), Some(times)) = (guest, times_of(&value)) {
                    merge(&mut merged, guest, times);
                }
            }
        }
        let holders = merged.into_iter().map(|(guest, (first, last))| Holder {
            guest,
            first_seen: first,
            last_seen: last,
        });
        Ok(Holders::page(holders.take(limit + 1).collect(), limit))
    }
}

fn merge<K: Ord>(into: &mut BTreeMap<K, (u64, u64)>, key: K, (first, last): (u64, u64)) {
    into.entry(key)
        .and_modify(|known| *known = (known.0.min(first), known.1.max(last)))
        .or_insert((first, last));
}

fn sighting_key(digest: &Digest, guest: &GuestId) -> [u8; SIGHTING_KEY_BYTES] {
    let mut out = [0; SIGHTING_KEY_BYTES];
    out[..DIGEST_BYTES].copy_from_slice(&digest.0);
    out[DIGEST_BYTES..].copy_from_slice(&guest.0);
    out
}

/// First and last time; `None` for what we did not write.
fn times_of(value: &[u8]) -> Option<(u64, u64)> {
    let (first, rest) = value.split_first_chunk()?;
    let last = rest.try_into().ok()?;
    Some((u64::from_be_bytes(*first), u64::from_be_bytes(last)))
}
