//! A store as an appliance uses it: sealed, never waited for longer than allowed, left alone while
//! it is dead. Whatever is wrong with it, there is no entry, and that is all.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use daemon::log::RateLimit;
use daemon::metrics::{Counters, Gauges, Registry};
use parking_lot::Mutex;
use scan_core::CacheKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

use crate::store::{StoreError, StoreFuture, VerdictStore};
use crate::{BadEntry, Breaker, BreakerSettings, Entry, Keyring, Sealed};

/// Questions that a store is asked at once; the others wait, as long as they may.
const GETS_MAX: usize = 256;
/// Entries on their way to a store at once, in begun KiB; those beyond are not kept.
const PUTS_MAX_KIB: u32 = 16 << 10;
/// How long entries that nobody waits for are gathered: a write for each takes as long as a scan.
const GATHER: Duration = Duration::from_millis(20);
/// Entries that are written together, and one more, in begun KiB.
const BATCH_KIB: usize = 256;
/// A call that takes longer is given up, even if nobody waits for it.
const CALL_MAX: Duration = Duration::from_secs(10);

static BAD_ENTRIES: RateLimit = RateLimit::new(6);
static FAILURES: RateLimit = RateLimit::new(6);

/// What Prometheus sees of all stores, by their names.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    gets: Counters<2>,
    puts: Counters<2>,
    resting: Gauges<1>,
}

impl StoreMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            gets: registry.counters(
                "lazaret_verdict_store_gets",
                "Questions to a verdict store: hit, miss, bad (an entry that was not believed), late, failed, resting (not asked).",
                ["store", "result"],
            ),
            puts: registry.counters(
                "lazaret_verdict_store_puts",
                "Verdicts given to a store: kept, too_large, overloaded, failed, resting (not asked).",
                ["store", "result"],
            ),
            resting: registry.gauges(
                "lazaret_verdict_store_resting",
                "1: the store failed and is left alone for a while.",
                ["store"],
            ),
        }
    }
}

/// One store with all that guards it.
#[derive(Debug)]
pub struct Guarded {
    store: Arc<dyn VerdictStore>,
    keys: Keyring,
    timeout: Duration,
    breaker: Arc<Mutex<Breaker>>,
    gets: Arc<Semaphore>,
    puts: Arc<Semaphore>,
    gathered: Mutex<Gathered>,
    metrics: StoreMetrics,
}

/// An entry, sealed, and its permit to be on its way.
type Admitted = ((CacheKey, Sealed), OwnedSemaphorePermit);

/// What nobody waits for.
#[derive(Debug, Default)]
struct Gathered {
    /// Written next, the first one first.
    entries: VecDeque<Admitted>,
    /// A task writes them, one batch after another.
    has_writer: bool,
}

/// A call without an answer.
enum NoAnswer {
    Resting,
    Late,
    Failed,
}

impl NoAnswer {
    fn name(&self) -> &'static str {
        match self {
            Self::Resting => "resting",
            Self::Late => "late",
            Self::Failed => "failed",
        }
    }
}

impl Guarded {
    /// Guards a store. `timeout` is what [`get`](Self::get) waits at most.
    #[must_use]
    pub fn new(
        store: Arc<dyn VerdictStore>,
        keys: Keyring,
        timeout: Duration,
        breaker: BreakerSettings,
        metrics: StoreMetrics,
    ) -> Self {
        metrics.resting.with([store.name()]).set(0);
        Self {
            store,
            keys,
            timeout,
            breaker: Arc::new(Mutex::new(Breaker::new(breaker))),
            gets: Arc::new(Semaphore::new(GETS_MAX)),
            puts: Arc::new(Semaphore::new(PUTS_MAX_KIB as usize)),
            gathered: Mutex::default(),
            metrics,
        }
    }

    /// The entry under a key; `None` where there is none, where it is not one of ours, and where
    /// the store does not say in time.
    pub async fn get(&self, key: &CacheKey) -> Option<Entry> {
        if self.store.surely_lacks(key) {
            self.metrics.gets.with([self.store.name(), "miss"]).inc();
            return None;
        }
        let (result, entry) = match self.ask(*key).await {
            Err(none) => (none.name(), None),
            Ok(None) => ("miss", None),
            Ok(Some(sealed)) => match self.keys.open(key, &sealed) {
                Ok(entry) => ("hit", Some(entry)),
                Err(why) => {
                    self.not_believed(key, why);
                    ("bad", None)
                }
            },
        };
        self.metrics.gets.with([self.store.name(), result]).inc();
        entry
    }

    /// Keeps an entry if the store can.
    pub async fn put(&self, key: &CacheKey, entry: &Entry) {
        if let Some(admitted) = self.admit(key, entry) {
            self.put_all(vec![admitted]).await;
        }
    }

    /// The same without waiting, together with what else comes within a moment.
    pub fn put_soon(self: &Arc<Self>, key: &CacheKey, entry: &Entry) {
        let Some(admitted) = self.admit(key, entry) else {
            return;
        };
        let mut gathered = self.gathered.lock();
        gathered.entries.push_back(admitted);
        if !std::mem::replace(&mut gathered.has_writer, true) {
            tokio::spawn(Self::write(Arc::downgrade(self)));
        }
    }

    /// Writes what is gathered until there is nothing more.
    async fn write(own: Weak<Self>) {
        tokio::time::sleep(GATHER).await;
        while let Some(own) = own.upgrade()
            && let Some(batch) = own.next_batch()
        {
            own.put_all(batch).await;
        }
    }

    /// `None`: there is nothing, and no writer any more.
    fn next_batch(&self) -> Option<Vec<Admitted>> {
        let mut gathered = self.gathered.lock();
        let (mut batch, mut kib) = (Vec::new(), 0);
        while kib < BATCH_KIB
            && let Some(admitted) = gathered.entries.pop_front()
        {
            kib += admitted.1.num_permits();
            batch.push(admitted);
        }
        gathered.has_writer = !batch.is_empty();
        Some(batch).filter(|batch| !batch.is_empty())
    }

    /// Waits until all that was to be kept is, or cannot be; what comes meanwhile is not kept.
    pub async fn flush(&self) {
        // It is never closed.
        let _everything = self.puts.acquire_many(PUTS_MAX_KIB).await;
    }

    fn admit(&self, key: &CacheKey, entry: &Entry) -> Option<Admitted> {
        let refused = |result| self.metrics.puts.with([self.store.name(), result]).inc();
        let Some(sealed) = self.keys.seal(key, entry) else {
            refused("too_large");
            return None;
        };
        let kib = u32::try_from(sealed.0.len() / 1024 + 1).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.puts).try_acquire_many_owned(kib) else {
            refused("overloaded");
            return None;
        };
        Some(((*key, sealed), permit))
    }

    /// Gives the store what was admitted.
    async fn put_all(&self, admitted: Vec<Admitted>) {
        let (entries, permits): (Vec<_>, Vec<_>) = admitted.into_iter().unzip();
        let store = Arc::clone(&self.store);
        let put = async move { store.put(&entries).await };
        let over = tokio::time::Instant::now() + CALL_MAX;
        let result = match self.call(Box::pin(put), over).await {
            Ok(()) => "kept",
            Err(none) => none.name(),
        };
        let puts = self.metrics.puts.with([self.store.name(), result]);
        puts.inc_by(permits.len() as u64);
    }

    /// See [`VerdictStore::trim`].
    pub async fn trim(&self) {
        let store = Arc::clone(&self.store);
        if let Err(error) = store.trim().await {
            self.log_failure(&error);
        }
    }

    async fn ask(&self, key: CacheKey) -> Result<Option<Sealed>, NoAnswer> {
        let over = tokio::time::Instant::now() + self.timeout;
        let permit = timeout_at(over, Arc::clone(&self.gets).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(NoAnswer::Late);
        };
        let store = Arc::clone(&self.store);
        let get = async move {
            let _permit = permit;
            let found = store.get(&[key]).await?;
            Ok(found.into_iter().next().flatten())
        };
        self.call(Box::pin(get), over).await
    }

    /// Calls the store from a task of its own: a call that is too late for whoever asked may still
    /// make the connection that serves the next.
    async fn call<T: Send + 'static>(
        &self,
        work: StoreFuture<'static, T>,
        over: tokio::time::Instant,
    ) -> Result<T, NoAnswer> {
        if !self.breaker.lock().allow(Instant::now()) {
            return Err(NoAnswer::Resting);
        }
        let calling = tokio::spawn(tokio::time::timeout(CALL_MAX, work));
        match timeout_at(over, calling).await {
            Ok(Ok(Ok(Ok(answer)))) => {
                let is_back = self.breaker.lock().succeeded();
                if is_back {
                    self.rests(false);
                }
                Ok(answer)
            }
            Ok(Ok(Ok(Err(error)))) => {
                self.log_failure(&error);
                self.failed();
                Err(NoAnswer::Failed)
            }
            // Too late, for this caller or for anybody, or ended badly.
            Ok(_) | Err(_) => {
                self.failed();
                Err(NoAnswer::Late)
            }
        }
    }

    fn failed(&self) {
        let rests = self.breaker.lock().failed(Instant::now());
        if rests {
            self.rests(true);
        }
    }

    fn rests(&self, resting: bool) {
        let store = self.store.name();
        self.metrics.resting.with([store]).set(i64::from(resting));
        if resting {
            tracing::error!(
                store,
                "the verdict store does not answer; it is left alone for a while"
            );
        } else {
            tracing::info!(store, "the verdict store answers again");
        }
    }

    fn log_failure(&self, error: &StoreError) {
        if let Some(suppressed) = FAILURES.allow(Instant::now()) {
            let error = daemon::log::escape(error.to_string().as_bytes()).to_string();
            tracing::warn!(
                store = self.store.name(),
                error,
                suppressed,
                "verdict store"
            );
        }
    }

    fn not_believed(&self, key: &CacheKey, why: BadEntry) {
        if let Some(suppressed) = BAD_ENTRIES.allow(Instant::now()) {
            tracing::error!(store = self.store.name(), digest = %key.digest, %why, suppressed,
                "the verdict store holds an entry that is not ours; it counts as missing");
        }
    }
}
