//! Openers whom the supervisor answers, and events that it reads because no worker does.

use std::os::fd::{AsRawFd, IntoRawFd};

use fanotify::{Event, OpenKind, ReadError};

use super::{SuperviseError, Supervisor};
use crate::board::{KEPT_MAX, Reader, Slot, State, Word, now_ms};
use crate::{dead, sys};

/// How long openers wait for a new worker before policy answers at once.
const GRACE_MS: u64 = 5_000;

impl Supervisor {
    /// When the next opener is due.
    pub(super) fn answer_overdue(&mut self, now: u64) -> Option<u64> {
        let board = self.board;
        let gave_up = self.gave_up(now);
        let mut next: Option<u64> = None;
        for (number, slot) in board.slots() {
            if slot.state != State::Waiting {
                continue;
            }
            let due = slot.at_ms + board.budget_ms(slot.kind);
            if now < due && !gave_up {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            self.answer_by_policy(number, slot);
        }
        next
    }

    /// No worker has come for so long that openers do not wait for one any more.
    pub(super) fn gave_up(&self, now: u64) -> bool {
        let is_down = self.board.get(Word::GuardingSinceMs) == 0;
        is_down && now.saturating_sub(self.down_since_ms) >= GRACE_MS
    }

    pub(super) fn answer_by_policy(&mut self, number: i32, slot: Slot) {
        let board = self.board;
        if !board.change_slot(number, slot, State::Superseded) {
            return;
        }
        let taken = self.group.answer_number(number, board.policy_answer());
        // ENOENT: an opener who gave up, or one that the dead worker had answered.
        let was_waiting = taken.is_ok();
        board.add(Word::Answered, u64::from(was_waiting));
        let slot = Slot {
            state: State::Owed,
            ..slot
        };
        if self.worker.is_some() && self.board.reader() != Reader::Supervisor as u64 {
            // The worker owns the descriptor, and learns of this when it wants to answer.
            board.set_slot(number, slot);
            let since = self.suspect_since_ms.unwrap_or(slot.at_ms);
            self.suspect_since_ms = Some(since.min(slot.at_ms));
        } else if was_waiting && self.kept_len() < KEPT_MAX {
            board.set_slot(number, slot);
        } else {
            board.add(Word::Unnamed, u64::from(was_waiting));
            board.set_slot(number, Slot::FREE);
            sys::close(number);
        }
    }

    pub(super) fn kept_len(&self) -> usize {
        let kept = |(_, slot): &(i32, Slot)| matches!(slot.state, State::Owed | State::Closed);
        self.board.slots().filter(kept).count()
    }

    pub(super) fn take_events(&mut self) -> Result<(), SuperviseError> {
        if !self.reads() {
            return Ok(());
        }
        let now = now_ms();
        let gave_up = self.gave_up(now);
        self.board.set(Word::LastReadMs, now);
        let since = self.backlog_since_ms.unwrap_or(now);
        let mut overdue = Vec::new();
        let failure = match self.group.read_now(&mut self.buffer) {
            Ok(events) => {
                for event in events {
                    match event {
                        Event::Permission(event) => {
                            let number = event.fd().as_raw_fd();
                            event.leave();
                            let slot = self.board.slot(number);
                            let slot = Slot {
                                at_ms: since.min(slot.at_ms),
                                ..slot
                            };
                            self.board.set_slot(number, slot);
                            overdue.extend(gave_up.then_some((number, slot)));
                        }
                        Event::CloseWrite(event) => {
                            let number = event.into_file().into_raw_fd();
                            dead::keep(&self.board, number, OpenKind::Open, State::Closed);
                        }
                        Event::Overflow => self.board.add(Word::Unnamed, 1),
                    }
                }
                None
            }
            Err(error) => Some(error),
        };
        match failure {
            None | Some(ReadError::Interrupted) => {}
            Some(ReadError::Unopenable(_)) => self.backlog_since_ms = None,
            Some(ReadError::OutOfDescriptors(_)) => self.make_room(),
            Some(error @ (ReadError::Failed(_) | ReadError::Malformed(_))) => {
                return Err(SuperviseError::Read(error));
            }
        }
        for (number, slot) in overdue {
            self.answer_by_policy(number, slot);
        }
        self.drop_surplus_closes();
        Ok(())
    }

    /// Closes beyond what is kept are only counted.
    pub(super) fn drop_surplus_closes(&self) {
        let surplus = self.kept_len().saturating_sub(KEPT_MAX);
        let closed = |(_, slot): &(i32, Slot)| slot.state == State::Closed;
        let closes: Vec<_> = self.board.slots().filter(closed).take(surplus).collect();
        for (number, _) in closes {
            self.board.add(Word::Unnamed, 1);
            self.board.set_slot(number, Slot::FREE);
            sys::close(number);
        }
    }

    /// Out of descriptors: whoever waits is answered by policy, and nothing is kept.
    pub(super) fn make_room(&mut self) {
        let all: Vec<_> = self.board.slots().collect();
        for (number, slot) in all {
            if slot.state == State::Waiting {
                self.answer_by_policy(number, slot);
            }
            if matches!(self.board.slot(number).state, State::Owed | State::Closed) {
                self.board.add(Word::Unnamed, 1);
                self.board.set_slot(number, Slot::FREE);
                sys::close(number);
            }
        }
    }
}
