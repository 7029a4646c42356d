//! Scans: one for each content under each key, however many wait for it, in the scheduler's
//! order, by all engines at once. A scan goes on when nobody waits any more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use engine::host::Content;
use futures_util::future::join_all;
use model::{GuestId, Outcome, UnscannedReason, Verdict};
use parking_lot::Mutex;
use scan_core::{
    CacheKey, Context, Finding, JobId, PRIORITIES, QueueLimits, Refusal, Refused, Scheduler, Slot,
    Task, generation_in_force, merge,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use verdict_store::JudgedBy;

use crate::answer::{Asker, Holder, Waiter};
use crate::assembly::{Proved, with_sha256};
use crate::engines::{EngineSet, SharedEngine};
use crate::rejudge;
use crate::shared::{Reservation, Shared};
use crate::verdicts;

/// Content to be judged.
pub(crate) struct ScanJob {
    pub(crate) key: CacheKey,
    pub(crate) context: Context,
    pub(crate) proved: Proved,
    /// Held until the scan is over.
    pub(crate) reservation: Arc<Reservation>,
}

/// Scans that wait or run.
pub(crate) struct Scans {
    table: Mutex<Table>,
}

/// What waits in the queue.
enum Work {
    Scan(Box<ScanJob>),
    /// Somebody waits for a turn.
    Turn(oneshot::Sender<Slot>),
}

struct Table {
    scheduler: Scheduler<Work>,
    by_key: HashMap<CacheKey, InFlight>,
    /// Entries of each guest in all [`InFlight::late`].
    late: HashMap<GuestId, usize>,
}

struct InFlight {
    job: JobId,
    owner: GuestId,
    priority: u8,
    /// Each is owed a reply.
    waiters: Vec<Waiter>,
    /// Those who wait no more.
    late: HashSet<Holder>,
}

impl Scans {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self {
            table: Mutex::new(Table {
                scheduler: Scheduler::new(limits),
                by_key: HashMap::new(),
                late: HashMap::new(),
            }),
        }
    }

    pub(crate) fn set_limits(&self, limits: QueueLimits) {
        self.table.lock().scheduler.set_limits(limits);
    }

    /// Jobs waiting by priority, and jobs running.
    pub(crate) fn depth(&self) -> ([usize; PRIORITIES], usize) {
        let table = self.table.lock();
        (table.scheduler.waiting(), table.scheduler.running())
    }

    /// Waits for the scan under this key; gives the waiter back where there is none.
    ///
    /// A guest may get here with a mere claim: the content was proved by whoever had it scanned,
    /// and a false claim harms none but the guest itself.
    pub(crate) fn join(
        &self,
        shared: &Shared,
        key: &CacheKey,
        size: u64,
        waiter: Waiter,
    ) -> Result<(), Waiter> {
        let (waiters_max, late_max) = (waiters_max(shared), late_max(shared));
        let joined = self.table.lock().join(key, waiter, waiters_max, late_max);
        match joined {
            Joined::No(waiter) => Err(waiter),
            Joined::Yes => {
                shared.metrics.scans.joined.inc();
                Ok(())
            }
            Joined::Full(waiter) => {
                too_many_wait(shared, size, waiter);
                Ok(())
            }
        }
    }

    /// Has proved content scanned, or waits for the scan that is under way.
    pub(crate) fn submit(&self, shared: &Arc<Shared>, job: ScanJob, waiter: Waiter) {
        let size = job.proved.size;
        let key = job.key;
        let (waiters_max, late_max) = (waiters_max(shared), late_max(shared));
        let mut table = self.table.lock();
        match table.join(&key, waiter, waiters_max, late_max) {
            Joined::Yes => {
                drop(table);
                shared.metrics.scans.joined.inc();
            }
            Joined::Full(waiter) => {
                drop(table);
                too_many_wait(shared, size, waiter);
            }
            Joined::No(waiter) => {
                let pushed = table.push(job, waiter, late_max);
                drop(table);
                match pushed {
                    Ok(()) => self.start_what_may(shared),
                    Err((refused, waiter)) => waiter.refuse(shared, size, refused.limit),
                }
            }
        }
    }

    fn start_what_may(&self, shared: &Arc<Shared>) {
        loop {
            let Some(started) = self.table.lock().scheduler.start() else {
                return;
            };
            let slot = started.slot;
            match started.job {
                Work::Scan(job) => {
                    shared.runtime.spawn(run(shared.clone(), job, slot));
                }
                Work::Turn(waiting) => {
                    // Whoever waited may have left.
                    if let Err(slot) = waiting.send(slot) {
                        self.table.lock().scheduler.done(slot);
                    }
                }
            }
        }
    }

    /// Waits for a place among those that run: each guest has its turn, as with scans.
    pub(crate) async fn turn(
        &self,
        shared: &Arc<Shared>,
        guest: GuestId,
        priority: u8,
    ) -> Result<Turn, Refusal> {
        let (to, waiting) = oneshot::channel();
        let pushed = {
            let mut table = self.table.lock();
            table.scheduler.push(guest, priority, Work::Turn(to))
        };
        pushed.map_err(|refused| refused.limit)?;
        self.start_what_may(shared);
        let mut turn = Turn {
            shared: shared.clone(),
            waiting,
            slot: None,
        };
        turn.slot = (&mut turn.waiting).await.ok();
        Ok(turn)
    }

    /// A check was cancelled, or its session is over. Of its waiting stays what a bad verdict
    /// needs; beyond `guest_late_max` nothing does, and the guest's ledger has the file judged again.
    pub(crate) fn leave(
        &self,
        shared: &Shared,
        key: &CacheKey,
        asker: &Arc<Asker>,
        request_id: u64,
    ) {
        let late_max = late_max(shared);
        self.table.lock().leave(key, asker, request_id, late_max);
    }

    /// The verdict is there: those who wait or did, and room for the next scan.
    fn take(&self, key: &CacheKey, slot: Slot) -> (Vec<Waiter>, HashSet<Holder>) {
        let mut table = self.table.lock();
        table.scheduler.done(slot);
        let Some(in_flight) = table.by_key.remove(key) else {
            return Default::default();
        };
        for holder in &in_flight.late {
            table.forget_late(holder.guest);
        }
        (in_flight.waiters, in_flight.late)
    }

    /// Waiters, and entries of those who wait no more.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        let table = self.table.lock();
        let waiters = table.by_key.values().map(|scan| scan.waiters.len()).sum();
        (waiters, table.late.values().sum())
    }
}

/// A place among those that run, until it is dropped.
pub(crate) struct Turn {
    shared: Arc<Shared>,
    waiting: oneshot::Receiver<Slot>,
    slot: Option<Slot>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // It may have come while whoever waited was given up.
        self.waiting.close();
        let slot = self.slot.take().or_else(|| self.waiting.try_recv().ok());
        if let Some(slot) = slot {
            let scans = &self.shared.scans;
            scans.table.lock().scheduler.done(slot);
            scans.start_what_may(&self.shared);
        }
    }
}

enum Joined {
    Yes,
    No(Waiter),
    Full(Waiter),
}

impl Table {
    fn join(
        &mut self,
        key: &CacheKey,
        waiter: Waiter,
        waiters_max: usize,
        late_max: usize,
    ) -> Joined {
        let Some(in_flight) = self.by_key.get_mut(key) else {
            return Joined::No(waiter);
        };
        if in_flight.waiters.len() >= waiters_max {
            return Joined::Full(waiter);
        }
        let wanted = waiter.class.priority();
        if wanted < in_flight.priority {
            let from = in_flight.priority;
            self.scheduler
                .raise(in_flight.owner, in_flight.job, from, wanted);
            in_flight.priority = wanted;
        }
        self.enter(key, waiter, late_max);
        Joined::Yes
    }

    /// Enters whoever is owed a reply among those who wait, and whoever has cancelled meanwhile
    /// among the others.
    fn enter(&mut self, key: &CacheKey, waiter: Waiter, late_max: usize) {
        let is_open = match waiter.asker.open.lock().get_mut(&waiter.request_id) {
            Some(check) => {
                check.scan = Some(*key);
                true
            }
            None => false,
        };
        if !is_open {
            self.enter_late(key, waiter.into_holder(), late_max);
        } else if let Some(in_flight) = self.by_key.get_mut(key) {
            in_flight.waiters.push(waiter);
        }
    }

    fn leave(&mut self, key: &CacheKey, asker: &Arc<Asker>, request_id: u64, late_max: usize) {
        let Some(in_flight) = self.by_key.get_mut(key) else {
            return;
        };
        let is_it =
            |waiter: &Waiter| waiter.request_id == request_id && Arc::ptr_eq(&waiter.asker, asker);
        if let Some(at) = in_flight.waiters.iter().position(is_it) {
            let waiter = in_flight.waiters.remove(at);
            self.enter_late(key, waiter.into_holder(), late_max);
        }
    }

    fn enter_late(&mut self, key: &CacheKey, holder: Holder, late_max: usize) {
        let guest = holder.guest;
        let held = self.late.get(&guest).copied().unwrap_or(0);
        let Some(in_flight) = self.by_key.get_mut(key).filter(|_| held < late_max) else {
            return;
        };
        if in_flight.late.insert(holder) {
            self.late.insert(guest, held + 1);
        }
    }

    fn forget_late(&mut self, guest: GuestId) {
        if let Some(held) = self.late.get_mut(&guest) {
            *held -= 1;
            if *held == 0 {
                self.late.remove(&guest);
            }
        }
    }

    /// Queues a scan under a key that has none. The job that did not fit is dropped by the caller,
    /// outside of the lock, since its reservation takes another.
    fn push(
        &mut self,
        job: ScanJob,
        waiter: Waiter,
        late_max: usize,
    ) -> Result<(), (Refused<Work>, Waiter)> {
        let key = job.key;
        let (owner, priority) = (waiter.asker.guest, waiter.class.priority());
        match self
            .scheduler
            .push(owner, priority, Work::Scan(Box::new(job)))
        {
            Ok(job) => {
                let in_flight = InFlight {
                    job,
                    owner,
                    priority,
                    waiters: Vec::new(),
                    late: HashSet::new(),
                };
                self.by_key.insert(key, in_flight);
                self.enter(&key, waiter, late_max);
                Ok(())
            }
            Err(refused) => Err((refused, waiter)),
        }
    }
}

fn too_many_wait(shared: &Shared, size: u64, waiter: Waiter) {
    let detail = "limit waiters_per_scan_max reached";
    waiter.unscanned(shared, size, UnscannedReason::Overloaded, detail);
}

fn waiters_max(shared: &Shared) -> usize {
    shared.force.read().limits.waiters_per_scan_max.count()
}

fn late_max(shared: &Shared) -> usize {
    shared.force.read().limits.guest_late_max.count()
}

async fn run(shared: Arc<Shared>, job: Box<ScanJob>, slot: Slot) {
    let mut running = Running {
        key: job.key,
        size: job.proved.size,
        slot: Some(slot),
        shared: shared.clone(),
    };
    let engines = shared.engines();
    let job = *job;
    let Judged {
        key,
        verdict,
        engines: judged_by,
    } = match rejudge::brought_along(&shared, &engines, &job).await {
        Some(judged) => judged,
        None => {
            let judged = judge(&shared, &engines, &job, &job.context).await;
            let verdict = with_sha256(judged.verdict, &job.proved.content).await;
            Judged { verdict, ..judged }
        }
    };
    shared.retained.keep(&key, &job.context, &job.proved);
    shared.verdicts.keep_in_memory(&key, &verdict);
    let entry = verdicts::entry(&job.proved, &key, &verdict, judged_by);
    if must_be_recalled(&shared, &engines, &job, &verdict).await {
        shared.recall([job.proved.digest]);
    }
    drop(job.proved);
    drop(job.reservation);
    running.finish(&verdict);
    if let Some(entry) = entry {
        shared.verdicts.keep_soon(&key, &entry);
    }
}

/// What all engines together said, under the key that it is known by.
pub(crate) struct Judged {
    pub(crate) key: CacheKey,
    pub(crate) verdict: Verdict,
    pub(crate) engines: Vec<JudgedBy>,
}

/// A scan that runs. However it ends, those who wait are answered and its place is free again.
struct Running {
    shared: Arc<Shared>,
    key: CacheKey,
    size: u64,
    slot: Option<Slot>,
}

impl Running {
    fn finish(&mut self, verdict: &Verdict) {
        let Some(slot) = self.slot.take() else {
            return;
        };
        let (waiters, late) = self.shared.scans.take(&self.key, slot);
        for waiter in waiters {
            waiter.answer(&self.shared, verdict, false);
        }
        for holder in late {
            self.shared.sightings.note(holder.guest, verdict);
            holder.tell(&self.shared, verdict);
        }
        self.shared.scans.start_what_may(&self.shared);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let outcome = Outcome::Error {
            message: "the appliance gave up this scan".into(),
        };
        let verdict = self
            .shared
            .not_judged(outcome, self.size, Some(self.key.digest));
        self.finish(&verdict);
    }
}

/// Whether content that an allowlist has is malicious by itself. Where engines read names, it may
/// have been the guest's claim that made it so, which counts for that guest alone: then it is
/// judged once more, without a name.
async fn must_be_recalled(
    shared: &Shared,
    engines: &EngineSet,
    job: &ScanJob,
    verdict: &Verdict,
) -> bool {
    let is_bad = |verdict: &Verdict| matches!(verdict.outcome, Outcome::Malicious { .. });
    if !is_bad(verdict) || !shared.is_allowlisted(&job.proved.digest) {
        return false;
    }
    let reads_names = engines.facts().iter().any(|it| it.context_sensitive);
    !reads_names
        || is_bad(
            &judge(shared, engines, job, &Context::default())
                .await
                .verdict,
        )
}

/// All engines at once.
async fn judge(shared: &Shared, engines: &EngineSet, job: &ScanJob, context: &Context) -> Judged {
    let ScanJob { key, proved, .. } = job;
    let facts = engines.facts();
    let scans = engines.engines.iter().zip(&facts).map(|(engine, facts)| {
        let task = Task {
            content: proved.content.clone(),
            context: facts.context_sensitive.then(|| context.clone()),
        };
        scan(shared, engine, &facts.name, task)
    });
    let findings = join_all(scans).await;
    let judged_by = facts.iter().zip(&findings);
    let judged_by = judged_by.map(|(facts, finding)| (facts.name.as_str(), finding.generation));
    // What judged may be newer than what was in force when the check came.
    let settings = engines.settings;
    let generation = generation_in_force(judged_by, settings);
    let key = CacheKey {
        generation,
        settings,
        ..*key
    };
    let digest = Some(proved.digest);
    let verdict = merge(proved.size, generation, digest, &findings);
    let engines = facts
        .iter()
        .zip(&findings)
        .map(|(facts, finding)| JudgedBy {
            name: facts.name.clone(),
            version: facts.version.clone(),
            generation: finding.generation,
        });
    Judged {
        key,
        verdict,
        engines: engines.collect(),
    }
}

pub(crate) async fn scan(
    shared: &Shared,
    engine: &SharedEngine,
    name: &str,
    task: Task<Content>,
) -> Finding {
    let begun = Instant::now();
    let finding = engine.scan(task).await;
    let seconds = begun.elapsed().as_secs_f64();
    shared.scan_time.took(begun.elapsed());
    shared
        .metrics
        .scans
        .scan_seconds
        .with([name])
        .observe(seconds);
    let outcome = finding.outcome_name();
    shared.metrics.scans.scans.with([name, outcome]).inc();
    finding
}
