//! The `lazaret` command's way in: a unix socket that only root may open, one request and one
//! reply for each connection's turn, in the link's framing.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use link::Priority;
use model::{Digest, GuestId};
use prost::Message;
use proto::v1;
use proto::v1::admin_reply::Body as Reply;
use proto::v1::admin_request::Body as Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::appliance::Appliance;
use crate::detections::Record;
use crate::removal::Purpose;
use crate::shared::wall_clock_ms;

/// Longest time for what a request asks for: engines that load rules, an agent that obeys.
const WORK_TIMEOUT: Duration = Duration::from_secs(900);
/// A request must arrive, and its reply be taken, in this time.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Detections in one reply, which must fit a frame.
const DETECTIONS_MAX: usize = 10_000;
/// A reply is cut to stay below a frame's limit by this much.
const REPLY_BYTES_MAX: usize = proto::FRAME_MAX_BYTES - 4096;

/// The socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It cannot be made.
    #[error("{}: cannot make the admin socket", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing answers there.
    #[error("{}: cannot reach a running lazaret (is `lazaret up` running with this state folder, and are you root?)", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The exchange broke off.
    #[error("{}: the exchange broke off: {reason}", path.display())]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It was refused, or failed.
    #[error("{0}")]
    Refused(String),
}

/// What reloads the configuration: the one who knows where it is.
pub type Reload = dyn Fn() -> Pin<Box<dyn Future<Output = Result<model::Generation, String>> + Send>>
    + Send
    + Sync;

/// What answers questions about the fleet: the controller.
pub type FleetDesk = dyn Fn(v1::FleetRequest) -> Pin<Box<dyn Future<Output = Result<v1::FleetReply, String>> + Send>>
    + Send
    + Sync;

/// The socket; it goes when this is dropped.
pub struct AdminServer {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "admin socket");
        }
    }
}

struct Server {
    appliance: Arc<Appliance>,
    reload: Arc<Reload>,
    fleet: Arc<FleetDesk>,
}

impl AdminServer {
    /// Listens at `path`, in place of a socket that a dead process left there: whoever calls this
    /// holds the lock of the state folder.
    ///
    /// # Errors
    /// [`AdminError::Bind`].
    pub fn start(
        path: &Path,
        appliance: Arc<Appliance>,
        reload: Arc<Reload>,
        fleet: Arc<FleetDesk>,
    ) -> Result<Self, AdminError> {
        let bind = |source| AdminError::Bind {
            path: path.to_owned(),
            source,
        };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(bind(error)),
            _ => {}
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(bind)?;
        }
        // Whoever reaches it before its mode is set is still asked who they are.
        let listener = UnixListener::bind(path).map_err(bind)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(bind)?;
        let connections_max = appliance.shared.force().limits.admin_connections_max;
        let server = Arc::new(Server {
            appliance,
            reload,
            fleet,
        });
        let task = tokio::spawn(accept(listener, server, connections_max.count()));
        Ok(Self {
            path: path.to_owned(),
            task,
        })
    }
}

async fn accept(listener: UnixListener, server: Arc<Server>, connections_max: usize) {
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let server = server.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &server).await {
                tracing::debug!(%error, "admin connection");
            }
            drop(place);
        });
    }
}

/// Root, or whoever runs the daemon.
fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn serve(mut stream: UnixStream, server: &Server) -> std::io::Result<()> {
    let request = match timeout(EXCHANGE_TIMEOUT, receive(&mut stream)).await?? {
        Some(request) => request,
        None => return Ok(()),
    };
    let reply = match request.body {
        _ if !is_allowed(&stream) => Err("only root may do this".to_owned()),
        None => Err("not a request that this version knows".to_owned()),
        Some(request) => match timeout(WORK_TIMEOUT, server.handle(request)).await {
            Ok(reply) => reply,
            Err(_) => Err("it takes too long; it may still be done".to_owned()),
        },
    };
    let body = reply.unwrap_or_else(|message| Reply::Error(v1::Error { message }));
    let reply = v1::AdminReply { body: Some(body) };
    let frame = proto::encode(&reply).map_err(std::io::Error::other)?;
    timeout(EXCHANGE_TIMEOUT, stream.write_all(&frame)).await??;
    stream.shutdown().await
}

/// `None`: nothing was asked. What is no request is an empty one.
async fn receive(stream: &mut UnixStream) -> std::io::Result<Option<v1::AdminRequest>> {
    let mut buffer = BytesMut::new();
    loop {
        match proto::split(&mut buffer) {
            Ok(Some(frame)) => {
                let request = v1::AdminRequest::decode(frame);
                return Ok(Some(request.unwrap_or_default()));
            }
            Ok(None) => {}
            Err(_) => return Ok(Some(v1::AdminRequest::default())),
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(None);
        }
    }
}

impl Server {
    async fn handle(&self, request: Request) -> Result<Reply, String> {
        match request {
            Request::Status(_) => Ok(Reply::Status(self.status())),
            Request::Token(request) => self.token(request).await.map(Reply::Token),
            Request::Detections(request) => Ok(Reply::Detections(self.detections(&request))),
            Request::GuestOrder(request) => self.order(request).await.map(Reply::OrderResult),
            Request::Release(request) => self.release(request).await.map(Reply::Release),
            Request::Holders(request) => self.holders(&request).await.map(Reply::Holders),
            Request::Fleet(request) => (self.fleet)(request).await.map(Reply::Fleet),
            Request::Reload(_) => {
                // A task of its own: it is done whole, whether or not anybody waits.
                let reload = tokio::spawn((self.reload)());
                let generation = reload.await.map_err(|error| error.to_string())??;
                let generation = generation.0.to_vec();
                Ok(Reply::Reload(v1::ReloadReply { generation }))
            }
        }
    }

    fn status(&self) -> v1::StatusReply {
        let shared = &self.appliance.shared;
        v1::StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: shared.force().generation.0.to_vec(),
            engines: shared.engines().status(),
            guests: shared.guests.status(),
        }
    }

    async fn token(&self, mut request: v1::TokenRequest) -> Result<v1::TokenReply, String> {
        let identity = self.appliance.shared.identity.clone();
        request.uses_max = request.uses_max.max(1);
        if request.valid_s == 0 {
            request.valid_s = 3600;
        }
        let made = tokio::task::spawn_blocking(move || identity.join_token(&request));
        let token = made.await.map_err(|error| error.to_string())??;
        Ok(v1::TokenReply { token })
    }

    fn detections(&self, request: &v1::DetectionsRequest) -> v1::DetectionsReply {
        let limit = match request.limit {
            0 => 100,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let newest = self
            .appliance
            .shared
            .detections
            .newest(limit.min(DETECTIONS_MAX));
        let mut reply = v1::DetectionsReply::default();
        let mut bytes = 0;
        for record in newest.iter().map(wire_record) {
            bytes += record.encoded_len() + 8;
            if bytes > REPLY_BYTES_MAX {
                break;
            }
            reply.detections.push(record);
        }
        reply
    }

    async fn holders(&self, request: &v1::HoldersRequest) -> Result<v1::HoldersReply, String> {
        let shared = &self.appliance.shared;
        let digest = Digest::from_slice(&request.blake3);
        let digest = digest.ok_or("a content's digest has 64 hexadecimal digits")?;
        let after = match &request.after[..] {
            [] => None,
            id => Some(self.guest(id)?),
        };
        let limit = match request.limit {
            0 => 1000,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let page = shared.sightings.holders(digest, after, limit).await;
        let page = page.map_err(|error| format!("sightings: {error}"))?;
        let hostnames = shared.guests.hostnames();
        let mut reply = v1::HoldersReply {
            holders: Vec::new(),
            more: page.more,
        };
        let mut bytes = 0;
        for holder in &page.guests {
            let record = v1::HolderRecord {
                guest_id: holder.guest.0.to_vec(),
                hostname: hostnames.get(&holder.guest).cloned().unwrap_or_default(),
                first_seen_s: holder.seen.first_s.into(),
                last_seen_s: holder.seen.last_s.into(),
            };
            bytes += record.encoded_len() + 8;
            if bytes > REPLY_BYTES_MAX {
                reply.more = true;
                break;
            }
            reply.holders.push(record);
        }
        Ok(reply)
    }

    async fn order(&self, request: v1::GuestOrderRequest) -> Result<v1::OrderResult, String> {
        let shared = &self.appliance.shared;
        let action = request.order.and_then(|order| order.action);
        let action = action.ok_or("the order has no action")?;
        let guest = self.guest(&request.guest_id)?;
        let gate = shared.guests.gate(guest);
        let gate = gate.ok_or_else(|| format!("guest {guest} is not connected"))?;
        let (result, wait) = oneshot::channel();
        let limits = &shared.force().limits;
        let pending_max = limits.orders_pending_max.count();
        let purpose = Purpose::Admin(result);
        let order = shared.orders.issue(guest, action, purpose, pending_max);
        let envelope = v1::Envelope {
            request_id: gate.next_request_id(),
            body: Some(v1::envelope::Body::Order(order)),
        };
        gate.send(Priority::Control, envelope);
        match timeout(limits.order_timeout(), wait).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) | Err(_) => Err(format!(
                "guest {guest} did not answer; the order may still be carried out"
            )),
        }
    }

    fn guest(&self, id: &[u8]) -> Result<GuestId, String> {
        if let Some(guest) = GuestId::from_slice(id) {
            return Ok(guest);
        }
        if !id.is_empty() {
            return Err("a guest's id has 32 hexadecimal digits".into());
        }
        match self.appliance.shared.guests.with_gate()[..] {
            [only] => Ok(only),
            [] => Err("no guest is connected".into()),
            _ => Err("several guests are connected; say which".into()),
        }
    }

    async fn release(&self, request: v1::ReleaseRequest) -> Result<v1::ReleaseReply, String> {
        let digest = Digest::from_slice(&request.blake3);
        let digest = digest.ok_or("a content's digest has 64 hexadecimal digits")?;
        let shared = self.appliance.shared.clone();
        let changed = tokio::task::spawn_blocking(move || {
            let max = shared.force().limits.released_max.count();
            let changed = if request.revoke {
                shared.released.revoke(digest)
            } else {
                shared
                    .released
                    .release(digest, &request.reason, wall_clock_ms(), max)
            };
            changed.map_err(|error| error.to_string())?;
            tracing::info!(%digest, revoke = request.revoke,
                reason = %daemon::log::escape(request.reason.as_bytes()), "release");
            // Nobody needs to be told: agents ask again for what they know to be malicious.
            Ok(v1::ReleaseReply {})
        });
        changed.await.map_err(|error| error.to_string())?
    }
}

fn wire_record(record: &Record) -> v1::DetectionRecord {
    v1::DetectionRecord {
        at_ms: record.at_ms,
        guest_id: record.guest.0.to_vec(),
        path: record.path.clone(),
        blake3: record.digest.0.to_vec(),
        sha256: record.sha256.map_or_else(Vec::new, |d| d.0.to_vec()),
        detections: record.detections.iter().map(Into::into).collect(),
        removal: record.removal.unwrap_or_default() as i32,
    }
}

/// The command's side: one request to the `lazaret up` behind this socket.
///
/// # Errors
/// [`AdminError`]: it does not run, or it said no.
pub fn call(socket: &Path, request: Request) -> Result<Reply, AdminError> {
    let connect = |source| AdminError::Connect {
        path: socket.to_owned(),
        source,
    };
    let stream = std::os::unix::net::UnixStream::connect(socket).map_err(connect)?;
    stream
        .set_read_timeout(Some(patience(&request)))
        .map_err(connect)?;
    let reply = exchange(stream, request).map_err(|error| AdminError::Exchange {
        path: socket.to_owned(),
        reason: error.to_string(),
    })?;
    match reply {
        Reply::Error(error) => Err(AdminError::Refused(error.message)),
        reply => Ok(reply),
    }
}

fn patience(request: &Request) -> Duration {
    match request {
        Request::Reload(_) | Request::GuestOrder(_) => WORK_TIMEOUT + EXCHANGE_TIMEOUT,
        _ => EXCHANGE_TIMEOUT,
    }
}

fn exchange(
    mut stream: std::os::unix::net::UnixStream,
    request: Request,
) -> std::io::Result<Reply> {
    let body = Some(request);
    let frame = proto::encode(&v1::AdminRequest { body }).map_err(std::io::Error::other)?;
    stream.write_all(&frame)?;
    let mut buffer = BytesMut::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(frame) = proto::split(&mut buffer).map_err(std::io::Error::other)? {
            let reply: v1::AdminReply = proto::decode(frame).map_err(std::io::Error::other)?;
            return reply
                .body
                .ok_or_else(|| std::io::Error::other("an empty reply"));
        }
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => buffer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
    }
}
