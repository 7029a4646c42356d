//! libvirt's RPC: frames, calls with their answers, events, keep-alive.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::{ConnectorError, Pace};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::xdr::{Reader, Writer, XdrError};

/// Largest message of a server: libvirt's own limit.
pub const MESSAGE_MAX_BYTES: usize = 33_554_432;
/// Longest wait for the answer to one call.
pub const CALL_TIME: Duration = Duration::from_secs(20);
/// Events that wait to be handled; when there are more, the server waits.
const EVENTS_MAX: usize = 4096;

const REMOTE_PROGRAM: u32 = 0x2000_8086;
const REMOTE_VERSION: u32 = 1;
const KEEPALIVE_PROGRAM: u32 = 0x6b65_6570;
const KEEPALIVE_PING: u32 = 1;
const KEEPALIVE_PONG: u32 = 2;
/// The length itself, then program, version, procedure, type, serial, status.
const HEADER_BYTES: usize = 28;

const TYPE_CALL: u32 = 0;
const TYPE_REPLY: u32 = 1;
const TYPE_MESSAGE: u32 = 2;

pub(crate) type Io = Box<dyn Duplex>;

/// A connection's two directions.
pub(crate) trait Duplex:
    tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin
{
}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}

/// An error that the server reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// `virErrorNumber`.
    pub(crate) code: i32,
    /// Hostile text.
    pub(crate) message: String,
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum CallError {
    Server(ServerError),
    Broken(ConnectorError),
}

/// A message that the server sends by itself.
#[derive(Debug)]
pub(crate) struct ServerEvent {
    pub(crate) procedure: u32,
    pub(crate) body: Vec<u8>,
}

/// A connection that calls can be made on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rpc {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: String,
    pace: Arc<Pace>,
    serial: AtomicU32,
    writer: tokio::sync::Mutex<WriteHalf<Io>>,
    waiting: Mutex<Waiting>,
}

type Reply = Result<Vec<u8>, ServerError>;

#[derive(Default)]
struct Waiting {
    by_serial: HashMap<u32, oneshot::Sender<Reply>>,
    is_broken: bool,
}

/// The connection's reading side; dropped, it ends.
pub(crate) struct Events {
    events: mpsc::Receiver<ServerEvent>,
    task: JoinHandle<()>,
}

impl Events {
    /// The next event; `None` once the connection is broken.
    pub(crate) async fn next(&mut self) -> Option<ServerEvent> {
        self.events.recv().await
    }

    /// The next event, if it is here already.
    pub(crate) fn next_now(&mut self) -> Option<ServerEvent> {
        self.events.try_recv().ok()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rpc {
    /// Takes over a fresh connection.
    pub(crate) fn new(io: Io, endpoint: &str, pace: Arc<Pace>) -> (Self, Events) {
        let (reader, writer) = tokio::io::split(io);
        let shared = Arc::new(Shared {
            endpoint: endpoint.to_owned(),
            pace,
            serial: AtomicU32::new(1),
            writer: tokio::sync::Mutex::new(writer),
            waiting: Mutex::default(),
        });
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(read_all(reader, Arc::clone(&shared), sender));
        (Self { shared }, Events { events, task })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.shared.endpoint
    }

    /// Calls a procedure when the pace allows.
    pub(crate) async fn call(&self, procedure: u32, body: Writer) -> Result<Vec<u8>, CallError> {
        self.shared.pace.next().await;
        self.call_now(procedure, body).await
    }

    /// Calls a procedure at once.
    pub(crate) async fn call_now(
        &self,
        procedure: u32,
        body: Writer,
    ) -> Result<Vec<u8>, CallError> {
        let shared = &self.shared;
        let serial = shared.serial.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        {
            let mut waiting = shared.waiting();
            if waiting.is_broken {
                return Err(CallError::Broken(shared.broken()));
            }
            waiting.by_serial.insert(serial, sender);
        }
        let frame = frame(REMOTE_PROGRAM, procedure, TYPE_CALL, serial, body);
        let exchange = async {
            shared.write(&frame).await?;
            reply.await.map_err(|_| shared.broken())
        };
        let answered = tokio::time::timeout(CALL_TIME, exchange).await;
        shared.waiting().by_serial.remove(&serial);
        match answered {
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(error))) => Err(CallError::Server(error)),
            Ok(Err(error)) => Err(CallError::Broken(error)),
            Err(_) => Err(CallError::Broken(ConnectorError::Timeout {
                endpoint: shared.endpoint.clone(),
                what: format!("procedure {procedure}"),
                limit_ms: CALL_TIME.as_millis() as u64,
            })),
        }
    }

    /// The error of an answer that makes no sense.
    pub(crate) fn garbled(&self, error: XdrError) -> ConnectorError {
        ConnectorError::Answer {
            endpoint: self.shared.endpoint.clone(),
            what: error.to_string(),
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self) -> ConnectorError {
        self.unreachable(io::ErrorKind::ConnectionAborted.into())
    }

    fn unreachable(&self, source: io::Error) -> ConnectorError {
        ConnectorError::Unreachable {
            endpoint: self.endpoint.clone(),
            source,
        }
    }

    async fn write(&self, frame: &[u8]) -> Result<(), ConnectorError> {
        let mut writer = self.writer.lock().await;
        let written = async {
            writer.write_all(frame).await?;
            writer.flush().await
        };
        written.await.map_err(|error| self.unreachable(error))
    }
}

fn frame(program: u32, procedure: u32, kind: u32, serial: u32, body: Writer) -> Vec<u8> {
    let body = body.into_bytes();
    let version = REMOTE_VERSION;
    Writer::default()
        .u32((HEADER_BYTES + body.len()) as u32)
        .u32(program)
        .u32(version)
        .u32(procedure)
        .u32(kind)
        .u32(serial)
        .u32(0)
        .fixed(&body)
        .into_bytes()
}

/// Reads until the connection breaks; then every waiting call learns of it.
async fn read_all(
    mut reader: ReadHalf<Io>,
    shared: Arc<Shared>,
    events: mpsc::Sender<ServerEvent>,
) {
    while let Ok(message) = read_message(&mut reader).await {
        if handle(&shared, &events, &message).await.is_none() {
            break;
        }
    }
    let mut waiting = shared.waiting();
    waiting.is_broken = true;
    waiting.by_serial.clear();
}

async fn read_message(reader: &mut ReadHalf<Io>) -> io::Result<Vec<u8>> {
    let len = reader.read_u32().await? as usize;
    if !(HEADER_BYTES..=MESSAGE_MAX_BYTES).contains(&len) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // Read as it comes: a length alone takes no memory.
    let mut message = Vec::new();
    let rest = (len - 4) as u64;
    reader.take(rest).read_to_end(&mut message).await?;
    if message.len() as u64 != rest {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

/// `None`: the connection is of no use any more.
async fn handle(shared: &Shared, events: &mpsc::Sender<ServerEvent>, message: &[u8]) -> Option<()> {
    let mut reader = Reader::new(message);
    let program = reader.u32().ok()?;
    let _version = reader.u32().ok()?;
    let procedure = reader.u32().ok()?;
    let kind = reader.u32().ok()?;
    let serial = reader.u32().ok()?;
    let is_error = reader.u32().ok()? != 0;
    let body = message.get(HEADER_BYTES - 4..)?;
    match (program, kind) {
        (KEEPALIVE_PROGRAM, TYPE_MESSAGE) if procedure == KEEPALIVE_PING => {
            let pong = Writer::default();
            let pong = frame(KEEPALIVE_PROGRAM, KEEPALIVE_PONG, TYPE_MESSAGE, 0, pong);
            shared.write(&pong).await.ok()
        }
        (REMOTE_PROGRAM, TYPE_REPLY) => {
            let reply = if is_error {
                Err(server_error(body).ok()?)
            } else {
                Ok(body.to_vec())
            };
            // Nobody waits any more for an answer that is late.
            if let Some(waiting) = shared.waiting().by_serial.remove(&serial) {
                let _late = waiting.send(reply);
            }
            Some(())
        }
        (REMOTE_PROGRAM, TYPE_MESSAGE) => {
            let body = body.to_vec();
            events.send(ServerEvent { procedure, body }).await.ok()
        }
        _ => Some(()),
    }
}

fn server_error(body: &[u8]) -> Result<ServerError, XdrError> {
    let mut reader = Reader::new(body);
    let code = reader.i32()?;
    let _domain = reader.i32()?;
    let message = reader.optional_string()?.unwrap_or_default().to_owned();
    Ok(ServerError { code, message })
}
