//! A supervisor that starts where another agent runs, or ran.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use fanotify::{Answer, Group, GroupOptions};

use crate::board::{Board, BoardError, Fallback, Reader, State, Word, now_ms, wall_ms};
use crate::dead;
use crate::process::{Process, rests, start_of};
use crate::run::SuperviseError;
use crate::worker::Desk;

/// Names the group's descriptor to the program that a supervisor becomes.
pub(crate) const GROUP_VARIABLE: &str = "LAZARET_GROUP_FD";
/// How long the old worker has to stop reading. It does so between two events.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// How long a killed worker may take to end.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How long a stopped worker's threads may take to come to rest.
const REST_WITHIN: Duration = Duration::from_secs(1);
/// The file that one supervisor at a time holds a lock on.
const TURN: &str = "turn";
const GLANCE: Duration = Duration::from_millis(1);

/// What a supervisor begins with.
pub(crate) struct Beginning {
    pub(crate) board: Board,
    pub(crate) group: Group,
    /// File systems are marked already.
    pub(crate) has_guarded: bool,
}

const OPTIONS: GroupOptions = GroupOptions {
    default_answer: Answer::Allow,
};

/// Looks for another agent in the folder and takes over from it; else begins anew.
pub(crate) fn begin(dir: &Path, policy: Fallback) -> Result<Beginning, SuperviseError> {
    // The service manager's next supervisor and the worker's may come at the same time: the second
    // finds what the first has signed.
    let _turn = turn(dir).map_err(SuperviseError::System)?;
    let inherited = inherited_group();
    let old = Board::find(dir);
    if let Some(old) = old {
        let own_pid = own_pid();
        let supervisor = old.pid(Word::SupervisorPid);
        let lives = |pid, start| Process::find(old.pid(pid), old.get(start));
        if supervisor != own_pid && lives(Word::SupervisorPid, Word::SupervisorStart).is_some() {
            let path = dir.to_owned();
            return Err(BoardError::Taken { path }.into());
        }
        let worker = lives(Word::WorkerPid, Word::WorkerStart);
        let group = match (inherited, &worker) {
            (Some(group), _) => Some(group),
            (None, Some(worker)) => {
                let group = worker.descriptor(old.number(Word::GroupFd));
                Some(group.map_err(SuperviseError::TakeOver)?)
            }
            (None, None) => None,
        };
        if let Some(group) = group {
            let group = shared(group, old)?;
            take_over(&old, &group, worker.as_ref());
            sign(&old);
            old.add(Word::Takeovers, 1);
            return Ok(Beginning {
                board: old,
                group,
                has_guarded: true,
            });
        }
    }
    let board = Board::create(dir)?;
    board.set_policy(policy);
    board.set(Word::StartedWallMs, wall_ms());
    board.set(Word::LastReadMs, now_ms());
    if let Some(from_ms) = old.and_then(|old| unguarded_from(&old)) {
        board.set(Word::UnguardedFromMs, from_ms);
    }
    if let Some(old) = old.filter(|old| old.get(Word::Ended) == 0) {
        // Whoever waited then was let through, and with the descriptors went the names.
        let unnamed = old.get(Word::Unnamed) - old.get(Word::UnnamedTaken);
        board.set(Word::Unnamed, unnamed + old.slots().count() as u64);
    }
    sign(&board);
    let group = Group::new(OPTIONS)?;
    let group = shared(group.to_fd().map_err(SuperviseError::System)?, board)?;
    Ok(Beginning {
        board,
        group,
        has_guarded: false,
    })
}

/// Until it is dropped, others wait for theirs.
fn turn(dir: &Path) -> io::Result<File> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(dir.join(TURN))?;
    file.lock()?;
    Ok(file)
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn sign(board: &Board) {
    let pid = rustix::process::getpid();
    board.set(Word::SupervisorPid, own_pid().unsigned_abs().into());
    board.set(Word::SupervisorStart, start_of(pid).unwrap_or(0));
    board.set(Word::Stopping, 0);
    board.set(Word::Ended, 0);
}

/// The group of the program that this process was before.
fn inherited_group() -> Option<OwnedFd> {
    let number = std::env::var(GROUP_VARIABLE).ok()?.parse().ok()?;
    let group = crate::sys::own(number)?;
    // Duplicated into one that no program started from here inherits.
    rustix::io::fcntl_dupfd_cloexec(&group, 3).ok()
}

fn shared(group: OwnedFd, board: Board) -> Result<Group, SuperviseError> {
    let timer = crate::run::timer().map_err(SuperviseError::System)?;
    let shared = fanotify::Shared {
        group,
        own_pids: vec![own_pid()],
        pending: std::sync::Arc::new(Desk { board, timer }),
    };
    Ok(Group::shared(shared, OPTIONS)?)
}

/// The last event that an agent without a clean end has read, on the wall's clock: what came
/// after it nobody saw.
fn unguarded_from(old: &Board) -> Option<u64> {
    let ran = old.get(Word::HasGuarded) != 0;
    // An older interval that nobody accounted for counts from its own beginning.
    let older = Some(old.get(Word::UnguardedFromMs)).filter(|from| *from != 0);
    let since_last = now_ms().saturating_sub(old.get(Word::LastReadMs));
    let last = wall_ms().saturating_sub(since_last);
    (ran && old.get(Word::Ended) == 0).then(|| older.unwrap_or(last).min(last))
}

/// Takes the openers who wait out of the old worker, and ends it.
fn take_over(board: &Board, group: &Group, worker: Option<&Process>) {
    let stopped = worker.is_some_and(|worker| stop_reading(board, worker));
    let waiting: Vec<_> = board.slots().collect();
    for (number, slot) in waiting {
        let state = match slot.state {
            // Whoever claims a slot first answers it.
            State::Waiting if board.change_slot(number, slot, State::Superseded) => State::Waiting,
            State::Owed | State::Closed => slot.state,
            // Being answered at this moment: `gone` finds out whether somebody still waits.
            _ => continue,
        };
        let placed = worker.is_some_and(|worker| place(worker, number).is_ok());
        if !placed {
            dead::gone(board, group, number, slot);
        } else if state == State::Waiting {
            board.set_slot(number, slot);
        }
    }
    // Verdicts in the kernel first, then the leases that keep them true, which end with the worker.
    // At rest it holds those and places no more.
    if let Some(worker) = worker {
        bring_to_rest(board, worker);
    }
    lift_verdicts(group);
    if let Some(worker) = worker {
        worker.kill();
        if !worker.has_ended(END_WITHIN) {
            tracing::error!("the old worker does not end");
        }
        // Where this process is its parent.
        if let Some(pid) = rustix::process::Pid::from_raw(board.pid(Word::WorkerPid)) {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
    }
    // Those of a worker that did not come to rest.
    lift_verdicts(group);
    let left: Vec<_> = board.slots().collect();
    for (number, slot) in left {
        let unclear = matches!(slot.state, State::Answering | State::Superseded);
        if unclear || !crate::sys::is_open(number) {
            dead::gone(board, group, number, slot);
        }
    }
    if !stopped {
        answer_unregistered(board, group);
    }
    board.set_reader(Reader::Supervisor);
    board.set(Word::GuardingSinceMs, 0);
    board.set(Word::BusySinceMs, 0);
}

fn lift_verdicts(group: &Group) {
    if let Err(error) = group.unmark_files() {
        tracing::error!(%error, "marks of single files stay");
    }
}

/// True once nobody reads.
fn stop_reading(board: &Board, worker: &Process) -> bool {
    board.set_reader(Reader::WorkerShallStop);
    let bell = worker.descriptor(board.number(Word::InterruptFd));
    if let Ok(bell) = bell {
        // Fails only if the counter is full, and then it is readable already.
        let _ = rustix::io::write(&bell, &1_u64.to_ne_bytes());
    }
    let give_up = now_ms() + STOP_WITHIN.as_millis() as u64;
    while board.reader() != Reader::Nobody as u64 {
        if now_ms() > give_up || worker.has_ended(Duration::ZERO) {
            return false;
        }
        std::thread::sleep(GLANCE);
    }
    true
}

/// Stops the worker, and returns once none of its threads runs.
fn bring_to_rest(board: &Board, worker: &Process) {
    let pid = board.pid(Word::WorkerPid);
    worker.stop();
    let give_up = now_ms() + REST_WITHIN.as_millis() as u64;
    while !rests(pid) && !worker.has_ended(Duration::ZERO) {
        if now_ms() > give_up {
            return tracing::error!("the old worker does not stop; it is killed as it is");
        }
        std::thread::sleep(GLANCE);
    }
}

/// Has the worker's descriptor here, with the same number: the kernel knows the event by it.
fn place(worker: &Process, number: i32) -> io::Result<()> {
    let copy = worker.descriptor(number)?;
    if copy.as_raw_fd() == number {
        let _stays_open = copy.into_raw_fd();
        return Ok(());
    }
    let placed = rustix::io::fcntl_dupfd_cloexec(&copy, number)?;
    if placed.as_raw_fd() != number {
        // Ours has the number, so that no event can get it either.
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let _stays_open = placed.into_raw_fd();
    Ok(())
}

/// Events that the old worker read and had no time to write down. Only the kernel knows their
/// numbers, and it takes an answer to any number that somebody waits for.
fn answer_unregistered(board: &Board, group: &Group) {
    let answer = board.policy_answer();
    for number in 0..i32::try_from(crate::SLOTS).unwrap_or(i32::MAX) {
        let is_known = board.slot(number).state != State::Free;
        if !is_known && group.answer_number(number, answer).is_ok() {
            board.add(Word::Answered, 1);
            board.add(Word::Unnamed, 1);
        }
    }
}
