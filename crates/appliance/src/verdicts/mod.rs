//! Verdicts that may be used again: in memory first, then on the appliance's own disk, then in the
//! store that all appliances share. Only clean and malicious are kept, under everything they
//! depend on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daemon::metrics::Registry;
use model::Verdict;
use quick_cache::Weighter;
use scan_core::CacheKey;
use verdict_store::{
    AddressError, BreakerSettings, Embedded, EmbeddedSightings, Entry, FleetKey, Guarded, JudgedBy,
    KeyError, Keyring, OpenError, SharedSettings, Sightings, StoreMetrics,
};

use crate::assembly::Proved;
use crate::config::Config;
use crate::state_dir::StateDir;

/// What our own disk may take for an answer; a disk that takes longer is worse than a scan.
const OWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Verdict stores cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum VerdictsError {
    /// The store on our own disk.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The keys of its entries, or of the shared store's.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The shared store.
    #[error("verdict_store.url")]
    Address(#[from] AddressError),
    /// Its password.
    #[error("verdict_store.password_file: {}: cannot be read", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// All tiers.
#[derive(Debug)]
pub(crate) struct Verdicts {
    memory: MemoryStore,
    embedded: Arc<Embedded>,
    own: Arc<Guarded>,
    shared: Option<Arc<Guarded>>,
}

/// Where sightings go.
pub(crate) type SightingStore = Arc<dyn Sightings>;

/// The entry for a verdict, `None` where it must not be kept. Only content that arrived here whole
/// and was proved makes one: what rests on a guest's claims is never shared.
pub(crate) fn entry(
    proved: &Proved,
    key: &CacheKey,
    verdict: &Verdict,
    engines: Vec<JudgedBy>,
) -> Option<Entry> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let judged_at_s = since.map_or(0, |since| since.as_secs());
    let is_proved = proved.digest == key.digest;
    Entry::of(key, verdict, engines, judged_at_s).filter(|_| is_proved)
}

impl Verdicts {
    pub(crate) fn open(
        config: &Config,
        state: &StateDir,
        registry: &Registry,
    ) -> Result<(Self, SightingStore), VerdictsError> {
        let limits = &config.limits;
        let metrics = StoreMetrics::new(registry);
        let bytes_max = limits.verdict_store_bytes_max.get();
        let embedded = Arc::new(Embedded::open(&state.verdicts(), bytes_max)?);
        let key = FleetKey::load_or_make(&state.verdict_key())?;
        let own = Guarded::new(
            embedded.clone(),
            Keyring::new(key, None),
            OWN_TIMEOUT,
            BreakerSettings::default(),
            metrics.clone(),
        );
        let (shared, sightings) = match shared_stores(config, metrics)? {
            Some((verdicts, sightings)) => (Some(Arc::new(verdicts)), sightings),
            None => (None, None),
        };
        let sightings = match sightings {
            Some(sightings) => sightings,
            None => {
                let bytes_max = config.sightings.bytes_max.get();
                Arc::new(EmbeddedSightings::open(&state.sightings(), bytes_max)?)
            }
        };
        let verdicts = Self {
            memory: MemoryStore::new(limits.verdict_memory_bytes_max.get()),
            embedded,
            own: Arc::new(own),
            shared,
        };
        Ok((verdicts, sightings))
    }

    /// What memory has.
    pub(crate) fn find(&self, key: &CacheKey) -> Option<Verdict> {
        self.memory.find(key)
    }

    /// What a store has; never waits longer than the stores may take.
    pub(crate) async fn look_up(&self, key: &CacheKey) -> Option<Verdict> {
        let entry = match self.own.get(key).await {
            Some(entry) => entry,
            None => {
                let entry = self.shared.as_ref()?.get(key).await?;
                self.own.put_soon(key, &entry);
                entry
            }
        };
        self.memory.keep(key, entry.verdict());
        Some(entry.verdict().clone())
    }

    /// What is known, without making room in memory for it: for whoever goes through many.
    pub(crate) async fn peek(&self, key: &CacheKey) -> Option<Verdict> {
        if let Some(known) = self.memory.find(key) {
            return Some(known);
        }
        let entry = match self.own.get(key).await {
            Some(entry) => entry,
            None => self.shared.as_ref()?.get(key).await?,
        };
        Some(entry.verdict().clone())
    }

    /// Keeps a verdict in memory; cheap, so that it can be done before anybody is answered.
    pub(crate) fn keep_in_memory(&self, key: &CacheKey, verdict: &Verdict) {
        self.memory.keep(key, verdict);
    }

    /// Keeps it in the stores.
    pub(crate) async fn keep(&self, key: &CacheKey, entry: &Entry) {
        let shared = async {
            if let Some(shared) = &self.shared {
                shared.put(key, entry).await;
            }
        };
        futures_util::future::join(self.own.put(key, entry), shared).await;
    }

    /// The same, within a moment, for whoever does not wait for it.
    pub(crate) fn keep_soon(&self, key: &CacheKey, entry: &Entry) {
        self.own.put_soon(key, entry);
        if let Some(shared) = &self.shared {
            shared.put_soon(key, entry);
        }
    }

    /// Waits until what was to be kept soon is, or cannot be.
    pub(crate) async fn flush(&self) {
        self.own.flush().await;
        if let Some(shared) = &self.shared {
            shared.flush().await;
        }
    }

    /// Brings stores back within their bounds.
    pub(crate) async fn trim(&self) {
        if let Some(shared) = &self.shared {
            shared.trim().await;
        }
    }

    /// How full memory and disk are.
    pub(crate) fn stats(&self) -> StoreStats {
        StoreStats {
            memory_bytes: self.memory.cache.weight(),
            memory_entries: self.memory.cache.len() as u64,
            disk_entries: self.embedded.entries(),
            disk_bytes: self.embedded.disk_bytes(),
        }
    }
}

fn shared_stores(
    all: &Config,
    metrics: StoreMetrics,
) -> Result<Option<(Guarded, Option<SightingStore>)>, VerdictsError> {
    let config = &all.verdict_store;
    let (Some(address), Some(key)) = (&config.url, &config.key_file) else {
        return Ok(None);
    };
    let accepted = config.accepted_key_file.as_deref();
    let accepted = accepted.map(FleetKey::load).transpose()?;
    let keys = Keyring::new(FleetKey::load(key)?, accepted);
    let password = config.password_file.as_ref().map(|path| {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| VerdictsError::Password {
            path: path.clone(),
            source,
        })?;
        Ok::<_, VerdictsError>(text.trim_end_matches(['\r', '\n']).to_owned())
    });
    let stores = address.open(&SharedSettings {
        password: password.transpose()?,
        ca_file: config.ca_file.clone(),
        keep: config.keep(),
        entries_max: config.entries_max.get(),
        sightings_max: all.sightings.rows_max.get(),
        sightings_keep: all.sightings.keep(),
        connections_max: config.connections_max.u32(),
    })?;
    tracing::info!(store = address.store(), "verdicts are shared");
    let breaker = BreakerSettings::default();
    let verdicts = Guarded::new(stores.verdicts, keys, config.timeout(), breaker, metrics);
    Ok(Some((verdicts, stores.sightings)))
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreStats {
    pub(crate) memory_bytes: u64,
    pub(crate) memory_entries: u64,
    pub(crate) disk_entries: u64,
    pub(crate) disk_bytes: u64,
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

impl MemoryStore {
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
    use model::{Coverage, Digest, Generation, Outcome, UnscannedReason};
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
