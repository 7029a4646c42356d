//! The enrolment service: TLS without client certificates, one request, one reply; between them the
//! machine's TPM, where its pool asks for that.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use daemon::log::RateLimit;
use link::enrol::ENROL_MESSAGE_MAX_BYTES;
use prost::Message;
use proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::endorsement::{self, TpmShown};
use crate::fleet::Fleet;
use crate::joining::PENDING_RETRY;
use crate::visitors::{Showing, Visitors};
use crate::{Authority, Enrolled, Refusal};

/// After an accept that failed (no descriptors left), wait so long.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Lines a minute about guests that do not get in, of each kind.
const LOG_PER_MINUTE: u32 = 30;
static LOG_REFUSED: RateLimit = RateLimit::new(LOG_PER_MINUTE);
static LOG_WAITS: RateLimit = RateLimit::new(LOG_PER_MINUTE);
static LOG_FAILED: RateLimit = RateLimit::new(LOG_PER_MINUTE);
static LOG_ACCEPT: RateLimit = RateLimit::new(LOG_PER_MINUTE);

/// Limits of the enrolment service, each with its default.
#[derive(Debug, Clone)]
pub struct EnrolmentLimits {
    /// Until the request is there, and again for the reply. 10 s.
    pub exchange_timeout: Duration,
    /// For what the machine's TPM does between them; a chip that has to make its key first is slow.
    /// 30 s.
    pub tpm_timeout: Duration,
    /// Exchanges at once; further connections wait in the kernel. 64.
    pub exchanges_max: usize,
    /// Machines that show their TPMs at once, which are not among these; further ones are to come
    /// again. 64.
    pub showing_max: usize,
    /// Of these, from one address. 4.
    pub showing_max_per_address: usize,
    /// Attempts that one address may make at once. 32.
    pub burst_per_address: u32,
    /// Attempts that one address may make each minute after that. 120.
    pub per_minute_per_address: u32,
    /// Addresses that are remembered; then those that have rested longest are forgotten. 4096.
    pub addresses_max: usize,
}

impl Default for EnrolmentLimits {
    fn default() -> Self {
        Self {
            exchange_timeout: Duration::from_secs(10),
            tpm_timeout: Duration::from_secs(30),
            exchanges_max: 64,
            showing_max: 64,
            showing_max_per_address: 4,
            burst_per_address: 32,
            per_minute_per_address: 120,
            addresses_max: 4096,
        }
    }
}

/// What the service has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EnrolmentStats {
    /// Guests enrolled.
    pub enrolled: u64,
    /// Answers that a person is to approve it.
    pub waiting: u64,
    /// Requests refused.
    pub refused: u64,
    /// Connections that ended without a request: junk, timeouts.
    pub failed: u64,
    /// Connections closed because their address made too many, and machines that were told to come
    /// again because too many show their TPMs.
    pub rate_limited: u64,
}

#[derive(Default)]
struct Counters {
    enrolled: AtomicU64,
    waiting: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    rate_limited: AtomicU64,
}

/// The running service; dropping it closes the port.
pub struct Enrolment {
    local_addr: SocketAddr,
    service: Arc<Service>,
    task: JoinHandle<()>,
}

struct Service {
    turns: Arc<Semaphore>,
    showing: Arc<Showing>,
    authority: Arc<Authority>,
    fleet: Option<Fleet>,
    appliances: Vec<String>,
    tls: Mutex<Arc<rustls::ServerConfig>>,
    limits: EnrolmentLimits,
    counters: Counters,
    visitors: Mutex<Visitors>,
}

impl Enrolment {
    /// Listens and serves, in the background. `tls` is [`link::tls::enrol_server_config`];
    /// `fleet` tells what connectors report; `appliances` (host:port) is what guests are told to
    /// use. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of `bind`.
    pub async fn start(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        authority: Arc<Authority>,
        fleet: Option<Fleet>,
        appliances: Vec<String>,
        limits: EnrolmentLimits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let local_addr = listener.local_addr()?;
        let visitors = Visitors::new(
            limits.burst_per_address,
            limits.per_minute_per_address,
            limits.addresses_max,
        );
        let service = Arc::new(Service {
            turns: Arc::new(Semaphore::new(limits.exchanges_max)),
            showing: Arc::new(Showing::new(
                limits.showing_max,
                limits.showing_max_per_address,
            )),
            authority,
            fleet,
            appliances,
            tls: Mutex::new(tls),
            limits,
            counters: Counters::default(),
            visitors: Mutex::new(visitors),
        });
        let task = tokio::spawn(serve_all(listener, Arc::clone(&service)));
        Ok(Self {
            local_addr,
            service,
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Uses another certificate from the next connection on.
    pub fn set_tls(&self, tls: Arc<rustls::ServerConfig>) {
        let current = &self.service.tls;
        *current.lock().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// Counted since the start.
    #[must_use]
    pub fn stats(&self) -> EnrolmentStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.service.counters;
        EnrolmentStats {
            enrolled: of(&counters.enrolled),
            waiting: of(&counters.waiting),
            refused: of(&counters.refused),
            failed: of(&counters.failed),
            rate_limited: of(&counters.rate_limited),
        }
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve_all(listener: TcpListener, service: Arc<Service>) {
    loop {
        // Before accepting: what is too much waits in the kernel.
        let Ok(turn) = Arc::clone(&service.turns).acquire_owned().await else {
            return;
        };
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(suppressed) = LOG_ACCEPT.allow(Instant::now()) {
                    tracing::error!(%error, suppressed, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if !service.admits(peer) {
            continue;
        }
        let service = Arc::clone(&service);
        tokio::spawn(async move { service.serve(tcp, peer, Arc::new(turn)).await });
    }
}

/// One of so many exchanges at once.
type Turn = Arc<OwnedSemaphorePermit>;

impl Service {
    fn admits(&self, peer: SocketAddr) -> bool {
        let mut visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = visitors.admit(peer.ip(), Instant::now());
        if !admitted {
            self.counters.rate_limited.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    async fn serve(&self, tcp: TcpStream, peer: SocketAddr, turn: Turn) {
        let Err(error) = self.exchange(tcp, peer, turn).await else {
            return;
        };
        let why = error.to_string();
        self.counters.failed.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = LOG_FAILED.allow(Instant::now()) {
            tracing::warn!(%peer, why, suppressed, "an enrolment broke off");
        }
    }

    async fn exchange(&self, tcp: TcpStream, peer: SocketAddr, turn: Turn) -> io::Result<()> {
        let limits = &self.limits;
        let asking = within(limits.exchange_timeout, self.request(tcp));
        let (mut conversation, request) = Box::pin(asking).await?;
        let from = peer.ip().to_canonical();
        let now = SystemTime::now();
        let asks = async { Ok(self.authority.tpm_cas(&request.token, from, now).await) };
        let Some(cas) = within(limits.exchange_timeout, asks).await? else {
            let reply = self.decide(request, TpmShown::NotAsked, peer, turn);
            return self.end(conversation, reply).await;
        };
        // A TPM takes its time, and a guest more: others join meanwhile.
        drop(turn);
        let Some(place) = Showing::place(&self.showing, from) else {
            self.counters.rate_limited.fetch_add(1, Ordering::Relaxed);
            // Too many show theirs at this moment.
            return self
                .end(conversation, async { come_again(PENDING_RETRY) })
                .await;
        };
        let asking = endorsement::ask(&mut conversation, &request, &cas);
        let tpm = within(limits.tpm_timeout, asking).await?;
        drop(place);
        let reply = async {
            match Arc::clone(&self.turns).acquire_owned().await {
                Ok(turn) => self.decide(request, tpm, peer, Arc::new(turn)).await,
                Err(_closed) => come_again(PENDING_RETRY),
            }
        };
        self.end(conversation, reply).await
    }

    async fn end(
        &self,
        mut conversation: Conversation,
        reply: impl Future<Output = v1::EnrolReply>,
    ) -> io::Result<()> {
        within(self.limits.exchange_timeout, async {
            conversation.send(&reply.await).await?;
            conversation.stream.shutdown().await
        })
        .await
    }

    async fn request(&self, tcp: TcpStream) -> io::Result<(Conversation, v1::EnrolRequest)> {
        let tls = Arc::clone(&self.tls.lock().unwrap_or_else(PoisonError::into_inner));
        let stream = TlsAcceptor::from(tls).accept(tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(proto::ALPN_ENROL) {
            return Err(io::Error::other(
                "it does not say that it wants to enrol (ALPN)",
            ));
        }
        let received = BytesMut::new();
        let mut conversation = Conversation { stream, received };
        let request = conversation.receive().await?;
        Ok((conversation, request))
    }

    async fn decide(
        &self,
        request: v1::EnrolRequest,
        tpm: TpmShown,
        peer: SocketAddr,
        turn: Turn,
    ) -> v1::EnrolReply {
        // On a task of its own: whoever leaves now has still joined, or not. Its turn is over with
        // that: where the database is slow, no more ask than may.
        let (authority, fleet) = (Arc::clone(&self.authority), self.fleet.clone());
        let hostname = request.hostname.clone();
        let enrolling = tokio::spawn(async move {
            let now = SystemTime::now();
            let from = peer.ip().to_canonical();
            let enrolling = authority.enrol(&request, from, fleet.as_ref(), tpm, now);
            let outcome = enrolling.await;
            drop(turn);
            outcome
        });
        let outcome = enrolling.await.unwrap_or(Err(Refusal::Internal));
        match outcome {
            Ok(Enrolled::Joined {
                guest,
                cert,
                ephemeral,
            }) => {
                self.counters.enrolled.fetch_add(1, Ordering::Relaxed);
                tracing::info!(%guest, %peer, ?hostname, "a guest joined");
                let anchors = self.authority.anchors();
                v1::EnrolReply {
                    chain: vec![cert.to_vec()],
                    trust_anchors: anchors.iter().map(|anchor| anchor.to_vec()).collect(),
                    appliances: self.appliances.clone(),
                    guest_id: guest.0.to_vec(),
                    ephemeral,
                    ..v1::EnrolReply::default()
                }
            }
            Ok(Enrolled::Waits(retry)) => {
                self.counters.waiting.fetch_add(1, Ordering::Relaxed);
                if let Some(suppressed) = LOG_WAITS.allow(Instant::now()) {
                    tracing::info!(%peer, ?hostname, suppressed, "a machine waits for approval");
                }
                come_again(retry)
            }
            Err(refusal) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                if let Some(suppressed) = LOG_REFUSED.allow(Instant::now()) {
                    tracing::warn!(%peer, ?hostname, %refusal, suppressed, "a guest may not join");
                }
                v1::EnrolReply {
                    refused: refusal.to_string(),
                    ..v1::EnrolReply::default()
                }
            }
        }
    }
}

fn come_again(after: Duration) -> v1::EnrolReply {
    v1::EnrolReply {
        pending_retry_s: u32::try_from(after.as_secs()).unwrap_or(u32::MAX),
        ..v1::EnrolReply::default()
    }
}

async fn within<T>(time: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let step = tokio::time::timeout(time, step).await;
    step.unwrap_or_else(|_| Err(io::Error::other("it took too long")))
}

/// The messages of one enrolment.
pub(crate) struct Conversation {
    stream: TlsStream<TcpStream>,
    received: BytesMut,
}

impl Conversation {
    pub(crate) async fn send(&mut self, message: &v1::EnrolReply) -> io::Result<()> {
        let frame = proto::encode(message).map_err(io::Error::other)?;
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }

    pub(crate) async fn receive<M: Message + Default>(&mut self) -> io::Result<M> {
        loop {
            if let Some(body) = proto::split(&mut self.received).map_err(io::Error::other)? {
                return proto::decode(body).map_err(io::Error::other);
            }
            if self.received.len() > ENROL_MESSAGE_MAX_BYTES {
                return Err(io::Error::other("its message is too long"));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
