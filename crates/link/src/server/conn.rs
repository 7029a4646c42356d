//! A session with a guest.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use proto::v1;
use proto::v1::envelope::Body;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::Limits;
use super::listener::Counters;
use super::rules::{AgentRules, Pass};
use crate::Priority;
use crate::inbox::Inbox;
use crate::liveness::{Liveness, Pulse, Silence};
use crate::pipe::{NotQueued, Pipe, Pumped};

/// Bytes read at once, into the stack of whoever polls: idle sessions hold no buffer.
const READ_BYTES: usize = 16 * 1024;

/// A session with a guest. Dropping it closes it.
pub struct Conn {
    shared: Arc<Shared>,
    inbox: Inbox,
    /// The guest has ended its stream.
    has_ended: bool,
}

/// Why a session ended other than by the guest's wish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// The guest broke a rule of the contract.
    #[error("the guest broke the protocol: {0}")]
    Violation(String),
    /// TLS or TCP failed, or we closed it.
    #[error("the connection ended: {0}")]
    Closed(String),
}

/// Why a frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The session is over, or is over now because the guest takes too little.
    #[error("the session is over")]
    Closed,
    /// The session may do nothing but renew.
    #[error("the guest's certificate has expired: this session can only renew")]
    RenewOnly,
    /// The frame is longer than any may be.
    #[error("the frame is too long")]
    TooLarge,
}

/// What receiver and keeper own, and senders look at.
pub(crate) struct Shared {
    tcp: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) pipe: Pipe,
    limits: Limits,
    counters: Arc<Counters>,
    state: Mutex<State>,
    keeper: Notify,
    next_request_id: AtomicU64,
    /// Given back, like the socket, when receiver and keeper are gone.
    _place: OwnedSemaphorePermit,
}

struct State {
    rules: AgentRules,
    liveness: Liveness,
    /// A pump was handed over to the keeper.
    is_wanted: bool,
    ending: Option<Ending>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The session is over, or will be.
struct Ending {
    why: String,
    /// Frames that are queued still leave; then, or now, the socket is shut.
    until: Instant,
    /// The guest may go on until then.
    is_graceful: bool,
}

impl State {
    /// The first reason counts, but for a graceful end that is cut short.
    fn end(&mut self, why: &str, until: Instant, is_graceful: bool) {
        let is_first = match &self.ending {
            None => true,
            Some(ending) => ending.is_graceful && !is_graceful,
        };
        if is_first {
            self.ending = Some(Ending {
                why: why.to_owned(),
                until,
                is_graceful,
            });
        }
    }
}

impl Shared {
    pub(crate) fn new(
        tcp: TcpStream,
        peer: SocketAddr,
        pipe: Pipe,
        limits: Limits,
        counters: Arc<Counters>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        let silence = Silence {
            busy: limits.ping_after,
            idle: limits.ping_after,
            dead: limits.dead_after,
        };
        Self {
            tcp,
            peer,
            pipe,
            limits,
            counters,
            state: Mutex::new(State {
                rules: AgentRules::new(0, true),
                liveness: Liveness::new(silence, Instant::now().into_std()),
                is_wanted: false,
                ending: None,
            }),
            keeper: Notify::new(),
            next_request_id: AtomicU64::new(2),
            _place: place,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push_and_pump(&self, priority: Priority, envelope: &v1::Envelope) -> Result<(), SendError> {
        match self.pipe.push(priority, envelope) {
            Ok(()) => {
                self.pump();
                Ok(())
            }
            Err(NotQueued::TooLarge) => Err(SendError::TooLarge),
            Err(NotQueued::Full) => {
                self.counters.slow_closed.fetch_add(1, Ordering::Relaxed);
                self.close("the guest takes too little of what is sent to it");
                Err(SendError::Closed)
            }
        }
    }

    /// Sends what is queued, here and now where the socket takes it.
    pub(crate) fn pump(&self) {
        match self.pipe.pump(|bytes| self.tcp.try_write(bytes)) {
            Ok(Pumped::HandOver) => {
                self.state().is_wanted = true;
                self.keeper.notify_one();
            }
            Ok(Pumped::Done | Pumped::Waiting) => {}
            Err(error) => self.close(&format!("cannot send: {error}")),
        }
    }

    /// Ends the session now. The first reason counts.
    pub(crate) fn close(&self, why: &str) {
        {
            let mut state = self.state();
            let now = Instant::now();
            state.end(why, now, false);
            if let Some(ending) = &mut state.ending {
                ending.until = ending.until.min(now);
            }
        }
        // Fails only where it is shut already.
        let _ = socket2::SockRef::from(&self.tcp).shutdown(Shutdown::Both);
        self.keeper.notify_one();
    }

    /// Says why, ends the receiving, and leaves the keeper to see the words off.
    pub(crate) fn refuse(&self, reason: &str, retry_after: Option<Duration>) {
        let millis = retry_after.map_or(0, |delay| delay.as_millis());
        let refused = v1::Envelope {
            request_id: 0,
            body: Some(Body::Refused(v1::Refused {
                reason: reason.to_owned(),
                retry_after_ms: u32::try_from(millis).unwrap_or(u32::MAX),
            })),
        };
        // Without room for it the guest does not read anyway.
        let _ = self.push_and_pump(Priority::Control, &refused);
        let until = Instant::now() + self.limits.farewell_max;
        self.state().end(reason, until, false);
        self.keeper.notify_one();
    }

    /// Why receiving is over.
    fn ended(&self) -> Option<String> {
        let state = self.state();
        let ending = state.ending.as_ref().filter(|ending| !ending.is_graceful);
        ending.map(|ending| ending.why.clone())
    }

    /// Reads what there is; `true` where the stream has ended. Synchronous, so that its buffer
    /// lives on the stack.
    fn read_once(&self, inbox: &mut Inbox) -> Result<bool, String> {
        let mut buffer = [0; READ_BYTES];
        let read = match self.tcp.try_read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(format!("cannot receive: {error}")),
        };
        self.heard();
        let received = buffer.get(..read).unwrap_or_default();
        let outcome = self.pipe.receive(received, inbox.plain());
        // A handshake's answer, or an alert that tells the guest what is wrong.
        self.pump();
        let has_ended = outcome.map_err(|error| format!("TLS failed: {error}"))?;
        Ok(has_ended || read == 0)
    }

    /// Waits for something to read, then reads it; `true` where the stream has ended.
    pub(crate) async fn read(&self, inbox: &mut Inbox) -> Result<bool, String> {
        // A guest that always has something to say must not keep a worker to itself.
        tokio::task::coop::consume_budget().await;
        let readable = self.tcp.readable().await;
        readable.map_err(|error| format!("cannot receive: {error}"))?;
        self.read_once(inbox)
    }

    /// Writes what was handed over, closes the silent and the stalled, sees farewells off.
    /// Returns when the session is over.
    async fn keep(self: Arc<Self>) {
        while let Some(next) = self.deadline() {
            let is_wanted = std::mem::take(&mut self.state().is_wanted);
            if is_wanted {
                self.write_on(next).await;
            } else {
                // Both ends of the wait lead to another look.
                let _ = tokio::time::timeout_at(next, self.keeper.notified()).await;
            }
        }
        let _ = socket2::SockRef::from(&self.tcp).shutdown(Shutdown::Both);
    }

    /// The next moment at which something must be done; `None` when the session is over.
    fn deadline(&self) -> Option<Instant> {
        let ending = {
            let state = self.state();
            let ending = state.ending.as_ref();
            ending.map(|ending| (ending.until, ending.is_graceful))
        };
        match ending {
            Some((until, _)) if Instant::now() >= until => None,
            Some((until, true)) => self.watch().map(|next| next.min(until)),
            Some((until, false)) if self.pipe.is_drained() => {
                // The words have left; what the guest still sends is not read, and the socket
                // is not closed at once, for that would take the words back.
                let _ = socket2::SockRef::from(&self.tcp).shutdown(Shutdown::Write);
                Some(until)
            }
            Some((until, false)) => Some(until),
            None => self.watch(),
        }
    }

    /// Asks a guest that is silent whether it is there; when to look again. `None`: it is gone, and
    /// the session is closed.
    fn watch(&self) -> Option<Instant> {
        let now = Instant::now();
        let pulse = self.state().liveness.pulse(now.into_std(), false);
        match pulse {
            Pulse::Wait(until) => Some(Instant::from_std(until)),
            Pulse::Ping => {
                let ping = v1::Envelope {
                    request_id: 0,
                    body: Some(Body::Ping(v1::Ping { nonce: 0 })),
                };
                // Where it cannot be sent the session is closed, and the next look finds it.
                let _ = self.push_and_pump(Priority::Control, &ping);
                Some(now + self.limits.dead_after)
            }
            // It is we who do not listen.
            Pulse::Dead if self.has_unread() => {
                self.heard();
                Some(now + self.limits.ping_after)
            }
            Pulse::Dead => {
                self.counters.slow_closed.fetch_add(1, Ordering::Relaxed);
                self.close("the guest has been silent for too long");
                None
            }
        }
    }

    fn heard(&self) {
        let now = Instant::now().into_std();
        self.state().liveness.received(now);
    }

    /// Whether the guest has sent something that `recv` has not read.
    fn has_unread(&self) -> bool {
        use rustix::net::RecvFlags;
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(&self.tcp, &mut [0; 1], flags).is_ok_and(|(_, peeked)| peeked > 0)
    }

    /// Goes on with a pump that was handed over, once the socket takes more.
    async fn write_on(&self, next: Instant) {
        let stalled_at = Instant::now() + self.limits.stalled_max;
        let writable = tokio::time::timeout_at(stalled_at.min(next), self.tcp.writable()).await;
        let Ok(Ok(())) = writable else {
            self.state().is_wanted = true;
            if Instant::now() >= stalled_at {
                self.counters.slow_closed.fetch_add(1, Ordering::Relaxed);
                self.close("the guest takes nothing of what is sent to it");
            }
            return;
        };
        match self.pipe.pump_on(|bytes| self.tcp.try_write(bytes)) {
            Ok(Pumped::Done) => {}
            Ok(Pumped::HandOver | Pumped::Waiting) => self.state().is_wanted = true,
            Err(error) => self.close(&format!("cannot send: {error}")),
        }
    }
}

impl Conn {
    /// The session begins: rules, keeper, Welcome.
    pub(super) fn open(
        shared: Arc<Shared>,
        mut inbox: Inbox,
        welcome: v1::Welcome,
        renew_only: bool,
    ) -> Self {
        inbox.open();
        shared.state().rules = AgentRules::new(welcome.in_flight_max, renew_only);
        let first = v1::Envelope {
            request_id: 0,
            body: Some(Body::Welcome(welcome)),
        };
        // Where it cannot be sent the session is closed, and `recv` says so.
        let _ = shared.push_and_pump(Priority::Control, &first);
        tokio::spawn(Arc::clone(&shared).keep());
        Self {
            shared,
            inbox,
            has_ended: false,
        }
    }

    /// The next frame for the appliance; `None` after an orderly end. Cancel-safe. The link
    /// keeps Ping, Pong and late Data (of requests already answered) to itself; it has checked
    /// request ids, credit, offsets and that the frame is an agent's to send.
    ///
    /// # Errors
    /// [`RecvError`]; the session is over.
    pub async fn recv(&mut self) -> Result<Option<v1::Envelope>, RecvError> {
        loop {
            if let Some(why) = self.shared.ended() {
                return Err(RecvError::Closed(why));
            }
            match self.inbox.next() {
                Ok(Some(envelope)) => {
                    if self.judge(&envelope)? {
                        return Ok(Some(envelope));
                    }
                }
                Ok(None) if self.has_ended => return Ok(None),
                Ok(None) => self.has_ended = self.read().await?,
                Err(error) => return Err(self.violation(&error.to_string())),
            }
        }
    }

    async fn read(&mut self) -> Result<bool, RecvError> {
        let outcome = self.shared.read(&mut self.inbox).await;
        outcome.map_err(|seen| {
            let why = self.shared.ended().unwrap_or(seen);
            self.shared.close(&why);
            RecvError::Closed(why)
        })
    }

    /// Whether a frame is for the appliance.
    fn judge(&self, envelope: &v1::Envelope) -> Result<bool, RecvError> {
        let pass = self.shared.state().rules.received(envelope);
        match pass {
            Ok(Pass::Deliver) => Ok(true),
            Ok(Pass::Drop) => {
                // One of those was asked for.
                if !matches!(envelope.body, Some(Body::Pong(_))) {
                    let ignored = &self.shared.counters.frames_ignored;
                    ignored.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false)
            }
            Ok(Pass::Answer { nonce }) => {
                let pong = v1::Envelope {
                    request_id: 0,
                    body: Some(Body::Pong(v1::Pong { nonce })),
                };
                // Where it cannot be sent the session is closed, and the next look finds it.
                let _ = self.shared.push_and_pump(Priority::Control, &pong);
                Ok(false)
            }
            Err(violation) => Err(self.violation(violation.0)),
        }
    }

    fn violation(&self, what: &str) -> RecvError {
        self.shared.counters.violation(self.shared.peer, what);
        self.shared.refuse(what, None);
        RecvError::Violation(what.to_owned())
    }

    /// A handle to send with.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender {
            shared: Arc::downgrade(&self.shared),
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let is_bidding_farewell = self.shared.ended().is_some();
        if !is_bidding_farewell {
            self.shared.close("the appliance has closed the session");
        }
    }
}

/// Sends to a guest. Clones are the same session; they neither keep it open nor hold anything of
/// it: whoever still owes a guest an answer when it leaves does not cost others their place.
#[derive(Clone)]
pub struct Sender {
    shared: Weak<Shared>,
}

impl Sender {
    /// Sends a frame or queues it; never blocks. Need and Credit are noted as the guest's
    /// credit, CheckReply ends the request.
    ///
    /// # Errors
    /// [`SendError`]. A guest that lets too much pile up is closed.
    pub fn send(&self, priority: Priority, envelope: v1::Envelope) -> Result<(), SendError> {
        let shared = self.shared.upgrade().ok_or(SendError::Closed)?;
        {
            let mut state = shared.state();
            if state.ending.as_ref().is_some_and(|e| !e.is_graceful) {
                return Err(SendError::Closed);
            }
            if !state.rules.may_send(&envelope) {
                return Err(SendError::RenewOnly);
            }
            state.rules.sending(&envelope);
        }
        shared.push_and_pump(priority, &envelope)
    }

    /// A request id for an exchange that the appliance starts: even, rising, never used twice.
    /// 0 where the session is over: nothing can be sent any more.
    #[must_use]
    pub fn next_request_id(&self) -> u64 {
        self.shared.upgrade().map_or(0, |shared| {
            shared.next_request_id.fetch_add(2, Ordering::Relaxed)
        })
    }

    /// Says Goodbye: the guest sends nothing new and leaves when all is answered, at the latest
    /// when `linger` is over.
    pub fn goodbye(&self, reason: &str, linger: Duration) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let goodbye = v1::Envelope {
            request_id: 0,
            body: Some(Body::Goodbye(v1::Goodbye {
                reason: reason.to_owned(),
            })),
        };
        // Where it cannot be sent the session is over already.
        let _ = self.send(Priority::Control, goodbye);
        let until = Instant::now() + linger;
        shared.state().end(reason, until, true);
        shared.keeper.notify_one();
    }

    /// Says why, and ends the session.
    pub fn refuse(&self, reason: &str) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        shared.refuse(reason, None);
        // Wakes a receiver that waits for the guest; what was said still leaves.
        let _ = socket2::SockRef::from(&shared.tcp).shutdown(Shutdown::Read);
    }

    /// Bytes on the wire so far: received, sent; (0, 0) once the session is over.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.shared.upgrade().map_or((0, 0), |shared| {
            let counts = shared.pipe.counts();
            (counts.bytes_received, counts.bytes_sent)
        })
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let shared = self.shared.upgrade();
        shared.is_none_or(|shared| shared.ended().is_some())
    }
}
