//! Accepting guests: TLS and Hello, bounded in time and in number.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use daemon::log::RateLimit;
use model::GuestId;
use pki::KeyId;
use proto::v1;
use proto::v1::envelope::Body;
use rustls::ServerConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::Limits;
use super::conn::{Conn, Shared};
use crate::inbox::Inbox;
use crate::pipe::Pipe;
use crate::queue::Room;

/// Guests that are ready and not yet taken by `accept`.
const READY_MAX: usize = 64;
/// After an accept that failed (no descriptors left), wait so long.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Lines a minute about guests that misbehave, of each kind.
const LOG_PER_MINUTE: u32 = 30;
static LOG_FAILED: RateLimit = RateLimit::new(LOG_PER_MINUTE);
static LOG_VIOLATION: RateLimit = RateLimit::new(LOG_PER_MINUTE);
static LOG_ACCEPT: RateLimit = RateLimit::new(LOG_PER_MINUTE);

/// Accepts agents. Dropping it closes the port; sessions go on.
pub struct Listener {
    local_addr: SocketAddr,
    ready: mpsc::Receiver<Accepted>,
    door: Arc<Door>,
    task: JoinHandle<()>,
}

/// What the accepting task and its handshakes share.
struct Door {
    tls: Mutex<Arc<rustls::ServerConfig>>,
    limits: Limits,
    counters: Arc<Counters>,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    places: Arc<Semaphore>,
}

/// What a listener has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListenerStats {
    /// Handshakes that ended well.
    pub accepted: u64,
    /// Handshakes that failed: wrong certificate, junk, wrong version.
    pub handshakes_failed: u64,
    /// Handshakes that took too long.
    pub handshakes_timed_out: u64,
    /// Connections closed because their address had too many handshakes under way.
    pub over_address_limit: u64,
    /// Sessions closed because the guest broke a rule.
    pub violations: u64,
    /// Sessions closed because the guest was slow or silent.
    pub slow_closed: u64,
    /// Frames that nobody waited for, or of an unknown type.
    pub frames_ignored: u64,
    /// Connections open now, sessions and handshakes.
    pub open: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    handshakes_failed: AtomicU64,
    handshakes_timed_out: AtomicU64,
    over_address_limit: AtomicU64,
    violations: AtomicU64,
    pub(crate) slow_closed: AtomicU64,
    pub(crate) frames_ignored: AtomicU64,
    pub(crate) open: AtomicU64,
}

impl Counters {
    /// Counts and logs a guest that broke a rule.
    pub(crate) fn violation(&self, peer: SocketAddr, what: &str) {
        self.violations.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = LOG_VIOLATION.allow(std::time::Instant::now()) {
            tracing::warn!(%peer, what, suppressed, "a guest broke the protocol");
        }
    }
}

impl Listener {
    /// Listens. Port 0 takes a free one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of `bind`.
    pub async fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        limits: Limits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let local_addr = listener.local_addr()?;
        let door = Arc::new(Door {
            tls: Mutex::new(tls),
            counters: Arc::default(),
            per_address: Mutex::default(),
            places: Arc::new(Semaphore::new(limits.sessions_max)),
            limits,
        });
        let (sender, ready) = mpsc::channel(READY_MAX);
        let task = tokio::spawn(accept_all(listener, Arc::clone(&door), sender));
        Ok(Self {
            local_addr,
            ready,
            door,
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Uses another certificate from the next handshake on.
    pub fn set_tls(&self, tls: Arc<rustls::ServerConfig>) {
        *self.door.tls.lock().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// The next guest whose handshake and Hello are done. Cancel-safe.
    pub async fn accept(&mut self) -> Accepted {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The accepting task ends only with this listener (or with the runtime).
            None => std::future::pending().await,
        }
    }

    /// Counted since the start.
    #[must_use]
    pub fn stats(&self) -> ListenerStats {
        self.door.stats()
    }

    /// A handle for the metrics, which outlives the borrow of `accept`.
    pub fn stats_handle(&self) -> impl Fn() -> ListenerStats + Send + Sync + use<> {
        let door = Arc::clone(&self.door);
        move || door.stats()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept_all(listener: TcpListener, door: Arc<Door>, ready: mpsc::Sender<Accepted>) {
    let handshakes = Arc::new(Semaphore::new(door.limits.handshakes_max));
    loop {
        // Both are awaited before accepting: what is too much waits in the kernel.
        let place = Arc::clone(&door.places).acquire_owned().await;
        let turn = Arc::clone(&handshakes).acquire_owned().await;
        let (Ok(place), Ok(turn)) = (place, turn) else {
            return;
        };
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(suppressed) = LOG_ACCEPT.allow(std::time::Instant::now()) {
                    tracing::error!(%error, suppressed, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(entrance) = Entrance::of(&door, peer.ip()) else {
            let over = &door.counters.over_address_limit;
            over.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (door, ready) = (Arc::clone(&door), ready.clone());
        tokio::spawn(async move {
            let greeted = door.greet(tcp, peer, place).await;
            drop((turn, entrance));
            if let Some(accepted) = greeted {
                // Nobody takes it any more: the connection is dropped.
                let _ = ready.send(accepted).await;
            }
        });
    }
}

/// One of the handshakes that an address may have under way.
struct Entrance {
    door: Arc<Door>,
    address: IpAddr,
}

impl Entrance {
    fn of(door: &Arc<Door>, address: IpAddr) -> Option<Self> {
        let mut counts = door.per_address();
        let count = counts.entry(address).or_default();
        if *count >= door.limits.handshakes_per_address_max {
            return None;
        }
        *count += 1;
        Some(Self {
            door: Arc::clone(door),
            address,
        })
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let mut counts = self.door.per_address();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

impl Door {
    fn per_address(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.per_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> ListenerStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        ListenerStats {
            accepted: of(&counters.accepted),
            handshakes_failed: of(&counters.handshakes_failed),
            handshakes_timed_out: of(&counters.handshakes_timed_out),
            over_address_limit: of(&counters.over_address_limit),
            violations: of(&counters.violations),
            slow_closed: of(&counters.slow_closed),
            frames_ignored: of(&counters.frames_ignored),
            open: of(&counters.open),
        }
    }

    /// TLS and Hello, in the time that both have.
    async fn greet(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> Option<Accepted> {
        let timeout = self.limits.handshake_timeout;
        let greeted = tokio::time::timeout(timeout, self.shake_hands(tcp, peer, place)).await;
        let (counter, why) = match greeted {
            Ok(Ok(accepted)) => {
                self.counters.accepted.fetch_add(1, Ordering::Relaxed);
                return Some(accepted);
            }
            Ok(Err(why)) => (&self.counters.handshakes_failed, why),
            Err(_) => (
                &self.counters.handshakes_timed_out,
                "it took too long".to_owned(),
            ),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = LOG_FAILED.allow(std::time::Instant::now()) {
            tracing::warn!(%peer, why, suppressed, "a guest could not be let in");
        }
        None
    }

    async fn shake_hands(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> Result<Accepted, String> {
        let shared = Arc::new(self.connection(tcp, peer, place)?);
        let mut inbox = Inbox::new();
        let hello = loop {
            match inbox.next().map_err(|error| error.to_string())? {
                Some(first) => match first.body {
                    Some(Body::Hello(hello)) => break hello,
                    _ => return Err("its first frame is no Hello".into()),
                },
                None if shared.read(&mut inbox).await? => {
                    return Err("it closed the connection".into());
                }
                None => {}
            }
        };
        if !shared.pipe.speaks(proto::ALPN_LINK) {
            return Err("it does not say that it speaks this protocol (ALPN)".into());
        }
        let version = crate::version::negotiate(&hello).inspect_err(|why| {
            shared.refuse(why, None);
        })?;
        let certificate = shared.pipe.peer_certificate();
        let certificate = certificate.ok_or("it showed no certificate")?;
        let guest = pki::guest_id_of(&certificate).map_err(|error| error.to_string())?;
        let not_after = pki::not_after_of(&certificate).map_err(|error| error.to_string())?;
        let key = KeyId::of(&certificate).map_err(|error| error.to_string())?;
        Ok(Accepted {
            guest,
            addr: peer,
            hello,
            expired: SystemTime::now() > not_after,
            not_after,
            key,
            version,
            shared,
            inbox,
        })
    }

    fn connection(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> Result<Shared, String> {
        let set_up = crate::socket::set_up(&socket2::SockRef::from(&tcp));
        set_up.map_err(|error| format!("cannot set up its socket: {error}"))?;
        let tls = Arc::clone(&self.tls.lock().unwrap_or_else(PoisonError::into_inner));
        let connection = ServerConnection::new(tls).map_err(|error| error.to_string())?;
        let room = Room {
            bytes_max: self.limits.queue_bytes_max,
            frames_max: self.limits.queue_frames_max,
            data_bytes_max: 0,
        };
        let pipe = Pipe::new(connection.into(), room);
        let counters = Arc::clone(&self.counters);
        let limits = self.limits.clone();
        Ok(Shared::new(tcp, peer, pipe, limits, counters, place))
    }
}

/// A guest at the door: known by its certificate, not yet welcomed.
pub struct Accepted {
    /// Who it is, by its certificate.
    pub guest: GuestId,
    /// Where it is.
    pub addr: SocketAddr,
    /// Its first frame; the versions have been checked.
    pub hello: v1::Hello,
    /// Its certificate has expired: the session can do nothing but renew, and the link holds it
    /// to that.
    pub expired: bool,
    /// Last moment of its certificate.
    pub not_after: SystemTime,
    /// Which key its certificate is for.
    pub key: KeyId,
    version: u32,
    shared: Arc<Shared>,
    inbox: Inbox,
}

impl Accepted {
    /// Lets it in; the link fills in the version. `in_flight_max` is enforced: a guest with
    /// more than twice as many checks open is closed. Must be called within a tokio runtime.
    #[must_use]
    pub fn welcome(self, mut welcome: v1::Welcome) -> Conn {
        welcome.version = self.version;
        Conn::open(self.shared, self.inbox, welcome, self.expired)
    }

    /// Turns it away, such as a guest that was revoked.
    pub fn refuse(self, reason: &str, retry_after: Option<Duration>) {
        self.shared.refuse(reason, retry_after);
    }
}
