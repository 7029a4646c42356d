//! What an appliance asks: seals and opens, waits no longer than allowed, leaves a dead store alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daemon::log::RateLimit;
use model::{Digest, Generation, GuestId};
use parking_lot::Mutex;
use scan_core::CacheKey;

use crate::store::{Holders, Sighting, Sightings, StoreError, StoreFuture, VerdictStore};
use crate::{BadEntry, Breaker, BreakerSettings, Entry, Keyring};

/// Is told what an operator should know.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// The store holds an entry that must not be believed; it counts as missing.
    fn bad_entry(&self, store: &'static str, key: &CacheKey, why: BadEntry);
    /// The store did not answer. Not called while it is left alone.
    fn failed(&self, error: &StoreError);
    /// The store is left alone from now on (`true`), or is back (`false`).
    fn resting(&self, store: &'static str, resting: bool);
}

static BAD_ENTRIES: RateLimit = RateLimit::new(6);
static FAILURES: RateLimit = RateLimit::new(6);

/// The observer that logs; each kind of line is rate-limited.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log;

impl Observer for Log {
    fn bad_entry(&self, store: &'static str, key: &CacheKey, why: BadEntry) {
        if let Some(suppressed) = BAD_ENTRIES.allow(Instant::now()) {
            tracing::error!(store, digest = %key.digest, %why, suppressed,
                "the fleet's verdict store holds an entry that is not ours; it is not believed");
        }
    }

    fn failed(&self, error: &StoreError) {
        if let Some(suppressed) = FAILURES.allow(Instant::now()) {
            tracing::warn!(%error, suppressed, "fleet store");
        }
    }

    fn resting(&self, store: &'static str, resting: bool) {
        if resting {
            tracing::error!(store, "the fleet store is left alone until it answers again");
        } else {
            tracing::info!(store, "the fleet store answers again");
        }
    }
}

/// Counters for metrics, since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CountsSnapshot {
    /// Keys with a good entry.
    pub hits: u64,
    /// Keys without one, those with a bad one included.
    pub misses: u64,
    /// Entries that were not believed.
    pub bad_entries: u64,
    /// Entries too large to be kept.
    pub too_large: u64,
    /// Calls that failed or ran out of time.
    pub failures: u64,
    /// Calls not made because the store is left alone.
    pub not_asked: u64,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    bad_entries: AtomicU64,
    too_large: AtomicU64,
    failures: AtomicU64,
    not_asked: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// The fleet's verdicts and sightings, as an appliance uses them. Needs a tokio runtime with time.
#[derive(Debug)]
pub struct Fleet {
    verdicts: Arc<dyn VerdictStore>,
    sightings: Arc<dyn Sightings>,
    keys: Keyring,
    observer: Arc<dyn Observer>,
    /// One for each kind of work: a slow search for holders must not cost verdicts.
    verdicts_breaker: Mutex<Breaker>,
    sightings_breaker: Mutex<Breaker>,
    counts: Counts,
}

impl Fleet {
    /// Joins a store with the fleet's keys. Both stores may be the same.
    #[must_use]
    pub fn new(
        verdicts: Arc<dyn VerdictStore>,
        sightings: Arc<dyn Sightings>,
        keys: Keyring,
        breaker: BreakerSettings,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            verdicts,
            sightings,
            keys,
            observer,
            verdicts_breaker: Mutex::new(Breaker::new(breaker)),
            sightings_breaker: Mutex::new(Breaker::new(breaker)),
            counts: Counts::default(),
        }
    }

    /// One answer for each key, in their order; an entry that is not ours is `None`. Returns at
    /// `deadline` at the latest.
    ///
    /// # Errors
    /// [`StoreError`]: go on as if nothing were there.
    pub async fn get_many(
        &self,
        keys: &[CacheKey],
        deadline: Instant,
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        let store = self.verdicts.name();
        let asked = || self.verdicts.get_many(keys);
        let found = self.guarded(&self.verdicts_breaker, store, deadline, asked);
        let found = found.await?;
        if found.len() != keys.len() {
            return Err(StoreError::failed(store, "get", "not one answer for each key"));
        }
        let opened = keys.iter().zip(found).map(|(key, sealed)| {
            let entry = match self.keys.open(key, &sealed?) {
                Ok(entry) => entry,
                Err(why) => {
                    add(&self.counts.bad_entries, 1);
                    self.observer.bad_entry(store, key, why);
                    return None;
                }
            };
            Some(entry)
        });
        let opened: Vec<Option<Entry>> = opened.collect();
        let hits = opened.iter().flatten().count();
        add(&self.counts.hits, hits as u64);
        add(&self.counts.misses, (opened.len() - hits) as u64);
        Ok(opened)
    }

    /// Seals and keeps entries. One too large to be kept is counted and left out.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been kept.
    pub async fn put_many(
        &self,
        entries: &[(CacheKey, Entry)],
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let sealed = entries.iter().filter_map(|(key, entry)| {
            let sealed = self.keys.seal(key, entry);
            if sealed.is_none() {
                add(&self.counts.too_large, 1);
            }
            Some((*key, sealed?))
        });
        let sealed: Vec<_> = sealed.collect();
        let asked = || self.verdicts.put_many(&sealed);
        let store = self.verdicts.name();
        self.guarded(&self.verdicts_breaker, store, deadline, asked)
            .await
    }

    /// See [`VerdictStore::forget_generation`].
    ///
    /// # Errors
    /// [`StoreError`]; some may be gone.
    pub async fn forget_generation(
        &self,
        generation: Generation,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let asked = || self.verdicts.forget_generation(generation);
        let store = self.verdicts.name();
        self.guarded(&self.verdicts_breaker, store, deadline, asked)
            .await
    }

    /// See [`Sightings::record`].
    ///
    /// # Errors
    /// [`StoreError`]; some may have been recorded.
    pub async fn record(
        &self,
        sightings: &[Sighting],
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let asked = || self.sightings.record(sightings);
        let store = self.sightings.name();
        self.guarded(&self.sightings_breaker, store, deadline, asked)
            .await
    }

    /// See [`Sightings::holders`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn holders(
        &self,
        digest: Digest,
        after: Option<GuestId>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Holders, StoreError> {
        let asked = || self.sightings.holders(digest, after, limit);
        let store = self.sightings.name();
        self.guarded(&self.sightings_breaker, store, deadline, asked)
            .await
    }

    /// Counters so far.
    #[must_use]
    pub fn counts(&self) -> CountsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountsSnapshot {
            hits: read(&self.counts.hits),
            misses: read(&self.counts.misses),
            bad_entries: read(&self.counts.bad_entries),
            too_large: read(&self.counts.too_large),
            failures: read(&self.counts.failures),
            not_asked: read(&self.counts.not_asked),
        }
    }

    async fn guarded<'a, T>(
        &self,
        breaker: &Mutex<Breaker>,
        store: &'static str,
        deadline: Instant,
        ask: impl FnOnce() -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        if !breaker.lock().allow(begun) {
            add(&self.counts.not_asked, 1);
            return Err(StoreError::Resting { store });
        }
        let allowed = deadline.saturating_duration_since(begun);
        let answer = tokio::time::timeout(allowed, ask()).await;
        let answer = answer.unwrap_or(Err(StoreError::Deadline {
            store,
            waited: allowed,
        }));
        self.account(breaker, store, allowed, answer.as_ref().err());
        answer
    }

    fn account(
        &self,
        breaker: &Mutex<Breaker>,
        store: &'static str,
        allowed: Duration,
        error: Option<&StoreError>,
    ) {
        let now = Instant::now();
        let turned = match error {
            // A mistake of the caller says nothing against the store.
            None | Some(StoreError::TooMany { .. }) => {
                breaker.lock().succeeded().then_some(false)
            }
            Some(StoreError::Deadline { .. }) => {
                breaker.lock().ran_out(now, allowed).then_some(true)
            }
            Some(_) => breaker.lock().failed(now).then_some(true),
        };
        if let Some(error) = error {
            add(&self.counts.failures, 1);
            self.observer.failed(error);
        }
        if let Some(resting) = turned {
            self.observer.resting(store, resting);
        }
    }
}
