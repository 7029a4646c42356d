//! The agent's half: blocking, two threads, no runtime.

mod backoff;
pub(crate) mod connect;
mod exchanges;
mod route;
mod run;
mod serve;
pub(crate) mod session;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1;

use crate::Priority;
pub use backoff::Backoff;
pub use route::{ROUTE_LEN_MAX, Route, RouteRefused};
use run::Shared;

/// How a link behaves.
#[derive(Clone)]
pub struct Config {
    /// Appliances as host:port, best first. Never empty.
    pub appliances: Vec<String>,
    /// The epoch of that list; 0: no placer made it.
    pub epoch: u64,
    /// From [`crate::tls::client_config`].
    pub tls: Arc<rustls::ClientConfig>,
    /// Says who we are; the link fills in the versions.
    pub hello: v1::Hello,
    /// Spreads reconnects of a fleet: any number that differs between guests.
    pub seed: u64,
    /// Limits and times.
    pub limits: Limits,
}

/// Limits and times of a link, each with its default.
#[derive(Debug, Clone)]
pub struct Limits {
    /// To connect to one address. 2 s.
    pub connect_timeout: Duration,
    /// For TLS, Hello and Welcome together. 5 s.
    pub handshake_timeout: Duration,
    /// Back-off after the first round of failures. 200 ms.
    pub backoff_min: Duration,
    /// Longest back-off. 10 s.
    pub backoff_max: Duration,
    /// Silence before a ping while something is outstanding. 5 s.
    pub ping_busy_after: Duration,
    /// Silence before a ping otherwise: the kernel's keep-alive finds dead machines sooner. 300 s.
    pub ping_idle_after: Duration,
    /// Silence after a ping that means death. 5 s.
    pub dead_after: Duration,
    /// After Goodbye, time to finish what is under way. 3 s.
    pub goodbye_linger: Duration,
    /// After a move to another appliance, time to finish what is under way where it is. 60 s.
    pub leave_linger: Duration,
    /// Pause before a better appliance that could not be reached is tried again, doubled each
    /// time. 5 s.
    pub move_retry: Duration,
    /// Bytes of frames that may wait to be sent, besides file data. 4 MiB.
    pub queue_bytes_max: usize,
    /// Frames that may wait to be sent. 8192.
    pub queue_frames_max: usize,
    /// Bytes of file data that may wait to be sent. 256 KiB.
    pub data_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(10),
            ping_busy_after: Duration::from_secs(5),
            ping_idle_after: Duration::from_secs(300),
            dead_after: Duration::from_secs(5),
            goodbye_linger: Duration::from_secs(3),
            leave_linger: Duration::from_secs(60),
            move_retry: Duration::from_secs(5),
            queue_bytes_max: 4 << 20,
            queue_frames_max: 8192,
            data_bytes_max: 256 << 10,
        }
    }
}

/// What the link tells its owner, always from a receiving thread of the link and without any lock
/// held, so a handler may send. A handler that blocks keeps frames from being received. While the
/// link moves to another appliance there are two such threads: what was asked of the one that is
/// left is answered by it.
pub trait Handler: Send + Sync {
    /// A connection is about to be greeted with this: whatever may have changed since the start.
    fn greeting(&self, hello: &mut v1::Hello) {
        let _ = hello;
    }
    /// An appliance welcomed us; its Welcome has been checked.
    fn up(&self, welcome: &v1::Welcome);
    /// The session is over. Exactly once for each `up`, after its last `frame`.
    fn down(&self, why: &str);
    /// Another appliance has taken the place of the one before, which still answers what it was
    /// asked; new requests go to the new one. Who does not care asks everything anew.
    fn moved(&self, welcome: &v1::Welcome) {
        self.down("moved to another appliance");
        self.up(welcome);
    }
    /// The appliance that was left has gone without answering these requests. They are to be
    /// asked anew.
    fn lost(&self, request_ids: &[u64]) {
        let _ = request_ids;
    }
    /// A frame that is for the owner; the link keeps Ping, Pong, Credit and Goodbye to itself.
    /// `Need` has been noted when it comes, so that `send_data` may be called.
    fn frame(&self, envelope: v1::Envelope);
    /// An appliance could not be reached or refused us; the next one is tried. For logs.
    fn unreachable(&self, appliance: &str, why: &str) {
        let _ = (appliance, why);
    }
}

/// Why a frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No appliance is connected (or it said Goodbye).
    #[error("no appliance is connected")]
    NotConnected,
    /// As much is waiting to be sent, or as many checks unanswered, as is allowed.
    #[error("the link has as much to send as it may hold")]
    Backpressure,
    /// The frame is longer than any may be.
    #[error("the frame is too long")]
    TooLarge,
}

/// Why data was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendDataError {
    /// The session in which it was asked for is over.
    #[error("the appliance that wanted the data is gone")]
    NotConnected,
    /// The appliance wants no (more) data of this request: it never asked, it answered, it was
    /// cancelled, or DataEnd was sent.
    #[error("nobody wants data of this request")]
    NotWanted,
    /// No credit, or no room in the queue, until `give_up`.
    #[error("the appliance took no data in time")]
    TimedOut,
}

/// A link to the best appliance that can be reached, kept up until it is stopped. Clones are the
/// same link; when the last one is dropped, it stops.
#[derive(Clone)]
pub struct Client {
    running: Arc<Running>,
}

struct Running {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Time that a Goodbye may take to be written.
const GOODBYE_WRITE_MAX: Duration = Duration::from_millis(500);

impl Client {
    /// Starts connecting, in the background.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(config: Config, handler: Arc<dyn Handler>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(config));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("link".into())
            .spawn(move || theirs.run(&handler))?;
        let thread = Mutex::new(Some(thread));
        Ok(Self {
            running: Arc::new(Running { shared, thread }),
        })
    }

    /// A request id that this link has never used: odd, rising, unique across reconnects.
    #[must_use]
    pub fn next_request_id(&self) -> u64 {
        self.running.shared.next_request_id()
    }

    /// Sends a frame, or queues it where the socket takes no more. Never blocks.
    ///
    /// # Errors
    /// [`SendError`]; the frame is then dropped.
    pub fn send(&self, priority: Priority, envelope: v1::Envelope) -> Result<(), SendError> {
        let session = self.running.shared.session_for(&envelope);
        let session = session.ok_or(SendError::NotConnected)?;
        if session.is_lingering() && opens_an_exchange(&envelope) {
            return Err(SendError::NotConnected);
        }
        session.send(priority, &envelope)
    }

    /// Sends content that a Need asked for, with the priority of its Check, in pieces as large
    /// as credit allows and a frame may be. Waits for credit and for room, at most until
    /// `give_up`. When all is sent, `send` a `DataEnd` with the same id and priority.
    ///
    /// # Errors
    /// [`SendDataError`]; a part may have been sent then.
    pub fn send_data(
        &self,
        request_id: u64,
        priority: Priority,
        offset: u64,
        bytes: Bytes,
        give_up: Instant,
    ) -> Result<(), SendDataError> {
        self.send_pieces((request_id, priority), offset, &bytes, give_up, false)
    }

    /// The same for the last bytes: where they are fewer than a write takes they wait for the
    /// `DataEnd`, which is to be sent at once, and are written with it.
    ///
    /// # Errors
    /// As [`Client::send_data`].
    pub fn send_last_data(
        &self,
        request_id: u64,
        priority: Priority,
        offset: u64,
        bytes: Bytes,
        give_up: Instant,
    ) -> Result<(), SendDataError> {
        self.send_pieces((request_id, priority), offset, &bytes, give_up, true)
    }

    fn send_pieces(
        &self,
        (request_id, priority): (u64, Priority),
        offset: u64,
        bytes: &Bytes,
        give_up: Instant,
        is_last: bool,
    ) -> Result<(), SendDataError> {
        let session = self.running.shared.session_with(request_id);
        let session = session.ok_or(SendDataError::NotConnected)?;
        let mut sent = 0;
        while sent < bytes.len() {
            let end = bytes.len().min(sent + proto::DATA_MAX_BYTES);
            let piece = bytes.slice(sent..end);
            let offset = offset.saturating_add(sent as u64);
            let holds = is_last && end == bytes.len();
            let exchange = (request_id, priority);
            sent += session.send_some_data(exchange, offset, &piece, give_up, holds)?;
        }
        Ok(())
    }

    /// Sends a compressed piece of content as [`Client::send_data`] sends others: whole, once there
    /// is credit for its plain bytes, of which there are at most `DATA_PLAIN_MAX_BYTES`. `is_last`: as
    /// [`Client::send_last_data`].
    ///
    /// # Errors
    /// [`SendDataError`]; it was not sent then.
    pub fn send_compressed(
        &self,
        request_id: u64,
        priority: Priority,
        data: &v1::Data,
        give_up: Instant,
        is_last: bool,
    ) -> Result<(), SendDataError> {
        let session = self.running.shared.session_with(request_id);
        let session = session.ok_or(SendDataError::NotConnected)?;
        let exchange = (request_id, priority);
        while session.send_compressed(exchange, data, give_up, is_last)? == 0 {}
        Ok(())
    }

    /// Nobody waits for this request any more: takes its frames out of the queue, ends its
    /// `send_data` with `NotWanted`, and tells the appliance where it knows of the request. No
    /// reply to it reaches the handler after this returns, but for one that it has in hand.
    pub fn cancel(&self, request_id: u64) {
        if let Some(session) = self.running.shared.session_with(request_id) {
            session.cancel(request_id);
        }
    }

    /// Follows another list of appliances. Where its first is not the one that is connected, that
    /// is connected to, and only then the other one left.
    ///
    /// # Errors
    /// [`RouteRefused`]; the old list counts then.
    pub fn set_route(&self, epoch: u64, appliances: &[String]) -> Result<(), RouteRefused> {
        self.running.shared.set_route(epoch, appliances)
    }

    /// Begins anew with these appliances, as at the start: for a guest that has become another one,
    /// so that the first list of a placer is followed, whatever its epoch.
    pub fn restart_route(&self, appliances: Vec<String>) {
        self.running.shared.restart_route(appliances);
    }

    /// The list that is followed.
    #[must_use]
    pub fn route(&self) -> Route {
        self.running.shared.route()
    }

    /// The appliance that is connected, as its list names it.
    #[must_use]
    pub fn connected_to(&self) -> Option<String> {
        self.running.shared.connected_to()
    }

    /// Uses another certificate from the next connection on.
    pub fn set_tls(&self, tls: Arc<rustls::ClientConfig>) {
        self.running.shared.set_tls(tls);
    }

    /// Ends the session and connects anew, such as after a renewal in a renew-only session.
    pub fn reconnect(&self, why: &str) {
        if let Some(session) = self.running.shared.session() {
            session.say_goodbye(why, Instant::now() + GOODBYE_WRITE_MAX);
        }
    }

    /// Whether a session is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.running.shared.session().is_some()
    }

    /// Counted since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.running.shared.stats()
    }

    /// Says Goodbye, closes and waits for the link's threads (unless called by a handler).
    /// Every `up` has had its `down` when this returns.
    pub fn stop(&self) {
        self.running.stop();
    }
}

impl Running {
    fn stop(&self) {
        self.shared.stop(Instant::now() + GOODBYE_WRITE_MAX);
        let is_handler = self.shared.is_own_thread();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take()
            && thread.thread().id() != std::thread::current().id()
            && !is_handler
        {
            // It catches its handler's panics; should it have died, it is over too.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn opens_an_exchange(envelope: &v1::Envelope) -> bool {
    use v1::envelope::Body;
    matches!(envelope.body, Some(Body::Check(_) | Body::Renew(_)))
}

/// What a link has counted since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes on the wire, received.
    pub bytes_received: u64,
    /// Bytes on the wire, sent.
    pub bytes_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Frames sent.
    pub frames_sent: u64,
    /// Sessions that came up.
    pub sessions: u64,
    /// Of those, moves from one appliance to another.
    pub moves: u64,
    /// Attempts that failed.
    pub attempts_failed: u64,
    /// Frames refused for want of room.
    pub backpressure: u64,
    /// Frames received that are not known or not an appliance's to send.
    pub frames_ignored: u64,
}
