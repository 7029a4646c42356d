//! From an address to a greeted session. Blocking, within a deadline.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::envelope::Body;
use rustix::event::PollFlags;
use rustls::ClientConnection;

use super::Limits;
use super::exchanges::Exchanges;
use super::session::{Session, wait_for};
use crate::Priority;
use crate::inbox::Inbox;
use crate::liveness::{Liveness, Silence};
use crate::pipe::Pipe;
use crate::queue::Room;

/// Addresses tried for one name.
const ADDRESSES_MAX: usize = 4;
/// Bytes read at once.
pub(crate) const READ_BYTES: usize = 32 * 1024;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot resolve it: {0}")]
    Resolve(#[source] io::Error),
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    #[error("TLS failed: {0}")]
    Tls(#[source] rustls::Error),
    #[error("it did not answer in time")]
    TimedOut,
    #[error("it closed the connection")]
    Closed,
    #[error("it refused: {reason}")]
    Refused {
        reason: String,
        retry_after: Option<Duration>,
    },
    #[error("it broke the protocol: {0}")]
    Protocol(String),
}

/// A session that may begin.
pub(crate) struct Greeted {
    pub(crate) session: Arc<Session>,
    pub(crate) inbox: Inbox,
    pub(crate) welcome: v1::Welcome,
}

/// Connects to the first address of `address` that takes it.
pub(crate) fn dial(address: &str, timeout: Duration) -> Result<TcpStream, ConnectError> {
    let resolved = address.to_socket_addrs().map_err(ConnectError::Resolve)?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in resolved.take(ADDRESSES_MAX) {
        match connect_one(address, timeout) {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Connect(last))
}

fn connect_one(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect_timeout(&address, timeout)?;
    crate::socket::set_up(&socket2::SockRef::from(&tcp))?;
    Ok(tcp)
}

/// TLS, Hello, Welcome.
pub(crate) fn greet(
    tcp: TcpStream,
    tls: Arc<rustls::ClientConfig>,
    hello: &v1::Hello,
    limits: &Limits,
) -> Result<Greeted, ConnectError> {
    let until = Instant::now() + limits.handshake_timeout;
    let name = crate::tls::appliance_name().map_err(ConnectError::Tls)?;
    let connection = ClientConnection::new(tls, name).map_err(ConnectError::Tls)?;
    let room = Room {
        bytes_max: limits.queue_bytes_max,
        frames_max: limits.queue_frames_max,
        data_bytes_max: limits.data_bytes_max,
    };
    let pipe = Pipe::new(connection.into(), room);
    let mut hello = hello.clone();
    (hello.version_min, hello.version_max) = proto::VERSIONS;
    let first = v1::Envelope {
        request_id: 0,
        body: Some(Body::Hello(hello)),
    };
    let mut inbox = Inbox::new();
    let answer = exchange_first(&tcp, &pipe, &first, &mut inbox, until)?;
    if !pipe.speaks(proto::ALPN_LINK) {
        return Err(ConnectError::Protocol("it speaks another protocol".into()));
    }
    let welcome = match answer.body {
        Some(Body::Welcome(welcome)) => welcome,
        Some(Body::Refused(refused)) => {
            let millis = u64::from(refused.retry_after_ms);
            return Err(ConnectError::Refused {
                reason: refused.reason.chars().take(300).collect(),
                retry_after: (millis > 0).then(|| Duration::from_millis(millis)),
            });
        }
        _ => return Err(ConnectError::Protocol("no Welcome came".into())),
    };
    crate::version::check_welcome(&welcome)
        .map_err(|problem| ConnectError::Protocol(problem.into()))?;
    inbox.open();
    let silence = Silence {
        busy: limits.ping_busy_after,
        idle: limits.ping_idle_after,
        dead: limits.dead_after,
    };
    let in_flight_max = usize::try_from(welcome.in_flight_max).unwrap_or(usize::MAX);
    let session = Session::new(
        tcp,
        pipe,
        Exchanges::new(in_flight_max),
        Liveness::new(silence, Instant::now()),
    );
    Ok(Greeted {
        session: Arc::new(session),
        inbox,
        welcome,
    })
}

/// Sends one message and waits for one, on a connection that is still to be set up.
pub(crate) fn exchange_first(
    tcp: &TcpStream,
    pipe: &Pipe,
    message: &v1::Envelope,
    inbox: &mut Inbox,
    until: Instant,
) -> Result<v1::Envelope, ConnectError> {
    // The queue is empty and takes any frame.
    let queued = pipe.push(Priority::Control, message);
    queued.map_err(|_| ConnectError::Protocol("our Hello is too long".into()))?;
    loop {
        let has_ended = exchange_bytes(tcp, pipe, inbox, until)?;
        let next = inbox.next();
        match next.map_err(|e| ConnectError::Protocol(e.to_string()))? {
            Some(answer) => return Ok(answer),
            None if has_ended => return Err(ConnectError::Closed),
            None => {}
        }
    }
}

/// One step of a blocking conversation: writes what is to be written, then reads once; `true`
/// where the other side has ended it.
pub(crate) fn exchange_bytes(
    tcp: &TcpStream,
    pipe: &Pipe,
    inbox: &mut Inbox,
    until: Instant,
) -> Result<bool, ConnectError> {
    let write = |bytes: &[u8]| {
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        Ok(rustix::net::send(tcp, bytes, flags)?)
    };
    while !pipe.is_drained() && !only_waits_for_handshake(pipe, write)? {
        if !wait_for(tcp, PollFlags::OUT, until) {
            return Err(ConnectError::TimedOut);
        }
    }
    if !wait_for(tcp, PollFlags::IN, until) {
        return Err(ConnectError::TimedOut);
    }
    let mut buffer = [0; 8 * 1024];
    let read = io::Read::read(&mut &*tcp, &mut buffer).map_err(ConnectError::Io)?;
    let received = buffer.get(..read).unwrap_or_default();
    let outcome = pipe.receive(received, inbox.plain());
    // A fatal alert tells the other side why; it may be gone already.
    let sent = pipe.pump_on(write);
    let has_ended = outcome.map_err(ConnectError::Tls)? || read == 0;
    if !has_ended {
        sent.map_err(ConnectError::Io)?;
    }
    Ok(has_ended)
}

/// Pumps; `true` where nothing more can be written before something is read.
fn only_waits_for_handshake(
    pipe: &Pipe,
    write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> Result<bool, ConnectError> {
    let pumped = pipe.pump_on(write).map_err(ConnectError::Io)?;
    Ok(pumped == crate::pipe::Pumped::Done)
}
