//! An answer to one check: the verdict, and for malicious content what becomes of the file.

use std::collections::HashMap;
use std::sync::Arc;

use link::Priority;
use model::{AccessClass, Detection, Digest, GuestId, Outcome, UnscannedReason, Verdict};
use parking_lot::Mutex;
use proto::v1;
use scan_core::{CacheKey, Refusal};
use tokio::sync::mpsc::UnboundedSender;

use crate::asked::Awaited;
use crate::detections::{Noted, Sighting};
use crate::removal::{self, Purpose};
use crate::session::Outbox;
use crate::shared::{Shared, wall_clock_ms};
use crate::upload::Piece;

/// A session, as those who answer its checks see it.
pub(crate) struct Asker {
    pub(crate) guest: GuestId,
    pub(crate) outbox: Arc<dyn Outbox>,
    /// Checks that are owed a reply. Whoever takes one out of it replies.
    pub(crate) open: Mutex<HashMap<u64, OpenCheck>>,
    /// One for each check about which a store is asked, and this one.
    pub(crate) unknown: Arc<()>,
}

/// A check that is owed a reply.
#[derive(Debug, Default)]
pub(crate) struct OpenCheck {
    /// Where its data goes, while it is wanted.
    pub(crate) upload: Option<UnboundedSender<Piece>>,
    /// The scan whose verdict it waits for.
    pub(crate) scan: Option<CacheKey>,
}

/// Someone who waits for a verdict.
pub(crate) struct Waiter {
    pub(crate) asker: Arc<Asker>,
    pub(crate) request_id: u64,
    pub(crate) class: AccessClass,
    /// The guest's path; hostile bytes.
    pub(crate) path: Vec<u8>,
    /// It was asked to check this.
    pub(crate) awaited: Option<Awaited>,
}

/// A guest that has a file and waits no more. A bad verdict still is recorded, and the file
/// removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    pub(crate) guest: GuestId,
    /// As the guest sees it; hostile bytes.
    pub(crate) path: Vec<u8>,
}

/// What becomes of a malicious file.
#[derive(Default)]
struct Consequence {
    released: bool,
    order: Option<v1::Order>,
}

impl Waiter {
    /// Answers. Where nobody waits any more, a removal still reaches the guest's gate.
    pub(crate) fn answer(mut self, shared: &Shared, verdict: &Verdict, cached: bool) {
        shared.sightings.note(self.asker.guest, verdict);
        if let Some(awaited) = self.awaited.take() {
            awaited.tell(verdict);
        }
        let is_open = self.asker.open.lock().remove(&self.request_id).is_some();
        let (asker, request_id, class) = (self.asker.clone(), self.request_id, self.class);
        let holder = self.into_holder();
        if !is_open {
            return holder.tell(shared, verdict);
        }
        let consequence = holder.consequence(shared, verdict);
        shared.metrics.answered(class, verdict, cached);
        let reply = v1::CheckReply {
            verdict: Some(verdict.into()),
            released: consequence.released,
            order: consequence.order,
            cached,
        };
        let envelope = v1::Envelope {
            request_id,
            body: Some(v1::envelope::Body::CheckReply(reply)),
        };
        asker.outbox.send(class.into(), envelope);
    }

    /// What is left of it when it waits no more.
    pub(crate) fn into_holder(self) -> Holder {
        Holder {
            guest: self.asker.guest,
            path: self.path,
        }
    }

    /// Answers that nothing was judged.
    pub(crate) fn unscanned(
        self,
        shared: &Shared,
        size: u64,
        reason: UnscannedReason,
        detail: impl Into<String>,
    ) {
        let outcome = Outcome::Unscanned {
            reason,
            detail: detail.into(),
        };
        self.answer(shared, &shared.not_judged(outcome, size, None), false);
    }

    /// Answers that a limit was reached.
    pub(crate) fn refuse(self, shared: &Shared, size: u64, limit: Refusal) {
        shared.metrics.guests.refusals.with([limit.limit()]).inc();
        self.unscanned(shared, size, limit.reason(), limit.to_string());
    }
}

impl Holder {
    /// A removal reaches the guest's gate, if it has one.
    pub(crate) fn tell(&self, shared: &Shared, verdict: &Verdict) {
        if let Some(order) = self.consequence(shared, verdict).order
            && let Some(gate) = shared.guests.gate(self.guest)
        {
            let envelope = v1::Envelope {
                request_id: gate.next_request_id(),
                body: Some(v1::envelope::Body::Order(order)),
            };
            gate.send(Priority::Control, envelope);
        }
    }

    fn consequence(&self, shared: &Shared, verdict: &Verdict) -> Consequence {
        let (Outcome::Malicious { detections, .. }, Some(digest)) =
            (&verdict.outcome, verdict.digest)
        else {
            return Consequence::default();
        };
        if !shared.force().policy.context_sensitive {
            shared.recall([digest]);
        }
        if shared.released.contains(&digest) {
            return Consequence {
                released: true,
                order: None,
            };
        }
        let noted = self.note(shared, verdict, detections, digest);
        let force = shared.force();
        let action = removal::action(&force.removal, detections);
        let order = removal::order_action(action, &self.path, digest, detections)
            .filter(|_| !self.path.is_empty())
            .map(|action| {
                let name = removal::action_name(&action);
                shared.metrics.kept.orders.with([name]).inc();
                let purpose = noted.id().map_or(Purpose::Unrecorded, Purpose::Removal);
                let pending_max = force.limits.orders_pending_max.count();
                shared
                    .orders
                    .issue(self.guest, action, purpose, pending_max)
            });
        Consequence {
            released: false,
            order,
        }
    }

    fn note(
        &self,
        shared: &Shared,
        verdict: &Verdict,
        detections: &[Detection],
        digest: Digest,
    ) -> Noted {
        let sighting = Sighting {
            guest: self.guest,
            path: self.path.clone(),
            digest,
            sha256: verdict.sha256,
            detections: detections.to_vec(),
        };
        let noted = shared.detections.note(sighting, wall_clock_ms());
        let kind = match noted {
            Noted::New(id) => {
                tracing::warn!(id, guest = %self.guest, %digest,
                    path = %daemon::log::escape(&self.path),
                    detection = detections.first().map_or("", |d| d.name.as_str()),
                    "malicious content");
                "new"
            }
            Noted::Known(_) => "known",
            Noted::Suppressed => "suppressed",
        };
        shared.metrics.kept.detections.with([kind]).inc();
        noted
    }
}
