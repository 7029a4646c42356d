//! Guests that have a session.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daemon::log::RateLimit;
use model::{ChannelId, GuestId, Machine, differ};
use parking_lot::Mutex;
use pki::KeyId;
use proto::v1;

use crate::fleet::Recent;
use crate::session::Outbox;

/// Longest host name that is kept; it is for people only.
const HOSTNAME_MAX_BYTES: usize = 255;

/// Why a session is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Turned {
    #[error("limit sessions_max reached")]
    Full,
    #[error("limit guest_sessions_max reached")]
    GuestFull,
}

/// A session as others see it.
#[derive(Clone)]
pub(crate) struct SessionHandle {
    pub(crate) id: u64,
    pub(crate) is_gate: bool,
    /// Which key its certificate is for.
    pub(crate) key: KeyId,
    /// What it says the machine is.
    pub(crate) machine: Machine,
    pub(crate) outbox: Arc<dyn Outbox>,
    /// Of a gate: as the controller is told.
    up: Option<Arc<v1::GuestUp>>,
}

impl SessionHandle {
    /// Whether a gate on this machine takes its place: the machine has come back. A copy of the
    /// machine has a gate of its own until it has an identity of its own, and so has one of another
    /// boot: which of both it is shows when the link ends dead ones.
    fn is_gate_on(&self, machine: &Machine) -> bool {
        self.is_gate_of_any_boot(machine) && !differ(self.machine.boot_id, machine.boot_id)
    }

    fn is_gate_of_any_boot(&self, machine: &Machine) -> bool {
        self.is_gate
            && !differ(self.machine.system_uuid, machine.system_uuid)
            && !differ(self.machine.generation_id, machine.generation_id)
    }
}

/// Alerts of one guest that are logged in a minute.
const ALERTS_PER_MINUTE: u32 = 30;
/// Certificates that one guest gets in a minute.
const RENEWALS_PER_MINUTE: u32 = 4;
/// Pieces of allowlists that one guest gets in a minute, as the contract says: 256 MiB.
const FETCHES_PER_MINUTE: u32 = 1024;
/// Pieces of filters, as the contract says: 64 MiB.
const FILTER_FETCHES_PER_MINUTE: u32 = 256;
/// Frames with round trips of one guest that count in a minute, as the contract says.
const NEARNESS_PER_MINUTE: u32 = 6;
/// Frames about its channel of one guest that count in a minute, as the contract says.
const ATTACHED_PER_MINUTE: u32 = 30;
/// Frames about turns that one guest may send in a minute, as the contract says.
const TURNS_PER_MINUTE: u32 = 120;

/// How much one guest may ask of us, over all its sessions.
#[derive(Debug)]
pub(crate) struct GuestRates {
    pub(crate) alerts: RateLimit,
    pub(crate) renewals: RateLimit,
    pub(crate) fetches: RateLimit,
    pub(crate) filter_fetches: RateLimit,
    pub(crate) nearness: RateLimit,
    pub(crate) attached: RateLimit,
    pub(crate) turns: RateLimit,
}

/// Everybody who is connected.
#[derive(Default)]
pub(crate) struct Guests {
    next_session: AtomicU64,
    guests: Mutex<HashMap<GuestId, Guest>>,
}

struct Guest {
    hostname: String,
    address: SocketAddr,
    sessions: Vec<SessionHandle>,
    ledger: v1::LedgerReport,
    rates: Arc<GuestRates>,
    recent: Arc<Recent>,
}

/// Who comes in.
pub(crate) struct Arrival {
    pub(crate) guest: GuestId,
    pub(crate) hostname: String,
    pub(crate) address: SocketAddr,
    pub(crate) is_gate: bool,
    /// Epoch of the list that it follows.
    pub(crate) placement_epoch: u64,
    /// What it reads from the channel to its host.
    pub(crate) channel: Option<ChannelId>,
    /// Which key its certificate is for.
    pub(crate) key: KeyId,
    /// What it says the machine is.
    pub(crate) machine: Machine,
    pub(crate) outbox: Arc<dyn Outbox>,
}

impl Arrival {
    /// As the controller is told.
    pub(crate) fn guest_up(&self) -> v1::GuestUp {
        let cut = self.hostname.floor_char_boundary(HOSTNAME_MAX_BYTES);
        v1::GuestUp {
            guest_id: self.guest.0.to_vec(),
            hostname: self.hostname.get(..cut).unwrap_or_default().to_owned(),
            address: self.address.ip().to_string(),
            placement_epoch: self.placement_epoch,
            channel: wire(self.channel),
            key_id: self.key.0.to_vec(),
            machine: Some((&self.machine).into()),
        }
    }
}

fn wire(channel: Option<ChannelId>) -> Vec<u8> {
    channel.map_or_else(Vec::new, |id| id.0.to_vec())
}

impl Guests {
    /// Whether one more session may come in.
    pub(crate) fn has_room(
        &self,
        guest: GuestId,
        sessions_max: usize,
        guest_sessions_max: usize,
    ) -> Result<(), Turned> {
        let guests = self.guests.lock();
        let all: usize = guests.values().map(|guest| guest.sessions.len()).sum();
        if all >= sessions_max {
            return Err(Turned::Full);
        }
        let own = guests.get(&guest).map_or(0, |guest| guest.sessions.len());
        if own >= guest_sessions_max {
            return Err(Turned::GuestFull);
        }
        Ok(())
    }

    /// Enters a session. The older gate of the guest, if any, is returned: it must go.
    pub(crate) fn enter(&self, arrival: Arrival) -> (u64, Option<SessionHandle>) {
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let up = arrival.is_gate.then(|| Arc::new(arrival.guest_up()));
        let mut guests = self.guests.lock();
        let guest = guests.entry(arrival.guest).or_insert_with(|| Guest {
            hostname: String::new(),
            address: arrival.address,
            sessions: Vec::new(),
            ledger: v1::LedgerReport::default(),
            rates: Arc::new(GuestRates {
                alerts: RateLimit::new(ALERTS_PER_MINUTE),
                renewals: RateLimit::new(RENEWALS_PER_MINUTE),
                fetches: RateLimit::new(FETCHES_PER_MINUTE),
                filter_fetches: RateLimit::new(FILTER_FETCHES_PER_MINUTE),
                nearness: RateLimit::new(NEARNESS_PER_MINUTE),
                attached: RateLimit::new(ATTACHED_PER_MINUTE),
                turns: RateLimit::new(TURNS_PER_MINUTE),
            }),
            recent: Arc::default(),
        });
        let cut = arrival.hostname.floor_char_boundary(HOSTNAME_MAX_BYTES);
        guest.hostname = arrival.hostname.get(..cut).unwrap_or_default().to_owned();
        guest.address = arrival.address;
        let same = |session: &SessionHandle| session.is_gate_on(&arrival.machine);
        let older = arrival
            .is_gate
            .then(|| guest.sessions.iter().position(same))
            .flatten()
            .map(|at| guest.sessions.remove(at));
        guest.sessions.push(SessionHandle {
            id,
            is_gate: arrival.is_gate,
            key: arrival.key,
            machine: arrival.machine,
            outbox: arrival.outbox,
            up,
        });
        (id, older)
    }

    /// A session ended: whether the guest has no other, and whether nobody had taken its place.
    pub(crate) fn leave(&self, guest: GuestId, session: u64) -> (bool, bool) {
        let mut guests = self.guests.lock();
        let Some(entry) = guests.get_mut(&guest) else {
            return (true, false);
        };
        let before = entry.sessions.len();
        entry.sessions.retain(|handle| handle.id != session);
        let was_listed = entry.sessions.len() < before;
        let is_gone = entry.sessions.is_empty();
        if is_gone {
            guests.remove(&guest);
        }
        (is_gone, was_listed)
    }

    /// Whether a guest has a gate on this machine.
    pub(crate) fn has_gate_on(&self, guest: GuestId, machine: &Machine) -> bool {
        let guests = self.guests.lock();
        let sessions = guests.get(&guest).map(|guest| &guest.sessions);
        sessions.is_some_and(|all| all.iter().any(|session| session.is_gate_on(machine)))
    }

    /// The gates of a guest, as the controller is told.
    pub(crate) fn gates_of(&self, guest: GuestId) -> Vec<v1::GuestUp> {
        let guests = self.guests.lock();
        let sessions = guests.get(&guest).into_iter().flat_map(|it| &it.sessions);
        let up = sessions.filter_map(|session| session.up.as_deref().cloned());
        up.collect()
    }

    /// The gate of a guest: of several the first machine's, and of that the latest boot's.
    pub(crate) fn gate(&self, guest: GuestId) -> Option<Arc<dyn Outbox>> {
        let guests = self.guests.lock();
        let sessions = &guests.get(&guest)?.sessions;
        let first = sessions.iter().find(|session| session.is_gate)?;
        let is_it = |session: &&SessionHandle| session.is_gate_of_any_boot(&first.machine);
        let latest = sessions.iter().rev().find(is_it);
        latest.map(|session| session.outbox.clone())
    }

    /// The rates of a guest that is connected.
    pub(crate) fn rates(&self, guest: GuestId) -> Option<Arc<GuestRates>> {
        Some(self.guests.lock().get(&guest)?.rates.clone())
    }

    /// Guests that have a gate.
    pub(crate) fn with_gate(&self) -> Vec<GuestId> {
        let guests = self.guests.lock();
        let gated = guests
            .iter()
            .filter(|(_, guest)| guest.sessions.iter().any(|session| session.is_gate));
        gated.map(|(id, _)| *id).collect()
    }

    /// Every gate, as the controller is told.
    pub(crate) fn gates(&self) -> Vec<v1::GuestUp> {
        let guests = self.guests.lock();
        let sessions = guests.values().flat_map(|guest| &guest.sessions);
        let up = sessions.filter_map(|session| session.up.as_deref().cloned());
        up.collect()
    }

    /// A guest says what it reads from the channel to its host: as the controller is told, where
    /// that is another thing than before.
    pub(crate) fn set_channel(
        &self,
        id: GuestId,
        session: u64,
        channel: Option<ChannelId>,
    ) -> Option<v1::GuestUp> {
        let channel = wire(channel);
        let mut guests = self.guests.lock();
        let mut sessions = guests.get_mut(&id)?.sessions.iter_mut();
        let session = sessions.find(|handle| handle.id == session)?;
        let up = Arc::make_mut(session.up.as_mut()?);
        let before = std::mem::replace(&mut up.channel, channel);
        (before != up.channel).then(|| up.clone())
    }

    /// What a guest asked about lately.
    pub(crate) fn recent(&self, guest: GuestId) -> Option<Arc<Recent>> {
        Some(self.guests.lock().get(&guest)?.recent.clone())
    }

    /// Every session of a guest.
    pub(crate) fn sessions_of(&self, guest: GuestId) -> Vec<SessionHandle> {
        let guests = self.guests.lock();
        guests
            .get(&guest)
            .map(|guest| guest.sessions.clone())
            .unwrap_or_default()
    }

    /// Host names of those who are connected.
    pub(crate) fn hostnames(&self) -> HashMap<GuestId, String> {
        let guests = self.guests.lock();
        let names = guests
            .iter()
            .map(|(id, guest)| (*id, guest.hostname.clone()));
        names.collect()
    }

    /// Every session, to tell them all something.
    pub(crate) fn everybody(&self) -> Vec<SessionHandle> {
        let guests = self.guests.lock();
        let sessions = guests.values().flat_map(|guest| &guest.sessions);
        sessions.cloned().collect()
    }

    pub(crate) fn set_ledger(&self, guest: GuestId, report: v1::LedgerReport) {
        if let Some(entry) = self.guests.lock().get_mut(&guest) {
            entry.ledger = report;
        }
    }

    pub(crate) fn status(&self) -> Vec<v1::GuestStatus> {
        let guests = self.guests.lock();
        let mut status: Vec<_> = guests
            .iter()
            .map(|(id, guest)| v1::GuestStatus {
                guest_id: id.0.to_vec(),
                hostname: guest.hostname.clone(),
                address: guest.address.to_string(),
                ledger_open: guest.ledger.open_entries,
                bytes_received: guest
                    .sessions
                    .iter()
                    .map(|session| session.outbox.bytes_received())
                    .fold(0, u64::saturating_add),
            })
            .collect();
        status.sort_by(|a, b| a.guest_id.cmp(&b.guest_id));
        status
    }
}
