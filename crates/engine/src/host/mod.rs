//! The appliance's side: starts an engine, keeps its workers alive, hands out files.
//!
//! No thread stands between a scan and its worker: [`Engine::scan`] takes an idle worker, writes
//! one packet and awaits the socket itself. A keeper task does what is rare: births, deaths,
//! reloads.

mod content;
mod filter;
mod keeper;
mod pool;
mod process;
mod report;
mod spec;
mod template;

use std::ffi::OsString;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{FilterPack, Generation, UnscannedReason};
use proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use spec::{
    Content, EngineSpec, EngineStats, INLINE_MAX_BYTES, Job, JobResult, KNOWN_RANGES_MAX,
    PartialJob, PartialResult, Sandboxing, StartError, WORKERS_MAX,
};

pub(crate) use content::sealed;

use keeper::{Event, Keeper};
use pool::{Lease, Pool};
use process::{Broken, SubmitError, Work};
use template::Loaded;

use crate::sparse;

/// A running engine. Clones share it; it ends when the last clone is dropped or at [`stop`].
///
/// [`stop`]: Engine::stop
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    // Last, and only here: its drop tells the keeper to end.
    _stopper: Arc<Stopper>,
}

struct Shared {
    spec: EngineSpec,
    pool: Arc<Pool>,
    loaded: Mutex<Loaded>,
    counters: Counters,
    events: mpsc::UnboundedSender<Event>,
}

/// A worker's report, checked, and what the worker is.
type Answer = (v1::ScanReport, Arc<v1::EngineReady>);

struct Stopper(mpsc::UnboundedSender<Event>);

impl Drop for Stopper {
    fn drop(&mut self) {
        // Fails only where the keeper has ended already.
        let _ = self.0.send(Event::Stop(None));
    }
}

#[derive(Default)]
struct Counters {
    scanned: AtomicU64,
    partial: AtomicU64,
    crashed: AtomicU64,
    timeouts: AtomicU64,
    unavailable: AtomicU64,
    restarts: AtomicU64,
    reloads: AtomicU64,
    reloads_failed: AtomicU64,
}

impl Shared {
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts the template, waits for its rules and for all workers.
    ///
    /// # Errors
    /// What is wrong with the program, its rules or the sandbox; nothing is left running.
    pub async fn start(spec: EngineSpec) -> Result<Self, StartError> {
        check(&spec)?;
        let (events, inbox) = mpsc::unbounded_channel();
        let started = template::start(&spec, &spec.args, 1, events.clone()).await?;
        let shared = Arc::new(Shared {
            pool: Pool::new(events.clone()),
            loaded: Mutex::new(started.loaded.clone()),
            counters: Counters::default(),
            events: events.clone(),
            spec,
        });
        tokio::spawn(Keeper::new(Arc::clone(&shared), inbox, started).run());
        Ok(Self {
            shared,
            _stopper: Arc::new(Stopper(events)),
        })
    }

    /// What the engine is, since its last start or reload. A result's own generation says which
    /// rules judged that file.
    #[must_use]
    pub fn info(&self) -> Arc<v1::EngineReady> {
        Arc::clone(&self.shared.loaded().ready)
    }

    /// What agents can look for in its place, since its last start or reload. `None`: it judges
    /// whole content only.
    #[must_use]
    pub fn filter(&self) -> Option<Arc<FilterPack>> {
        self.shared.loaded().filter.clone()
    }

    /// Scans one file. Never fails and never blocks for ever: at the latest after
    /// `wait_max + job_timeout` there is a result. Dropping the future kills the worker that has
    /// the file, and a new one is forked.
    pub async fn scan(&self, job: Job) -> JobResult {
        match self.ask(Work::Whole(&job)).await {
            Ok((answer, ready)) => report::accept(answer, &ready),
            Err(result) => result,
        }
    }

    /// Judges one file by what is known of it, with the promises of [`scan`](Self::scan), and in twice
    /// its time: what came packed is laid out and judged once more where a worker asks for that.
    pub async fn judge_partial(&self, mut job: PartialJob) -> PartialResult {
        if let Some(why) = job.too_large() {
            return PartialResult::Whole(why);
        }
        let mut answer = self.ask(Work::Partial(&job)).await;
        if let Content::Inline(packed) = &job.content
            && answer
                .as_ref()
                .is_ok_and(|(it, _)| report::wants_layout(it))
        {
            match sparse::unpack(job.size, &job.known, packed) {
                Ok(content) => job.content = content,
                Err(error) => return PartialResult::Whole(format!("no memory file: {error}")),
            }
            answer = self.ask(Work::Partial(&job)).await;
        }
        match answer {
            Ok((answer, ready)) => report::accept_partial(answer, &job, &ready),
            Err(result) => PartialResult::Failed(result),
        }
    }

    /// What a worker says; an error where none does.
    async fn ask(&self, work: Work<'_>) -> Result<Answer, JobResult> {
        let deadline = Instant::now() + self.shared.spec.wait_max;
        // Each turn uses up a worker that had died while idle: at most as many as there are.
        while let Some(lease) = self.shared.pool.take(deadline).await {
            if let Some(answer) = self.run(lease, work).await {
                return answer;
            }
        }
        self.shared.counters.unavailable.fetch_add(1, Relaxed);
        let generation = report::generation(&self.info());
        Err(self.nothing(
            generation,
            UnscannedReason::EngineUnavailable,
            "no worker in time",
        ))
    }

    /// Has one worker do the work; `None` where it never reached it.
    async fn run(&self, mut lease: Lease, work: Work<'_>) -> Option<Result<Answer, JobResult>> {
        let counters = &self.shared.counters;
        let limit = self.shared.spec.job_timeout;
        let worker = lease.worker()?;
        if !worker.is_quiet() {
            return None;
        }
        let job_id = match worker.submit(work, limit) {
            Ok(job_id) => job_id,
            Err(SubmitError::Gone) => return None,
            Err(SubmitError::Content(error)) => {
                let mut result = self.nothing(worker.generation(), UnscannedReason::Other, "");
                result.incomplete = None;
                result.error = Some(error);
                lease.finish(true);
                return Some(Err(result));
            }
        };
        let generation = worker.generation();
        let answer = tokio::time::timeout(limit, worker.report(job_id)).await;
        let answer = answer.map(|answer| answer.and_then(|answer| report::fits(answer, work)));
        let broken = match answer {
            Ok(Ok(answer)) => {
                let counter = match work {
                    _ if report::is_crash(&answer) => &counters.crashed,
                    Work::Whole(_) => &counters.scanned,
                    Work::Partial(_) => &counters.partial,
                };
                counter.fetch_add(1, Relaxed);
                let ready = lease.worker()?.ready();
                lease.finish(!answer.last);
                return Some(Ok((answer, ready)));
            }
            Ok(Err(broken)) => broken,
            Err(_) => {
                counters.timeouts.fetch_add(1, Relaxed);
                let detail = format!("killed after {} ms", limit.as_millis());
                return Some(Err(self.nothing(
                    generation,
                    UnscannedReason::EngineTimeout,
                    &detail,
                )));
            }
        };
        counters.crashed.fetch_add(1, Relaxed);
        let detail = match broken {
            Broken::Ended => {
                let cause = worker.cause_of_death().await;
                lease.finish(false);
                cause
            }
            Broken::Nonsense(what) => format!("killed for {what}"),
        };
        Some(Err(self.nothing(
            generation,
            UnscannedReason::EngineCrashed,
            &detail,
        )))
    }

    fn nothing(&self, generation: Generation, reason: UnscannedReason, why: &str) -> JobResult {
        let detail = format!("engine {}: {why}", self.shared.spec.name);
        JobResult::unscanned(generation, reason, detail)
    }

    /// Starts a new template (with new arguments, where given), waits until it and its workers are
    /// ready, and swaps. Files that the old workers have are finished by them.
    ///
    /// # Errors
    /// Why the new template cannot be used; the old one goes on as if nothing had happened.
    pub async fn reload(&self, args: Option<Vec<OsString>>) -> Result<(), StartError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || StartError::Stopped {
            name: self.shared.spec.name.clone(),
        };
        let event = Event::Reload {
            args,
            reply: Some(reply),
        };
        self.shared.events.send(event).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Ends the engine: workers are killed, scans under way are unscanned. Returns when the
    /// processes are gone.
    pub async fn stop(&self) {
        let (done, ended) = oneshot::channel();
        if self.shared.events.send(Event::Stop(Some(done))).is_ok() {
            let _ = ended.await;
        }
    }

    /// Counters for metrics.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let counters = &self.shared.counters;
        let (workers, workers_idle) = self.shared.pool.size();
        EngineStats {
            workers,
            workers_idle,
            scanned_total: counters.scanned.load(Relaxed),
            partial_total: counters.partial.load(Relaxed),
            killed_total: self.shared.pool.killed_total(),
            kills_failed_total: self.shared.pool.kills_failed_total(),
            crashed_total: counters.crashed.load(Relaxed),
            timeouts_total: counters.timeouts.load(Relaxed),
            unavailable_total: counters.unavailable.load(Relaxed),
            restarts_total: counters.restarts.load(Relaxed),
            reloads_total: counters.reloads.load(Relaxed),
            reloads_failed_total: counters.reloads_failed.load(Relaxed),
        }
    }
}

fn check(spec: &EngineSpec) -> Result<(), StartError> {
    let what = if spec.name.is_empty() {
        "name is empty"
    } else if spec.workers == 0 || spec.workers > WORKERS_MAX {
        "workers must be 1 to 256"
    } else if spec.job_timeout.is_zero() || spec.job_timeout.as_millis() > u128::from(u32::MAX) {
        "job_timeout must be 1 ms to 49 days"
    } else if spec.load_timeout.is_zero() {
        "load_timeout must not be 0"
    } else {
        return Ok(());
    };
    Err(StartError::Spec {
        name: spec.name.clone(),
        what,
    })
}
