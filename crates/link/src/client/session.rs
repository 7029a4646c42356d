//! One session with one appliance: what callers, the receiving thread and the keeper share.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use proto::v1;
use proto::v1::envelope::Body;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;

use super::exchanges::{Exchanges, Grant};
use super::{SendDataError, SendError};
use crate::Priority;
use crate::liveness::{Liveness, Pulse};
use crate::pipe::{NotQueued, Pipe, Pumped};

/// A connection that has been greeted.
pub(crate) struct Session {
    tcp: TcpStream,
    pub(crate) pipe: Pipe,
    exchanges: Mutex<Exchanges>,
    /// Wakes those who wait for credit or room; goes with `exchanges`.
    may_send_data: Condvar,
    data_waiters: AtomicUsize,
    keeper: Mutex<Keeper>,
    keeper_wakes: Condvar,
    /// The keeper has gone to sleep with nothing outstanding.
    is_keeper_idle: AtomicBool,
    pub(crate) backpressure: AtomicU64,
}

/// What the keeper thread looks at.
struct Keeper {
    liveness: Liveness,
    /// A pump was handed over.
    is_wanted: bool,
    /// After Goodbye: the latest end.
    linger_until: Option<Instant>,
    /// Why the session ends, once it does.
    ended: Option<String>,
    /// It ends because we want it to.
    is_ours: bool,
    /// What was not answered when it ended.
    unanswered: Vec<u64>,
}

impl Session {
    pub(crate) fn new(
        tcp: TcpStream,
        pipe: Pipe,
        exchanges: Exchanges,
        liveness: Liveness,
    ) -> Self {
        Self {
            tcp,
            pipe,
            exchanges: Mutex::new(exchanges),
            may_send_data: Condvar::new(),
            data_waiters: AtomicUsize::new(0),
            keeper: Mutex::new(Keeper {
                liveness,
                is_wanted: false,
                linger_until: None,
                ended: None,
                is_ours: false,
                unanswered: Vec::new(),
            }),
            keeper_wakes: Condvar::new(),
            is_keeper_idle: AtomicBool::new(false),
            backpressure: AtomicU64::new(0),
        }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(crate) fn exchanges(&self) -> MutexGuard<'_, Exchanges> {
        self.exchanges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends or queues; never blocks.
    pub(crate) fn send(
        &self,
        priority: Priority,
        envelope: &v1::Envelope,
    ) -> Result<(), SendError> {
        {
            let mut exchanges = self.exchanges();
            if exchanges.is_over() {
                return Err(SendError::NotConnected);
            }
            if !exchanges.sending(envelope) {
                self.backpressure.fetch_add(1, Ordering::Relaxed);
                return Err(SendError::Backpressure);
            }
        }
        if let Err(refused) = self.pipe.push(priority, envelope) {
            if matches!(envelope.body, Some(Body::Check(_))) {
                self.exchanges().cancel(envelope.request_id);
            }
            return Err(match refused {
                NotQueued::TooLarge => SendError::TooLarge,
                NotQueued::Full => {
                    self.backpressure.fetch_add(1, Ordering::Relaxed);
                    SendError::Backpressure
                }
            });
        }
        self.pump();
        self.wake_idle_keeper();
        Ok(())
    }

    /// What is outstanding now is to be watched more closely. At most once for each of the
    /// keeper's sleeps: a busy link does not wake it with every frame.
    fn wake_idle_keeper(&self) {
        if self.is_keeper_idle.load(Ordering::SeqCst)
            && self.is_keeper_idle.swap(false, Ordering::SeqCst)
        {
            // The keeper holds the lock from its look until it sleeps.
            drop(self.keeper());
            self.keeper_wakes.notify_one();
        }
    }

    /// Sends as much of `bytes` as credit and room allow, waiting for both until `give_up`; the
    /// number of bytes sent. `is_last`: all of them are written with the frame that follows.
    pub(crate) fn send_some_data(
        &self,
        (request_id, priority): (u64, Priority),
        offset: u64,
        bytes: &Bytes,
        give_up: Instant,
        is_last: bool,
    ) -> Result<usize, SendDataError> {
        let granted = self.wait_for_grant(request_id, bytes.len(), 1, give_up)?;
        let is_held = is_last && granted >= bytes.len();
        let data = v1::Data {
            offset,
            bytes: bytes.slice(..granted.min(bytes.len())),
            ..v1::Data::default()
        };
        self.push_data((request_id, priority), data, granted, is_held)
    }

    /// Sends a piece that cannot be cut and needs credit for `plain_bytes`; 0: try again.
    pub(crate) fn send_compressed(
        &self,
        (request_id, priority): (u64, Priority),
        data: &v1::Data,
        give_up: Instant,
        is_last: bool,
    ) -> Result<usize, SendDataError> {
        let plain = data.plain_bytes as usize;
        let granted = self.wait_for_grant(request_id, plain, plain, give_up)?;
        self.push_data((request_id, priority), data.clone(), granted, is_last)
    }

    fn push_data(
        &self,
        (request_id, priority): (u64, Priority),
        data: v1::Data,
        granted: usize,
        is_held: bool,
    ) -> Result<usize, SendDataError> {
        let envelope = v1::Envelope {
            request_id,
            body: Some(Body::Data(data)),
        };
        match self.pipe.push(priority, &envelope) {
            Ok(()) => {
                if !is_held {
                    self.pump();
                }
                Ok(granted)
            }
            // Another took the room in between: wait again.
            Err(NotQueued::Full) => {
                self.exchanges().give_back(request_id, granted);
                Ok(0)
            }
            Err(NotQueued::TooLarge) => Err(SendDataError::NotWanted),
        }
    }

    fn wait_for_grant(
        &self,
        request_id: u64,
        wanted: usize,
        least: usize,
        give_up: Instant,
    ) -> Result<usize, SendDataError> {
        // Counted before the first look, so that whoever makes room after it knows of us.
        self.data_waiters.fetch_add(1, Ordering::SeqCst);
        let result = self.wait_counted(request_id, wanted, least, give_up);
        self.data_waiters.fetch_sub(1, Ordering::SeqCst);
        result
    }

    fn wait_counted(
        &self,
        request_id: u64,
        wanted: usize,
        least: usize,
        give_up: Instant,
    ) -> Result<usize, SendDataError> {
        let mut exchanges = self.exchanges();
        loop {
            let has_room = self.pipe.has_room_for_data();
            let (wanted, least) = if has_room { (wanted, least) } else { (0, 0) };
            match exchanges.take(request_id, wanted, least) {
                Grant::NotWanted => return Err(SendDataError::NotWanted),
                Grant::SessionOver => return Err(SendDataError::NotConnected),
                Grant::Bytes(granted) if granted > 0 => return Ok(granted),
                Grant::Bytes(_) | Grant::Wait => {}
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SendDataError::TimedOut);
            }
            let waited = self.may_send_data.wait_timeout(exchanges, left);
            exchanges = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// See [`super::Client::cancel`].
    pub(crate) fn cancel(&self, request_id: u64) {
        if !self.exchanges().cancel(request_id) {
            return;
        }
        self.may_send_data.notify_all();
        if !self.pipe.drop_exchange(request_id) {
            let cancel = v1::Envelope {
                request_id,
                body: Some(Body::Cancel(v1::Cancel {})),
            };
            // Where even a control frame finds no room the reply comes and is dropped.
            let _ = self.send(Priority::Control, &cancel);
        }
        self.end_if_finished();
    }

    /// Notes a received frame; `false`: nobody waits for it.
    pub(crate) fn received(&self, envelope: &v1::Envelope) -> bool {
        let is_for_somebody = self.exchanges().received(envelope);
        match envelope.body {
            Some(Body::CheckReply(_)) => {
                self.pipe.drop_data_of(envelope.request_id);
                self.wake_data_waiters();
                self.end_if_finished();
            }
            Some(Body::Need(_) | Body::Credit(_)) => self.wake_data_waiters(),
            _ => {}
        }
        is_for_somebody
    }

    /// The other side is alive.
    pub(crate) fn heard(&self) {
        self.keeper().liveness.received(Instant::now());
    }

    /// Sends what is queued, here and now where the socket takes it.
    pub(crate) fn pump(&self) {
        match self.pipe.pump(|bytes| self.write(bytes)) {
            Ok(Pumped::HandOver) => {
                self.keeper().is_wanted = true;
                self.keeper_wakes.notify_one();
            }
            Ok(Pumped::Done | Pumped::Waiting) => {}
            Err(error) => self.end(&format!("cannot send: {error}")),
        }
        self.wake_data_waiters();
    }

    fn wake_data_waiters(&self) {
        if self.data_waiters.load(Ordering::SeqCst) > 0 {
            // A waiter holds the lock from its look until it sleeps.
            drop(self.exchanges());
            self.may_send_data.notify_all();
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::send(&self.tcp, bytes, flags)?)
    }

    /// Ends the session: the receiving thread finds the socket shut. The first reason counts.
    pub(crate) fn end(&self, why: &str) {
        let unanswered = self.exchanges().end();
        {
            let mut keeper = self.keeper();
            keeper.ended.get_or_insert_with(|| why.to_owned());
            keeper.unanswered.extend(unanswered);
        }
        self.keeper_wakes.notify_one();
        self.may_send_data.notify_all();
        // Fails only where it is shut already.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// Why the session ended, where this side found a reason.
    pub(crate) fn why_ended(&self) -> Option<String> {
        self.keeper().ended.clone()
    }

    /// Whether it ended because this side wanted it to.
    pub(crate) fn was_left(&self) -> bool {
        self.keeper().is_ours
    }

    /// The appliance said Goodbye: nothing new is sent; the session ends when all is answered,
    /// at the latest at `until`.
    pub(crate) fn linger(&self, until: Instant) {
        self.keeper().linger_until.get_or_insert(until);
        self.keeper_wakes.notify_one();
        self.end_if_finished();
    }

    /// Another appliance has taken its place: it ends when all is answered, at the latest at
    /// `until`.
    pub(crate) fn leave(&self, until: Instant) {
        self.keeper().is_ours = true;
        self.linger(until);
    }

    /// Whether this request is under way here.
    pub(crate) fn has(&self, request_id: u64) -> bool {
        self.exchanges().has(request_id)
    }

    /// What was not answered, once the session has ended.
    pub(crate) fn take_unanswered(&self) -> Vec<u64> {
        std::mem::take(&mut self.keeper().unanswered)
    }

    pub(crate) fn is_lingering(&self) -> bool {
        self.keeper().linger_until.is_some()
    }

    fn why_lingering(&self) -> &'static str {
        if self.was_left() {
            "moved to another appliance"
        } else {
            "the appliance said goodbye"
        }
    }

    fn end_if_finished(&self) {
        if self.is_lingering() && self.exchanges().open_count() == 0 {
            self.end(self.why_lingering());
        }
    }

    /// Says Goodbye and ends, giving the socket until `until` to take it.
    pub(crate) fn say_goodbye(&self, why: &str, until: Instant) {
        self.keeper().is_ours = true;
        let goodbye = v1::Envelope {
            request_id: 0,
            body: Some(Body::Goodbye(v1::Goodbye {
                reason: why.to_owned(),
            })),
        };
        if self.send(Priority::Control, &goodbye).is_ok() && self.flush(until) {
            self.pipe.close_notify();
            self.flush(until);
        }
        self.end(why);
    }

    /// Writes until nothing is left; `false` where it takes longer than `until`.
    fn flush(&self, until: Instant) -> bool {
        while !self.pipe.is_drained() {
            let is_late = Instant::now() >= until || !self.wait_writable(until);
            if is_late || self.pipe.pump_on(|bytes| self.write(bytes)).is_err() {
                return false;
            }
        }
        true
    }

    /// The keeper thread: writes what was handed over, pings, finds the dead. Returns when the
    /// session ends.
    pub(crate) fn keep(&self) {
        let mut keeper = self.keeper();
        while keeper.ended.is_none() {
            let now = Instant::now();
            if keeper.linger_until.is_some_and(|until| now >= until) {
                drop(keeper);
                return self.end(self.why_lingering());
            }
            // Before the look: what comes after it finds the keeper idle and wakes it.
            self.is_keeper_idle.store(true, Ordering::SeqCst);
            let is_busy = keeper.is_wanted || self.exchanges().open_count() > 0;
            if is_busy {
                self.is_keeper_idle.store(false, Ordering::SeqCst);
            }
            let next = match keeper.liveness.pulse(now, is_busy) {
                Pulse::Wait(next) => next,
                Pulse::Ping => {
                    drop(keeper);
                    self.ping();
                    keeper = self.keeper();
                    continue;
                }
                Pulse::Dead => {
                    drop(keeper);
                    return self.end("the appliance does not answer");
                }
            };
            let next = keeper.linger_until.map_or(next, |until| until.min(next));
            keeper = if keeper.is_wanted {
                drop(keeper);
                self.write_on(next);
                self.keeper()
            } else {
                let wait = next.saturating_duration_since(now);
                let waited = self.keeper_wakes.wait_timeout(keeper, wait);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    fn ping(&self) {
        let ping = v1::Envelope {
            request_id: 0,
            body: Some(Body::Ping(v1::Ping { nonce: 0 })),
        };
        // Where there is no room for it, that much is unanswered already: the time runs.
        let _ = self.send(Priority::Control, &ping);
    }

    /// Goes on with a pump that was handed over, once the socket takes more.
    fn write_on(&self, until: Instant) {
        if !self.wait_writable(until) {
            return;
        }
        // Before the pump: whoever hands over meanwhile is not to be forgotten.
        self.keeper().is_wanted = false;
        match self.pipe.pump_on(|bytes| self.write(bytes)) {
            Ok(Pumped::Done) => {}
            Ok(Pumped::HandOver | Pumped::Waiting) => self.keeper().is_wanted = true,
            Err(error) => self.end(&format!("cannot send: {error}")),
        }
        self.wake_data_waiters();
    }

    /// Whether the socket takes more, waiting until `until`.
    pub(crate) fn wait_writable(&self, until: Instant) -> bool {
        wait_for(&self.tcp, PollFlags::OUT, until)
    }
}

/// Waits for a socket to be ready (or broken), at most until `until`.
pub(crate) fn wait_for(tcp: &TcpStream, flags: PollFlags, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(tcp, flags)], timeout.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
