//! The worker: brought to life, killed when it makes no progress, replaced.

use std::io;
use std::os::fd::OwnedFd;

use fanotify::OpenKind;
use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

use super::{RunningWorker, SIGNALS, SuperviseError, Supervisor};
use crate::board::{Reader, Word, now_ms};
use crate::process::start_of;
use crate::sys::Cloned;
use crate::worker::{Desk, Worker};
use crate::{dead, sys};

/// A worker that has answered nobody for so long although somebody waits is killed, or after an
/// opener's budget where that is longer.
pub(super) const HANG_MS: u64 = 2_000;
/// How long a worker may take until it guards.
const START_MS: u64 = 60_000;
/// How long it may take to end.
const END_MS: u64 = 15_000;
/// A worker that dies sooner after its start is brought back later each time.
const STEADY_MS: u64 = 10_000;
const PAUSE_MIN_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 10_000;

impl Supervisor {
    pub(super) fn start_worker<W>(&mut self, work: W) -> Result<(), SuperviseError>
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
    pub(super) fn become_worker<W>(&self, work: W) -> !
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

    /// Kills a worker that makes no progress; when to look again.
    pub(super) fn look_after_worker(&mut self, now: u64) -> Option<u64> {
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

    pub(super) fn kill_if(&mut self, now: u64, due: u64, why: &str) -> Option<u64> {
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

    pub(super) fn reap(&mut self) {
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

    pub(super) fn worker_ended(&mut self, code: Option<i32>) {
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
}
