//! The link's thread: connect, greet, receive, again.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::envelope::Body;

use super::backoff::Backoff;
use super::connect::{ConnectError, Greeted, READ_BYTES, dial, greet};
use super::session::Session;
use super::{Config, Handler, Stats};
use crate::Priority;
use crate::inbox::Inbox;

/// A session that lived so long was worth having: the back-off starts anew after it.
const USEFUL_AFTER: Duration = Duration::from_secs(5);
/// The longest that an appliance can send us away.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What callers and the link's thread share.
pub(crate) struct Shared {
    config: Config,
    state: Mutex<State>,
    stops: Condvar,
    next_request_id: AtomicU64,
    counters: Counters,
}

struct State {
    session: Option<Arc<Session>>,
    /// A connection that is not a session yet.
    greeting: Option<TcpStream>,
    tls: Arc<rustls::ClientConfig>,
    is_stopping: bool,
}

/// Of sessions that are over, and what no session counts.
#[derive(Default)]
struct Counters {
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    frames_received: AtomicU64,
    frames_sent: AtomicU64,
    sessions: AtomicU64,
    attempts_failed: AtomicU64,
    backpressure: AtomicU64,
    frames_ignored: AtomicU64,
}

/// Why a session ended, and what that says of its appliance.
struct Ending {
    why: String,
    /// Another appliance is to be tried first.
    is_doubtful: bool,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        let tls = Arc::clone(&config.tls);
        Self {
            config,
            state: Mutex::new(State {
                session: None,
                greeting: None,
                tls,
                is_stopping: false,
            }),
            stops: Condvar::new(),
            next_request_id: AtomicU64::new(1),
            counters: Counters::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.state().session.clone()
    }

    pub(crate) fn next_request_id(&self) -> u64 {
        self.next_request_id.fetch_add(2, Ordering::Relaxed)
    }

    pub(crate) fn set_tls(&self, tls: Arc<rustls::ClientConfig>) {
        self.state().tls = tls;
    }

    pub(crate) fn stop(&self, until: Instant) {
        let session = {
            let mut state = self.state();
            state.is_stopping = true;
            if let Some(greeting) = state.greeting.take() {
                // Fails only where it has ended already.
                let _ = greeting.shutdown(Shutdown::Both);
            }
            state.session.clone()
        };
        self.stops.notify_all();
        if let Some(session) = session {
            session.say_goodbye("the agent stops", until);
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let mut stats = Stats {
            bytes_received: of(&counters.bytes_received),
            bytes_sent: of(&counters.bytes_sent),
            frames_received: of(&counters.frames_received),
            frames_sent: of(&counters.frames_sent),
            sessions: of(&counters.sessions),
            attempts_failed: of(&counters.attempts_failed),
            backpressure: of(&counters.backpressure),
            frames_ignored: of(&counters.frames_ignored),
        };
        if let Some(session) = self.session() {
            let live = session.pipe.counts();
            stats.bytes_received += live.bytes_received;
            stats.bytes_sent += live.bytes_sent;
            stats.frames_sent += live.frames_sent;
            stats.backpressure += of(&session.backpressure);
        }
        stats
    }

    /// The thread's whole life.
    pub(crate) fn run(&self, handler: &dyn Handler) {
        let limits = &self.config.limits;
        let mut backoff = Backoff::new(limits.backoff_min, limits.backoff_max, self.config.seed);
        let mut not_before = vec![None; self.config.appliances.len()];
        let mut first = 0;
        while !self.state().is_stopping {
            let began = self.try_each(first, &mut not_before, handler);
            let Some((index, greeted)) = began else {
                self.pause(backoff.next_delay());
                continue;
            };
            let started = Instant::now();
            let ending = self.serve(greeted, handler);
            first = if ending.is_doubtful { index + 1 } else { 0 };
            if started.elapsed() >= USEFUL_AFTER {
                backoff.reset();
            } else {
                self.pause(backoff.next_delay());
            }
        }
    }

    /// Waits, unless the link stops.
    fn pause(&self, delay: Duration) {
        let state = self.state();
        let waited = self
            .stops
            .wait_timeout_while(state, delay, |state| !state.is_stopping);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Goes round the list of appliances once, from `first` on.
    fn try_each(
        &self,
        first: usize,
        not_before: &mut [Option<Instant>],
        handler: &dyn Handler,
    ) -> Option<(usize, Greeted)> {
        let count = self.config.appliances.len();
        for index in (first..first + count).map(|index| index % count) {
            let address = self.config.appliances.get(index)?;
            let sent_away = not_before.get_mut(index)?;
            if self.state().is_stopping {
                return None;
            }
            if sent_away.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            let error = match self.try_one(address) {
                Ok(greeted) => return Some((index, greeted)),
                Err(error) => error,
            };
            self.counters
                .attempts_failed
                .fetch_add(1, Ordering::Relaxed);
            if let ConnectError::Refused {
                retry_after: Some(delay),
                ..
            } = error
            {
                *sent_away = Some(Instant::now() + delay.min(RETRY_AFTER_MAX));
            }
            guarded("unreachable", || {
                handler.unreachable(address, &error.to_string());
            });
        }
        None
    }

    fn try_one(&self, address: &str) -> Result<Greeted, ConnectError> {
        let limits = &self.config.limits;
        let tcp = dial(address, limits.connect_timeout)?;
        let tls = {
            let mut state = self.state();
            if state.is_stopping {
                // Whoever stopped us found no connection to shut.
                return Err(ConnectError::Closed);
            }
            state.greeting = tcp.try_clone().ok();
            Arc::clone(&state.tls)
        };
        let greeted = greet(tcp, tls, &self.config.hello, limits);
        self.state().greeting = None;
        greeted
    }

    /// A session from `up` to `down`.
    fn serve(&self, greeted: Greeted, handler: &dyn Handler) -> Ending {
        let Greeted {
            session,
            inbox,
            welcome,
        } = greeted;
        self.counters.sessions.fetch_add(1, Ordering::Relaxed);
        {
            let mut state = self.state();
            if state.is_stopping {
                drop(state);
                let until = Instant::now() + super::GOODBYE_WRITE_MAX;
                session.say_goodbye("the agent stops", until);
                self.retire(&session);
                return Ending {
                    why: String::new(),
                    is_doubtful: false,
                };
            }
            state.session = Some(Arc::clone(&session));
        }
        let ending = std::thread::scope(|scope| {
            let keeper = std::thread::Builder::new().name("link-keeper".into());
            let started = keeper.spawn_scoped(scope, || session.keep());
            let ending = match started {
                Ok(_) => {
                    if guarded("up", || handler.up(&welcome)) {
                        self.receive(&session, inbox, handler)
                    } else {
                        Ending::of("the handler of Welcome failed")
                    }
                }
                Err(error) => Ending::of(&format!("cannot start a thread: {error}")),
            };
            session.end(&ending.why);
            ending
        });
        self.state().session = None;
        self.retire(&session);
        guarded("down", || handler.down(&ending.why));
        ending
    }

    /// Counts what a session that is over has counted.
    fn retire(&self, session: &Session) {
        let counts = session.pipe.counts();
        let counters = &self.counters;
        let add = |to: &AtomicU64, n| to.fetch_add(n, Ordering::Relaxed);
        add(&counters.bytes_received, counts.bytes_received);
        add(&counters.bytes_sent, counts.bytes_sent);
        add(&counters.frames_sent, counts.frames_sent);
        let refused = session.backpressure.load(Ordering::Relaxed);
        add(&counters.backpressure, refused);
    }

    /// Reads and handles frames until the session ends.
    fn receive(&self, session: &Session, mut inbox: Inbox, handler: &dyn Handler) -> Ending {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Err(ending) = self.handle_frames(session, &mut inbox, handler) {
                return ending;
            }
            let read = match session.tcp().read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Ending::after(session, &format!("cannot receive: {error}")),
            };
            let received = buffer.get(..read).unwrap_or_default();
            session.heard();
            match session.pipe.receive(received, inbox.plain()) {
                Ok(false) if read > 0 => session.pump(),
                Ok(_) => {
                    // What came with the end is still worth having.
                    return match self.handle_frames(session, &mut inbox, handler) {
                        Err(ending) => ending,
                        Ok(()) => Ending::after(session, "the appliance closed the connection"),
                    };
                }
                Err(error) => {
                    session.pump();
                    return Ending::after(session, &format!("TLS failed: {error}"));
                }
            }
        }
    }

    fn handle_frames(
        &self,
        session: &Session,
        inbox: &mut Inbox,
        handler: &dyn Handler,
    ) -> Result<(), Ending> {
        loop {
            match inbox.next() {
                Ok(None) => return Ok(()),
                Ok(Some(envelope)) => self.handle(session, envelope, handler)?,
                Err(error) => {
                    let why = format!("the appliance broke the protocol: {error}");
                    return Err(Ending::of(&why));
                }
            }
        }
    }

    fn handle(
        &self,
        session: &Session,
        envelope: v1::Envelope,
        handler: &dyn Handler,
    ) -> Result<(), Ending> {
        self.counters
            .frames_received
            .fetch_add(1, Ordering::Relaxed);
        let is_for_somebody = session.received(&envelope);
        match &envelope.body {
            Some(Body::Ping(ping)) => {
                let pong = v1::Envelope {
                    request_id: 0,
                    body: Some(Body::Pong(v1::Pong { nonce: ping.nonce })),
                };
                // Without room for a pong the other side does not read; it finds out.
                let _ = session.send(Priority::Control, &pong);
            }
            Some(Body::Pong(_) | Body::Credit(_)) => {}
            Some(Body::Goodbye(_)) => {
                session.linger(Instant::now() + self.config.limits.goodbye_linger);
            }
            Some(Body::Refused(refused)) => {
                let reason: String = refused.reason.chars().take(300).collect();
                return Err(Ending::of(&format!("the appliance refused: {reason}")));
            }
            Some(
                Body::Need(_)
                | Body::CheckReply(_)
                | Body::ContentChanged(_)
                | Body::Policy(_)
                | Body::Recall(_)
                | Body::AllowlistOffers(_)
                | Body::AllowlistPart(_)
                | Body::FilterOffer(_)
                | Body::FilterPart(_)
                | Body::Order(_)
                | Body::Renewed(_),
            ) if is_for_somebody => {
                if !guarded("frame", || handler.frame(envelope)) {
                    return Err(Ending::of("the handler of a frame failed"));
                }
            }
            _ => {
                self.counters.frames_ignored.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Ending {
    fn of(why: &str) -> Self {
        Self {
            why: why.to_owned(),
            is_doubtful: true,
        }
    }

    /// We may have ended it ourselves, for a better reason than what the socket says.
    fn after(session: &Session, seen: &str) -> Self {
        let ours = session.why_ended();
        Self {
            is_doubtful: ours.is_some() && !session.was_left(),
            why: ours.unwrap_or_else(|| seen.to_owned()),
        }
    }
}

/// Runs a handler; `false` where it panicked. Its panic must not end the link: a guest without
/// one gets no verdicts any more.
fn guarded(name: &str, handle: impl FnOnce()) -> bool {
    let handled = catch_unwind(AssertUnwindSafe(handle));
    if handled.is_err() {
        tracing::error!(handler = name, "a handler of the link panicked");
    }
    handled.is_ok()
}
