//! Which guests were seen with which content. An open costs no write: sightings are gathered in
//! memory, and go to the store together every few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use daemon::log::RateLimit;
use daemon::metrics::{Counters, Gauge, Registry};
use model::{Digest, GuestId, Verdict};
use parking_lot::Mutex;
use verdict_store::{BATCH_MAX, Holders, Seen, Sighting, Sightings, StoreError};

use crate::config::SightingsConfig;

/// What a batch may take; until then what comes is gathered.
const RECORD_TIMEOUT: Duration = Duration::from_secs(30);
/// What a person may wait for holders.
const HOLDERS_TIMEOUT: Duration = Duration::from_secs(30);

static FAILURES: RateLimit = RateLimit::new(6);

type Who = (Digest, GuestId);

/// What is seen, on its way to the store.
#[derive(Debug)]
pub(crate) struct SightingLog {
    store: Arc<dyn Sightings>,
    pending: Mutex<HashMap<Who, Seen>>,
    /// Recorded lately, with the last time.
    recent: quick_cache::sync::Cache<Who, u32>,
    pending_max: usize,
    again_s: u32,
    results: Counters<1>,
    waiting: Gauge,
}

impl SightingLog {
    pub(crate) fn new(
        store: Arc<dyn Sightings>,
        config: &SightingsConfig,
        registry: &Registry,
    ) -> Self {
        Self {
            store,
            pending: Mutex::default(),
            recent: quick_cache::sync::Cache::new(config.recent_max.count()),
            pending_max: config.pending_max.count(),
            again_s: config.again_s.u32(),
            results: registry.counters(
                "lazaret_sightings",
                "Sightings: recorded, dropped (too many waited), failed (tried again).",
                ["result"],
            ),
            waiting: registry.gauge(
                "lazaret_sightings_waiting",
                "Sightings that wait to be recorded.",
            ),
        }
    }

    /// A guest was told this verdict about a file of its own. Only content that was judged is
    /// noted, so that made-up digests fill nothing.
    pub(crate) fn note(&self, guest: GuestId, verdict: &Verdict) {
        if let Some(digest) = verdict.digest
            && verdict.outcome.is_cacheable()
        {
            self.note_at((digest, guest), now_s());
        }
    }

    /// A guest was told a verdict about content that it reported on itself: it says that it has
    /// this digest. Each costs it a report and a judgement, so that made-up ones fill as slowly as
    /// others.
    pub(crate) fn note_claim(&self, guest: GuestId, digest: Digest) {
        self.note_at((digest, guest), now_s());
    }

    fn note_at(&self, who: Who, now_s: u32) {
        let is_recent = |last_s: u32| now_s.saturating_sub(last_s) < self.again_s;
        if self.recent.get(&who).is_some_and(is_recent) {
            return;
        }
        self.gather(who, Seen::at(now_s));
    }

    fn gather(&self, who: Who, seen: Seen) {
        let mut pending = self.pending.lock();
        if let Some(known) = pending.get_mut(&who) {
            *known = known.and(seen);
        } else if pending.len() < self.pending_max {
            pending.insert(who, seen);
        } else {
            drop(pending);
            self.results.with(["dropped"]).inc();
        }
    }

    /// Has the store record what was gathered. What fails is kept for the next time.
    pub(crate) async fn flush(&self) {
        let gathered = std::mem::take(&mut *self.pending.lock());
        let sightings: Vec<Sighting> = gathered
            .into_iter()
            .map(|((digest, guest), seen)| Sighting {
                digest,
                guest,
                seen,
            })
            .collect();
        for batch in sightings.chunks(BATCH_MAX) {
            let recorded = within(RECORD_TIMEOUT, self.store.record(batch)).await;
            let result = if recorded.is_ok() {
                "recorded"
            } else {
                "failed"
            };
            self.results.with([result]).inc_by(batch.len() as u64);
            for sighting in batch {
                let who = (sighting.digest, sighting.guest);
                match &recorded {
                    Ok(()) => self.recent.insert(who, sighting.seen.last_s),
                    Err(_) => self.gather(who, sighting.seen),
                }
            }
            if let Err(error) = recorded {
                self.log(&error);
            }
        }
        let waiting = self.pending.lock().len();
        self.waiting.set(crate::metrics::gauge_of(waiting));
    }

    /// One page of the guests that hold or held a content, those still on their way included.
    pub(crate) async fn holders(
        &self,
        digest: Digest,
        after: Option<GuestId>,
        limit: usize,
    ) -> Result<Holders, StoreError> {
        self.flush().await;
        within(HOLDERS_TIMEOUT, self.store.holders(digest, after, limit)).await
    }

    /// Sightings in their order, those after `after`; none: there are no more. Those still on their
    /// way included.
    pub(crate) async fn page(
        &self,
        after: (Digest, GuestId),
        limit: usize,
    ) -> Result<Vec<Sighting>, StoreError> {
        self.flush().await;
        let page = within(HOLDERS_TIMEOUT, self.store.page(after, limit)).await;
        page.inspect_err(|error| self.log(error))
    }

    pub(crate) async fn trim(&self) {
        if let Err(error) = self.store.trim().await {
            self.log(&error);
        }
    }

    fn log(&self, error: &StoreError) {
        if let Some(suppressed) = FAILURES.allow(Instant::now()) {
            let error = daemon::log::escape(error.to_string().as_bytes()).to_string();
            tracing::warn!(store = self.store.name(), error, suppressed, "sightings");
        }
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = |_| StoreError::Failed {
        doing: "answer",
        reason: format!("no answer in {} s", limit.as_secs()),
    };
    tokio::time::timeout(limit, work).await.map_err(late)?
}

fn now_s() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use verdict_store::StoreFuture;

    /// Counts, and fails when it is told to.
    #[derive(Debug, Default)]
    struct Double {
        records: Mutex<Vec<Vec<Sighting>>>,
        fails: Mutex<bool>,
    }

    impl Sightings for Double {
        fn name(&self) -> &'static str {
            "double"
        }
        fn record<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
            let fails = *self.fails.lock();
            if !fails {
                self.records.lock().push(sightings.to_vec());
            }
            Box::pin(std::future::ready(if fails {
                Err(StoreError::TooMany(1))
            } else {
                Ok(())
            }))
        }
        fn holders(&self, _: Digest, _: Option<GuestId>, _: usize) -> StoreFuture<'_, Holders> {
            Box::pin(std::future::ready(Ok(Holders::default())))
        }
        fn page(&self, _: (Digest, GuestId), _: usize) -> StoreFuture<'_, Vec<Sighting>> {
            Box::pin(std::future::ready(Ok(Vec::new())))
        }
    }

    fn log(pending_max: u64) -> (Arc<Double>, SightingLog, Registry) {
        let (double, registry) = (Arc::new(Double::default()), Registry::new());
        let config = SightingsConfig {
            pending_max: crate::config::Ranged::new(pending_max),
            ..SightingsConfig::default()
        };
        let log = SightingLog::new(double.clone(), &config, &registry);
        (double, log, registry)
    }

    fn who(n: u8) -> Who {
        (Digest::of(&[n]), GuestId([n; 16]))
    }

    #[tokio::test]
    async fn a_hundred_opens_are_one_write() {
        let (double, log, _) = log(100);
        for now_s in 1000..1100 {
            log.note_at(who(1), now_s);
        }
        log.flush().await;
        let seen = Seen {
            first_s: 1000,
            last_s: 1099,
        };
        assert_eq!(double.records.lock()[0][0].seen, seen);
        // Seen again soon: known. Seen again after an hour: news.
        log.note_at(who(1), 1200);
        log.flush().await;
        assert_eq!(double.records.lock().len(), 1);
        log.note_at(who(1), 1099 + 3600);
        log.flush().await;
        assert_eq!(double.records.lock()[1][0].seen, Seen::at(4699));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_a_failure_loses_nothing() {
        let (double, log, registry) = log(3);
        *double.fails.lock() = true;
        for n in 0..5 {
            log.note_at(who(n), 7);
        }
        log.flush().await;
        let text = registry.render();
        assert!(
            text.contains("lazaret_sightings_total{result=\"dropped\"} 2"),
            "{text}"
        );
        assert!(
            text.contains("lazaret_sightings_total{result=\"failed\"} 3"),
            "{text}"
        );
        assert!(text.contains("lazaret_sightings_waiting 3"), "{text}");
        *double.fails.lock() = false;
        log.flush().await;
        assert_eq!(double.records.lock()[0].len(), 3);
    }
}
