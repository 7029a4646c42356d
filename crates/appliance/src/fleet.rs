//! The appliance's part in the fleet: it tells the controller of its guests, brings them their
//! lists, and hands on what it knows of their contents before they leave.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use link::Priority;
use model::{ChannelId, GuestId, Machine, Verdict};
use parking_lot::Mutex;
use proto::v1;
use proto::v1::envelope::Body;
use proto::v1::fleet_said::Body as Said;
use scan_core::CacheKey;

use crate::appliance::Appliance;
use crate::session::Session;
use crate::shared::Shared;

/// Questions of one guest that are remembered, so that another appliance can be warmed.
const RECENT_MAX: usize = 128;
/// Verdicts in one warming that are taken.
const WARM_MAX: usize = 1024;
/// Round trips in one frame of a guest that are looked at.
const ROUND_TRIPS_MAX: usize = 8;
/// Weight of the latest scan in the mean time of a scan: one part in so many.
const MEAN_OVER: u64 = 16;

/// Takes the answer to a guest that asks for a turn; `None`: nobody gives turns now.
pub type TurnAnswer = Box<dyn FnOnce(Option<v1::Turn>) + Send>;

/// The way to the controller, as far as the fleet is concerned.
pub trait FleetPort: Send + Sync {
    /// Tells something; never waits. What cannot be told is told anew when there is a stream
    /// again ([`Appliance::guests_up`]).
    fn tell(&self, said: Said);

    /// A guest asks whether it may work. The answer may come at once or later, from any thread.
    fn ask_turn(&self, guest: GuestId, ask: v1::AskTurn, answer: TurnAnswer);
}

/// An appliance that belongs to no fleet.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFleet;

impl FleetPort for NoFleet {
    fn tell(&self, _said: Said) {}

    fn ask_turn(&self, _guest: GuestId, _ask: v1::AskTurn, answer: TurnAnswer) {
        answer(None);
    }
}

/// What a guest asked about lately, the latest last; each content once.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    keys: Mutex<VecDeque<CacheKey>>,
}

impl Recent {
    pub(crate) fn note(&self, key: &CacheKey) {
        let mut keys = self.keys.lock();
        if keys.back() == Some(key) {
            return;
        }
        if keys.len() >= RECENT_MAX {
            keys.pop_front();
        }
        keys.push_back(*key);
    }

    fn latest_first(&self) -> Vec<CacheKey> {
        let mut latest: Vec<CacheKey> = Vec::new();
        for key in self.keys.lock().iter().rev() {
            if !latest.contains(key) {
                latest.push(*key);
            }
        }
        latest
    }
}

/// How long scans take, on average.
#[derive(Debug, Default)]
pub(crate) struct ScanTime {
    mean_us: AtomicU64,
}

impl ScanTime {
    pub(crate) fn took(&self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX / MEAN_OVER);
        // Two scans that end at once: one of them counts.
        let mean = self.mean_us.load(Ordering::Relaxed);
        let mean = (mean.saturating_mul(MEAN_OVER - 1)).saturating_add(time_us) / MEAN_OVER;
        self.mean_us.store(mean, Ordering::Relaxed);
    }

    /// How long so many scans hold the next one up.
    fn wait_ms(&self, waiting: usize, places: usize) -> u32 {
        let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
        let places = u64::try_from(places.max(1)).unwrap_or(1);
        let wait_us = self.mean_us.load(Ordering::Relaxed).saturating_mul(waiting) / places;
        u32::try_from(wait_us / 1000).unwrap_or(u32::MAX)
    }
}

impl Session {
    pub(crate) fn tell_fleet(&self, said: Said) {
        self.shared.fleet.tell(said);
    }

    /// A guest asks whether it may work. Where nobody gives turns it may.
    pub(crate) fn ask_turn(&self, request_id: u64, ask: v1::AskTurn) {
        if !self.is_within(|rates| &rates.turns) {
            return;
        }
        let outbox = self.asker.outbox.clone();
        let counted = self.shared.metrics.guests.turns.clone();
        let ends_in_ms = ask.takes_s.saturating_mul(1000);
        let answer = move |turn: Option<v1::Turn>| {
            counted.with([turn_answer(turn.as_ref())]).inc();
            let turn = turn.unwrap_or(v1::Turn {
                ends_in_ms,
                ..v1::Turn::default()
            });
            let envelope = v1::Envelope {
                request_id,
                body: Some(Body::Turn(turn)),
            };
            outbox.send(Priority::Control, envelope);
        };
        let fleet = &self.shared.fleet;
        fleet.ask_turn(self.guest(), ask, Box::new(answer));
    }

    /// One that is not told of ends by itself.
    pub(crate) fn turn_over(&self, turn_id: u64) {
        if !self.is_within(|rates| &rates.turns) {
            return;
        }
        self.tell_fleet(Said::TurnOver(v1::GuestTurnOver {
            guest_id: self.guest().0.to_vec(),
            turn_id,
        }));
    }

    /// A guest measured appliances; one frame in a while counts.
    pub(crate) fn nearness(&self, nearness: v1::Nearness) {
        if !self.is_within(|rates| &rates.nearness) {
            return;
        }
        for trip in nearness.round_trips.into_iter().take(ROUND_TRIPS_MAX) {
            self.tell_fleet(Said::Nearness(v1::GuestNearness {
                guest_id: self.guest().0.to_vec(),
                appliance: trip.appliance,
                rtt_us: trip.rtt_us,
            }));
        }
    }

    /// A guest says what it reads from the channel to its host.
    pub(crate) fn attached(&self, attached: &v1::Attached) {
        let channel = ChannelId::from_slice(&attached.channel);
        if channel.is_none() && !attached.channel.is_empty() {
            self.shared.metrics.guests.frames_ignored.inc();
            return;
        }
        if !self.is_within(|rates| &rates.attached) {
            return;
        }
        let guests = &self.shared.guests;
        if let Some(up) = guests.set_channel(self.guest(), self.id, channel) {
            self.tell_fleet(Said::GuestsUp(v1::GuestsUp { guests: vec![up] }));
        }
    }
}

impl Appliance {
    /// Tells the controller which channels to guests on this host there are: when a stream begins.
    pub fn tell_host_channels(&self) {
        self.shared.host_channels.tell(&*self.shared.fleet, |_| {});
    }

    /// Every guest that has a gate here: what a stream begins with.
    #[must_use]
    pub fn guests_up(&self) -> Vec<v1::GuestUp> {
        self.shared.guests.gates()
    }

    /// How long the queue holds scans up, in milliseconds.
    #[must_use]
    pub fn queue_ms(&self) -> u32 {
        let (waiting, running) = self.shared.scans.depth();
        self.shared.scan_time.wait_ms(waiting.iter().sum(), running)
    }

    /// The appliance's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Brings a guest its list, where it is connected.
    pub fn place(&self, place: v1::PlaceGuest) {
        let guest = GuestId::from_slice(&place.guest_id);
        let Some(gate) = guest.and_then(|guest| self.shared.guests.gate(guest)) else {
            return;
        };
        let envelope = v1::Envelope {
            request_id: 0,
            body: Some(Body::Placement(v1::Placement {
                epoch: place.epoch,
                appliances: place.appliances,
            })),
        };
        gate.send(Priority::Control, envelope);
    }

    /// What is known of a guest's contents, for the appliance that it goes to.
    #[must_use]
    pub fn warmth(&self, warm: v1::WarmGuest) -> Option<v1::Warmth> {
        let guest = GuestId::from_slice(&warm.guest_id)?;
        let recent = self.shared.guests.recent(guest)?;
        let known = recent.latest_first().into_iter().filter_map(|key| {
            let verdict = self.shared.verdicts.find(&key)?;
            Some(v1::WarmVerdict {
                key: key.to_bytes().to_vec(),
                verdict: Some(v1::Verdict::from(&verdict)),
            })
        });
        let verdicts: Vec<_> = known.collect();
        (!verdicts.is_empty()).then_some(v1::Warmth {
            guest_id: warm.guest_id,
            appliance: warm.appliance,
            verdicts,
        })
    }

    /// Takes what another appliance knows. What was judged by other rules than ours is of no use.
    pub fn warm(&self, warmth: v1::Warmth) -> usize {
        let mut taken = 0;
        for warm in warmth.verdicts.into_iter().take(WARM_MAX) {
            if let Some((key, verdict)) = read(&self.shared, &warm) {
                self.shared.verdicts.keep_in_memory(&key, &verdict);
                taken += 1;
            }
        }
        taken
    }

    /// Takes a turn back, whichever session of the guest has it.
    pub fn take_turn_back(&self, over: &v1::GuestTurnOver) {
        let guest = GuestId::from_slice(&over.guest_id);
        let sessions = guest.map(|guest| self.shared.guests.sessions_of(guest));
        for session in sessions.into_iter().flatten() {
            let envelope = v1::Envelope {
                request_id: 0,
                body: Some(Body::TurnOver(v1::TurnOver {
                    turn_id: over.turn_id,
                })),
            };
            session.outbox.send(Priority::Control, envelope);
        }
    }

    /// A guest's session is a copy's: it is told to ask for an identity of its own.
    pub fn rekey(&self, rekey: &v1::RekeyGuest) {
        self.shared.rekey(rekey);
    }

    /// Ends the sessions of a guest that was revoked.
    pub fn end_guest(&self, guest: GuestId) {
        for session in self.shared.guests.sessions_of(guest) {
            session.outbox.refuse("this guest has been revoked");
        }
    }
}

impl Shared {
    pub(crate) fn rekey(&self, rekey: &v1::RekeyGuest) {
        let guest = GuestId::from_slice(&rekey.guest_id);
        let machine = rekey.machine.as_ref().map(Machine::try_from);
        let machine = machine.and_then(Result::ok);
        let sessions = guest.map(|guest| self.guests.sessions_of(guest));
        for session in sessions.into_iter().flatten() {
            let is_it = session.key.0 == *rekey.key_id;
            if !is_it || machine.as_ref().is_some_and(|it| *it != session.machine) {
                continue;
            }
            let envelope = v1::Envelope {
                request_id: 0,
                body: Some(Body::Rekey(v1::Rekey {
                    reason: rekey.reason.clone(),
                })),
            };
            session.outbox.send(Priority::Control, envelope);
        }
    }
}

/// For the metric.
fn turn_answer(turn: Option<&v1::Turn>) -> &'static str {
    match turn {
        None => "nobody_asked",
        Some(turn) if !turn.refused.is_empty() => "refused",
        Some(turn) if turn.wait_ms > 0 => "wait",
        Some(_) => "begin",
    }
}

fn read(shared: &Arc<Shared>, warm: &v1::WarmVerdict) -> Option<(CacheKey, Verdict)> {
    let key = CacheKey::from_slice(&warm.key)?;
    let own = shared
        .force()
        .key(key.digest, &scan_core::Context::default());
    let verdict = Verdict::try_from(warm.verdict.clone()?).ok()?;
    let is_ours = key.generation == own.generation && key.settings == own.settings;
    let is_of_key = verdict.generation == key.generation && verdict.digest == Some(key.digest);
    (is_ours && is_of_key && verdict.outcome.is_cacheable()).then_some((key, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Digest, Generation};
    use scan_core::{ContextClass, Settings};

    fn key(n: u32) -> CacheKey {
        CacheKey {
            digest: Digest::of(&n.to_be_bytes()),
            context: ContextClass::ANY,
            generation: Generation([1; 16]),
            settings: Settings::of(&[]),
        }
    }

    #[test]
    fn the_latest_questions_are_remembered_once_each() {
        let recent = Recent::default();
        for n in 0..1000 {
            recent.note(&key(n / 2));
        }
        recent.note(&key(400));
        let keys = recent.latest_first();
        assert_eq!(keys.len(), RECENT_MAX - 1);
        assert_eq!(keys[..2], [key(400), key(499)]);
    }

    #[test]
    fn a_queue_holds_up_by_its_length() {
        let time = ScanTime::default();
        for _ in 0..200 {
            time.took(Duration::from_millis(40));
        }
        assert_eq!(time.wait_ms(0, 2), 0);
        let wait = time.wait_ms(10, 2);
        assert!((190..=200).contains(&wait), "{wait}");
    }
}
