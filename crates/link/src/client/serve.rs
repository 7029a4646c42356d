//! A session's own thread: receives and handles frames until it ends.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use proto::v1;
use proto::v1::envelope::Body;

use super::Handler;
use super::connect::{Greeted, READ_BYTES};
use super::run::{Arrival, Shared};
use super::session::Session;
use crate::Priority;
use crate::inbox::Inbox;

/// Why a session ended, and what that says of its appliance.
pub(super) struct Ending {
    why: String,
    /// Another appliance is to be tried first.
    pub(super) is_doubtful: bool,
}

impl Shared {
    /// A session from `up` or `moved` to `down` or `lost`.
    pub(super) fn serve(&self, greeted: Greeted, handler: &dyn Handler, arrival: Arrival) {
        let Greeted {
            session,
            inbox,
            welcome,
        } = greeted;
        let ending = std::thread::scope(|scope| {
            let keeper = std::thread::Builder::new().name("link-keeper".into());
            let started = keeper.spawn_scoped(scope, || session.keep());
            let began = || match arrival {
                Arrival::Up => handler.up(&welcome),
                Arrival::Moved => handler.moved(&welcome),
            };
            let ending = match started {
                Ok(_) if guarded("welcome", began) => self.receive(&session, inbox, handler),
                Ok(_) => Ending::of("the handler of Welcome failed"),
                Err(error) => Ending::of(&format!("cannot start a thread: {error}")),
            };
            session.end(&ending.why);
            ending
        });
        self.over(&session, ending, handler);
    }

    fn over(&self, session: &Arc<Session>, ending: Ending, handler: &dyn Handler) {
        let was_current = {
            let mut state = self.state();
            let current = state
                .session
                .take_if(|current| Arc::ptr_eq(current, session));
            state.leaving.retain(|left| !Arc::ptr_eq(left, session));
            current.is_some()
        };
        self.retire(session);
        if was_current {
            guarded("down", || handler.down(&ending.why));
            self.state().ended = Some(ending);
            self.tell();
            return;
        }
        let unanswered = session.take_unanswered();
        if !unanswered.is_empty() {
            guarded("lost", || handler.lost(&unanswered));
        }
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
                | Body::Renewed(_)
                | Body::Placement(_)
                | Body::Recheck(_)
                | Body::Rekey(_)
                | Body::Turn(_)
                | Body::TurnOver(_),
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
    pub(super) fn of(why: &str) -> Self {
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
pub(super) fn guarded(name: &str, handle: impl FnOnce()) -> bool {
    let handled = catch_unwind(AssertUnwindSafe(handle));
    if handled.is_err() {
        tracing::error!(handler = name, "a handler of the link panicked");
    }
    handled.is_ok()
}
