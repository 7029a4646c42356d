//! A group with a watchdog, read by the test's own thread or by one that allows everything.

use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{JoinHandle, ScopedJoinHandle};

use fanotify::{
    Answer, CloseEvent, Event, EventBuffer, Group, GroupOptions, Interrupter, MarkMask,
    PermissionEvent, ReadError,
};

use crate::opener::HANG;
use crate::scratch::Scratch;

pub(crate) fn new_group(default_answer: Answer) -> Group {
    Group::new(GroupOptions { default_answer }).expect("a group (the tests need root)")
}

/// Reads one event after the other. A read that hangs is interrupted and fails the test.
pub(crate) struct Gate {
    pub(crate) group: Group,
    buffer: EventBuffer,
    queue: VecDeque<Event>,
    watchdog: Watchdog,
}

impl Gate {
    /// Guards all of `scratch`; unanswered events are denied.
    pub(crate) fn on(scratch: &Scratch) -> Self {
        let gate = Self::unmarked();
        gate.group
            .mark_filesystem(&scratch.root(), MarkMask::ALL)
            .expect("a mark");
        gate
    }

    pub(crate) fn unmarked() -> Self {
        let group = new_group(Answer::Deny);
        Self {
            watchdog: Watchdog::on(group.interrupter()),
            group,
            buffer: EventBuffer::new(64),
            queue: VecDeque::new(),
        }
    }

    pub(crate) fn try_next(&mut self) -> Result<Event, ReadError> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            self.queue.extend(self.group.read(&mut self.buffer)?);
        }
    }

    pub(crate) fn next(&mut self) -> Event {
        self.try_next().expect("an event")
    }

    pub(crate) fn permission(&mut self) -> PermissionEvent {
        match self.next() {
            Event::Permission(event) => event,
            other => panic!("expected a permission event: {other:?}"),
        }
    }

    pub(crate) fn close_write(&mut self) -> CloseEvent {
        match self.next() {
            Event::CloseWrite(event) => event,
            other => panic!("expected a close-write: {other:?}"),
        }
    }

    /// Runs `body` while another thread gives every event to `handler`, then hands back all that
    /// `handler` returned.
    pub(crate) fn serving<T: Send>(
        self,
        mut handler: impl FnMut(Event) -> T + Send,
        body: impl FnOnce(),
    ) -> Vec<T> {
        let Self {
            group,
            mut buffer,
            queue,
            watchdog,
        } = self;
        let interrupter = group.interrupter();
        std::thread::scope(|scope| {
            let reader: ScopedJoinHandle<'_, Vec<T>> = scope.spawn(move || {
                let mut kept: Vec<T> = queue.into_iter().map(&mut handler).collect();
                loop {
                    match group.read(&mut buffer) {
                        Ok(events) => kept.extend(events.map(&mut handler)),
                        Err(ReadError::Interrupted) => return kept,
                        Err(error) => panic!("cannot read: {error}"),
                    }
                }
            });
            // A body that panics must not leave the reader blocked.
            let interrupt = OnDrop(interrupter);
            body();
            drop(interrupt);
            drop(watchdog);
            reader.join().expect("the reader")
        })
    }
}

struct OnDrop(Interrupter);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.interrupt();
    }
}

/// Interrupts the reader after [`HANG`], so that a test that hangs fails.
pub(crate) struct Watchdog {
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn on(interrupter: Interrupter) -> Self {
        let (alive, dropped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            if dropped.recv_timeout(HANG) == Err(RecvTimeoutError::Timeout) {
                interrupter.interrupt();
            }
        });
        Self {
            alive: Some(alive),
            thread: Some(thread),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the watchdog's thread");
        }
    }
}
