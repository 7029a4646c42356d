//! The running appliance: listens, lets guests in, keeps what is in force up to date.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use daemon::metrics::Registry;
use daemon::notify::Progress;
use link::server::{Accepted, Conn, Listener};
use model::{ChannelId, Generation, Machine};
use parking_lot::{Mutex, RwLock};
use proto::v1;
use scan_core::Budget;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::asked::Asked;
use crate::assembly::Spool;
use crate::chunk_store::ChunkStore;
use crate::config::{Config, ConfigConflict};
use crate::detections::{DetectionLimits, Detections, LogError};
use crate::engines::{EngineSet, EngineSetError, EngineSource};
use crate::filters::Filters;
use crate::fleet::{FleetPort, ScanTime};
use crate::force::Force;
use crate::guests::{Arrival, Guests, Turned};
use crate::host_channels::{self, HostChannels};
use crate::identity::Identity;
use crate::images;
use crate::listed;
use crate::metrics::Metrics;
use crate::recheck::ask_guests;
use crate::rejudge;
use crate::released::{ReleaseError, Released};
use crate::removal::Orders;
use crate::reported::Reported;
use crate::retained::Retained;
use crate::scans::Scans;
use crate::session::Session;
use crate::shared::Shared;
use crate::sightings::SightingLog;
use crate::state_dir::StateDir;
use crate::upkeep::{record_sightings, tick, trim_stores};
use crate::verdicts::{Verdicts, VerdictsError};

/// How long a guest that found no room shall stay away.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long sessions may take what is queued for them when the appliance stops.
const STOP_LINGER: Duration = Duration::from_secs(2);

/// How long a session may go on after its certificate before it is remarked upon.
const OUTLIVED_MARGIN: Duration = Duration::from_secs(3600);

static OUTLIVED: daemon::log::RateLimit = daemon::log::RateLimit::new(30);
static TURNED_AWAY: daemon::log::RateLimit = daemon::log::RateLimit::new(30);
static SESSION_ENDS: daemon::log::RateLimit = daemon::log::RateLimit::new(120);

/// What an appliance is made of.
pub struct Setup {
    /// Checked already, except for what only [`Config::validate`] sees.
    pub config: Config,
    /// Where state is kept.
    pub state: StateDir,
    /// Makes engines.
    pub engines: Arc<dyn EngineSource>,
    /// The controller.
    pub identity: Arc<dyn Identity>,
    /// The fleet that it belongs to.
    pub fleet: Arc<dyn FleetPort>,
    /// From `link::tls::server_config`.
    pub tls: Arc<rustls::ServerConfig>,
    /// Where metrics are registered.
    pub registry: Registry,
    /// Told every second that the appliance goes round, for a watchdog.
    pub progress: Arc<Progress>,
}

/// The appliance cannot start; nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Configured values do not go together.
    #[error(transparent)]
    Config(#[from] ConfigConflict),
    /// Engines.
    #[error(transparent)]
    Engines(#[from] EngineSetError),
    /// Verdict stores.
    #[error(transparent)]
    Verdicts(#[from] VerdictsError),
    /// The list of released contents.
    #[error(transparent)]
    Released(#[from] ReleaseError),
    /// What is kept of the allowlists.
    #[error(transparent)]
    Allowlist(#[from] allowlist::Error),
    /// Chunks of images.
    #[error("chunks.images: {0}")]
    Images(#[from] image_chunks::Error),
    /// The log of detections.
    #[error(transparent)]
    Detections(#[from] LogError),
    /// The address cannot be listened on.
    #[error("listen.link: cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The system gives no random bytes.
    #[error(transparent)]
    NoRandomness(pki::NoRandomness),
}

/// A reload was refused; what was in force stays.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Configured values do not go together.
    #[error(transparent)]
    Config(#[from] ConfigConflict),
    /// Engines.
    #[error(transparent)]
    Engines(#[from] EngineSetError),
    /// Chunks of images.
    #[error("chunks.images: {0}")]
    Images(#[from] image_chunks::Error),
    /// A thread that reads them ended badly.
    #[error("chunks.images: the thread that reads them ended badly")]
    Broken,
}

/// A running appliance.
pub struct Appliance {
    pub(crate) shared: Arc<Shared>,
    source: Arc<dyn EngineSource>,
    /// The configuration in force. Held over a reload, so that they come one after the other.
    config: Arc<AsyncMutex<Config>>,
    listener: Arc<ListenerControl>,
    address: SocketAddr,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    following: Mutex<Option<JoinHandle<()>>>,
    state: StateDir,
}

/// What other tasks tell the one that accepts.
#[derive(Default)]
struct ListenerControl {
    tls: Mutex<Option<Arc<rustls::ServerConfig>>>,
    told: Notify,
}

impl Appliance {
    /// Starts engines, opens what is kept, and listens.
    ///
    /// # Errors
    /// [`StartError`]: what and where.
    pub async fn start(setup: Setup) -> Result<Self, StartError> {
        let Setup {
            config,
            state,
            engines: source,
            identity,
            fleet,
            tls,
            registry,
            progress,
        } = setup;
        config.validate()?;
        let engines = source.load(&config).await?;
        let settings = config.unpack.settings();
        let engines = EngineSet { engines, settings };
        let shared = build(&config, &state, engines, (identity, fleet), &registry)?;
        shared.follow_filter().await;
        let address = config.listen.link;
        let limits = link::server::Limits {
            sessions_max: config.limits.sessions_max.count(),
            ..link::server::Limits::default()
        };
        let listener = Listener::bind(address, tls, limits)
            .await
            .map_err(|source| StartError::Bind { address, source })?;
        let address = listener.local_addr();
        let flush_every = config.sightings.flush_every();
        let folders = config.fleet.channels.clone();
        let config = Arc::new(AsyncMutex::new(config));
        let control = Arc::new(ListenerControl::default());
        let tasks = vec![
            tokio::spawn(accept(shared.clone(), listener, control.clone())),
            tokio::spawn(tick(shared.clone(), config.clone(), progress)),
            tokio::spawn(trim_stores(shared.clone())),
            tokio::spawn(record_sightings(shared.clone(), flush_every)),
            tokio::spawn(host_channels::keep(shared.clone(), folders)),
        ];
        let in_force = config.lock().await.clone();
        let appliance = Self {
            shared,
            source,
            config,
            listener: control,
            address,
            tasks: Mutex::new(tasks),
            following: Mutex::new(None),
            state,
        };
        appliance.follow_rules(in_force);
        Ok(appliance)
    }

    /// Where agents connect to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The content generation in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.shared.force().generation
    }

    /// Uses another certificate from the next handshake on.
    pub fn set_tls(&self, tls: Arc<rustls::ServerConfig>) {
        *self.listener.tls.lock() = Some(tls);
        self.listener.told.notify_one();
    }

    /// Brings engines, policy, removal and limits to a new configuration, at once for everybody.
    /// Addresses, the state folder and the sizes of stores keep what they had at the start.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed.
    pub async fn reload(&self, config: Config) -> Result<Generation, ReloadError> {
        let mut in_force = self.config.lock().await;
        let result = self.bring_in(&config).await;
        let name = if result.is_ok() { "done" } else { "refused" };
        self.shared.metrics.kept.reloads.with([name]).inc();
        if result.is_ok() {
            *in_force = config;
        }
        result
    }

    async fn bring_in(&self, config: &Config) -> Result<Generation, ReloadError> {
        config.validate()?;
        let own = config.clone();
        let images = tokio::task::spawn_blocking(move || images::open(&own)).await;
        let images = images.map_err(|_| ReloadError::Broken)??;
        let engines = self.source.load(config).await?;
        let shared = &self.shared;
        let settings = config.unpack.settings();
        let engines = Arc::new(EngineSet { engines, settings });
        let force = Arc::new(Force::new(config, &engines.facts()));
        let limits = force.limits.queue(engines.workers());
        shared.budget.lock().set_limits(force.limits.budget());
        shared.scans.set_limits(limits);
        shared.chunks.set_limits(config.chunk_limits());
        images::tell(&images);
        shared.chunks.set_images(images);
        *shared.engines.write() = engines;
        let generation = force.generation;
        put_in_force(shared, force);
        shared.follow_filter().await;
        self.follow_rules(config.clone());
        Ok(generation)
    }

    /// In the background: nobody waits until it is known what is new.
    fn follow_rules(&self, config: Config) {
        let (shared, source) = (self.shared.clone(), self.source.clone());
        let manifest = self.state.rule_manifest();
        let following = async move {
            let recheck = config.recheck.clone();
            rejudge::follow_rules(shared.clone(), source, config, manifest).await;
            ask_guests(shared, recheck).await;
        };
        // One at a time: the one before is given up.
        if let Some(before) = self.following.lock().replace(tokio::spawn(following)) {
            before.abort();
        }
    }

    /// Says Goodbye to everybody and stops. Scans that run are given up; detections are on disk.
    pub async fn stop(&self) {
        for session in self.shared.guests.everybody() {
            session.outbox.goodbye("the appliance stops");
        }
        let patience = Instant::now() + STOP_LINGER;
        while Instant::now() < patience && !self.shared.guests.everybody().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.extend(self.following.lock().take());
        for task in tasks {
            task.abort();
            // Aborted, or ended by itself: either way it is over.
            let _over = task.await;
        }
        self.shared.sightings.flush().await;
        self.shared.verdicts.flush().await;
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let following = self.following.lock();
        let tasks = self.tasks.lock();
        tasks
            .iter()
            .chain(following.as_ref())
            .for_each(JoinHandle::abort);
    }
}

pub(crate) fn build(
    config: &Config,
    state: &StateDir,
    engines: EngineSet,
    (identity, fleet): (Arc<dyn Identity>, Arc<dyn FleetPort>),
    registry: &Registry,
) -> Result<Arc<Shared>, StartError> {
    let force = Force::new(config, &engines.facts());
    let limits = &force.limits;
    let epoch = pki::random().map_err(StartError::NoRandomness)?;
    let (verdicts, sightings) = Verdicts::open(config, state, registry)?;
    let images = images::open(config)?;
    images::tell(&images);
    let shared = Arc::new(Shared {
        name: config.name.clone().unwrap_or_else(host_name),
        started: Instant::now(),
        runtime: tokio::runtime::Handle::current(),
        verdicts,
        sightings: SightingLog::new(sightings, &config.sightings, registry),
        reported: Reported::new(limits.reported_memory_bytes_max.get()),
        filters: Filters::default(),
        retained: Retained::new(limits.retained_bytes_max.get()),
        asked: Asked::new(registry),
        delta: RwLock::new(None),
        scans: Scans::new(limits.queue(engines.workers())),
        budget: Mutex::new(Budget::new(limits.budget())),
        spool: Spool::new(state.spool()),
        chunks: Arc::new(ChunkStore::new(
            Spool::new(state.spool()),
            config.chunk_limits(),
            images,
            registry,
        )),
        guests: Guests::default(),
        host_channels: HostChannels::new(registry),
        orders: Orders::new(epoch),
        detections: Detections::open(
            state.detections(),
            DetectionLimits {
                kept_max: limits.detections_kept_max.count(),
                guest_per_minute_max: limits.guest_detections_per_minute_max.u32(),
                guest_bytes_per_minute_max: limits.guest_detection_bytes_per_minute_max.get(),
                log_bytes_max: limits.detection_log_bytes_max.get(),
                logs_kept: limits.detection_logs_kept.count(),
            },
        )?,
        released: Released::open(state.released())?,
        shelf: listed::open(config, state.path())?,
        metrics: Metrics::new(registry),
        identity,
        fleet,
        scan_time: ScanTime::default(),
        engines: RwLock::new(Arc::new(engines)),
        force: RwLock::new(Arc::new(force)),
    });
    shared.reload_allowlists();
    Ok(shared)
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Replaces what is in force and tells everybody what they must know.
pub(crate) fn put_in_force(shared: &Shared, force: Arc<Force>) {
    let before = std::mem::replace(&mut *shared.force.write(), force.clone());
    if before.generation != force.generation {
        tracing::info!(generation = %force.generation, "another content generation is in force");
        shared.announce_content();
    }
    if before.policy.revision != force.policy.revision {
        shared.announce_policy();
    }
}

async fn accept(shared: Arc<Shared>, mut listener: Listener, control: Arc<ListenerControl>) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Some(session) = let_in(&shared, accepted) {
                    sessions.spawn(session);
                }
            }
            () = control.told.notified() => {
                if let Some(tls) = control.tls.lock().take() {
                    listener.set_tls(tls);
                }
            }
            Some(ended) = sessions.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a session's task ended badly");
                }
            }
        }
    }
}

/// Welcomes a guest, or turns it away.
fn let_in(
    shared: &Arc<Shared>,
    accepted: Accepted,
) -> Option<impl Future<Output = ()> + Send + use<>> {
    let guest = accepted.guest;
    let force = shared.force();
    let limits = &force.limits;
    if shared.identity.is_revoked(guest) {
        turned_away(shared, &accepted, "revoked");
        accepted.refuse("this guest has been revoked", None);
        return None;
    }
    let (all, own) = (
        limits.sessions_max.count(),
        limits.guest_sessions_max.count(),
    );
    let is_gate = !accepted.expired && accepted.hello.role() != v1::SessionRole::Scan;
    // What makes no sense tells nothing.
    let machine = accepted.hello.machine.as_ref();
    let machine = machine.and_then(|machine| Machine::try_from(machine).ok());
    let machine = machine.unwrap_or_default();
    match shared.guests.has_room(guest, all, own) {
        Ok(()) => {}
        // The newer gate takes the older one's place.
        Err(Turned::GuestFull) if is_gate && shared.guests.has_gate_on(guest, &machine) => {}
        Err(turned) => {
            turned_away(shared, &accepted, &turned.to_string());
            accepted.refuse(&turned.to_string(), Some(RETRY_AFTER));
            return None;
        }
    }
    let certificate_until = (!accepted.expired).then_some(accepted.not_after);
    let (hostname, address) = (accepted.hello.hostname.clone(), accepted.addr);
    let placement_epoch = accepted.hello.placement_epoch;
    let channel = ChannelId::from_slice(&accepted.hello.channel);
    let key = accepted.key;
    let conn = accepted.welcome(v1::Welcome {
        version: 0,
        appliance: shared.name.clone(),
        generation: force.generation.0.to_vec(),
        policy: Some(force.policy_wire.clone()),
        in_flight_max: limits.in_flight_max.u32(),
    });
    let arrival = Arrival {
        guest,
        hostname,
        address,
        is_gate,
        placement_epoch,
        channel,
        key,
        machine,
        outbox: Arc::new(conn.sender()),
    };
    let session = Session::enter(shared.clone(), arrival);
    // What changed between the Welcome and the entry was announced without it.
    let now = shared.force();
    if now.generation != force.generation || now.policy.revision != force.policy.revision {
        shared.announce_content();
        shared.announce_policy();
    }
    Some(serve(session, conn, certificate_until))
}

fn turned_away(shared: &Shared, accepted: &Accepted, why: &str) {
    shared
        .metrics
        .guests
        .sessions_ended
        .with(["turned_away"])
        .inc();
    if let Some(suppressed) = TURNED_AWAY.allow(std::time::Instant::now()) {
        tracing::warn!(guest = %accepted.guest, address = %accepted.addr, why, suppressed,
            "a guest was turned away");
    }
}

/// True once: the session goes on although the certificate it began with is long over. It is not
/// ended: an agent that renews in time keeps its connection.
fn has_outlived(certificate_until: &mut Option<SystemTime>, now: SystemTime) -> bool {
    let since = certificate_until.and_then(|until| now.duration_since(until).ok());
    let is_over = since.is_some_and(|since| since > OUTLIVED_MARGIN);
    is_over && certificate_until.take().is_some()
}

async fn serve(session: Session, mut conn: Conn, mut certificate_until: Option<SystemTime>) {
    let cause = loop {
        match conn.recv().await {
            Ok(Some(envelope)) => {
                if has_outlived(&mut certificate_until, SystemTime::now())
                    && let Some(suppressed) = OUTLIVED.allow(std::time::Instant::now())
                {
                    tracing::info!(guest = %session.guest(), suppressed,
                        "a session goes on after the certificate it began with");
                }
                if let Err(breach) = session.handle(envelope) {
                    conn.sender().refuse(&breach.to_string());
                    break ("breach", breach.to_string());
                }
            }
            Ok(None) => break ("left", String::new()),
            Err(error) => {
                let cause = match &error {
                    link::server::RecvError::Violation(_) => "violation",
                    link::server::RecvError::Closed(_) => "closed",
                };
                break (cause, error.to_string());
            }
        }
    };
    let (cause, why) = cause;
    session
        .shared
        .metrics
        .guests
        .sessions_ended
        .with([cause])
        .inc();
    if let Some(suppressed) = SESSION_ENDS.allow(std::time::Instant::now()) {
        let why = daemon::log::escape(why.as_bytes());
        tracing::info!(guest = %session.guest(), cause, %why, suppressed, "session ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_outlives_its_certificate_is_remarked_once() {
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut certificate_until = Some(until);
        assert!(!has_outlived(
            &mut certificate_until,
            until + OUTLIVED_MARGIN
        ));
        let later = until + OUTLIVED_MARGIN + Duration::from_secs(1);
        assert!(has_outlived(&mut certificate_until, later));
        assert!(!has_outlived(&mut certificate_until, later));
        assert!(!has_outlived(&mut None, later));
    }
}
