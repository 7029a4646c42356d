//! The worker's side: what it tells the supervisor, and what it takes over from its predecessor.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fanotify::{Answer, Event, Group, GroupError, GroupOptions, Interrupter, OpenKind, Pending};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

use crate::board::{Board, Fallback, Reader, Slot, State, Word, now_ms, wall_ms};
use crate::code::give_back_code;
use crate::process::Process;
use crate::sys;

/// How long the worker looks for the supervisor's answer to something before it goes on alone.
const PATIENCE: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(1);
/// A killed supervisor is brought back by the service manager within this time, or by the worker
/// after it.
const SUCCESSOR_WITHIN: Duration = Duration::from_secs(3);

/// Writes to the board for whoever reads the group: the worker, or the supervisor in its stead.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) board: Board,
    pub(crate) timer: OwnedFd,
}

impl Desk {
    /// Sets the supervisor's alarm unless it is set. It goes off before the first opener's budget
    /// can be over.
    fn arm(&self) {
        let board = &self.board;
        if board.get(Word::Armed) == 0 && board.change(Word::Armed, 0, 1) {
            let shortest = board
                .get(Word::ExecBudgetMs)
                .min(board.get(Word::OpenBudgetMs));
            set_alarm(&self.timer, now_ms() + shortest);
        }
    }
}

/// Has the timer go off at this time of the monotonic clock.
pub(crate) fn set_alarm(timer: &OwnedFd, at_ms: u64) {
    let at_ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
    let alarm = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec {
            tv_sec: at_ms / 1000,
            tv_nsec: at_ms % 1000 * 1_000_000,
        },
    };
    // Fails only for times out of range, and these are the clock's own.
    let _ = timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &alarm);
}

impl Pending for Desk {
    fn reading(&self) {
        let now = now_ms();
        self.board.set(Word::LastReadMs, now);
        self.board.set(Word::BusySinceMs, now);
        self.arm();
    }

    fn idle(&self) {
        self.board.set(Word::BusySinceMs, 0);
    }

    fn waits(&self, number: i32, kind: OpenKind, pid: i32) {
        let slot = Slot {
            state: State::Waiting,
            kind,
            pid,
            at_ms: self.board.get(Word::LastReadMs),
        };
        self.board.set_slot(number, slot);
    }

    fn claim(&self, number: i32) -> bool {
        let give_up = now_ms() + PATIENCE.as_millis() as u64;
        loop {
            let slot = self.board.slot(number);
            match slot.state {
                State::Waiting => {
                    if self.board.change_slot(number, slot, State::Answering) {
                        self.board.set(Word::LastAnswerMs, now_ms());
                        return true;
                    }
                }
                // The supervisor is at it: the number must stay open until it is done.
                State::Superseded if now_ms() < give_up => std::thread::yield_now(),
                State::Superseded | State::Owed => {
                    self.board.set(Word::LastAnswerMs, now_ms());
                    self.board.set_slot(number, Slot::FREE);
                    return false;
                }
                State::Free | State::Answering | State::Closed => return true,
            }
        }
    }

    fn settled(&self, number: i32) {
        self.board.set_slot(number, Slot::FREE);
    }
}

/// What the kernel did not guard, as wall-clock milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unguarded {
    /// The last event before it.
    pub from_ms: u64,
    /// When guarding began again.
    pub until_ms: u64,
}

/// What an earlier worker left.
#[derive(Debug)]
pub enum Inherited {
    /// An opener that waits.
    Opener(Event),
    /// A file that was opened by policy, or closed by a writer, while nobody could judge it.
    File {
        /// The file.
        file: OwnedFd,
        /// An opener was answered without a verdict: its process, and how long ago it came.
        owed: Option<(i32, Duration)>,
    },
}

/// What happened beside the worker, counted since the supervisor started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Openers that the supervisor answered by policy.
    pub answered: u64,
    /// Times that a worker was started.
    pub worker_starts: u64,
    /// Workers killed because they did nothing.
    pub worker_hangs: u64,
    /// Supervisors that took over from another.
    pub takeovers: u64,
}

/// The worker's connection to its supervisor.
#[derive(Debug)]
pub struct Worker {
    desk: Arc<Desk>,
    group: OwnedFd,
    bell: OwnedFd,
    supervisor_pid: i32,
    supervisor_start: u64,
    is_taken_over: AtomicBool,
}

impl Worker {
    /// Made in the worker's process. The descriptors are duplicates: what the worker closes must
    /// not be the supervisor's.
    pub(crate) fn new(desk: Desk, group: OwnedFd, bell: OwnedFd) -> Self {
        let board = desk.board;
        Self {
            supervisor_pid: board.pid(Word::SupervisorPid),
            supervisor_start: board.get(Word::SupervisorStart),
            desk: Arc::new(desk),
            group,
            bell,
            is_taken_over: AtomicBool::new(false),
        }
    }

    fn board(&self) -> &Board {
        &self.desk.board
    }

    /// The group, as this process sees it.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn group(&self, default_answer: Answer) -> Result<Group, GroupError> {
        let own_pid = rustix::process::getpid().as_raw_nonzero().get();
        let duplicate = rustix::io::fcntl_dupfd_cloexec(&self.group, 3)
            .map_err(|errno| GroupError::Init(errno.into()))?;
        let shared = fanotify::Shared {
            group: duplicate,
            own_pids: vec![own_pid, self.supervisor_pid],
            pending: Arc::clone(&self.desk) as Arc<dyn Pending>,
        };
        let group = Group::shared(shared, GroupOptions { default_answer })?;
        self.publish(Word::GroupFd, &self.group);
        self.publish(Word::InterruptFd, &group.interrupter());
        Ok(group)
    }

    fn publish(&self, word: Word, fd: &impl AsFd) {
        let number = u64::try_from(fd.as_fd().as_raw_fd()).unwrap_or(0);
        self.board().set(word, number);
    }

    /// The reader's thread takes over the reading, and what was left to it.
    pub fn begin_reading(&self, group: &Group, interrupter: &Interrupter) -> Vec<Inherited> {
        self.publish(Word::InterruptFd, interrupter);
        let board = self.board();
        board.set_reader(Reader::WorkerAsks);
        self.ring();
        let give_up = now_ms() + PATIENCE.as_millis() as u64;
        while board.reader() == Reader::WorkerAsks as u64 && now_ms() < give_up {
            std::thread::sleep(GLANCE);
        }
        // Without a supervisor nobody else reads.
        board.change(
            Word::Reader,
            Reader::WorkerAsks as u64,
            Reader::Worker as u64,
        );
        let left: Vec<(i32, Slot)> = board.slots().collect();
        left.into_iter()
            .filter_map(|(number, slot)| self.inherit(group, number, slot))
            .collect()
    }

    fn inherit(&self, group: &Group, number: i32, slot: Slot) -> Option<Inherited> {
        let board = self.board();
        let slot = self.undisputed(number, slot);
        match slot.state {
            State::Waiting => {
                let file = sys::own(number)?;
                Some(Inherited::Opener(
                    group.taken_over(slot.kind, slot.pid, file),
                ))
            }
            State::Owed | State::Closed => {
                board.set_slot(number, Slot::FREE);
                let file = sys::own(number)?;
                let age = Duration::from_millis(now_ms().saturating_sub(slot.at_ms));
                let owed = (slot.state == State::Owed).then_some((slot.pid, age));
                Some(Inherited::File { file, owed })
            }
            State::Free | State::Answering | State::Superseded => None,
        }
    }

    /// The slot once the supervisor has done with it: what it is answering now is owed next, and
    /// nobody would come to it again.
    fn undisputed(&self, number: i32, mut slot: Slot) -> Slot {
        let give_up = now_ms() + PATIENCE.as_millis() as u64;
        while slot.state == State::Superseded && now_ms() < give_up {
            std::thread::yield_now();
            slot = self.board().slot(number);
        }
        slot
    }

    /// Opens and closes that nobody can name, since a worker last asked.
    #[must_use]
    pub fn take_unnamed(&self) -> u64 {
        let board = self.board();
        let unnamed = board.get(Word::Unnamed);
        let taken = board.get(Word::UnnamedTaken);
        board.set(Word::UnnamedTaken, unnamed);
        unnamed.saturating_sub(taken)
    }

    /// The file systems are marked and the reader reads.
    pub fn guarding(&self) {
        let board = self.board();
        if board.get(Word::UnguardedFromMs) != 0 && board.get(Word::UnguardedUntilMs) == 0 {
            board.set(Word::UnguardedUntilMs, wall_ms());
        }
        board.set(Word::GuardingSinceMs, now_ms());
        board.set(Word::HasGuarded, 1);
        self.ring();
        give_back_code();
    }

    /// The interval that nobody guarded before this agent started, until somebody says that it is
    /// [`accounted_for`](Self::accounted_for).
    #[must_use]
    pub fn unguarded(&self) -> Option<Unguarded> {
        let board = self.board();
        let from_ms = board.get(Word::UnguardedFromMs);
        let until_ms = board.get(Word::UnguardedUntilMs);
        (from_ms != 0 && until_ms != 0).then_some(Unguarded { from_ms, until_ms })
    }

    /// What was opened in the unguarded interval is in the ledger.
    pub fn accounted_for(&self) {
        self.board().set(Word::UnguardedFromMs, 0);
    }

    /// What the supervisor goes by from now on.
    pub fn set_policy(&self, policy: Fallback) {
        self.board().set_policy(policy);
    }

    /// What happened beside this worker.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let board = self.board();
        Tally {
            answered: board.get(Word::Answered),
            worker_starts: board.get(Word::WorkerStarts),
            worker_hangs: board.get(Word::WorkerHangs),
            takeovers: board.get(Word::Takeovers),
        }
    }

    /// The supervisor's process id.
    #[must_use]
    pub fn supervisor_pid(&self) -> i32 {
        self.supervisor_pid
    }

    /// For the reader's thread when its reading was interrupted: true if a new supervisor takes
    /// over, which then knows that nobody reads. It ends this process.
    pub fn has_handed_over(&self) -> bool {
        let board = self.board();
        let handed_over = board.change(
            Word::Reader,
            Reader::WorkerShallStop as u64,
            Reader::Nobody as u64,
        );
        if handed_over {
            self.is_taken_over.store(true, Ordering::Relaxed);
        }
        handed_over
    }

    /// Sleeps until the supervisor dies, then sees to it that another takes over from here; true
    /// if this process is to end, because all of the agent is.
    pub fn outlive_supervisor(&self) -> bool {
        let supervisor = Process::find(self.supervisor_pid, self.supervisor_start);
        if let Some(supervisor) = supervisor
            && supervisor.wait().is_err()
        {
            return false;
        }
        if self.board().get(Word::Stopping) != 0 {
            return true;
        }
        tracing::error!(
            "the supervisor is gone; this worker goes on guarding until it is replaced"
        );
        std::thread::sleep(SUCCESSOR_WITHIN);
        if !self.is_taken_over.load(Ordering::Relaxed) {
            self.start_successor();
        }
        false
    }

    fn start_successor(&self) {
        let arguments = std::env::args_os().skip(1);
        // The program that runs, whatever its path names by now.
        let started = Command::new("/proc/self/exe").args(arguments).spawn();
        if let Err(error) = started {
            tracing::error!(%error, "no supervisor can be started");
        }
    }

    fn ring(&self) {
        // Fails only if the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}
