//! Streams over TLS: frames in and out of two queues. The controller listens, appliances dial.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use daemon::log::RateLimit;
use proto::v1;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::service::Fleet;
use super::stream;
use crate::Authority;

/// Frames that wait in either direction; who reads no more is closed.
pub const QUEUE_LEN_MAX: usize = 65_536;
/// Streams of appliances at once.
const STREAMS_MAX: usize = 10_000;
/// For TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A write that takes longer finds a dead connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Silence after which the other side is gone.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Frames are gathered up to about this before they are written.
const WRITE_BYTES: usize = 64 * 1024;
/// After an accept that failed (no descriptors left), wait so long.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

static LOG_FAILED: RateLimit = RateLimit::new(30);

/// The listening end; dropping it closes the port and every stream.
pub struct FleetListener {
    local_addr: SocketAddr,
    tls: Arc<Mutex<Arc<rustls::ServerConfig>>>,
    task: JoinHandle<()>,
}

impl FleetListener {
    /// Listens for appliances. `tls` is [`link::tls::fleet_server_config`].
    ///
    /// # Errors
    /// Those of `bind`.
    pub async fn start(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        fleet: Fleet,
        authority: Arc<Authority>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let local_addr = listener.local_addr()?;
        let tls = Arc::new(Mutex::new(tls));
        let task = tokio::spawn(accept(listener, Arc::clone(&tls), fleet, authority));
        Ok(Self {
            local_addr,
            tls,
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
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = tls;
    }
}

impl Drop for FleetListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    tls: Arc<Mutex<Arc<rustls::ServerConfig>>>,
    fleet: Fleet,
    authority: Arc<Authority>,
) {
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    // They end with the listener.
    let mut streams = tokio::task::JoinSet::new();
    loop {
        while streams.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept appliances");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let tls = Arc::clone(&tls.lock().unwrap_or_else(PoisonError::into_inner));
        let (fleet, authority) = (fleet.clone(), Arc::clone(&authority));
        streams.spawn(async move {
            if let Err(error) = welcome(tcp, tls, fleet, authority).await
                && let Some(suppressed) = LOG_FAILED.allow(Instant::now())
            {
                tracing::warn!(%peer, %error, suppressed, "no appliance's stream");
            }
            drop(place);
        });
    }
}

async fn welcome(
    tcp: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    fleet: Fleet,
    authority: Arc<Authority>,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(tcp));
    let stream = accepted.await??;
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(proto::ALPN_FLEET) {
        return Err(io::Error::other("it speaks another protocol"));
    }
    let leaf = connection
        .peer_certificates()
        .and_then(|chain| chain.first());
    let name = leaf.map(|leaf| pki::appliance_name_of(leaf));
    let name = name
        .and_then(Result::ok)
        .ok_or_else(|| io::Error::other("it has no name"))?;
    let (from_peer, said) = mpsc::channel(QUEUE_LEN_MAX);
    let (told, to_peer) = mpsc::channel(QUEUE_LEN_MAX);
    let served = stream::serve(fleet, authority, name, said, told);
    let carried = carry(
        stream,
        from_peer,
        to_peer,
        |frame: v1::FleetSaid| frame.body,
        |body| v1::FleetOrder { body: Some(body) },
    );
    let (_, carried) = tokio::join!(served, carried);
    carried
}

/// An appliance's end of a stream: what is said goes in, what is told comes out.
pub struct Dialled {
    /// To the controller.
    pub said: mpsc::Sender<v1::fleet_said::Body>,
    /// From the controller; ends with the stream.
    pub told: mpsc::Receiver<v1::fleet_order::Body>,
}

/// Dials a controller. `tls` is [`link::tls::fleet_client_config`].
///
/// # Errors
/// It cannot be reached, or is no controller of this fleet.
pub async fn dial(address: &str, tls: Arc<rustls::ClientConfig>) -> io::Result<Dialled> {
    let name = ServerName::try_from(pki::APPLIANCE_NAME).map_err(io::Error::other)?;
    let dialled = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(tls).connect(name, tcp).await
    };
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, dialled).await??;
    let (said, to_peer) = mpsc::channel(QUEUE_LEN_MAX);
    let (from_peer, told) = mpsc::channel(QUEUE_LEN_MAX);
    tokio::spawn(async move {
        let carried = carry(
            stream,
            from_peer,
            to_peer,
            |frame: v1::FleetOrder| frame.body,
            |body| v1::FleetSaid { body: Some(body) },
        );
        if let Err(error) = carried.await {
            tracing::debug!(%error, "the stream to the controller");
        }
    });
    Ok(Dialled { said, told })
}

/// Reads frames into one queue and writes another queue's, until either side ends.
async fn carry<S, I, O, FI, FO>(
    stream: S,
    received: mpsc::Sender<I>,
    mut to_send: mpsc::Receiver<O>,
    body_of: impl Fn(FI) -> Option<I>,
    frame_of: impl Fn(O) -> FO,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
    FI: prost::Message + Default,
    FO: prost::Message,
{
    let (mut reads, mut writes) = tokio::io::split(stream);
    let reading = async {
        let mut buffer = BytesMut::new();
        loop {
            while let Some(frame) = proto::split(&mut buffer).map_err(io::Error::other)? {
                let frame: FI = proto::decode(frame).map_err(io::Error::other)?;
                if let Some(body) = body_of(frame)
                    && received.send(body).await.is_err()
                {
                    // Nobody listens any more; what is still to be said decides when it ends.
                    return std::future::pending().await;
                }
            }
            let read = tokio::time::timeout(SILENT_MAX, reads.read_buf(&mut buffer));
            if read.await?? == 0 {
                return Ok(());
            }
        }
    };
    let writing = async {
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        while let Some(body) = to_send.recv().await {
            buffer.clear();
            buffer.extend_from_slice(&proto::encode(&frame_of(body)).map_err(io::Error::other)?);
            while buffer.len() < WRITE_BYTES
                && let Ok(body) = to_send.try_recv()
            {
                let frame = proto::encode(&frame_of(body)).map_err(io::Error::other)?;
                buffer.extend_from_slice(&frame);
            }
            tokio::time::timeout(WRITE_TIMEOUT, writes.write_all(&buffer)).await??;
        }
        tokio::time::timeout(WRITE_TIMEOUT, writes.shutdown()).await?
    };
    tokio::select! {
        read = reading => read,
        written = writing => written,
    }
}
