//! The supervisor's loop: one thread that sleeps until a signal, the worker's bell, its alarm, or,
//! while there is no worker, an event.

mod care;
mod openers;
mod upgrade;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;

use fanotify::{EventBuffer, Group, OpenKind, ReadError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use crate::board::{Board, BoardError, Fallback, Reader, State, Word, now_ms};
use crate::sys::OneThread;
use crate::takeover::Beginning;
use crate::worker::{Worker, set_alarm};
use crate::{code, dead, sys, takeover};
use care::HANG_MS;

/// Events taken in one read.
const BATCH: usize = 64;
const SIGNALS: [i32; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// What the supervisor does for the program around it.
#[derive(Debug, Clone, Copy)]
pub struct Hooks {
    /// A worker guards.
    pub ready: fn(),
    /// The end begins.
    pub stopping: fn(),
}

/// How to supervise.
#[derive(Debug)]
pub struct Options {
    /// Where the board is. Best in memory (`/run`): it is written with each event.
    pub dir: PathBuf,
    /// What counts until a worker says otherwise.
    pub policy: Fallback,
    /// The program to become when asked to (SIGHUP), by the path where a newer one will be.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Arguments with which it says, by its exit code, that it could run.
    pub check_arguments: Vec<OsString>,
    /// For the program around.
    pub hooks: Hooks,
}

/// The supervisor cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// No board.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The kernel does not give a fanotify group.
    #[error(transparent)]
    Group(#[from] fanotify::GroupError),
    /// Another agent's worker runs and its group cannot be had.
    #[error("cannot take over from the worker of another agent")]
    TakeOver(#[source] io::Error),
    /// It has more than one thread, and a clone would have one.
    #[error("the supervisor must start before any thread")]
    Threads,
    /// Descriptors, signals, timers.
    #[error("cannot start the supervisor")]
    System(#[source] io::Error),
    /// The group cannot be read.
    #[error("cannot read the kernel's events")]
    Read(#[source] ReadError),
}

/// Supervises until told to stop, or until the first worker ends without ever having guarded. In
/// the worker's process `work` is called, in a thread of its own; its result is the exit code of
/// the process, and that of the first worker is given here too.
///
/// # Errors
/// Nothing is guarded then.
pub fn run<W>(options: Options, work: W) -> Result<i32, SuperviseError>
where
    W: Fn(Worker) -> i32 + Clone + Send + 'static,
{
    let one_thread = OneThread::proven()
        .map_err(SuperviseError::System)?
        .ok_or(SuperviseError::Threads)?;
    code::note(&one_thread).map_err(SuperviseError::System)?;
    let signals = sys::signals(&SIGNALS).map_err(SuperviseError::System)?;
    let Beginning {
        board,
        group,
        has_guarded,
    } = takeover::begin(&options.dir, options.policy)?;
    let alarm = timer().map_err(SuperviseError::System)?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let bell = eventfd(0, flags).map_err(|errno| SuperviseError::System(errno.into()))?;
    board.set(Word::TimerFd, alarm.as_raw_fd().unsigned_abs().into());
    board.set(Word::BellFd, bell.as_raw_fd().unsigned_abs().into());
    let slots: Vec<i32> = board.slots().map(|(number, _)| number).collect();
    let mut own = dead::open_numbers();
    own.retain(|number| !slots.contains(number));
    let mut supervisor = Supervisor {
        options,
        one_thread,
        board,
        group,
        signals,
        alarm,
        bell,
        own,
        buffer: EventBuffer::new(BATCH),
        worker: None,
        has_guarded,
        told_ready: false,
        pause_ms: 0,
        start_at_ms: now_ms(),
        down_since_ms: now_ms(),
        backlog_since_ms: None,
        suspect_since_ms: None,
        stopping_since_ms: None,
        check: None,
        exit_code: None,
    };
    supervisor.run(work)
}

pub(crate) fn timer() -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    Ok(timerfd_create(TimerfdClockId::Monotonic, flags)?)
}

struct RunningWorker {
    pid: Pid,
    since_ms: u64,
}

struct Supervisor {
    options: Options,
    one_thread: OneThread,
    board: Board,
    group: Group,
    signals: OwnedFd,
    alarm: OwnedFd,
    bell: OwnedFd,
    /// Numbers of the descriptors that are not the worker's.
    own: Vec<i32>,
    buffer: EventBuffer,
    worker: Option<RunningWorker>,
    /// Some worker has guarded, this supervisor's or the one's that it took over from.
    has_guarded: bool,
    /// This worker's readiness was passed on.
    told_ready: bool,
    pause_ms: u64,
    start_at_ms: u64,
    down_since_ms: u64,
    /// Events in the kernel's queue may have waited since then.
    backlog_since_ms: Option<u64>,
    /// An opener that came then was not answered in time by the worker.
    suspect_since_ms: Option<u64>,
    stopping_since_ms: Option<u64>,
    /// A newer program is asked whether it could run.
    check: Option<Child>,
    exit_code: Option<i32>,
}

/// What ended a sleep.
#[derive(Default)]
struct Woken {
    signals: bool,
    bell: bool,
    events: bool,
}

impl Supervisor {
    fn run<W>(&mut self, work: W) -> Result<i32, SuperviseError>
    where
        W: Fn(Worker) -> i32 + Clone + Send + 'static,
    {
        code::give_back_code();
        loop {
            if self.worker.is_none() && self.exit_code.is_none() && now_ms() >= self.start_at_ms {
                self.start_worker(work.clone())?;
            }
            self.look_round();
            if let Some(code) = self.exit_code
                && self.worker.is_none()
            {
                self.end();
                return Ok(code);
            }
            let woken = self.sleep().map_err(SuperviseError::System)?;
            if woken.signals {
                self.take_signals();
            }
            if woken.bell {
                self.take_bell();
            }
            if woken.events {
                self.take_events()?;
            }
        }
    }

    fn reads(&self) -> bool {
        self.board.reader() == Reader::Supervisor as u64
    }

    fn sleep(&self) -> io::Result<Woken> {
        let mut sources = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.bell, PollFlags::IN),
            PollFd::new(&self.alarm, PollFlags::IN),
            PollFd::new(&self.group, PollFlags::IN),
        ];
        let count = if self.reads() { 4 } else { 3 };
        let sources = sources.get_mut(..count).unwrap_or_default();
        rustix::io::retry_on_intr(|| rustix::event::poll(sources, None))?;
        let is_ready = |index: usize| sources.get(index).is_some_and(|s| !s.revents().is_empty());
        if is_ready(2) {
            drain(&self.alarm);
        }
        Ok(Woken {
            signals: is_ready(0),
            bell: is_ready(1),
            events: is_ready(3),
        })
    }

    /// Answers whose budget is over, looks after the worker, and sets the alarm.
    fn look_round(&mut self) {
        let now = now_ms();
        let mut next = self.answer_overdue(now);
        let mut at_latest = |at: Option<u64>| next = [next, at].into_iter().flatten().min();
        at_latest(self.look_after_worker(now));
        if self.worker.is_none() && self.exit_code.is_none() {
            at_latest(Some(self.start_at_ms));
        }
        let is_busy = self.board.get(Word::BusySinceMs) != 0;
        if next.is_none() && !is_busy {
            self.board.set(Word::Armed, 0);
            // Whoever came in between saw the alarm set.
            if !self
                .board
                .slots()
                .any(|(_, slot)| slot.state == State::Waiting)
            {
                return;
            }
            self.board.set(Word::Armed, 1);
        }
        self.board.set(Word::Armed, 1);
        let shortest = self.shortest_budget_ms();
        // Whoever comes from now on is due after that.
        let at = next.unwrap_or(u64::MAX).min(now + shortest);
        set_alarm(&self.alarm, at.max(now + 1));
    }

    fn shortest_budget_ms(&self) -> u64 {
        let budgets = [OpenKind::Open, OpenKind::OpenExec].map(|kind| self.board.budget_ms(kind));
        budgets.into_iter().min().unwrap_or(HANG_MS)
    }

    fn take_bell(&mut self) {
        drain(&self.bell);
        let board = self.board;
        // Only here, between two reads: each event has one reader, in the kernel's order.
        board.change(
            Word::Reader,
            Reader::WorkerAsks as u64,
            Reader::Worker as u64,
        );
        if board.get(Word::GuardingSinceMs) != 0 && !self.told_ready {
            self.told_ready = true;
            self.has_guarded = true;
            (self.options.hooks.ready)();
        }
    }

    fn take_signals(&mut self) {
        // A `signalfd_siginfo`; its first word is the signal's number.
        let mut info = [0; 128];
        while let Ok(128) = rustix::io::read(&self.signals, &mut info) {
            let [a, b, c, d, ..] = info;
            match i32::from_ne_bytes([a, b, c, d]) {
                libc::SIGHUP => self.begin_upgrade(),
                libc::SIGTERM | libc::SIGINT => self.begin_end(),
                _ => {}
            }
        }
        self.reap();
    }

    fn begin_end(&mut self) {
        self.board.set(Word::Stopping, 1);
        (self.options.hooks.stopping)();
        self.stopping_since_ms.get_or_insert(now_ms());
        match &self.worker {
            Some(worker) => {
                let _ = kill_process(worker.pid, Signal::TERM);
            }
            None => self.exit_code = Some(0),
        }
    }

    /// Whoever still waits is answered; then the group goes, with all marks.
    fn end(&mut self) {
        let all: Vec<_> = self.board.slots().collect();
        for (number, slot) in all {
            if slot.state == State::Waiting {
                self.answer_by_policy(number, slot);
            }
        }
        self.board.set(Word::Ended, 1);
        Board::remove(&self.options.dir);
    }
}

fn drain(fd: &OwnedFd) {
    let mut count = [0; 8];
    // Nothing to read is as good.
    let _ = rustix::io::read(fd, &mut count);
}
