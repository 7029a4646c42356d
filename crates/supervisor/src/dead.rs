//! What is done with the descriptors of a worker that has died. They are all still open here:
//! events that wait, files that it was judging, its sockets, leases of verdicts in the kernel.

use fanotify::{Group, OpenKind};
use rustix::fs::OFlags;

use crate::board::{Board, KEPT_MAX, SLOTS, Slot, State, Word, now_ms};
use crate::sys;

/// As the group has an event's file opened; no file is opened like this by chance.
const OF_EVENTS: OFlags = OFlags::NOATIME.union(OFlags::NONBLOCK);

/// Keeps what the next worker needs and closes the rest. `own` are the supervisor's descriptors.
pub(crate) fn settle(board: &Board, group: &Group, own: &[i32]) {
    // Verdicts in the kernel first, then the leases that kept them true.
    if let Err(error) = group.unmark_files() {
        tracing::error!(%error, "marks of single files stay");
    }
    let mut kept = 0;
    for number in 0..i32::try_from(SLOTS).unwrap_or(i32::MAX) {
        if own.contains(&number) {
            continue;
        }
        let slot = board.slot(number);
        if !sys::is_open(number) {
            gone(board, group, number, slot);
            continue;
        }
        let state = state_after(number, slot);
        let is_kept = match state {
            State::Waiting => true,
            State::Owed | State::Closed => {
                kept += 1;
                kept <= KEPT_MAX
            }
            State::Free | State::Answering | State::Superseded => false,
        };
        if is_kept {
            // A writer would wait for a lease that nobody is left to give up.
            sys::unlease(number);
            let at_ms = match slot.state {
                State::Free => now_ms(),
                _ => slot.at_ms,
            };
            board.set_slot(
                number,
                Slot {
                    state,
                    at_ms,
                    ..slot
                },
            );
        } else {
            if state != State::Free {
                board.add(Word::Unnamed, 1);
            }
            board.set_slot(number, Slot::FREE);
            sys::close(number);
        }
    }
}

fn state_after(number: i32, slot: Slot) -> State {
    match slot.state {
        // It died while it answered: whether the kernel has the answer cannot be told, and a
        // second one would find nobody waiting.
        State::Answering | State::Superseded => State::Waiting,
        State::Free if is_file_of_an_event(number) => State::Waiting,
        state => state,
    }
}

/// It read an event and died before it wrote down that somebody waits, or it went on judging the
/// file of an opener that policy let through: either way the file is to be judged. One with a
/// lease was judged, and its verdict lay in the kernel.
fn is_file_of_an_event(number: i32) -> bool {
    let flags = sys::with(number, |fd| rustix::fs::fcntl_getfl(fd));
    let flags = flags.and_then(Result::ok).unwrap_or(OFlags::empty());
    let is_read_only = flags.intersection(OFlags::ACCMODE) == OFlags::RDONLY;
    is_read_only && flags.contains(OF_EVENTS) && !sys::is_leased(number)
}

/// A number whose descriptor died with the worker (its table was its own).
pub(crate) fn gone(board: &Board, group: &Group, number: i32, slot: Slot) {
    match slot.state {
        State::Free => return,
        State::Waiting | State::Answering | State::Superseded => {
            if group.answer_number(number, board.policy_answer()).is_ok() {
                board.add(Word::Answered, 1);
                board.add(Word::Unnamed, 1);
            }
        }
        State::Owed | State::Closed => board.add(Word::Unnamed, 1),
    }
    board.set_slot(number, Slot::FREE);
}

/// The numbers that are open now.
pub(crate) fn open_numbers() -> Vec<i32> {
    let all = 0..i32::try_from(SLOTS).unwrap_or(i32::MAX);
    all.filter(|number| sys::is_open(*number)).collect()
}

/// A file of the supervisor's own reading.
pub(crate) fn keep(board: &Board, number: i32, kind: OpenKind, state: State) {
    let slot = Slot {
        state,
        kind,
        pid: 0,
        at_ms: now_ms(),
    };
    board.set_slot(number, slot);
}
