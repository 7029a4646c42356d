//! One connection of one guest: its frames, in their order. Nothing here waits.

use std::sync::Arc;
use std::time::Duration;

use daemon::log::RateLimit;
use link::Priority;
use model::{GuestId, Machine};
use parking_lot::Mutex;
use pki::KeyId;
use proto::v1;
use proto::v1::envelope::Body;
use proto::v1::fleet_said::Body as Said;
use scan_core::CacheKey;

use crate::answer::{Asker, OpenCheck};
use crate::check::CheckError;
use crate::detections::status_name;
use crate::guests::{Arrival, GuestRates, SessionHandle};
use crate::removal::Purpose;
use crate::shared::{Shared, wall_clock_ms};
use crate::upload::Piece;

/// How long a session that must go may still take what is queued for it.
const LINGER: Duration = Duration::from_secs(2);
/// The kinds of alerts that agents raise; whatever else comes is `other`, so that a guest makes no
/// metrics of its own.
const ALERT_KINDS: [&str; 3] = ["late_malicious", "queue_overflow", "quarantine_full"];
/// An alert's texts are cut to this.
const ALERT_TEXT_MAX_BYTES: usize = 512;

static ALERTS: daemon::log::RateLimit = daemon::log::RateLimit::new(60);

/// The way to an agent. Sending to a session that is over does nothing: its end is noticed where
/// its frames are read.
pub trait Outbox: Send + Sync {
    /// Sends or queues a frame, never waits.
    fn send(&self, priority: Priority, envelope: v1::Envelope);
    /// An id for an exchange that the appliance begins.
    fn next_request_id(&self) -> u64;
    /// Says that the session will end, and ends it soon.
    fn goodbye(&self, reason: &str);
    /// Says why, and ends the session now.
    fn refuse(&self, reason: &str);
    /// Bytes on the wire from the agent so far.
    fn bytes_received(&self) -> u64;
}

impl Outbox for link::server::Sender {
    fn send(&self, priority: Priority, envelope: v1::Envelope) {
        if let Err(error) = self.send(priority, envelope) {
            tracing::debug!(%error, "a frame was not sent");
        }
    }
    fn next_request_id(&self) -> u64 {
        self.next_request_id()
    }
    fn goodbye(&self, reason: &str) {
        self.goodbye(reason, LINGER);
    }
    fn refuse(&self, reason: &str) {
        self.refuse(reason);
    }
    fn bytes_received(&self) -> u64 {
        self.bytes().0
    }
}

/// The guest broke the contract in a way that the link does not see; the session ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Breach {
    #[error("check: {0}")]
    Check(#[from] CheckError),
    #[error("request {0} is already open")]
    RequestOpen(u64),
    #[error("a frame that only appliances send")]
    NotYours,
}

/// A session that has been welcomed.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) asker: Arc<Asker>,
    pub(crate) id: u64,
    key: KeyId,
    machine: Machine,
    role: &'static str,
}

impl Session {
    /// Lets a guest in; an older gate of the same guest is sent away.
    pub(crate) fn enter(shared: Arc<Shared>, arrival: Arrival) -> Self {
        let asker = Arc::new(Asker {
            guest: arrival.guest,
            outbox: arrival.outbox.clone(),
            open: Mutex::default(),
            unknown: Arc::default(),
        });
        let role = if arrival.is_gate { "gate" } else { "scan" };
        shared.metrics.guests.sessions.with([role]).inc();
        let (key, machine) = (arrival.key, arrival.machine.clone());
        let up = arrival.is_gate.then(|| arrival.guest_up());
        let (id, older) = shared.guests.enter(arrival);
        if let Some(up) = up {
            let mut guests = vec![up];
            if older.is_some() {
                // What is said of a guest's end counts for all its sessions here.
                let guest = asker.guest;
                shared.fleet.tell(Said::GuestDown(guest.0.to_vec()));
                guests = shared.guests.gates_of(guest);
            }
            shared.fleet.tell(Said::GuestsUp(v1::GuestsUp { guests }));
        }
        if let Some(SessionHandle { outbox, .. }) = older {
            outbox.goodbye("a newer session of this guest has taken over");
        }
        // After it entered: what is recalled from now on reaches it with everybody else.
        shared.tell_of_allowlists(&*asker.outbox);
        shared.tell_of_filter(&*asker.outbox);
        Self {
            shared,
            asker,
            id,
            key,
            machine,
            role,
        }
    }

    pub(crate) fn guest(&self) -> GuestId {
        self.asker.guest
    }

    /// Takes one frame. Must be called within the runtime.
    pub(crate) fn handle(&self, envelope: v1::Envelope) -> Result<(), Breach> {
        let request_id = envelope.request_id;
        match envelope.body {
            Some(Body::Check(check)) => return self.check(request_id, check),
            Some(Body::Data(data)) => self.piece(request_id, Piece::Data(data)),
            Some(Body::Manifest(manifest)) => self.piece(request_id, Piece::Manifest(manifest)),
            Some(Body::DataEnd(end)) => {
                let failed = (end.failed != 0).then(|| end.failed().into());
                self.piece(request_id, Piece::End { failed });
            }
            Some(Body::Cancel(_)) => self.cancel(request_id),
            Some(Body::OrderResult(result)) => self.order_result(result),
            Some(Body::LedgerReport(report)) => self.ledger(report),
            Some(Body::FastPaths(found)) => self.fast_paths(&found),
            Some(Body::Alert(alert)) => self.alert(&alert),
            Some(Body::FetchAllowlist(fetch)) => self.fetch_allowlist(&fetch),
            Some(Body::FilterReport(report)) => self.piece(request_id, Piece::Report(report)),
            Some(Body::FetchFilter(fetch)) => self.fetch_filter(&fetch),
            Some(Body::Renew(renew)) => self.renew(request_id, renew),
            Some(Body::Nearness(nearness)) => self.nearness(nearness),
            Some(Body::AskTurn(ask)) => self.ask_turn(request_id, ask),
            Some(Body::TurnOver(over)) => self.turn_over(over.turn_id),
            Some(Body::NotHeld(not_held)) => self.not_held(&not_held),
            Some(Body::Attached(attached)) => self.attached(&attached),
            Some(Body::Hello(_) | Body::Ping(_) | Body::Pong(_) | Body::Goodbye(_)) | None => {
                self.shared.metrics.guests.frames_ignored.inc();
            }
            Some(
                Body::Welcome(_)
                | Body::Refused(_)
                | Body::Need(_)
                | Body::Credit(_)
                | Body::CheckReply(_)
                | Body::ContentChanged(_)
                | Body::Policy(_)
                | Body::Recall(_)
                | Body::AllowlistOffers(_)
                | Body::AllowlistPart(_)
                | Body::FilterOffer(_)
                | Body::FilterPart(_)
                | Body::Order(_)
                | Body::Renewed(_)
                | Body::Placement(_)
                | Body::Recheck(_)
                | Body::Rekey(_)
                | Body::Turn(_),
            ) => return Err(Breach::NotYours),
        }
        Ok(())
    }

    /// Hands a piece to its upload. The link has held the guest to its credit, so what waits there
    /// is bounded.
    fn piece(&self, request_id: u64, piece: Piece) {
        let open = self.asker.open.lock();
        let upload = open
            .get(&request_id)
            .and_then(|check| check.upload.as_ref());
        let taken = upload.is_some_and(|upload| upload.send(piece).is_ok());
        drop(open);
        if !taken {
            self.shared.metrics.guests.frames_ignored.inc();
        }
    }

    /// Nobody waits any more. An upload ends; a scan goes on, and its verdict is kept.
    fn cancel(&self, request_id: u64) {
        let cancelled = self.asker.open.lock().remove(&request_id);
        match cancelled {
            Some(OpenCheck { scan, .. }) => self.leave_scan(request_id, scan),
            None => {
                self.shared.metrics.guests.frames_ignored.inc();
            }
        }
    }

    fn leave_scan(&self, request_id: u64, scan: Option<CacheKey>) {
        if let Some(key) = scan {
            let scans = &self.shared.scans;
            scans.leave(&self.shared, &key, &self.asker, request_id);
        }
    }

    fn order_result(&self, result: v1::OrderResult) {
        let settled = self.shared.orders.settle(self.guest(), &result.order_id);
        let Some(purpose) = settled else {
            self.shared.metrics.guests.frames_ignored.inc();
            return;
        };
        let status = result.status();
        let name = status_name(status);
        self.shared.metrics.kept.order_results.with([name]).inc();
        match purpose {
            Purpose::Removal(id) => {
                let detections = &self.shared.detections;
                if detections.removal(id, status, &result.detail, wall_clock_ms()) {
                    tracing::info!(id, guest = %self.guest(), status = name, "removal");
                }
            }
            Purpose::Unrecorded => {}
            Purpose::Admin(waiting) => {
                if waiting.send(result).is_err() {
                    tracing::debug!("an order's result came after the administrator had left");
                }
            }
        }
    }

    fn ledger(&self, report: v1::LedgerReport) {
        use crate::metrics::gauge_of;
        let guest = self.guest().to_string();
        let metrics = &self.shared.metrics;
        let open = gauge_of(report.open_entries);
        metrics.guests.ledger_open.with([&guest]).set(open);
        let overflow = gauge_of(report.overflow_total);
        metrics.guests.ledger_overflow.with([&guest]).set(overflow);
        self.shared.guests.set_ledger(self.guest(), report);
    }

    fn fast_paths(&self, found: &v1::FastPaths) {
        let guest = self.guest().to_string();
        let gauges = &self.shared.metrics.guests.fast_paths;
        let told = [
            ("tried", found.filesystems),
            ("cache", found.cache),
            ("fine_stamps", found.fine_stamps),
            ("standing", found.standing),
        ];
        for (path, filesystems) in told {
            gauges.with([&guest, path]).set(filesystems.into());
        }
    }

    fn alert(&self, alert: &v1::Alert) {
        let kind = alert_kind(&alert.kind);
        self.shared.metrics.guests.alerts.with([kind]).inc();
        let now = std::time::Instant::now();
        let rates = self.shared.guests.rates(self.guest());
        let Some(own_suppressed) = rates.and_then(|rates| rates.alerts.allow(now)) else {
            return;
        };
        if let Some(suppressed) = ALERTS.allow(now) {
            use daemon::log::escape;
            tracing::warn!(guest = %self.guest(), kind,
                detail = %escape(cut(alert.detail.as_bytes())), path = %escape(cut(&alert.path)),
                own_suppressed, suppressed, "alert of an agent");
        }
    }

    /// A piece of a list. One of too many questions is not answered: the agent asks again.
    fn fetch_allowlist(&self, fetch: &v1::FetchAllowlist) {
        self.serve_piece(
            |rates| &rates.fetches,
            || Body::AllowlistPart(self.shared.allowlist_part(fetch)),
        );
    }

    /// A piece of a filter, as one of a list.
    fn fetch_filter(&self, fetch: &v1::FetchFilter) {
        self.serve_piece(
            |rates| &rates.filter_fetches,
            || Body::FilterPart(self.shared.filters.part(fetch)),
        );
    }

    /// Whether the guest may have this frame looked at, by a rate of its own; else it is ignored.
    pub(crate) fn is_within(&self, rate: fn(&GuestRates) -> &RateLimit) -> bool {
        let rates = self.shared.guests.rates(self.guest());
        let now = std::time::Instant::now();
        let is_within = rates.is_some_and(|rates| rate(&rates).allow(now).is_some());
        if !is_within {
            self.shared.metrics.guests.frames_ignored.inc();
        }
        is_within
    }

    fn serve_piece(&self, rate: fn(&GuestRates) -> &RateLimit, piece: impl FnOnce() -> Body) {
        if !self.is_within(rate) {
            return;
        }
        let envelope = v1::Envelope {
            request_id: 0,
            body: Some(piece()),
        };
        // Everything else goes first.
        self.asker.outbox.send(Priority::OnDemand, envelope);
    }

    fn renew(&self, request_id: u64, renew: v1::Renew) {
        let rates = self.shared.guests.rates(self.guest());
        let now = std::time::Instant::now();
        let outbox = self.asker.outbox.clone();
        let answer = move |signed: Result<Vec<Vec<u8>>, String>| {
            let renewed = match signed {
                Ok(chain) => v1::Renewed {
                    chain,
                    refused: String::new(),
                },
                Err(refused) => v1::Renewed {
                    chain: Vec::new(),
                    refused,
                },
            };
            let envelope = v1::Envelope {
                request_id,
                body: Some(Body::Renewed(renewed)),
            };
            outbox.send(Priority::Control, envelope);
        };
        match rates.and_then(|rates| rates.renewals.allow(now)) {
            Some(_) => {
                let ask = v1::RenewGuest {
                    guest_id: self.guest().0.to_vec(),
                    ticket: 0,
                    csr: renew.csr,
                    key_id: self.key.0.to_vec(),
                    rekey: renew.rekey,
                    // A copy says what it is now, everybody else what the session began with.
                    machine: match renew.rekey {
                        true => renew.machine,
                        false => Some((&self.machine).into()),
                    },
                };
                self.shared.identity.renew(ask, Box::new(answer));
            }
            None => answer(Err("too many renewals in a minute".to_owned())),
        }
    }
}

impl Session {
    /// The fleet is told that a gate is over, and of those of the same guest that are not.
    fn gate_left(&self) {
        self.tell_fleet(Said::GuestDown(self.guest().0.to_vec()));
        let guests = self.shared.guests.gates_of(self.guest());
        if guests.is_empty() {
            self.shared.asked.gone(self.guest());
        } else {
            self.tell_fleet(Said::GuestsUp(v1::GuestsUp { guests }));
        }
    }
}

fn alert_kind(said: &str) -> &'static str {
    let known = ALERT_KINDS.into_iter().find(|kind| *kind == said);
    known.unwrap_or("other")
}

fn cut(text: &[u8]) -> &[u8] {
    text.get(..ALERT_TEXT_MAX_BYTES).unwrap_or(text)
}

impl Drop for Session {
    /// Uploads end with their senders; scans go on.
    fn drop(&mut self) {
        let open = std::mem::take(&mut *self.asker.open.lock());
        for (request_id, check) in open {
            self.leave_scan(request_id, check.scan);
        }
        self.shared.metrics.guests.sessions.with([self.role]).dec();
        let (is_last, was_listed) = self.shared.guests.leave(self.guest(), self.id);
        if self.role == "gate" && was_listed {
            self.gate_left();
        }
        if is_last {
            let guest = self.guest().to_string();
            self.shared.metrics.guests.ledger_open.with([&guest]).set(0);
            self.fast_paths(&v1::FastPaths::default());
        }
    }
}
