//! The streams of appliances: what each says goes to the fleet, what the fleet wants goes back.
//! The same for an appliance in this process and for one behind TLS.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use daemon::log::RateLimit;
use fleet_core::{ApplianceHello, Clock, GuestFacts, TurnAnswer, TurnAsk};
use model::{ChannelId, GuestId, Machine};
use pki::KeyId;
use placement::{ApplianceId, LeaseId, WorkKind};
use proto::v1;
use proto::v1::fleet_order::Body as Told;
use proto::v1::fleet_said::Body as Said;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::mpsc;

use super::service::{Fleet, Lead, NotLeading, Standing};
use crate::{Authority, Refusal, Rekey};

/// An appliance says who it is within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The controller says so often that it is there.
pub(super) const ALIVE_EVERY: Duration = Duration::from_secs(3);
/// An appliance that says nothing for so long has lost its stream.
const SILENT_MAX: Duration = Duration::from_secs(12);
/// Labels of one appliance, and bytes of each and of its other texts.
const LABELS_MAX: usize = 64;
const TEXT_MAX_BYTES: usize = 255;
/// Channels of one appliance.
const CHANNELS_MAX: usize = 4096;
/// Revoked guests in the first frame: 18 bytes each.
const WELCOME_REVOKED_MAX: usize = 10_000;

static LOG_ENDS: RateLimit = RateLimit::new(60);

/// Serves one appliance, whose name its certificate has shown, until its stream ends or this
/// controller is no longer the placer.
pub async fn serve(
    fleet: Fleet,
    authority: Arc<Authority>,
    name: String,
    said: mpsc::Receiver<Said>,
    told: mpsc::Sender<Told>,
) {
    let mut stream = Stream {
        fleet,
        authority,
        name,
        said,
        told,
    };
    let why = stream.run().await;
    if let Some(suppressed) = LOG_ENDS.allow(Instant::now()) {
        tracing::info!(
            appliance = stream.name,
            why,
            suppressed,
            "an appliance's stream ended"
        );
    }
}

const NOT_THE_PLACER: &str = "this controller is no longer the placer";
const NOT_GOOD: &str = "a newer one has taken its place, or the appliance read too little";

/// Whose stream it is, and which one.
#[derive(Clone, Copy)]
struct Attached {
    id: ApplianceId,
    number: u64,
}

struct Stream {
    fleet: Fleet,
    authority: Arc<Authority>,
    name: String,
    said: mpsc::Receiver<Said>,
    told: mpsc::Sender<Told>,
}

impl Stream {
    async fn run(&mut self) -> &'static str {
        let hello = tokio::time::timeout(HELLO_TIMEOUT, self.said.recv()).await;
        let Ok(Some(Said::Hello(hello))) = hello else {
            return "it did not say who it is";
        };
        let hello = match self.read(hello) {
            Ok(hello) => hello,
            Err(problem) => return problem,
        };
        let sink = self.told.clone();
        let attached = self.fleet.with(move |lead, clock| {
            let id = lead.core.appliance_up(clock, hello);
            let sink = move |body| sink.try_send(body).is_ok();
            let number = lead.attach(id, Box::new(sink));
            Attached { id, number }
        });
        let own = match attached.await {
            Ok(attached) => attached,
            Err(NotLeading(address)) => {
                let _ = self
                    .told
                    .send(Told::Elsewhere(v1::FleetElsewhere { address }))
                    .await;
                return "another controller is the placer";
            }
        };
        self.welcome().await;
        let (why, said_goodbye) = self.listen(own).await;
        let detached = self.fleet.with(move |lead, clock| {
            lead.detach(clock, own.id, own.number, said_goodbye);
        });
        // Who places now finds out by itself.
        let _ = detached.await;
        why
    }

    fn read(&self, hello: v1::FleetHello) -> Result<ApplianceHello, &'static str> {
        let texts = [&hello.address, &hello.host, &hello.cluster, &hello.site];
        let labels = &hello.labels;
        let is_long = |text: &String| text.len() > TEXT_MAX_BYTES;
        if texts.into_iter().any(is_long) || labels.len() > LABELS_MAX || labels.iter().any(is_long)
        {
            return Err("what it says of itself is too long");
        }
        if hello.address.is_empty() || hello.capacity == 0 {
            return Err("it has no address or no capacity");
        }
        let some = |text: String| (!text.is_empty()).then_some(text);
        Ok(ApplianceHello {
            name: self.name.clone(),
            address: hello.address,
            host_name: some(hello.host),
            cluster: some(hello.cluster),
            site: some(hello.site),
            capacity: hello.capacity,
            labels: hello.labels,
        })
    }

    /// Why it ended, and whether the appliance said that it stops.
    async fn listen(&mut self, own: Attached) -> (&'static str, bool) {
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                said = self.said.recv() => {
                    heard = Instant::now();
                    match said {
                        None => return ("it is gone", false),
                        Some(Said::Leaving(_)) => return ("the appliance stops", true),
                        Some(said) => if let Err(why) = self.take(own, said).await {
                            return (why, false);
                        },
                    }
                }
                _ = alive.tick() => {
                    if heard.elapsed() >= SILENT_MAX {
                        return ("it says nothing", false);
                    }
                    if let Standing::Follows(address) = self.fleet.standing() {
                        let _ = self.told.send(Told::Elsewhere(v1::FleetElsewhere { address })).await;
                        return (NOT_THE_PLACER, false);
                    }
                    if let Err(why) = self.heard(own, |_, _| ()).await {
                        return (why, false);
                    }
                    // Full: it is told other things enough, or reads nothing.
                    let _ = self.told.try_send(Told::Alive(true));
                }
            }
        }
    }

    /// Has the placer take something in, unless the stream is over: what one says that was replaced
    /// is older than what the newer one said.
    ///
    /// # Errors
    /// Why the stream is over.
    async fn heard<T: Send + 'static>(
        &self,
        own: Attached,
        take_in: impl FnOnce(&mut Lead, Clock) -> T + Send + 'static,
    ) -> Result<T, &'static str> {
        let taken = self.fleet.with(move |lead, clock| {
            let is_good = lead.is_good(own.id, own.number);
            is_good.then(|| take_in(lead, clock))
        });
        match taken.await {
            Ok(taken) => taken.ok_or(NOT_GOOD),
            Err(NotLeading(_)) => Err(NOT_THE_PLACER),
        }
    }

    async fn take(&self, own: Attached, said: Said) -> Result<(), &'static str> {
        let id = own.id;
        match said {
            Said::GuestsUp(up) => self.guests_up(own, &up).await,
            Said::GuestDown(guest) => {
                let Some(guest) = GuestId::from_slice(&guest) else {
                    return Ok(());
                };
                self.heard(own, move |lead, clock| {
                    lead.core.guest_down(clock, id, guest);
                })
                .await
            }
            Said::Nearness(near) => {
                let Some(guest) = GuestId::from_slice(&near.guest_id) else {
                    return Ok(());
                };
                self.heard(own, move |lead, clock| {
                    let core = &mut lead.core;
                    core.measured(clock, guest, &near.appliance, near.rtt_us);
                })
                .await
            }
            Said::Channels(told) => {
                let held = told.channels.iter().take(CHANNELS_MAX);
                let held: BTreeSet<_> = held.filter_map(|id| ChannelId::from_slice(id)).collect();
                self.heard(own, move |lead, clock| {
                    lead.core.appliance_channels(clock, id, &held);
                })
                .await
            }
            Said::QueueMs(queue_ms) => {
                self.heard(own, move |lead, clock| {
                    lead.core.appliance_queue(clock, id, queue_ms);
                })
                .await
            }
            Said::Warmth(mut warmth) => {
                self.heard(own, move |lead, _| {
                    let to = std::mem::take(&mut warmth.appliance);
                    if let Some(to) = lead.core.find_appliance(&to) {
                        lead.send(to, Told::Warmth(warmth));
                    }
                })
                .await
            }
            Said::AskTurn(asked) => self.ask_turn(own, asked).await,
            Said::TurnOver(over) => {
                let Some(guest) = GuestId::from_slice(&over.guest_id) else {
                    return Ok(());
                };
                self.heard(own, move |lead, clock| {
                    lead.core.turn_over(clock, guest, LeaseId(over.turn_id));
                })
                .await
            }
            Said::RenewGuest(renew) => {
                self.renew_guest(renew);
                Ok(())
            }
            Said::RenewSelf(csr) => {
                self.renew_self(&csr);
                Ok(())
            }
            Said::Hello(_) | Said::Leaving(_) => Ok(()),
        }
    }

    async fn guests_up(&self, own: Attached, up: &v1::GuestsUp) -> Result<(), &'static str> {
        let ids = up.guests.iter().map(|up| GuestId::from_slice(&up.guest_id));
        self.authority.know(ids.flatten().collect()).await;
        let guests: Vec<_> = up.guests.iter().filter_map(|up| self.guest(up)).collect();
        self.heard(own, move |lead, clock| {
            for (guest, facts) in guests {
                lead.core.guest_up(clock, own.id, guest, facts);
            }
        })
        .await
    }

    fn renew_self(&self, csr: &[u8]) {
        let renewed = self
            .authority
            .renew_appliance(&self.name, csr, SystemTime::now());
        let _ = self.told.try_send(Told::RenewedSelf(renewal(0, renewed)));
    }

    /// Welcomes the appliance, with who is revoked: what one frame cannot hold comes one by one. It
    /// knows these alone from then on. So whoever is revoked between the look and the welcome is told
    /// again after it.
    async fn welcome(&self) {
        let mut ended = self.authority.ended();
        let revoked = self.authority.revoked(SystemTime::now());
        let mut revoked = revoked.iter().map(|guest| guest.0.to_vec());
        let first = revoked.by_ref().take(WELCOME_REVOKED_MAX).collect();
        let welcome = Told::Welcome(v1::FleetWelcome { revoked: first });
        let _ = self.told.send(welcome).await;
        for guest in revoked {
            if self.told.send(Told::Revoked(guest)).await.is_err() {
                return;
            }
        }
        loop {
            let guests = match ended.try_recv() {
                Ok(guest) => vec![guest],
                Err(TryRecvError::Lagged(_)) => self.authority.revoked(SystemTime::now()),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            };
            for guest in guests {
                if self
                    .told
                    .send(Told::Revoked(guest.0.to_vec()))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    }

    async fn ask_turn(&self, own: Attached, asked: v1::AskGuestTurn) -> Result<(), &'static str> {
        let guest = GuestId::from_slice(&asked.guest_id);
        let (Some(guest), Some(ask)) = (guest, asked.ask.and_then(|ask| turn_ask(&ask))) else {
            return Ok(());
        };
        let question = (own.id, asked.ticket);
        self.heard(own, move |lead, clock| {
            lead.core.order_turn(clock, question, guest, ask);
        })
        .await
    }

    fn guest(&self, up: &v1::GuestUp) -> Option<(GuestId, GuestFacts)> {
        let guest = GuestId::from_slice(&up.guest_id)?;
        let member = self.authority.guest(guest);
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let machine = up.machine.as_ref().map(Machine::try_from);
        let vm = member.as_ref().and_then(|member| member.vm.as_ref());
        let facts = GuestFacts {
            uuid: member.as_ref().and_then(|it| it.machine.system_uuid),
            address: up.address.parse().unwrap_or(unknown),
            hostname: up.hostname.clone(),
            epoch: up.placement_epoch,
            channel: ChannelId::from_slice(&up.channel),
            key: up.key_id.as_slice().try_into().ok(),
            machine: machine.and_then(Result::ok).unwrap_or_default(),
            vm: vm.map(|vm| (vm.connector.clone(), vm.id.clone())),
            known: member.map(|member| member.known()),
        };
        Some((guest, facts))
    }

    /// Answers when it is written down; the stream goes on meanwhile.
    fn renew_guest(&self, renew: v1::RenewGuest) {
        let (authority, fleet) = (self.authority.clone(), self.fleet.clone());
        let told = self.told.clone();
        tokio::spawn(async move {
            let ticket = renew.ticket;
            let renewed = renew_guest(&authority, &fleet, &renew).await;
            let _ = told.try_send(Told::Renewal(renewal(ticket, renewed)));
        });
    }
}

/// The next certificates of a guest, from the controller that places: for the same identity, or for
/// one of its own where it asks for that. A copy that asks for the same is told to re-key, and
/// renewed: its own may have to wait for a person.
///
/// # Errors
/// [`Refusal`].
pub async fn renew_guest(
    authority: &Authority,
    fleet: &Fleet,
    renew: &v1::RenewGuest,
) -> Result<Vec<pki::CertificateDer<'static>>, Refusal> {
    let now = SystemTime::now();
    let guest = GuestId::from_slice(&renew.guest_id).ok_or(Refusal::UnknownGuest)?;
    let machine = renew.machine.as_ref().map(Machine::try_from).transpose();
    let machine = machine.map_err(|_| Refusal::Field("machine"))?;
    let machine = machine.unwrap_or_default();
    let key = KeyId::from_slice(&renew.key_id);
    // A guest is judged by its sessions and by those of its copies, which the placer alone knows.
    authority.know(vec![guest]).await;
    let known = authority.guest(guest).ok_or(Refusal::UnknownGuest)?.known();
    let judged = {
        let (machine, asks) = (machine.clone(), renew.clone());
        fleet.with(move |lead, clock| {
            let key = key.map(|key| key.0);
            let judged = lead.core.may_renew(clock, guest, key, &machine, &known);
            if let Err(copy) = &judged
                && !asks.rekey
            {
                let reason = copy.0.clone();
                lead.send_all(&Told::Rekey(v1::RekeyGuest {
                    guest_id: asks.guest_id,
                    key_id: asks.key_id,
                    machine: asks.machine,
                    reason,
                }));
            }
            judged
        })
    };
    let judged = judged.await.map_err(|NotLeading(_)| Refusal::NotPlacer)?;
    if renew.rekey {
        let asks = Rekey {
            of: guest,
            shown: key,
            machine: &machine,
            is_seen: judged.is_err(),
        };
        return authority.rekey(asks, &renew.csr, now).await;
    }
    match judged {
        Ok(()) => authority.renew(guest, key, &renew.csr, now).await,
        Err(_copy) => authority.renew_copy(guest, &renew.csr, now),
    }
}

/// `None`: not a kind of work that this version knows.
fn turn_ask(ask: &v1::AskTurn) -> Option<TurnAsk> {
    let kind = match ask.kind() {
        v1::TurnKind::Unspecified => return None,
        v1::TurnKind::Scan => WorkKind::Scan,
        v1::TurnKind::Sweep => WorkKind::Sweep,
        v1::TurnKind::ContentUpdate => WorkKind::ContentUpdate,
    };
    Some(TurnAsk {
        kind,
        again: (ask.turn_id != 0).then_some(LeaseId(ask.turn_id)),
        takes: Duration::from_secs(ask.takes_s.into()),
        within: Duration::from_secs(ask.within_s.into()),
    })
}

/// As a guest is told.
pub(super) fn turn(answer: TurnAnswer) -> v1::Turn {
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    match answer {
        TurnAnswer::Begin { turn, ends_in } => v1::Turn {
            turn_id: turn.map_or(0, |turn| turn.0),
            ends_in_ms: millis(ends_in),
            ..v1::Turn::default()
        },
        TurnAnswer::Wait { turn, wait } => v1::Turn {
            turn_id: turn.0,
            // 0 would be now.
            wait_ms: millis(wait).max(1),
            ..v1::Turn::default()
        },
        TurnAnswer::Refused {
            why,
            possible_within,
        } => v1::Turn {
            refused: why.to_string(),
            // Rounded up: what is just too short is refused again.
            possible_within_s: possible_within.map_or(0, |within| millis(within).div_ceil(1000)),
            ..v1::Turn::default()
        },
    }
}

fn renewal(
    ticket: u64,
    renewed: Result<Vec<pki::CertificateDer<'static>>, Refusal>,
) -> v1::Renewal {
    match renewed {
        Ok(chain) => v1::Renewal {
            ticket,
            chain: chain.iter().map(|cert| cert.to_vec()).collect(),
            refused: String::new(),
        },
        Err(refused) => v1::Renewal {
            ticket,
            chain: Vec::new(),
            refused: refused.to_string(),
        },
    }
}
