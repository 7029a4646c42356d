//! The supervisor's loop: one thread that sleeps until a signal, the worker's bell, its alarm, or,
//! while there is no worker, an event.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

use fanotify::{Event, EventBuffer, Group, OpenKind, ReadError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use crate::board::{Board, BoardError, Fallback, KEPT_MAX, Reader, Slot, State, Word, now_ms};
use crate::process::start_of;
use crate::sys::{Cloned, OneThread};
use crate::takeover::{Beginning, GROUP_VARIABLE};
use crate::worker::{Desk, Worker, set_alarm};
use crate::{dead, sys, takeover};

/// Events taken in one read.
const BATCH: usize = 64;
/// A worker that has answered nobody for so long although somebody waits is killed, or after an
/// opener's budget where that is longer.
const HANG_MS: u64 = 2_000;
/// How long a worker may take until it guards.
const START_MS: u64 = 60_000;
/// How long it may take to end.
const END_MS: u64 = 15_000;
/// A worker that dies sooner after its start is brought back later each time.
const STEADY_MS: u64 = 10_000;
const PAUSE_MIN_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 10_000;
/// How long openers wait for a new worker before policy answers at once.
const GRACE_MS: u64 = 5_000;

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
        sys::give_back_text();
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

    fn start_worker<W>(&mut self, work: W) -> Result<(), SuperviseError>
    where
        W: Fn(Worker) -> i32 + Send + 'static,
    {
        self.board.set(Word::GuardingSinceMs, 0);
        self.board.set_reader(Reader::Supervisor);
        self.told_ready = false;
        match sys::fork_sharing_files(&self.one_thread).map_err(SuperviseError::System)? {
            Cloned::Child => self.become_worker(work),
            Cloned::Parent(pid) => {
                let number = pid.as_raw_nonzero().get();
                let own = rustix::process::getpid().as_raw_nonzero().get();
                self.group.set_own_pids(vec![own, number]);
                // Its start is read while it lives, or is a zombie of ours: the number is its own.
                self.board
                    .set(Word::WorkerStart, start_of(pid).unwrap_or(0));
                self.board
                    .set(Word::WorkerPid, u64::from(number.unsigned_abs()));
                self.board.add(Word::WorkerStarts, 1);
                self.worker = Some(RunningWorker {
                    pid,
                    since_ms: now_ms(),
                });
                Ok(())
            }
        }
    }

    /// The worker's whole life. Never returns: the descriptors that this copy of the memory
    /// believes to own are the supervisor's.
    fn become_worker<W>(&self, work: W) -> !
    where
        W: Fn(Worker) -> i32 + Send + 'static,
    {
        sys::never_dump_core();
        let worker = sys::deliver(&SIGNALS).and_then(|()| {
            let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
            let desk = Desk {
                board: self.board,
                timer: copy(&self.alarm)?,
            };
            Ok(Worker::new(desk, self.group.to_fd()?, copy(&self.bell)?))
        });
        let code = worker.and_then(|worker| {
            let thread = std::thread::Builder::new().name("worker".into());
            // In a thread of its own: see `fork_sharing_files`.
            let thread = thread.spawn(move || work(worker))?;
            thread.join().map_err(|_| io::Error::other("it panicked"))
        });
        std::process::exit(code.unwrap_or_else(|error| {
            tracing::error!(%error, "the worker");
            101
        }))
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

    /// When the next opener is due.
    fn answer_overdue(&mut self, now: u64) -> Option<u64> {
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
    fn gave_up(&self, now: u64) -> bool {
        let is_down = self.board.get(Word::GuardingSinceMs) == 0;
        is_down && now.saturating_sub(self.down_since_ms) >= GRACE_MS
    }

    fn answer_by_policy(&mut self, number: i32, slot: Slot) {
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

    fn kept_len(&self) -> usize {
        let kept = |(_, slot): &(i32, Slot)| matches!(slot.state, State::Owed | State::Closed);
        self.board.slots().filter(kept).count()
    }

    /// Kills a worker that makes no progress; when to look again.
    fn look_after_worker(&mut self, now: u64) -> Option<u64> {
        let worker = self.worker.as_ref()?;
        let board = &self.board;
        let guarding_since = board.get(Word::GuardingSinceMs);
        if let Some(since) = self.stopping_since_ms {
            return self.kill_if(now, since + END_MS, "it does not end");
        }
        if guarding_since == 0 {
            return self.kill_if(now, worker.since_ms + START_MS, "it does not guard");
        }
        let budget = board.budget_ms(OpenKind::Open);
        let patience = budget.max(HANG_MS);
        let busy = board.get(Word::BusySinceMs);
        let reader_due = (busy != 0 && !self.reads()).then(|| busy.max(guarding_since) + patience);
        if let Some(due) = reader_due
            && now >= due
        {
            return self.kill_if(now, due, "its reader does not come back");
        }
        if self
            .suspect_since_ms
            .is_some_and(|since| board.get(Word::LastAnswerMs) >= since)
        {
            self.suspect_since_ms = None;
        }
        let answer_due = self
            .suspect_since_ms
            .map(|since| since.max(guarding_since) + HANG_MS);
        if let Some(due) = answer_due
            && now >= due
        {
            return self.kill_if(now, due, "it answers nobody");
        }
        [reader_due, answer_due].into_iter().flatten().min()
    }

    fn kill_if(&mut self, now: u64, due: u64, why: &str) -> Option<u64> {
        let worker = self.worker.as_ref()?;
        if now < due {
            return Some(due);
        }
        tracing::error!(why, "the worker is killed");
        self.board.add(Word::WorkerHangs, 1);
        self.backlog_since_ms = Some(self.board.get(Word::BusySinceMs)).filter(|at| *at != 0);
        self.suspect_since_ms = None;
        // Not reaped yet, so the number is its own.
        let _ = kill_process(worker.pid, Signal::KILL);
        // Once is enough; should it take long to die, it is looked at again.
        Some(now + HANG_MS)
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

    fn take_events(&mut self) -> Result<(), SuperviseError> {
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
    fn drop_surplus_closes(&self) {
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
    fn make_room(&mut self) {
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

    fn reap(&mut self) {
        if let Some(check) = &mut self.check
            && let Ok(Some(status)) = check.try_wait()
        {
            self.check = None;
            self.upgrade(status);
        }
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        let Some(pid) = self.worker.as_ref().map(|worker| worker.pid) else {
            return;
        };
        let Ok(Some((_, status))) = waitpid(Some(pid), options) else {
            return;
        };
        if status.stopped() {
            // Somebody stopped it: it would answer nobody.
            tracing::error!("the worker was stopped; it is killed");
            self.board.add(Word::WorkerHangs, 1);
            let _ = kill_process(pid, Signal::KILL);
            return;
        }
        let code = status.exit_status();
        tracing::debug!(
            code,
            signal = status.terminating_signal(),
            "the worker ended"
        );
        self.worker_ended(code);
    }

    fn worker_ended(&mut self, code: Option<i32>) {
        let now = now_ms();
        let lived_ms = self
            .worker
            .take()
            .map_or(0, |w| now.saturating_sub(w.since_ms));
        self.board.set_reader(Reader::Supervisor);
        self.board.set(Word::BusySinceMs, 0);
        self.board.set(Word::WorkerPid, 0);
        let was_guarding = self.board.get(Word::GuardingSinceMs) != 0;
        self.board.set(Word::GuardingSinceMs, 0);
        self.suspect_since_ms = None;
        dead::settle(&self.board, &self.group, &self.own);
        self.down_since_ms = now;
        if self.stopping_since_ms.is_some() || !(self.has_guarded || was_guarding) {
            // It says itself why it could not start.
            self.exit_code = Some(code.unwrap_or(101));
            return;
        }
        self.pause_ms = match lived_ms {
            STEADY_MS.. => 0,
            _ => (self.pause_ms * 2).clamp(PAUSE_MIN_MS, PAUSE_MAX_MS),
        };
        self.start_at_ms = now + self.pause_ms;
        tracing::error!(
            code,
            again_in_ms = self.pause_ms,
            "the worker is gone; openers wait for the next"
        );
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

    fn begin_upgrade(&mut self) {
        // Without a worker that reads, nobody would answer the open of the program.
        let is_guarded = self.board.reader() == Reader::Worker as u64;
        if !is_guarded || self.check.is_some() || self.stopping_since_ms.is_some() {
            tracing::warn!("no upgrade now: there is no worker that guards meanwhile");
            return;
        }
        let check = Command::new(&self.options.program)
            .args(&self.options.check_arguments)
            .spawn();
        match check {
            Ok(check) => self.check = Some(check),
            Err(error) => tracing::error!(%error, "no upgrade: the program cannot be started"),
        }
    }

    /// Becomes the newer program, in the same process. The worker goes on meanwhile, and the
    /// newer supervisor takes over from it.
    fn upgrade(&mut self, check: ExitStatus) {
        if !check.success() || self.board.reader() != Reader::Worker as u64 {
            tracing::error!(%check, "no upgrade: the program says that it cannot run");
            return;
        }
        let group = match rustix::io::dup(self.group.as_fd()) {
            Ok(group) => group,
            Err(error) => return tracing::error!(%error, "no upgrade"),
        };
        tracing::info!(program = %self.options.program.display(), "upgrading");
        let error = Command::new(&self.options.program)
            .args(&self.options.arguments)
            .env(GROUP_VARIABLE, group.as_raw_fd().to_string())
            .exec();
        tracing::error!(%error, "no upgrade: the program cannot be run");
    }
}

fn drain(fd: &OwnedFd) {
    let mut count = [0; 8];
    // Nothing to read is as good.
    let _ = rustix::io::read(fd, &mut count);
}
