//! Asking the appliance: one exchange for each file, over one session of its own.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use allowlist::Shelf;
use chunks::Manifest;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use link::Priority;
use link::client::{Client, Config, Handler, SendError};
use literal_filter::Pack;
use model::{Generation, Policy};
use proto::v1::{self, envelope::Body};

use super::content::Candidate;
use super::filter::Kept;
use super::halt::Halt;
use crate::transfer::{Sending, Stopped, asked_ranges};
use crate::turns::Said;

/// Longest wait for an answer, or for the next sign of one, before a file is given up. The
/// appliance has its own, much shorter limits: this one only keeps a lost answer from ending the
/// scan.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(600);
/// Longest wait for the appliance to take a piece of content.
const DATA_WAIT_MAX: Duration = Duration::from_secs(120);
/// How often a waiting thread looks whether the scan is halted.
const GLANCE: Duration = Duration::from_millis(100);
/// Frames of one exchange that may wait for its thread.
const EVENTS_MAX: usize = 16;
/// Words about turns that wait for whoever waits for one.
const SAID_MAX: usize = 8;

/// The appliance in use, as it said.
#[derive(Debug, Clone)]
pub(crate) struct Appliance {
    pub(crate) generation: Generation,
    pub(crate) policy: Policy,
    pub(crate) in_flight_max: u32,
}

/// There is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The scan is halted: stopped by a person, or without an appliance for too long.
    Halted,
    /// For this file alone: why.
    GivenUp(&'static str),
}

enum Event {
    Need(v1::Need),
    Reply(Box<v1::CheckReply>),
    Down,
}

/// What became of one exchange.
enum Exchanged {
    Reply(Box<v1::CheckReply>),
    /// The session is over: ask again in the next one.
    Down,
}

/// A link to an appliance, and the exchanges on it.
pub(crate) struct Session {
    client: Client,
    shared: Arc<Shared>,
    patience: Duration,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    shelf: Option<Arc<Shelf>>,
    filter: Mutex<Kept>,
}

struct State {
    appliance: Option<Appliance>,
    down_since: Instant,
    /// The last reason why there is no appliance.
    trouble: String,
    exchanges: HashMap<u64, Sender<Event>>,
    /// What was said of turns and is not taken yet.
    turns: Vec<Said>,
}

impl State {
    /// The latest count: there is one question at a time.
    fn said_of_turns(&mut self, said: Said) {
        if self.turns.len() >= SAID_MAX {
            self.turns.remove(0);
        }
        self.turns.push(said);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Not to be waited for with the state's lock held: a file may be read under it.
    fn filter(&self) -> MutexGuard<'_, Kept> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Shared {
    fn up(&self, welcome: &v1::Welcome) {
        let appliance = read_welcome(welcome);
        let mut state = self.lock();
        match appliance {
            Ok(appliance) => state.appliance = Some(appliance),
            Err(trouble) => state.trouble = trouble,
        }
        self.changed.notify_all();
    }

    fn down(&self, why: &str) {
        self.filter().lost();
        let mut state = self.lock();
        if state.appliance.take().is_some() {
            state.down_since = Instant::now();
        }
        state.trouble = why.to_owned();
        for (_, exchange) in state.exchanges.drain() {
            // A full channel holds events of the same dead session: its thread finds out when it
            // sends, or by the channel's end.
            let _full = exchange.try_send(Event::Down);
        }
    }

    fn frame(&self, envelope: v1::Envelope) {
        let id = envelope.request_id;
        if let Some(Body::FilterOffer(offer)) = &envelope.body {
            self.filter().offered(offer);
            return;
        }
        let mut state = self.lock();
        match envelope.body {
            Some(Body::Need(need)) => {
                if let Some(exchange) = state.exchanges.get(&id) {
                    let _flooded = exchange.try_send(Event::Need(need));
                }
            }
            Some(Body::CheckReply(reply)) => {
                if let Some(exchange) = state.exchanges.remove(&id) {
                    let _flooded = exchange.try_send(Event::Reply(Box::new(reply)));
                }
            }
            Some(Body::ContentChanged(changed)) => {
                let generation = Generation::from_slice(&changed.generation);
                if let (Some(appliance), Some(generation)) = (&mut state.appliance, generation) {
                    appliance.generation = generation;
                }
            }
            Some(Body::Policy(policy)) => {
                let policy = Policy::try_from(policy);
                if let (Some(appliance), Ok(policy)) = (&mut state.appliance, policy) {
                    appliance.policy = policy;
                }
            }
            Some(Body::Turn(turn)) => state.said_of_turns(Said::Answer(id, turn)),
            Some(Body::TurnOver(over)) => state.said_of_turns(Said::Over(over.turn_id)),
            Some(Body::Recall(recall)) => {
                let digests = recall.digests.iter();
                let digests = digests.filter_map(|it| it.as_slice().try_into().ok());
                if let Some(shelf) = &self.shelf {
                    let _known = shelf.recall(&digests.collect::<Vec<_>>());
                }
            }
            _ => {}
        }
    }

    fn unreachable(&self, appliance: &str, why: &str) {
        self.lock().trouble = format!("{appliance}: {why}");
    }
}

fn read_welcome(welcome: &v1::Welcome) -> Result<Appliance, String> {
    let policy = welcome
        .policy
        .clone()
        .ok_or("the appliance gave no policy")?;
    Ok(Appliance {
        generation: Generation::from_slice(&welcome.generation)
            .ok_or("the appliance gave no valid generation")?,
        policy: Policy::try_from(policy).map_err(|error| error.to_string())?,
        in_flight_max: welcome.in_flight_max.max(1),
    })
}

impl Session {
    /// Begins to connect. Without an appliance for longer than `patience` the scan is halted.
    ///
    /// # Errors
    /// The link's threads cannot be started.
    pub(crate) fn start(
        config: Config,
        patience: Duration,
        shelf: Option<Arc<Shelf>>,
        filter: Kept,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                appliance: None,
                down_since: Instant::now(),
                trouble: "no answer yet".into(),
                exchanges: HashMap::new(),
                turns: Vec::new(),
            }),
            changed: Condvar::new(),
            shelf,
            filter: Mutex::new(filter),
        });
        Ok(Self {
            client: Client::start(config, Arc::clone(&shared) as Arc<dyn Handler>)?,
            shared,
            patience,
        })
    }

    /// For certificates that are renewed while a scan runs.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether an appliance is connected.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.lock().appliance.is_some()
    }

    /// The appliance in use. Waits for one; halts the scan where none comes for too long.
    pub(crate) fn appliance(&self, halt: &Halt) -> Result<Appliance, NoAnswer> {
        let mut state = self.shared.lock();
        loop {
            if halt.is_set() {
                return Err(NoAnswer::Halted);
            }
            if let Some(appliance) = &state.appliance {
                return Ok(appliance.clone());
            }
            if state.down_since.elapsed() >= self.patience {
                let s = self.patience.as_secs();
                halt.halt(format!("no appliance for {s} s ({})", state.trouble));
                return Err(NoAnswer::Halted);
            }
            let waited = self.shared.changed.wait_timeout(state, GLANCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// By what content of `size` bytes can be reported on.
    pub(crate) fn filter_for(&self, policy: &Policy, size: u64) -> Option<Arc<Pack>> {
        self.shared.filter().pack_for(policy, size)
    }

    /// Asks about a file, as often as the link breaks meanwhile.
    pub(crate) fn check(
        &self,
        file: &Candidate,
        halt: &Halt,
    ) -> Result<Box<v1::CheckReply>, NoAnswer> {
        loop {
            let compress = self.appliance(halt)?.policy.compress;
            let id = self.client.next_request_id();
            let (sender, events) = bounded(EVENTS_MAX);
            self.shared.lock().exchanges.insert(id, sender);
            let envelope = v1::Envelope {
                request_id: id,
                body: Some(Body::Check(file.to_check(compress))),
            };
            let exchanged = match self.client.send(Priority::OnDemand, envelope) {
                Ok(()) => {
                    let mut sending = Sending::new(
                        &self.client,
                        id,
                        Priority::OnDemand,
                        DATA_WAIT_MAX,
                        compress,
                    );
                    self.exchange(id, &events, file, &mut sending, halt)
                }
                Err(SendError::NotConnected | SendError::Backpressure) => {
                    halt.sleep(GLANCE / 4);
                    Ok(Exchanged::Down)
                }
                Err(SendError::TooLarge) => Err(NoAnswer::GivenUp("its check fits no frame")),
            };
            self.shared.lock().exchanges.remove(&id);
            if let Exchanged::Reply(reply) = exchanged? {
                return Ok(reply);
            }
        }
    }

    /// From the Check sent to its answer.
    fn exchange(
        &self,
        id: u64,
        events: &Receiver<Event>,
        file: &Candidate,
        sending: &mut Sending<'_>,
        halt: &Halt,
    ) -> Result<Exchanged, NoAnswer> {
        let mut last_sign = Instant::now();
        let mut listed = None;
        loop {
            match events.recv_timeout(GLANCE) {
                Ok(Event::Reply(reply)) => return Ok(Exchanged::Reply(reply)),
                Ok(Event::Down) | Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Exchanged::Down);
                }
                Ok(Event::Need(need)) => {
                    match self.serve(id, file, &need, &mut listed, sending, halt) {
                        // Nobody wants it any more: the answer is on its way.
                        Ok(()) | Err(Stopped::NotWanted) => {}
                        Err(Stopped::NotConnected) => return Ok(Exchanged::Down),
                        Err(Stopped::Stalled | Stopped::Failed(_)) => {
                            self.client.cancel(id);
                            return Err(NoAnswer::GivenUp("the appliance took no data in time"));
                        }
                    }
                    last_sign = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if halt.is_set() {
                self.client.cancel(id);
                return Err(NoAnswer::Halted);
            }
            if last_sign.elapsed() >= ANSWER_WAIT_MAX {
                self.client.cancel(id);
                return Err(NoAnswer::GivenUp("no answer in time"));
            }
        }
    }

    /// Sends what is asked for: a report, the list of chunks, or ranges and DataEnd.
    fn serve(
        &self,
        id: u64,
        file: &Candidate,
        need: &v1::Need,
        listed: &mut Option<Manifest>,
        sending: &mut Sending<'_>,
        halt: &Halt,
    ) -> Result<(), Stopped> {
        let sent = if need.report {
            file.report(|| !halt.is_set()).and_then(|found| {
                let (report, groups) = found.unzip();
                *listed = groups.flatten();
                sending.report(report.unwrap_or_default()).map(|()| true)
            })
        } else if need.manifest {
            file.list().and_then(|manifest| {
                *listed = manifest;
                match listed {
                    Some(manifest) => sending.manifest(manifest).map(|()| true),
                    None => Ok(false),
                }
            })
        } else {
            Ok(false)
        };
        let sent = match sent {
            Ok(true) => return Ok(()),
            Ok(false) => {
                let ranges = asked_ranges(&need.ranges, file.size);
                sending.ranges(file, &ranges, listed.as_ref(), |_| !halt.is_set())
            }
            Err(stopped) => Err(stopped),
        };
        let failed = match sent {
            Ok(()) => v1::UnscannedReason::Unspecified,
            Err(Stopped::Failed(reason)) => reason.into(),
            Err(stopped) => return Err(stopped),
        };
        let end = v1::DataEnd {
            failed: failed as i32,
        };
        let envelope = v1::Envelope {
            request_id: id,
            body: Some(Body::DataEnd(end)),
        };
        let sent = self.client.send(Priority::OnDemand, envelope);
        sent.map_err(|_| Stopped::NotConnected)
    }

    /// Asks whether the scan may go on; the request, where the link took it.
    pub(crate) fn ask_turn(&self, ask: v1::AskTurn) -> Option<u64> {
        let request_id = self.client.next_request_id();
        let envelope = v1::Envelope {
            request_id,
            body: Some(Body::AskTurn(ask)),
        };
        let sent = self.client.send(Priority::Control, envelope);
        sent.is_ok().then_some(request_id)
    }

    /// What was said of turns since the last look, in order.
    pub(crate) fn take_turns(&self) -> Vec<Said> {
        std::mem::take(&mut self.shared.lock().turns)
    }

    /// A turn is given back. Where the link breaks, it ends by itself.
    pub(crate) fn turn_over(&self, turn_id: u64) {
        let envelope = v1::Envelope {
            request_id: 0,
            body: Some(Body::TurnOver(v1::TurnOver { turn_id })),
        };
        let _link_broke = self.client.send(Priority::Control, envelope);
    }

    /// Tells how an order ended. It is not repeated where the link breaks: the appliance then
    /// counts the order as unanswered.
    pub(crate) fn report(&self, result: v1::OrderResult) {
        let envelope = v1::Envelope {
            request_id: 0,
            body: Some(Body::OrderResult(result)),
        };
        let _link_broke = self.client.send(Priority::OnDemand, envelope);
    }

    /// Ends the session.
    pub(crate) fn stop(&self) {
        self.client.stop();
    }
}
