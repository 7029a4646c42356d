//! The idle workers and those who wait for one, first come first served.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::keeper::Event;
use super::process::WorkerProcess;

/// Scans that may wait for a worker; the appliance's scheduler keeps far fewer here.
const WAITING_MAX: usize = 4096;

pub(super) struct Pool {
    state: Mutex<State>,
    events: mpsc::UnboundedSender<Event>,
    killed: AtomicU64,
    kills_failed: AtomicU64,
}

struct State {
    /// Workers of other templates are let go when they come back.
    epoch: u64,
    /// Last in, first out: the worker with the warmest caches.
    idle: Vec<WorkerProcess>,
    waiting: VecDeque<oneshot::Sender<Lease>>,
    /// Workers of this epoch, idle or leased.
    alive: usize,
    closed: bool,
}

/// A worker that has, or is about to have, one job. Dropped half-way (a cancelled scan, a timeout,
/// nonsense), it kills the worker: what it does now is of no use to anyone.
pub(super) struct Lease {
    worker: Option<WorkerProcess>,
    pool: Arc<Pool>,
    state: LeaseState,
}

#[derive(PartialEq)]
enum LeaseState {
    /// Handed out, not yet touched.
    Fresh,
    Busy,
}

impl Pool {
    pub(super) fn new(events: mpsc::UnboundedSender<Event>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                epoch: 0,
                idle: Vec::new(),
                waiting: VecDeque::new(),
                alive: 0,
                closed: false,
            }),
            events,
            killed: AtomicU64::new(0),
            kills_failed: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker; `None` where there is none by the deadline, or the engine is stopped.
    pub(super) async fn take(self: &Arc<Self>, deadline: Instant) -> Option<Lease> {
        let turn = {
            let mut state = self.lock();
            if state.closed {
                return None;
            }
            if let Some(worker) = state.idle.pop() {
                return Some(self.lease(worker));
            }
            if state.waiting.len() >= WAITING_MAX {
                state.waiting.retain(|waiter| !waiter.is_closed());
                if state.waiting.len() >= WAITING_MAX {
                    return None;
                }
            }
            let (waiter, turn) = oneshot::channel();
            state.waiting.push_back(waiter);
            turn
        };
        tokio::time::timeout_at(deadline, turn).await.ok()?.ok()
    }

    fn lease(self: &Arc<Self>, worker: WorkerProcess) -> Lease {
        Lease {
            worker: Some(worker),
            pool: Arc::clone(self),
            state: LeaseState::Fresh,
        }
    }

    /// Replaces all workers: those of other templates end when they have no job.
    pub(super) fn swap(self: &Arc<Self>, epoch: u64, workers: Vec<WorkerProcess>) {
        let old = {
            let mut state = self.lock();
            state.epoch = epoch;
            state.alive = 0;
            std::mem::take(&mut state.idle)
        };
        // Closing an idle worker's socket ends it.
        drop(old);
        for worker in workers {
            self.add(worker);
        }
    }

    /// Adds a newborn.
    pub(super) fn add(self: &Arc<Self>, worker: WorkerProcess) {
        {
            let mut state = self.lock();
            if worker.epoch() == state.epoch {
                state.alive += 1;
            }
        }
        self.put(worker);
    }

    /// Hands an idle worker to the first who waits.
    fn put(self: &Arc<Self>, mut worker: WorkerProcess) {
        let mut state = self.lock();
        if state.closed || worker.epoch() != state.epoch {
            return;
        }
        while let Some(waiter) = state.waiting.pop_front() {
            match waiter.send(self.lease(worker)) {
                Ok(()) => return,
                // That scan was given up meanwhile. Taking the worker out disarms the lease.
                Err(mut lease) => match lease.worker.take() {
                    Some(back) => worker = back,
                    None => return,
                },
            }
        }
        state.idle.push(worker);
    }

    /// Ends all: idle workers end, who waits gets nothing.
    pub(super) fn close(&self) {
        let (idle, waiting) = {
            let mut state = self.lock();
            state.closed = true;
            state.alive = 0;
            (
                std::mem::take(&mut state.idle),
                std::mem::take(&mut state.waiting),
            )
        };
        drop((idle, waiting));
    }

    /// Workers of the current template: all, idle.
    pub(super) fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.alive, state.idle.len())
    }

    pub(super) fn killed_total(&self) -> u64 {
        self.killed.load(Relaxed)
    }

    pub(super) fn kills_failed_total(&self) -> u64 {
        self.kills_failed.load(Relaxed)
    }

    fn kill(&self, worker: &WorkerProcess) {
        match worker.kill() {
            Ok(()) => {
                self.killed.fetch_add(1, Relaxed);
            }
            // Told once: files decide how often this happens. Such a worker ends with its job or
            // its CPU time.
            Err(error) => {
                if self.kills_failed.fetch_add(1, Relaxed) == 0 {
                    let engine = worker.ready().name.clone();
                    tracing::error!(
                        engine,
                        %error,
                        "a worker cannot be killed; does this run as root without CAP_KILL?"
                    );
                }
            }
        }
    }

    /// A worker is no more; the keeper replaces it.
    fn lost(&self, epoch: u64) {
        let mut state = self.lock();
        if epoch == state.epoch {
            state.alive = state.alive.saturating_sub(1);
        }
        drop(state);
        // Fails only where the keeper has ended, and then nobody wants a new one.
        let _ = self.events.send(Event::Lost { epoch });
    }
}

impl Lease {
    /// The worker. Present until [`finish`](Self::finish).
    pub(super) fn worker(&mut self) -> Option<&mut WorkerProcess> {
        self.state = LeaseState::Busy;
        self.worker.as_mut()
    }

    /// The job is over: back into the pool, or (not `reusable`: it ends by itself) replaced.
    pub(super) fn finish(mut self, reusable: bool) {
        let Some(worker) = self.worker.take() else {
            return;
        };
        if reusable {
            self.pool.put(worker);
        } else {
            self.pool.lost(worker.epoch());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else {
            return;
        };
        if self.state == LeaseState::Fresh {
            self.pool.put(worker);
            return;
        }
        self.pool.kill(&worker);
        self.pool.lost(worker.epoch());
    }
}
