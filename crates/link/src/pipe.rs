//! One TLS connection with its send queue, for several threads or tasks, without I/O of its own:
//! the drivers bring a function that writes to a socket without blocking.
//!
//! Who has something to send puts it into the queue and pumps. One pumps at a time; whoever comes
//! in between leaves its frame to the one at work and goes. So a lone caller encrypts and writes
//! by itself, with no hand-over to another thread, and a crowd is served by priority.

use std::io::{self, BufRead, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use proto::v1;
use proto::v1::envelope::Body;
use rustls::Connection;

use crate::Priority;
use crate::queue::{Frame, Full, Kind, Room, SendQueue};

/// Bytes encrypted at once; what is encrypted can no longer be overtaken.
const BATCH_BYTES: usize = 64 * 1024;
/// Bytes that one caller writes before it leaves the rest to the keeper: a thread that came to
/// send a check must not be kept to send another's files.
const CALLER_BYTES: usize = 256 * 1024;

/// How a pump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Nothing is left to send, or somebody else is at it.
    Done,
    /// The socket takes no more, or enough was done: the keeper goes on with
    /// [`Pipe::pump_on`] when the socket is writable. Said once until it does.
    HandOver,
    /// The keeper has been told already.
    Waiting,
}

/// A connection and what waits to be sent over it.
pub(crate) struct Pipe {
    state: Mutex<State>,
}

struct State {
    tls: Connection,
    queue: SendQueue,
    /// Ciphertext; taken by whoever pumps.
    out: Option<Out>,
    /// The keeper is to go on.
    handed_over: bool,
    bytes_sent: u64,
    bytes_received: u64,
    frames_sent: u64,
}

/// Ciphertext that has not been written.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    written: usize,
}

/// What has been counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) frames_sent: u64,
}

/// A frame that was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotQueued {
    Full,
    TooLarge,
}

impl From<Full> for NotQueued {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

impl Pipe {
    pub(crate) fn new(mut tls: Connection, room: Room) -> Self {
        // One frame is encrypted at a time and taken out at once: ours are the limits.
        tls.set_buffer_limit(None);
        Self {
            state: Mutex::new(State {
                tls,
                queue: SendQueue::new(room),
                out: Some(Out::default()),
                handed_over: false,
                bytes_sent: 0,
                bytes_received: 0,
                frames_sent: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held was a bug of ours; the connection then fails by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; [`Self::pump`] sends it.
    pub(crate) fn push(
        &self,
        priority: Priority,
        envelope: &v1::Envelope,
    ) -> Result<(), NotQueued> {
        let bytes = proto::encode(envelope).map_err(|_| NotQueued::TooLarge)?;
        let kind = match envelope.body {
            Some(Body::Check(_) | Body::Renew(_)) => Kind::Opening,
            Some(Body::Data(_) | Body::Manifest(_) | Body::FilterReport(_)) => Kind::Data,
            _ => Kind::Other,
        };
        let frame = Frame {
            request_id: envelope.request_id,
            kind,
            bytes,
        };
        Ok(self.lock().queue.push(priority, frame)?)
    }

    /// Takes an exchange's frames out of the queue; says whether its opening was among them.
    pub(crate) fn drop_exchange(&self, request_id: u64) -> bool {
        self.lock().queue.drop_exchange(request_id)
    }

    /// As [`Self::drop_exchange`], where only data may be queued; cheap where none is.
    pub(crate) fn drop_data_of(&self, request_id: u64) {
        let mut state = self.lock();
        if state.queue.holds_data() {
            state.queue.drop_exchange(request_id);
        }
    }

    pub(crate) fn has_room_for_data(&self) -> bool {
        self.lock().queue.has_room_for_data()
    }

    /// Whether all that was queued has been written.
    pub(crate) fn is_drained(&self) -> bool {
        let state = self.lock();
        let written = state.out.as_ref().is_some_and(Out::is_empty);
        written && state.queue.is_empty() && !state.tls.wants_write()
    }

    /// Queues the end of the TLS stream, after which nothing more is sent.
    pub(crate) fn close_notify(&self) {
        self.lock().tls.send_close_notify();
    }

    /// Whether both sides have agreed on this protocol.
    pub(crate) fn speaks(&self, alpn: &[u8]) -> bool {
        self.lock().tls.alpn_protocol() == Some(alpn)
    }

    /// The other side's own certificate, once the handshake is done.
    #[cfg(feature = "server")]
    pub(crate) fn peer_certificate(&self) -> Option<Vec<u8>> {
        let state = self.lock();
        let leaf = state.tls.peer_certificates()?.first()?;
        Some(leaf.to_vec())
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.lock();
        Counts {
            bytes_sent: state.bytes_sent,
            bytes_received: state.bytes_received,
            frames_sent: state.frames_sent,
        }
    }

    /// Decrypts what was received and appends it to `plain`; `true` where the other side has
    /// ended its stream. May leave something to pump.
    pub(crate) fn receive(
        &self,
        mut ciphertext: &[u8],
        plain: &mut BytesMut,
    ) -> Result<bool, rustls::Error> {
        let mut state = self.lock();
        state.bytes_received += ciphertext.len() as u64;
        let mut has_ended = false;
        while !ciphertext.is_empty() && !has_ended {
            if let Err(error) = state.tls.read_tls(&mut ciphertext as &mut dyn Read) {
                return Err(rustls::Error::General(error.to_string()));
            }
            has_ended = state.tls.process_new_packets()?.peer_has_closed();
            let mut reader = state.tls.reader();
            // An error means "nothing yet" or "ended without close_notify"; both show elsewhere.
            while let Ok(chunk) = reader.fill_buf() {
                if chunk.is_empty() {
                    break;
                }
                plain.extend_from_slice(chunk);
                let len = chunk.len();
                reader.consume(len);
            }
        }
        Ok(has_ended)
    }

    /// Sends what is queued, unless somebody is at it or the keeper is waiting for the socket.
    /// `write` must not block.
    pub(crate) fn pump(&self, write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<Pumped> {
        let state = self.lock();
        if state.handed_over {
            return Ok(Pumped::Waiting);
        }
        self.run(state, write, CALLER_BYTES)
    }

    /// The keeper's pump: goes on where another left off.
    pub(crate) fn pump_on(
        &self,
        write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<Pumped> {
        let mut state = self.lock();
        state.handed_over = false;
        self.run(state, write, usize::MAX)
    }

    fn run<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
        mut budget: usize,
    ) -> io::Result<Pumped> {
        let Some(mut out) = state.out.take() else {
            return Ok(Pumped::Done);
        };
        loop {
            if out.is_empty() {
                state.fill(&mut out)?;
            }
            if out.is_empty() {
                state.out = Some(out);
                return Ok(Pumped::Done);
            }
            if budget == 0 {
                return Ok(state.hand_over(out));
            }
            drop(state);
            let result = out.write_with(&mut write);
            state = self.lock();
            match result {
                Ok(written) => {
                    state.bytes_sent += written as u64;
                    budget = budget.saturating_sub(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(state.hand_over(out));
                }
                Err(error) => {
                    // Never lost, or later pumps would call themselves done.
                    state.out = Some(out);
                    return Err(error);
                }
            }
        }
    }
}

impl State {
    /// Encrypts by priority until a batch is full or nothing is left.
    fn fill(&mut self, out: &mut Out) -> io::Result<()> {
        out.reset();
        self.drain_tls(out)?;
        while out.bytes.len() < BATCH_BYTES && !self.tls.is_handshaking() {
            let Some(frame) = self.queue.pop() else { break };
            self.tls.writer().write_all(&frame.bytes)?;
            self.frames_sent += 1;
            self.drain_tls(out)?;
        }
        Ok(())
    }

    fn drain_tls(&mut self, out: &mut Out) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out.bytes)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, out: Out) -> Pumped {
        self.out = Some(out);
        self.handed_over = true;
        Pumped::HandOver
    }
}

impl Out {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    fn reset(&mut self) {
        self.written = 0;
        self.bytes.clear();
        if self.bytes.capacity() > 2 * BATCH_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// Writes once; the number of bytes taken.
    fn write_with(
        &mut self,
        write: &mut impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let rest = self.bytes.get(self.written..).unwrap_or_default();
        let taken = match write(rest) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            other => other?,
        };
        self.written = (self.written + taken).min(self.bytes.len());
        Ok(taken)
    }
}
