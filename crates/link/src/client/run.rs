//! The link's thread: connect, greet, keep watch, move, again.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proto::v1;

use super::backoff::Backoff;
use super::connect::{ConnectError, Greeted, dial, greet};
use super::serve::{Ending, guarded};
use super::session::Session;
use super::{Config, Handler, Route, RouteRefused, Stats};

/// A session that lived so long was worth having: the back-off starts anew after it.
const USEFUL_AFTER: Duration = Duration::from_secs(5);
/// Longest pause before a better appliance that could not be reached is tried again.
const MOVE_RETRY_MAX: Duration = Duration::from_secs(300);
/// The longest that an appliance can send us away.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What callers and the link's threads share.
pub(crate) struct Shared {
    pub(super) config: Config,
    state: Mutex<State>,
    /// Told when the link stops, its route changes, or a session ends.
    changes: Condvar,
    next_request_id: AtomicU64,
    pub(super) counters: Counters,
}

pub(super) struct State {
    /// New requests go there.
    pub(super) session: Option<Arc<Session>>,
    /// As its list names it.
    address: String,
    /// Sessions that another has taken the place of, and that still answer.
    pub(super) leaving: Vec<Arc<Session>>,
    /// How the current session ended, once it has and its `down` is over.
    pub(super) ended: Option<Ending>,
    /// Those that serve sessions.
    threads: Vec<JoinHandle<()>>,
    route: Route,
    /// A connection that is not a session yet.
    greeting: Option<TcpStream>,
    tls: Arc<rustls::ClientConfig>,
    pub(super) is_stopping: bool,
}

/// Of sessions that are over, and what no session counts.
#[derive(Default)]
pub(super) struct Counters {
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    pub(super) frames_received: AtomicU64,
    frames_sent: AtomicU64,
    sessions: AtomicU64,
    moves: AtomicU64,
    attempts_failed: AtomicU64,
    backpressure: AtomicU64,
    pub(super) frames_ignored: AtomicU64,
}

/// What the link's thread is woken for.
enum Wake {
    /// The session has ended.
    Ended(Ending),
    /// A better appliance is to be tried.
    Move(String),
}

/// Until when appliances have sent us away.
type NotBefore = HashMap<String, Instant>;

/// Whether a session comes after none, or takes the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    Up,
    Moved,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        let tls = Arc::clone(&config.tls);
        let route = Route::new(config.epoch, config.appliances.clone());
        Self {
            config,
            state: Mutex::new(State {
                session: None,
                address: String::new(),
                leaving: Vec::new(),
                ended: None,
                threads: Vec::new(),
                route,
                greeting: None,
                tls,
                is_stopping: false,
            }),
            changes: Condvar::new(),
            next_request_id: AtomicU64::new(1),
            counters: Counters::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.state().session.clone()
    }

    /// Where a request is under way, or else the current session.
    pub(crate) fn session_with(&self, request_id: u64) -> Option<Arc<Session>> {
        let state = self.state();
        let left = state.leaving.iter().find(|session| session.has(request_id));
        left.or(state.session.as_ref()).cloned()
    }

    /// Where a frame belongs.
    pub(crate) fn session_for(&self, envelope: &v1::Envelope) -> Option<Arc<Session>> {
        use v1::envelope::Body;
        match envelope.body {
            Some(Body::DataEnd(_) | Body::Manifest(_) | Body::FilterReport(_)) => {
                self.session_with(envelope.request_id)
            }
            _ => self.session(),
        }
    }

    pub(crate) fn route(&self) -> Route {
        self.state().route.clone()
    }

    pub(crate) fn connected_to(&self) -> Option<String> {
        let state = self.state();
        state.session.as_ref().map(|_| state.address.clone())
    }

    pub(crate) fn set_route(&self, epoch: u64, appliances: &[String]) -> Result<(), RouteRefused> {
        self.state().route.offer(epoch, appliances)?;
        self.changes.notify_all();
        Ok(())
    }

    pub(crate) fn restart_route(&self, appliances: Vec<String>) {
        self.state().route = Route::new(0, appliances);
    }

    /// Whether a handler asks.
    pub(crate) fn is_own_thread(&self) -> bool {
        let own = std::thread::current().id();
        let state = self.state();
        state
            .threads
            .iter()
            .any(|thread| thread.thread().id() == own)
    }

    pub(super) fn tell(&self) {
        self.changes.notify_all();
    }

    pub(crate) fn next_request_id(&self) -> u64 {
        self.next_request_id.fetch_add(2, Ordering::Relaxed)
    }

    pub(crate) fn set_tls(&self, tls: Arc<rustls::ClientConfig>) {
        self.state().tls = tls;
    }

    pub(crate) fn stop(&self, until: Instant) {
        let sessions = {
            let mut state = self.state();
            state.is_stopping = true;
            if let Some(greeting) = state.greeting.take() {
                // Fails only where it has ended already.
                let _ = greeting.shutdown(Shutdown::Both);
            }
            let mut sessions = state.leaving.clone();
            sessions.extend(state.session.clone());
            sessions
        };
        self.changes.notify_all();
        for session in sessions {
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
            moves: of(&counters.moves),
            attempts_failed: of(&counters.attempts_failed),
            backpressure: of(&counters.backpressure),
            frames_ignored: of(&counters.frames_ignored),
        };
        let live: Vec<_> = {
            let state = self.state();
            state
                .leaving
                .iter()
                .chain(&state.session)
                .cloned()
                .collect()
        };
        for session in live {
            let live = session.pipe.counts();
            stats.bytes_received += live.bytes_received;
            stats.bytes_sent += live.bytes_sent;
            stats.frames_sent += live.frames_sent;
            stats.backpressure += of(&session.backpressure);
        }
        stats
    }

    /// The thread's whole life.
    pub(crate) fn run(self: &Arc<Self>, handler: &Arc<dyn Handler>) {
        let limits = &self.config.limits;
        let mut backoff = Backoff::new(limits.backoff_min, limits.backoff_max, self.config.seed);
        let mut not_before = HashMap::new();
        let mut doubtful = None;
        while !self.state().is_stopping {
            let order = self.route().order(doubtful.as_deref());
            let began = self.try_each(&order, &mut not_before, &**handler);
            let Some((address, greeted)) = began else {
                self.pause(backoff.next_delay());
                continue;
            };
            let started = Instant::now();
            if let Some((at, ending)) = self.keep_up(address, greeted, handler, &mut not_before) {
                doubtful = ending.is_doubtful.then_some(at);
            }
            if started.elapsed() >= USEFUL_AFTER {
                backoff.reset();
            } else {
                self.pause(backoff.next_delay());
            }
        }
        let left = std::mem::take(&mut self.state().threads);
        for thread in left {
            let _ = thread.join();
        }
    }

    /// A session, and those that take its place one after the other; the last one's appliance,
    /// and how it ended. `None`: it could not begin.
    fn keep_up(
        self: &Arc<Self>,
        address: String,
        greeted: Greeted,
        handler: &Arc<dyn Handler>,
        not_before: &mut NotBefore,
    ) -> Option<(String, Ending)> {
        self.begin(&address, greeted, handler, Arrival::Up).ok()?;
        let mut current = address;
        let mut retry_at = Instant::now();
        let mut pause = self.config.limits.move_retry;
        loop {
            let to = match self.watch(&current, retry_at) {
                Wake::Ended(ending) => return Some((current, ending)),
                Wake::Move(to) => to,
            };
            retry_at = Instant::now() + pause;
            pause = (pause * 2).min(MOVE_RETRY_MAX);
            let only = std::slice::from_ref(&to);
            let Some((_, greeted)) = self.try_each(only, not_before, &**handler) else {
                continue;
            };
            match self.begin(&to, greeted, handler, Arrival::Moved) {
                Ok(()) => {
                    current = to;
                    (retry_at, pause) = (Instant::now(), self.config.limits.move_retry);
                }
                // The one to be left has ended meanwhile: its `down` comes before this one's `up`.
                Err(Some(greeted)) => {
                    let ending = self.await_end();
                    if self.begin(&to, *greeted, handler, Arrival::Up).is_err() {
                        return Some((current, ending));
                    }
                    current = to;
                }
                Err(None) => {}
            }
        }
    }

    /// Waits, unless the link stops.
    fn pause(&self, delay: Duration) {
        let state = self.state();
        let waited = self
            .changes
            .wait_timeout_while(state, delay, |state| !state.is_stopping);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for the session's end or a better appliance, which is tried from `retry_at` on.
    fn watch(&self, current: &str, retry_at: Instant) -> Wake {
        let mut state = self.state();
        loop {
            if let Some(ending) = state.ended.take() {
                return Wake::Ended(ending);
            }
            let better = state.route.better_than(current).map(str::to_owned);
            let now = Instant::now();
            match better.filter(|_| !state.is_stopping) {
                Some(better) if now >= retry_at => return Wake::Move(better),
                Some(_) => {
                    let waited = self.changes.wait_timeout(state, retry_at - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => {
                    let woken = self.changes.wait(state);
                    state = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn await_end(&self) -> Ending {
        let mut state = self.state();
        loop {
            if let Some(ending) = state.ended.take() {
                return ending;
            }
            let woken = self.changes.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes a session the current one and serves it on a thread of its own. The greeted session
    /// comes back where there is none whose place it could take.
    fn begin(
        self: &Arc<Self>,
        address: &str,
        greeted: Greeted,
        handler: &Arc<dyn Handler>,
        arrival: Arrival,
    ) -> Result<(), Option<Box<Greeted>>> {
        let (go, start) = std::sync::mpsc::sync_channel::<Greeted>(1);
        let (shared, handler) = (Arc::clone(self), Arc::clone(handler));
        let thread = std::thread::Builder::new().name("link-session".into());
        let thread = thread.spawn(move || {
            if let Ok(greeted) = start.recv() {
                shared.serve(greeted, &*handler, arrival);
            }
        });
        let session = Arc::clone(&greeted.session);
        let mut state = self.state();
        let thread = match thread {
            Ok(thread) if !state.is_stopping => thread,
            _ => {
                drop(state);
                let until = Instant::now() + super::GOODBYE_WRITE_MAX;
                session.say_goodbye("the agent cannot use this session", until);
                self.retire(&session);
                return Err(None);
            }
        };
        if arrival == Arrival::Moved && state.session.is_none() {
            return Err(Some(Box::new(greeted)));
        }
        let left = state.session.replace(session);
        address.clone_into(&mut state.address);
        state.leaving.extend(left.clone());
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread);
        drop(state);
        self.counters.sessions.fetch_add(1, Ordering::Relaxed);
        // Its thread waits for this.
        let _ = go.send(greeted);
        if let Some(left) = left {
            self.counters.moves.fetch_add(1, Ordering::Relaxed);
            left.leave(Instant::now() + self.config.limits.leave_linger);
        }
        Ok(())
    }

    /// Tries the appliances in this order, once each.
    fn try_each(
        &self,
        order: &[String],
        not_before: &mut NotBefore,
        handler: &dyn Handler,
    ) -> Option<(String, Greeted)> {
        for address in order {
            if self.state().is_stopping {
                return None;
            }
            let sent_away = not_before.get(address);
            if sent_away.is_some_and(|until| Instant::now() < *until) {
                continue;
            }
            let error = match self.try_one(address, handler) {
                Ok(greeted) => return Some((address.clone(), greeted)),
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
                not_before.retain(|_, until| Instant::now() < *until);
                let until = Instant::now() + delay.min(RETRY_AFTER_MAX);
                not_before.insert(address.clone(), until);
            }
            guarded("unreachable", || {
                handler.unreachable(address, &error.to_string());
            });
        }
        None
    }

    fn try_one(&self, address: &str, handler: &dyn Handler) -> Result<Greeted, ConnectError> {
        let limits = &self.config.limits;
        let tcp = dial(address, limits.connect_timeout)?;
        let mut hello = self.config.hello.clone();
        guarded("greeting", || handler.greeting(&mut hello));
        let tls = {
            let mut state = self.state();
            if state.is_stopping {
                // Whoever stopped us found no connection to shut.
                return Err(ConnectError::Closed);
            }
            state.greeting = tcp.try_clone().ok();
            hello.placement_epoch = state.route.epoch();
            Arc::clone(&state.tls)
        };
        let greeted = greet(tcp, tls, &hello, limits);
        self.state().greeting = None;
        greeted
    }

    /// Counts what a session that is over has counted.
    pub(super) fn retire(&self, session: &Session) {
        let counts = session.pipe.counts();
        let counters = &self.counters;
        let add = |to: &AtomicU64, n| to.fetch_add(n, Ordering::Relaxed);
        add(&counters.bytes_received, counts.bytes_received);
        add(&counters.bytes_sent, counts.bytes_sent);
        add(&counters.frames_sent, counts.frames_sent);
        let refused = session.backpressure.load(Ordering::Relaxed);
        add(&counters.backpressure, refused);
    }
}
