//! Appliances with real streams to a controller, and the agents behind them, played: each follows
//! the lists that it is sent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use controller::fleet::Dialled;
use model::GuestId;
use pki::{GuestKey, Identity};
use proto::v1;
use proto::v1::fleet_order::Body as Told;
use proto::v1::fleet_said::Body as Said;
use tokio::sync::mpsc::Sender;

use super::reconnect::{Scale, address, capacity, host_of};

/// As real appliances do.
const QUEUE_EVERY: Duration = Duration::from_secs(3);
const GUESTS_AT_ONCE: usize = 1000;
/// Before a controller that cannot be reached is tried again.
const AGAIN: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(20);

/// The guest of an agent by its number.
pub(super) fn guest_id(number: usize) -> GuestId {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    GuestId(id)
}

fn number_of(guest: &[u8]) -> Option<usize> {
    let low: [u8; 8] = guest.get(8..16)?.try_into().ok()?;
    usize::try_from(u64::from_be_bytes(low)).ok()
}

/// One agent.
#[derive(Debug, Clone, Copy)]
struct Agent {
    epoch: u64,
    /// The appliance it is connected to.
    at: usize,
}

/// Everybody.
pub(super) struct Crowd {
    scale: Scale,
    controller: String,
    identities: Vec<Identity>,
    by_address: HashMap<String, usize>,
    agents: Mutex<Vec<Agent>>,
    /// The streams that are up.
    ways: Mutex<Vec<Option<Sender<Said>>>>,
    /// Agents that have a list.
    placed: AtomicUsize,
    /// Streams on which the controller has taken in every guest.
    confirmed: AtomicUsize,
    is_over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crowd {
    pub(super) fn new(controller: String, identities: Vec<Identity>, scale: Scale) -> Self {
        let count = identities.len();
        Self {
            scale,
            controller,
            by_address: (0..count).map(|number| (address(number), number)).collect(),
            // Anywhere, as agents that have no list yet.
            agents: Mutex::new(
                (0..scale.agents)
                    .map(|number| Agent {
                        epoch: 0,
                        at: number % count,
                    })
                    .collect(),
            ),
            ways: Mutex::new(vec![None; count]),
            identities,
            placed: AtomicUsize::new(0),
            confirmed: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// Every appliance dials, and again when its stream ends.
    pub(super) fn begin(self: &Arc<Self>, runtime: &tokio::runtime::Runtime) {
        for number in 0..self.identities.len() {
            let crowd = Arc::clone(self);
            runtime.spawn(async move {
                while !crowd.is_over.load(Ordering::Relaxed) {
                    if let Err(error) = crowd.stream(number).await {
                        tracing::debug!(%error, number, "a stream");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
        }
    }

    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn all_placed(&self) -> bool {
        self.placed.load(Ordering::Relaxed) == self.scale.agents
    }

    pub(super) fn all_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed) == self.identities.len()
    }

    pub(super) fn none_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed) == 0
    }

    /// Waits for something.
    pub(super) fn until(
        &self,
        patience: Duration,
        otherwise: &str,
        is_so: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !is_so(self) {
            ensure!(
                Instant::now() < deadline,
                "{otherwise} after {patience:?}: {} streams, {} agents placed",
                self.confirmed.load(Ordering::Relaxed),
                self.placed.load(Ordering::Relaxed)
            );
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// One stream, until it ends.
    async fn stream(&self, number: usize) -> Result<()> {
        let identity = &self.identities[number];
        let anchors: Vec<_> = identity.chain.iter().skip(1).cloned().collect();
        let tls = link::tls::fleet_client_config(identity, &anchors)?;
        let Dialled { said, mut told } = controller::fleet::dial(&self.controller, tls).await?;
        said.send(Said::Hello(self.hello(number))).await?;
        lock(&self.ways)[number] = Some(said.clone());
        for guests in self.guests_at(number).chunks(GUESTS_AT_ONCE) {
            let guests = guests.to_vec();
            said.send(Said::GuestsUp(v1::GuestsUp { guests })).await?;
        }
        // Answered in order: when this is, everything before it is known.
        let key = GuestKey::generate()?;
        said.send(Said::RenewSelf(key.csr().to_vec())).await?;
        let mut is_confirmed = false;
        let mut alive = tokio::time::interval(QUEUE_EVERY);
        loop {
            tokio::select! {
                order = told.recv() => match order {
                    None => break,
                    Some(Told::Place(place)) => self.place(number, &place),
                    Some(Told::RenewedSelf(_)) if !is_confirmed => {
                        is_confirmed = true;
                        self.confirmed.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(_) => {}
                },
                _ = alive.tick() => {
                    if said.try_send(Said::QueueMs(0)).is_err() {
                        break;
                    }
                }
            }
        }
        lock(&self.ways)[number] = None;
        self.confirmed
            .fetch_sub(usize::from(is_confirmed), Ordering::Relaxed);
        Ok(())
    }

    fn hello(&self, number: usize) -> v1::FleetHello {
        v1::FleetHello {
            address: address(number),
            host: host_of(number, self.scale),
            capacity: capacity(self.scale),
            ..v1::FleetHello::default()
        }
    }

    fn guests_at(&self, number: usize) -> Vec<v1::GuestUp> {
        let agents = lock(&self.agents);
        let here = agents.iter().enumerate().filter(|(_, it)| it.at == number);
        here.map(|(guest, agent)| guest_up(guest, agent.epoch))
            .collect()
    }

    /// An agent is sent a list: it goes to the first appliance of it, if it is not there.
    fn place(&self, number: usize, place: &v1::PlaceGuest) {
        let first = place.appliances.first();
        let to = first.and_then(|first| self.by_address.get(first)).copied();
        let guest = number_of(&place.guest_id);
        let (Some(guest), Some(to)) = (guest, to) else {
            return;
        };
        {
            let mut agents = lock(&self.agents);
            let Some(agent) = agents.get_mut(guest) else {
                return;
            };
            if place.epoch <= agent.epoch {
                return;
            }
            let is_first = agent.epoch == 0;
            *agent = Agent {
                epoch: place.epoch,
                at: to,
            };
            self.placed
                .fetch_add(usize::from(is_first), Ordering::Relaxed);
        }
        if to != number {
            let guests = vec![guest_up(guest, place.epoch)];
            self.say(to, Said::GuestsUp(v1::GuestsUp { guests }));
            self.say(number, Said::GuestDown(place.guest_id.clone()));
        }
    }

    /// What a stream that is not up does not tell, it tells when it begins.
    fn say(&self, number: usize, said: Said) {
        let way = lock(&self.ways)[number].clone();
        let is_sent = way.is_some_and(|way| way.try_send(said).is_ok());
        if !is_sent {
            tracing::debug!(number, "a stream takes nothing");
        }
    }
}

fn guest_up(guest: usize, epoch: u64) -> v1::GuestUp {
    let octets = u32::try_from(guest).unwrap_or(u32::MAX).to_be_bytes();
    v1::GuestUp {
        guest_id: guest_id(guest).0.to_vec(),
        hostname: format!("desktop-{guest}"),
        address: format!("10.{}.{}.{}", octets[1], octets[2], octets[3]),
        placement_epoch: epoch,
        ..v1::GuestUp::default()
    }
}
