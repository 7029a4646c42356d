//! The placer's loop: what is said is applied, then written down, then told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fleet_core::{Clock, Core, CoreSettings, Note, Order, Row, SiteRules, VmSeen};
use placement::ApplianceId;
use proto::v1;
use proto::v1::fleet_order::Body;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::store::{CommitError, Lease, Store, StoreError};
use crate::{Authority, chain};

/// How often time is looked at.
const TICK: Duration = Duration::from_millis(250);
/// The lease's life; whoever is the placer extends it with every change, and every third of it.
const LEASE: Duration = Duration::from_secs(6);
/// A controller that is not the placer looks so often whether it may be.
const LEAD_AGAIN: Duration = Duration::from_secs(1);
/// After a change could not be written down.
const WRITE_AGAIN: Duration = Duration::from_millis(500);
/// What is said and waits to be applied; who says more waits.
const WAITING_MAX: usize = 4096;
/// Applied before what came of it is written down together.
const APPLIED_AT_ONCE: usize = 1024;
/// How long a stop waits for the last rows to be written.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What a controller's fleet is made of.
#[derive(Clone)]
pub struct FleetConfig {
    /// This process among controllers of one database. Equal over restarts where no other
    /// controller can have the database: then a restart need not wait for the lease's end.
    pub holder: String,
    /// How appliances reach this controller. Empty: only from its own process.
    pub address: String,
    /// The numbers.
    pub settings: CoreSettings,
    /// Where things are, and rules.
    pub sites: SiteRules,
    /// Who belongs to the fleet: what is seen of them is written down, and some are retired. `None`:
    /// nobody keeps that.
    pub members: Option<Arc<Authority>>,
    /// When.
    pub retirement: Retirement,
}

/// When members are retired. What is due is looked for so often, and for the first time when
/// sessions are known.
#[derive(Debug, Clone, Copy)]
pub struct Retirement {
    /// How often. 60 s.
    pub look_every: Duration,
    /// For the first time after a start. 120 s.
    pub after_start: Duration,
    /// The VM of a member whose key is in memory has been deleted for so long. 60 s.
    pub deleted_for: Duration,
    /// … whose key is on its disk: that may be registered or brought back. 7 days.
    pub kept_deleted_for: Duration,
}

impl Default for Retirement {
    fn default() -> Self {
        Self {
            look_every: Duration::from_secs(60),
            after_start: Duration::from_secs(120),
            deleted_for: Duration::from_secs(60),
            kept_deleted_for: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// Whether this controller places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It does, in this term.
    Leads(u32),
    /// Another does, which appliances reach here (empty: nobody knows).
    Follows(String),
}

/// This controller is not the placer (any more).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this controller is not the placer{}", leader_hint(.0))]
pub struct NotLeading(pub String);

fn leader_hint(address: &str) -> String {
    if address.is_empty() {
        String::new()
    } else {
        format!("; ask {address}")
    }
}

/// Takes what an appliance is to be sent; false: it is gone, or reads nothing. Never waits.
pub type OrderSink = Box<dyn Fn(Body) -> bool + Send>;

/// The way to an appliance.
struct Stream {
    number: u64,
    sink: OrderSink,
    /// It did not take something, and is told nothing more: with a gap in it an appliance would not
    /// know what it missed. The next stream begins with everything.
    is_broken: bool,
}

impl Stream {
    fn send(&mut self, body: Body) {
        self.is_broken = self.is_broken || !(self.sink)(body);
    }
}

/// What the placer holds while it leads.
pub struct Lead {
    /// The fleet.
    pub core: Core,
    streams: BTreeMap<ApplianceId, Stream>,
    next_stream: u64,
}

impl Lead {
    /// Orders for an appliance go there from now on; the stream's number.
    pub fn attach(&mut self, appliance: ApplianceId, sink: OrderSink) -> u64 {
        self.next_stream += 1;
        let stream = Stream {
            number: self.next_stream,
            sink,
            is_broken: false,
        };
        self.streams.insert(appliance, stream);
        self.next_stream
    }

    /// An appliance's stream ended, unless a newer one has taken its place.
    pub fn detach(
        &mut self,
        clock: Clock,
        appliance: ApplianceId,
        stream: u64,
        said_goodbye: bool,
    ) {
        let newest = self.streams.get(&appliance);
        if newest.is_some_and(|newest| newest.number == stream) {
            self.streams.remove(&appliance);
            self.core.appliance_lost(clock, appliance, said_goodbye);
        }
    }

    /// Whether a stream is the newest of its appliance, and has taken all that it was given. One
    /// that is not is to be ended and detached by whoever reads it.
    #[must_use]
    pub fn is_good(&self, appliance: ApplianceId, stream: u64) -> bool {
        let newest = self.streams.get(&appliance);
        newest.is_some_and(|newest| newest.number == stream && !newest.is_broken)
    }

    /// Sends something to an appliance that has a stream.
    pub fn send(&mut self, to: ApplianceId, body: Body) {
        if let Some(stream) = self.streams.get_mut(&to) {
            stream.send(body);
        }
    }

    /// Sends something to every appliance.
    pub fn send_all(&mut self, body: &Body) {
        for stream in self.streams.values_mut() {
            stream.send(body.clone());
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Place {
                via,
                guest,
                epoch,
                appliances,
            } => self.send(
                via,
                Body::Place(v1::PlaceGuest {
                    guest_id: guest.0.to_vec(),
                    epoch,
                    appliances,
                }),
            ),
            // Where it cannot be sent the guest works without.
            Order::Turn {
                via,
                ticket,
                answer,
            } => {
                let turn = Some(super::stream::turn(answer));
                self.send(via, Body::Turn(v1::GuestTurn { ticket, turn }));
            }
            Order::TurnOver { via, guest, turn } => {
                let over = v1::GuestTurnOver {
                    guest_id: guest.0.to_vec(),
                    turn_id: turn.0,
                };
                self.send(via, Body::TurnOver(over));
            }
            Order::Rekey {
                via,
                guest,
                key,
                machine,
                reason,
            } => {
                let rekey = v1::RekeyGuest {
                    guest_id: guest.0.to_vec(),
                    key_id: key.map_or_else(Vec::new, |key| key.to_vec()),
                    machine: Some((&machine).into()),
                    reason,
                };
                self.send(via, Body::Rekey(rekey));
            }
            Order::Warm { from, to, guest } => {
                let name = self.core.appliance_name(to).unwrap_or_default();
                let warm = v1::WarmGuest {
                    guest_id: guest.0.to_vec(),
                    appliance: name.to_owned(),
                };
                self.send(from, Body::Warm(warm));
            }
        }
    }
}

type Work = Box<dyn FnOnce(Result<(&mut Lead, Clock), NotLeading>) + Send>;

/// The running fleet of a controller. Dropping the last one stops it.
#[derive(Clone)]
pub struct Fleet {
    store: Store,
    work: mpsc::Sender<Work>,
    standing: watch::Receiver<Standing>,
    stop: Arc<watch::Sender<bool>>,
    task: Arc<StopAtEnd>,
}

struct StopAtEnd(JoinHandle<()>);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fleet {
    /// Starts, in the background. With nobody else there it leads when this returns.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn start(store: Store, config: FleetConfig) -> Result<Self, StoreError> {
        let drawn = u64::from_le_bytes(pki::random().unwrap_or_default());
        let seed = store.seed(drawn).await?;
        let (work, waiting) = mpsc::channel(WAITING_MAX);
        let (tell, standing) = watch::channel(Standing::Follows(String::new()));
        let (stop, stopping) = watch::channel(false);
        let mut keeper = Keeper {
            store: store.clone(),
            config,
            seed,
            waiting,
            tell,
            stopping,
            start: Instant::now(),
        };
        let first = keeper.try_lead().await?;
        let task = tokio::spawn(keeper.run(first));
        Ok(Self {
            store,
            work,
            standing,
            stop: Arc::new(stop),
            task: Arc::new(StopAtEnd(task)),
        })
    }

    /// Whether this controller places.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Waits until this controller's standing changes. False: the fleet has ended.
    pub async fn standing_changed(&mut self) -> bool {
        self.standing.changed().await.is_ok()
    }

    /// Does something with the fleet, in order with everything else.
    ///
    /// # Errors
    /// Another controller is the placer.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Lead, Clock) -> T + Send + 'static,
    ) -> Result<T, NotLeading> {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |lead| {
            // Who asked may have gone.
            let _ = answer.send(lead.map(|(lead, clock)| work(lead, clock)));
        });
        let gone = || NotLeading(String::new());
        self.work.send(work).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// VMs that connectors report with this uuid: as the placer sees them, else as it wrote them
    /// down.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn vms_with_uuid(&self, uuid: [u8; 16]) -> Result<Vec<VmSeen>, StoreError> {
        let seen = self.with(move |lead, _| lead.core.vms_with_uuid(uuid));
        match seen.await {
            Ok(seen) => Ok(seen),
            Err(NotLeading(_)) => self.store.vms_with_uuid(uuid).await,
        }
    }

    /// Writes down what is not yet, gives the lease up and ends.
    pub async fn stop(&self) {
        // It resigns after everything that was said before.
        let _ = self.stop.send(true);
        let mut standing = self.standing.clone();
        let ended = async { while standing.changed().await.is_ok() {} };
        // A database that does not answer keeps nobody from stopping.
        let _ = tokio::time::timeout(STOP_PATIENCE, ended).await;
    }

    /// Ends it at once, as a crash would.
    pub fn abort(&self) {
        self.task.0.abort();
    }
}

struct Keeper {
    store: Store,
    config: FleetConfig,
    seed: u64,
    waiting: mpsc::Receiver<Work>,
    tell: watch::Sender<Standing>,
    stopping: watch::Receiver<bool>,
    start: Instant,
}

/// While this controller is the placer.
struct Term {
    lease: Lease,
    lead: Lead,
    notes: Vec<Note>,
    unwritten: Vec<Row>,
    unsent: Vec<Order>,
    written_at: Instant,
    retire_at: Instant,
}

impl Keeper {
    fn is_stopping(&self) -> bool {
        self.waiting.is_closed() || *self.stopping.borrow()
    }

    fn clock(&self) -> Clock {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let millis = wall.unwrap_or_default().as_millis();
        Clock {
            now: self.start.elapsed(),
            wall_ms: u64::try_from(millis).unwrap_or(u64::MAX),
        }
    }

    async fn try_lead(&mut self) -> Result<Option<Term>, StoreError> {
        let FleetConfig {
            holder,
            address,
            settings,
            sites,
            ..
        } = &self.config;
        let Some(lease) = self.store.lead(holder, address, LEASE).await? else {
            let leader = self.store.leader().await?;
            self.tell.send_replace(Standing::Follows(leader));
            return Ok(None);
        };
        let loaded = self.store.load(settings.silence.events_max).await?;
        let ids = (self.seed, lease.term);
        let core = Core::new(self.clock(), settings.clone(), sites.clone(), ids, loaded);
        tracing::info!(term = lease.term, "this controller places");
        self.tell.send_replace(Standing::Leads(lease.term));
        Ok(Some(Term {
            lease,
            lead: Lead {
                core,
                streams: BTreeMap::new(),
                next_stream: 0,
            },
            notes: Vec::new(),
            unwritten: Vec::new(),
            unsent: Vec::new(),
            written_at: Instant::now(),
            retire_at: Instant::now() + self.config.retirement.after_start,
        }))
    }

    async fn run(mut self, first: Option<Term>) {
        let mut term = first;
        loop {
            match term.take() {
                Some(leading) => Box::pin(self.lead(leading)).await,
                None => self.follow().await,
            }
            if self.is_stopping() {
                return;
            }
            term = match self.try_lead().await {
                Ok(term) => term,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the fleet's database");
                    None
                }
            };
        }
    }

    /// Turns everybody away until it is time to look again.
    async fn follow(&mut self) {
        let until = tokio::time::sleep(LEAD_AGAIN);
        tokio::pin!(until);
        loop {
            tokio::select! {
                work = self.waiting.recv() => match work {
                    Some(work) => {
                        let leader = match &*self.tell.borrow() {
                            Standing::Follows(leader) => leader.clone(),
                            Standing::Leads(_) => String::new(),
                        };
                        work(Err(NotLeading(leader)));
                    }
                    None => return,
                },
                () = &mut until => return,
            }
        }
    }

    /// Until the lease is lost, or nobody needs the fleet any more.
    async fn lead(&mut self, mut term: Term) {
        let mut wait = TICK;
        loop {
            let said = tokio::time::timeout(wait, self.waiting.recv()).await;
            if let Ok(Some(work)) = said {
                let clock = self.clock();
                work(Ok((&mut term.lead, clock)));
                for _ in 1..APPLIED_AT_ONCE {
                    let Ok(work) = self.waiting.try_recv() else {
                        break;
                    };
                    work(Ok((&mut term.lead, clock)));
                }
            }
            if self.is_stopping() {
                let settled = self.settle(&mut term).await;
                let resigned = self.store.resign(&term.lease).await;
                tracing::debug!(?settled, ?resigned, "the fleet stops");
                return;
            }
            match self.settle(&mut term).await {
                Ok(more) => wait = if more { Duration::ZERO } else { TICK },
                Err(CommitError::Fenced) => {
                    tracing::warn!("another controller has become the placer");
                    return;
                }
                Err(CommitError::Store(error)) => {
                    // Nothing is sent before it is written; what is there goes on meanwhile.
                    tracing::error!(error = %chain(&error), "the fleet's database: nothing is moved");
                    tokio::time::sleep(WRITE_AGAIN).await;
                }
            }
        }
    }

    /// What was seen of members, before the rows that came of it: a crash between repeats it.
    async fn keep_members(&self, term: &mut Term) -> Result<(), CommitError> {
        let Some(members) = &self.config.members else {
            term.notes.clear();
            return Ok(());
        };
        let now = SystemTime::now();
        if !term.notes.is_empty() {
            let noted = members.note(&term.notes, now).await;
            noted.map_err(CommitError::Store)?;
            term.notes.clear();
        }
        if term.retire_at > Instant::now() {
            return Ok(());
        }
        let retirement = self.config.retirement;
        let mut due = members.may_retire(&retirement, now);
        due.retain(|guest| !term.lead.core.has_session(*guest));
        let retired = members.retire(&due, &retirement, now).await;
        retired.map_err(CommitError::Store)?;
        members.tidy(now).await.map_err(CommitError::Store)?;
        term.retire_at = Instant::now() + retirement.look_every;
        Ok(())
    }

    /// Time, then the disk, then the streams. True: there is more to do right now.
    async fn settle(&mut self, term: &mut Term) -> Result<bool, CommitError> {
        let more = term.lead.core.tick(self.clock());
        term.notes.extend(term.lead.core.take_notes());
        term.unwritten.extend(term.lead.core.take_writes());
        term.unsent.extend(term.lead.core.take_orders());
        self.keep_members(term).await?;
        if !term.unwritten.is_empty() || term.written_at.elapsed() >= LEASE / 3 {
            let events_max = self.config.settings.silence.events_max;
            let commit = self
                .store
                .commit(&term.lease, LEASE, &term.unwritten, events_max);
            commit.await?;
            term.unwritten.clear();
            term.written_at = Instant::now();
        }
        for order in term.unsent.drain(..) {
            term.lead.carry_out(order);
        }
        Ok(more)
    }
}
