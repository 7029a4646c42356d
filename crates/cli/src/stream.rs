//! The stream between this appliance and the controller that places, wherever that is.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use appliance::{Appliance, FleetPort, Identity, RenewAnswer, TurnAnswer};
use controller::Authority;
use controller::fleet::{Dialled, Fleet, QUEUE_LEN_MAX};
use model::GuestId;
use proto::v1;
use proto::v1::fleet_order::Body as Told;
use proto::v1::fleet_said::Body as Said;
use tokio::sync::mpsc;

/// How often the controller is told of the queue, and so that the appliance lives.
const QUEUE_EVERY: Duration = Duration::from_secs(3);
/// Pause before the stream is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Guests in one frame.
const GUESTS_AT_ONCE: usize = 1000;
/// Questions of guests, of one kind, that wait for an answer.
const WAITING_MAX: usize = 10_000;

/// What sessions of guests tell the fleet goes to the stream that is up.
#[derive(Default)]
pub(crate) struct Port {
    said: Mutex<Option<mpsc::Sender<Said>>>,
    renewals: Waiting<RenewAnswer>,
    turns: Waiting<TurnAnswer>,
    revoked: Mutex<HashSet<GuestId>>,
}

/// Questions that were sent to the controller, by their tickets.
struct Waiting<T> {
    answers: Mutex<HashMap<u64, T>>,
    next_ticket: AtomicU64,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            answers: Mutex::default(),
            next_ticket: AtomicU64::new(1),
        }
    }
}

impl<T> Waiting<T> {
    /// Sends a question that `said` makes of its ticket. Where that cannot be, whoever waits for
    /// the answer comes back.
    fn ask(
        &self,
        to: Option<mpsc::Sender<Said>>,
        answer: T,
        said: impl FnOnce(u64) -> Said,
    ) -> Result<(), T> {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        {
            let mut answers = lock(&self.answers);
            if to.is_none() || answers.len() >= WAITING_MAX {
                return Err(answer);
            }
            answers.insert(ticket, answer);
        }
        if to.is_some_and(|to| to.try_send(said(ticket)).is_ok()) {
            return Ok(());
        }
        // Taken already: whoever ended the stream has answered.
        self.take(ticket).map_or(Ok(()), Err)
    }

    fn take(&self, ticket: u64) -> Option<T> {
        lock(&self.answers).remove(&ticket)
    }

    fn take_all(&self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut *lock(&self.answers)).into_values()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FleetPort for Port {
    fn tell(&self, said: Said) {
        let mut slot = lock(&self.said);
        // Without room, the stream is of no use: the next one begins with everything.
        if slot.as_ref().is_some_and(|to| to.try_send(said).is_err()) {
            *slot = None;
        }
    }

    fn ask_turn(&self, guest: GuestId, ask: v1::AskTurn, answer: TurnAnswer) {
        let to = lock(&self.said).clone();
        let asked = self.turns.ask(to, answer, |ticket| {
            Said::AskTurn(v1::AskGuestTurn {
                guest_id: guest.0.to_vec(),
                ticket,
                ask: Some(ask),
            })
        });
        if let Err(answer) = asked {
            answer(None);
        }
    }
}

/// For an appliance that runs apart from its controller.
impl Identity for Port {
    fn renew(&self, ask: v1::RenewGuest, answer: RenewAnswer) {
        let to = lock(&self.said).clone();
        let asked = self.renewals.ask(to, answer, |ticket| {
            Said::RenewGuest(v1::RenewGuest { ticket, ..ask })
        });
        if let Err(answer) = asked {
            answer(Err("the controller cannot be reached".to_owned()));
        }
    }

    fn is_revoked(&self, guest: GuestId) -> bool {
        lock(&self.revoked).contains(&guest)
    }

    fn join_token(&self, _request: &v1::TokenRequest) -> Result<String, String> {
        Err("guests join at the controller: ask it for a token".to_owned())
    }
}

/// How a stream ended.
enum End {
    /// Another controller places, reached there.
    Elsewhere(String),
    /// It broke.
    Broken,
}

/// Where controllers are.
pub(crate) struct Ways {
    /// The one in this process.
    pub(crate) local: Option<(Fleet, Arc<Authority>)>,
    /// Others, as host:port.
    pub(crate) remote: Vec<String>,
    /// Our certificate, as it is now, for those.
    pub(crate) tls: Arc<dyn Fn() -> Arc<rustls::ClientConfig> + Send + Sync>,
}

/// What is done with certificates for this appliance itself.
pub(crate) type OwnRenewed = Arc<dyn Fn(v1::Renewal) + Send + Sync>;

/// Keeps a stream to the controller that places, for ever.
pub(crate) async fn keep(
    port: Arc<Port>,
    appliance: Arc<Appliance>,
    hello: v1::FleetHello,
    ways: Ways,
    renewed: Option<OwnRenewed>,
) {
    let mut next = 0;
    let mut hint: Option<String> = None;
    loop {
        let ended = match hint.take() {
            Some(address) => dial(&ways, &address).await,
            None => {
                let count = usize::from(ways.local.is_some()) + ways.remote.len();
                let way = next % count.max(1);
                next += 1;
                match (&ways.local, way) {
                    (Some((fleet, authority)), 0) => {
                        Some(inside(fleet.clone(), authority.clone(), appliance.name()))
                    }
                    (local, way) => {
                        let at = way - usize::from(local.is_some());
                        match ways.remote.get(at) {
                            Some(address) => dial(&ways, address).await,
                            None => None,
                        }
                    }
                }
            }
        };
        if let Some(dialled) = ended {
            let end = run(&port, &appliance, &hello, dialled, renewed.as_ref()).await;
            *lock(&port.said) = None;
            for answer in port.renewals.take_all() {
                answer(Err("the controller cannot be reached".to_owned()));
            }
            for answer in port.turns.take_all() {
                answer(None);
            }
            match end {
                End::Elsewhere(address) if !address.is_empty() => hint = Some(address),
                // The same one again, first.
                End::Elsewhere(_) | End::Broken => next = next.saturating_sub(1),
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn dial(ways: &Ways, address: &str) -> Option<Dialled> {
    match controller::fleet::dial(address, (ways.tls)()).await {
        Ok(dialled) => Some(dialled),
        Err(error) => {
            tracing::warn!(address, %error, "the controller cannot be reached");
            None
        }
    }
}

/// The same as a dialled stream, without a wire.
fn inside(fleet: Fleet, authority: Arc<Authority>, name: &str) -> Dialled {
    let (said, heard) = mpsc::channel(QUEUE_LEN_MAX);
    let (tell, told) = mpsc::channel(QUEUE_LEN_MAX);
    let served = controller::fleet::serve(fleet, authority, name.to_owned(), heard, tell);
    tokio::spawn(served);
    Dialled { said, told }
}

async fn run(
    port: &Port,
    appliance: &Appliance,
    hello: &v1::FleetHello,
    mut stream: Dialled,
    renewed: Option<&OwnRenewed>,
) -> End {
    if stream.said.send(Said::Hello(hello.clone())).await.is_err() {
        return End::Broken;
    }
    // First the way, then who is there: whoever comes between is told twice rather than never.
    *lock(&port.said) = Some(stream.said.clone());
    appliance.tell_host_channels();
    let guests = appliance.guests_up();
    for guests in guests.chunks(GUESTS_AT_ONCE) {
        let up = v1::GuestsUp {
            guests: guests.to_vec(),
        };
        if stream.said.send(Said::GuestsUp(up)).await.is_err() {
            return End::Broken;
        }
    }
    let mut queue = tokio::time::interval(QUEUE_EVERY);
    loop {
        tokio::select! {
            told = stream.told.recv() => match told {
                None => return End::Broken,
                Some(Told::Elsewhere(elsewhere)) => return End::Elsewhere(elsewhere.address),
                Some(told) => take(port, appliance, &stream.said, told, renewed),
            },
            _ = queue.tick() => {
                let is_ours = lock(&port.said).is_some();
                let said = Said::QueueMs(appliance.queue_ms());
                if !is_ours || stream.said.try_send(said).is_err() {
                    return End::Broken;
                }
            }
        }
    }
}

fn take(
    port: &Port,
    appliance: &Appliance,
    said: &mpsc::Sender<Said>,
    told: Told,
    renewed: Option<&OwnRenewed>,
) {
    match told {
        Told::Welcome(welcome) => {
            let revoked = welcome.revoked.iter();
            let revoked = revoked
                .filter_map(|guest| GuestId::from_slice(guest))
                .collect();
            *lock(&port.revoked) = revoked;
            tracing::info!("the controller knows this appliance");
        }
        Told::Place(place) => appliance.place(place),
        Told::Warm(warm) => {
            if let Some(warmth) = appliance.warmth(warm) {
                // Without room it is colder where the guest goes.
                let _ = said.try_send(Said::Warmth(warmth));
            }
        }
        Told::Warmth(warmth) => {
            let taken = appliance.warm(warmth);
            tracing::debug!(taken, "verdicts from another appliance");
        }
        Told::Renewal(renewal) => {
            if let Some(answer) = port.renewals.take(renewal.ticket) {
                answer(if renewal.chain.is_empty() {
                    Err(renewal.refused)
                } else {
                    Ok(renewal.chain)
                });
            }
        }
        Told::Turn(told) => {
            if let Some(answer) = port.turns.take(told.ticket) {
                answer(told.turn);
            }
        }
        Told::TurnOver(over) => appliance.take_turn_back(&over),
        Told::Revoked(guest) => {
            if let Some(guest) = GuestId::from_slice(&guest) {
                lock(&port.revoked).insert(guest);
                appliance.end_guest(guest);
            }
        }
        Told::RenewedSelf(renewal) => {
            if let Some(renewed) = renewed {
                renewed(renewal);
            }
        }
        Told::Rekey(rekey) => appliance.rekey(&rekey),
        Told::Elsewhere(_) | Told::Alive(_) => {}
    }
}

/// What this appliance says of itself.
pub(crate) fn hello(config: &appliance::Config, address: String) -> v1::FleetHello {
    let fleet = &config.fleet;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    v1::FleetHello {
        address,
        host: text(&fleet.host),
        cluster: text(&fleet.cluster),
        site: text(&fleet.site),
        capacity: fleet.capacity.get(),
        labels: fleet.labels.clone(),
    }
}
