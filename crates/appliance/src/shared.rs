//! What the sessions, the scans and the administrator share.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use allowlist::Shelf;
use model::{Coverage, Digest, GuestId, Outcome, Verdict};
use parking_lot::{Mutex, RwLock};
use proto::v1;
use scan_core::{Budget, Grant, Place, Refusal};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::asked::Asked;
use crate::assembly::Spool;
use crate::chunk_store::ChunkStore;
use crate::detections::Detections;
use crate::engines::EngineSet;
use crate::filters::Filters;
use crate::fleet::{FleetPort, ScanTime};
use crate::force::Force;
use crate::guests::Guests;
use crate::host_channels::HostChannels;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::released::Released;
use crate::removal::Orders;
use crate::reported::Reported;
use crate::retained::Retained;
use crate::rule_delta::RuleDelta;
use crate::scans::Scans;
use crate::sightings::SightingLog;
use crate::verdicts::Verdicts;

pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) started: Instant,
    pub(crate) runtime: Handle,
    pub(crate) force: RwLock<Arc<Force>>,
    pub(crate) engines: RwLock<Arc<EngineSet>>,
    pub(crate) verdicts: Verdicts,
    pub(crate) sightings: SightingLog,
    pub(crate) reported: Reported,
    pub(crate) filters: Filters,
    pub(crate) retained: Retained,
    pub(crate) asked: Asked,
    /// How verdicts of the rules before are brought to those in force. `None`: not at all.
    pub(crate) delta: RwLock<Option<Arc<RuleDelta>>>,
    pub(crate) scans: Scans,
    pub(crate) budget: Mutex<Budget>,
    pub(crate) spool: Spool,
    pub(crate) chunks: Arc<ChunkStore>,
    pub(crate) guests: Guests,
    pub(crate) host_channels: HostChannels,
    pub(crate) orders: Orders,
    pub(crate) detections: Detections,
    pub(crate) released: Released,
    /// `None`: no allowlists are configured.
    pub(crate) shelf: Option<Shelf>,
    pub(crate) metrics: Metrics,
    pub(crate) identity: Arc<dyn Identity>,
    pub(crate) fleet: Arc<dyn FleetPort>,
    pub(crate) scan_time: ScanTime,
}

impl Shared {
    /// The view in force; taken once for each check, so that a reload never splits one.
    pub(crate) fn force(&self) -> Arc<Force> {
        self.force.read().clone()
    }

    pub(crate) fn engines(&self) -> Arc<EngineSet> {
        self.engines.read().clone()
    }

    /// Time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Reserves place for content; it is free again when the reservation is dropped.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        guest: GuestId,
        place: Place,
        bytes: u64,
    ) -> Result<Reservation, Refusal> {
        let grant = self
            .budget
            .lock()
            .reserve(self.now(), guest, place, bytes)?;
        Ok(Reservation {
            shared: self.clone(),
            grant: Some(grant),
        })
    }

    /// Tells everybody that verdicts they keep count no more.
    pub(crate) fn announce_content(&self) {
        let generation = self.force().generation.0.to_vec();
        self.tell_everybody(&v1::envelope::Body::ContentChanged(v1::ContentChanged {
            generation,
        }));
    }

    pub(crate) fn announce_policy(&self) {
        let policy = self.force().policy_wire.clone();
        self.tell_everybody(&v1::envelope::Body::Policy(policy));
    }

    pub(crate) fn tell_everybody(&self, body: &v1::envelope::Body) {
        for session in self.guests.everybody() {
            let envelope = v1::Envelope {
                request_id: 0,
                body: Some(body.clone()),
            };
            session.outbox.send(link::Priority::Control, envelope);
        }
    }

    /// A verdict about content of which nothing was judged.
    pub(crate) fn not_judged(
        &self,
        outcome: Outcome,
        size: u64,
        digest: Option<Digest>,
    ) -> Verdict {
        Verdict {
            outcome,
            coverage: Coverage::none(size),
            generation: self.force().generation,
            digest,
            sha256: None,
        }
    }
}

/// Milliseconds since 1970 UTC.
pub(crate) fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Place for content, until it is dropped.
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    grant: Option<Grant>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            self.shared.budget.lock().release(grant);
        }
    }
}
