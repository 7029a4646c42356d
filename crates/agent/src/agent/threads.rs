//! The threads of the agent, each by its name.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use daemon::notify::{Progress, Watchdog};
use daemon::signal::Stop;
use fanotify::limits::Reserve;
use fanotify::{Group, ReadError};
use proto::v1;
use quarantine::Vault;
use supervisor::Worker;

use super::{Halt, StartError, system};
use crate::credentials::boot_seed;
use crate::gate::lanes::Lanes;
use crate::gate::reader::{BATCH, Reader};
use crate::gate::standing;
use crate::gate::workers;
use crate::gate::{Gate, timer};
use crate::guard::everywhere;
use crate::guard::marks::Marks;
use crate::guard::scope::Scope;
use crate::keeper::Keeper;
use crate::orders::Hands;
use crate::{AgentConfig, STACK_BYTES, attached, control, placed};

/// The longest that the timer sleeps where no watchdog wants to see it move.
const TIMER_SLEEP_MAX: Duration = Duration::from_secs(6 * 3600);

pub(super) fn spawn<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(work)
        .map_err(system(name))
}

pub(super) fn spawn_nearness(
    config: &AgentConfig,
    gate: &Arc<Gate>,
    halt: &Halt,
) -> Result<Option<JoinHandle<()>>, StartError> {
    let every = Duration::from_secs(config.appliance.measure_s);
    if every.is_zero() || !config.appliance.follows_lists() {
        return Ok(None);
    }
    let (gate, stop) = (Arc::clone(gate), halt.keeper.clone());
    let measure = move || placed::measure_all(&gate, every, boot_seed(), &stop);
    spawn("nearness", measure).map(Some)
}

pub(super) fn spawn_attached(
    config: &AgentConfig,
    gate: &Arc<Gate>,
    halt: &Halt,
) -> Result<Option<JoinHandle<()>>, StartError> {
    if !config.appliance.follows_lists() {
        return Ok(None);
    }
    let (gate, stop) = (Arc::clone(gate), halt.keeper.clone());
    spawn("attached", move || attached::follow(&gate, &stop)).map(Some)
}

pub(super) fn spawn_workers(
    gate: &Arc<Gate>,
    hash_lanes: &Lanes<workers::HashTask>,
    upload_lanes: &Lanes<workers::UploadTask>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let mut threads = Vec::new();
    for _ in 0..gate.limits.digest_threads {
        let (gate, lanes) = (Arc::clone(gate), hash_lanes.clone());
        threads.push(spawn("digest", move || workers::hash_all(&gate, &lanes))?);
    }
    for _ in 0..gate.limits.upload_threads {
        let (gate, lanes) = (Arc::clone(gate), upload_lanes.clone());
        threads.push(spawn("upload", move || workers::upload_all(&gate, &lanes))?);
    }
    Ok(threads)
}

pub(super) fn spawn_hands(
    gate: &Arc<Gate>,
    vault: Vault,
    orders: Receiver<v1::Order>,
) -> Result<JoinHandle<()>, StartError> {
    let mut hands = Hands::new(vault, gate.limits.order_results_max);
    let gate = Arc::clone(gate);
    spawn("hands", move || hands.run(&gate, &orders))
}

pub(super) fn spawn_reader(
    gate: &Arc<Gate>,
    group: &Arc<Group>,
    scope: &Arc<Scope>,
    progress: &Arc<Progress>,
    stop: &Stop,
    worker: Option<Arc<Worker>>,
) -> Result<JoinHandle<Result<(), ReadError>>, StartError> {
    let reserve = Reserve::new(BATCH).map_err(system("the reserve of descriptors"))?;
    let (gate, group, scope) = (Arc::clone(gate), Arc::clone(group), Arc::clone(scope));
    let (progress, stop) = (Arc::clone(progress), stop.clone());
    spawn("reader", move || {
        // However it ends but by an interrupt, nobody reads any more and every opener would wait.
        let _stop_at_end = StopAtEnd(stop);
        let mut reader = Reader::new(&gate, &group, &scope, reserve);
        let Some(worker) = worker else {
            return reader.run(&progress);
        };
        for left in worker.begin_reading(&group, &group.interrupter()) {
            reader.inherit(left);
        }
        gate.books.overflowed_by(worker.take_unnamed());
        let read = reader.run(&progress);
        if worker.has_handed_over() {
            // The new supervisor ends this process; nothing may be undone before.
            loop {
                std::thread::park();
            }
        }
        read
    })
}

/// The thread that sleeps until the supervisor dies. Not waited for: it ends with the process.
pub(super) fn spawn_outliving(worker: &Arc<Worker>, stop: &Stop) -> Result<(), StartError> {
    let (worker, stop) = (Arc::clone(worker), stop.clone());
    spawn("outliving", move || {
        if worker.outlive_supervisor() {
            stop.stop();
        }
    })
    .map(drop)
}

/// Stops the agent when dropped, panics included.
struct StopAtEnd(Stop);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.stop();
    }
}

pub(super) fn spawn_timer(
    gate: &Arc<Gate>,
    progress: &Arc<Progress>,
) -> Result<JoinHandle<()>, StartError> {
    let watchdog = Watchdog::from_env();
    let beat_within = watchdog.as_ref().map(Watchdog::beat_within);
    let sleep_max = beat_within.unwrap_or(TIMER_SLEEP_MAX).min(TIMER_SLEEP_MAX);
    if let Some(watchdog) = watchdog {
        let fed = watchdog.fed_by(Arc::clone(progress));
        fed.map_err(system("the watchdog"))?;
    }
    let (gate, progress) = (Arc::clone(gate), Arc::clone(progress));
    spawn("timer", move || timer::run(&gate, &progress, sleep_max))
}

/// Verdicts can be placed when this returns, unless the kernel cannot do that.
pub(super) fn spawn_standing(
    gate: &Arc<Gate>,
    group: &Arc<Group>,
) -> Result<JoinHandle<()>, StartError> {
    let (gate, group) = (Arc::clone(gate), Arc::clone(group));
    let (ready, is_ready) = bounded(1);
    let thread = spawn("standing", move || {
        let watched = standing::watch(&gate, group, || {
            // Nobody waits any more only where the start failed.
            let _ = ready.send(());
        });
        if let Err(error) = watched {
            tracing::error!(%error, "no verdict stands in the kernel; opens cost more");
        }
    })?;
    // An error: it ended before it began, and has said so.
    let _ = is_ready.recv();
    Ok(thread)
}

pub(super) fn spawn_keeper(mut keeper: Keeper, halt: &Halt) -> Result<JoinHandle<()>, StartError> {
    let stop = halt.keeper.clone();
    spawn("keeper", move || {
        keeper.run(&stop);
        keeper.finish();
    })
}

pub(super) fn spawn_control(
    config: &AgentConfig,
    scope: &Scope,
    stop: &Stop,
    tell: Box<control::Tell>,
) -> Result<JoinHandle<()>, StartError> {
    let path = config.control_socket();
    let connections_max = config.limits.control_connections_max;
    let server = control::Server::bind(&path, tell, scope.registered(), connections_max)
        .map_err(|source| StartError::Control { path, source })?;
    let stop = stop.clone();
    spawn("control", move || server.run(&stop))
}

/// Marks, then follows the mounts; the marks are on when this returns.
pub(super) fn spawn_marks(
    config: &Arc<AgentConfig>,
    group: &Arc<Group>,
    gate: &Arc<Gate>,
    scope: &Arc<Scope>,
    stop: &Stop,
) -> Result<JoinHandle<()>, StartError> {
    let (config, group) = (Arc::clone(config), Arc::clone(group));
    let (gate, scope, stop) = (Arc::clone(gate), Arc::clone(scope), stop.clone());
    let (marked, is_marked) = bounded(1);
    let thread = spawn("marks", move || {
        let marks = Marks::new(&group, &config.guard)
            .and_then(|mut marks| marks.mark_all(&gate).map(|()| marks));
        match marks {
            Ok(mut marks) => {
                if let Err(error) = marks.probe_all(&gate) {
                    tracing::error!(%error, "no fast path is used");
                }
                let _ = marked.send(Ok(()));
                everywhere::follow(&mut marks, &gate, &scope, &stop);
                marks.unmark_all();
            }
            Err(error) => {
                let _ = marked.send(Err(error));
            }
        }
    })?;
    match is_marked.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            let died = io::Error::other("its thread died");
            Err(system("the marks")(died))
        }
    }
}
