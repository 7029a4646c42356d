//! The agent as a whole: what is started, in which order, and how it ends.

mod threads;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use daemon::log::RateLimit;
use daemon::metrics::Registry;
use daemon::notify::Progress;
use daemon::signal::Stop;
use fanotify::{Answer, Group, GroupOptions, Interrupter, ReadError};
use proto::v1;
use quarantine::Vault;
use rustix::event::{PollFd, PollFlags, Timespec};
use supervisor::{Unguarded, Worker};

use crate::bell::Bell;
use crate::books::LedgerFile;
use crate::credentials::make_private_dir;
use crate::dialer::{DialError, Dialer};
use crate::gate::lanes::Lanes;
use crate::gate::reader::BATCH;
use crate::gate::standing::{GATHERED_MAX, Standing};
use crate::gate::workers::{HashTask, UploadTask};
use crate::gate::{Gate, workers};
use crate::guard::marks::GuardError;
use crate::guard::scope::Scope;
use crate::keeper::{ATTACHED_PER_MINUTE, Keeper, Turns, watch_folders};
use crate::member::{FromFleet, Member};
use crate::membership::Membership;
use crate::metrics::Published;
use crate::orders::open_vault;
use crate::session::{Outlets, Peer, Session};
use crate::turns::Said;
use crate::{AgentConfig, allow, status, unguarded};
use threads::{
    spawn, spawn_attached, spawn_control, spawn_hands, spawn_keeper, spawn_marks, spawn_nearness,
    spawn_outliving, spawn_reader, spawn_standing, spawn_timer, spawn_workers,
};

/// Descriptors for everything but events: sockets, logs, the quarantine's files.
const DESCRIPTORS_ASIDE: usize = 256;
/// Words of the fleet about turns that wait for the keeper.
const TURNS_SAID_MAX: usize = 8;
/// How long the end waits for the kernel's queue to run empty.
const DRAIN_ROUNDS_MAX: usize = 200;

/// The agent cannot start. Nothing is guarded then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The files of its identity cannot be used.
    #[error(transparent)]
    Credentials(#[from] crate::credentials::CredentialsError),
    /// The kernel does not give a fanotify group.
    #[error(transparent)]
    Group(#[from] fanotify::GroupError),
    /// What shall be guarded cannot be.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The ledger cannot be kept.
    #[error(transparent)]
    Ledger(#[from] crate::books::LedgerFileError),
    /// The quarantine cannot be used.
    #[error(transparent)]
    Quarantine(#[from] quarantine::OpenError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] daemon::metrics::ServeError),
    /// The control socket's place cannot be had.
    #[error("cannot listen on the control socket {}", path.display())]
    Control {
        /// The socket.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The link cannot begin.
    #[error("cannot start the link")]
    Link(#[source] io::Error),
    /// The system gives no threads or descriptors.
    #[error("cannot start {what}")]
    System {
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum GateFailed {
    /// The kernel's group is of no use any more.
    #[error("the gate can no longer read the kernel's events")]
    Read(#[source] ReadError),
    /// A defect of ours, told on standard error.
    #[error("the gate's reader panicked")]
    Panicked,
}

/// The gate, and what those who work for it take.
struct Parts {
    gate: Arc<Gate>,
    hash_lanes: Lanes<HashTask>,
    upload_lanes: Lanes<UploadTask>,
    ledger_file: LedgerFile,
    vault: Vault,
}

impl Parts {
    /// With what is kept in the folders of `config`.
    fn make(config: &AgentConfig) -> Result<Self, StartError> {
        make_private_dir(&config.state_dir)?;
        make_private_dir(&config.runtime_dir)?;
        let (ledger_file, books) =
            LedgerFile::open(&config.state_dir, config.limits.ledger_entries_max)?;
        let vault = open_vault(config.quarantine_dir(), config.limits.quarantine_bytes_max)?;
        let (queues, hash_lanes, upload_lanes) = workers::Queues::new(config.limits.in_flight_max);
        let shelf = allow::open(config, true);
        let bell = Arc::new(Bell::new().map_err(system("the keeper's bell"))?);
        let standing = Standing::new().map_err(system("verdicts in the kernel"))?;
        let gate = Arc::new(Gate::new(config, queues, books, shelf, bell, standing));
        gate.reload_allowlists();
        Ok(Self {
            gate,
            hash_lanes,
            upload_lanes,
            ledger_file,
            vault,
        })
    }
}

/// A running agent.
pub struct Agent {
    state_dir: PathBuf,
    gate: Arc<Gate>,
    group: Arc<Group>,
    dialer: Arc<Dialer>,
    stop: Stop,
    halt: Halt,
    threads: Threads,
    reader: JoinHandle<Result<(), ReadError>>,
    _metrics: Option<daemon::metrics::Server>,
}

/// What ends threads that `Stop` does not.
struct Halt {
    interrupter: Interrupter,
    /// Ends the thread that unmarks, then the keeper: each after what comes before it.
    keeper: Stop,
}

/// Ended and waited for in this order.
struct Threads {
    /// `None`: the marks were refused.
    marks: Option<JoinHandle<()>>,
    control: JoinHandle<()>,
    timer: JoinHandle<()>,
    standing: JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
    keeper: JoinHandle<()>,
    /// `None`: nothing is measured.
    nearness: Option<JoinHandle<()>>,
    attached: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts everything: first who answers, then what asks. When this returns, the file systems
    /// are guarded; the link may still be coming up.
    ///
    /// # Errors
    /// Nothing is guarded then.
    pub fn start(config: AgentConfig, stop: Stop) -> Result<Self, StartError> {
        Self::start_under(config, stop, None)
    }

    /// As [`start`](Self::start), in a worker's process: its group is the supervisor's, and it
    /// goes on with what its predecessor left.
    ///
    /// # Errors
    /// Nothing more is guarded then.
    pub fn start_under(
        config: AgentConfig,
        stop: Stop,
        worker: Option<Arc<Worker>>,
    ) -> Result<Self, StartError> {
        let config = Arc::new(with_descriptors(config)?);
        let Parts {
            gate,
            hash_lanes,
            upload_lanes,
            ledger_file,
            vault,
        } = Parts::make(&config)?;
        let scope = Arc::new(Scope::new(&config.guard));
        let group = Arc::new(match &worker {
            Some(worker) => worker.group(Answer::Allow)?,
            None => Group::new(GroupOptions {
                default_answer: Answer::Allow,
            })?,
        });
        if let Some(worker) = &worker {
            gate.set_worker(Arc::clone(worker));
            spawn_outliving(worker, &stop)?;
        }
        let progress = Progress::new();
        let server = serve_metrics(&config, &gate)?;

        let (to, ends) = outlets(&config);
        let peer = Arc::new(Mutex::new(Peer::default()));
        let session = Session::new(Arc::clone(&gate), to, Arc::clone(&peer), &config);
        let dialer = Arc::new(Dialer::new(session));
        let membership = Arc::new(Membership::new(&config.sys_dir));
        let mut threads = spawn_workers(&gate, &hash_lanes, &upload_lanes)?;
        threads.push(spawn_hands(&gate, vault, ends.orders)?);
        let member = Member::start(&gate, &config, &stop, &dialer, &membership, ends.from_fleet)?;

        let reader = spawn_reader(&gate, &group, &scope, &progress, &stop, worker.clone())?;
        let halt = Halt {
            interrupter: group.interrupter(),
            keeper: Stop::manual().map_err(system("the keeper"))?,
        };
        let timer = spawn_timer(&gate, &progress)?;
        let standing = spawn_standing(&gate, &group)?;
        let keeper = Keeper {
            gate: Arc::clone(&gate),
            ledger_file,
            member,
            turns: Turns::new(ends.turns),
            reported: None,
            fast_paths: None,
            attached: None,
            attached_rate: RateLimit::new(ATTACHED_PER_MINUTE),
            reported_to: (None, 0),
            allowlists_seen: Instant::now(),
            allowlist_changes: watch_folders(gate.allowlist_files()),
        };
        let nearness = spawn_nearness(&config, &gate, &halt)?;
        let attached = spawn_attached(&config, &gate, &halt)?;
        let keeper = spawn_keeper(keeper, &halt)?;
        let tell = status::teller(Arc::clone(&gate), peer, membership);
        let control = spawn_control(&config, &scope, &stop, tell)?;
        let agent = Self {
            state_dir: config.state_dir.clone(),
            gate,
            group,
            dialer,
            stop,
            halt,
            threads: Threads {
                marks: None,
                control,
                timer,
                standing,
                workers: threads,
                keeper,
                nearness,
                attached,
            },
            reader,
            _metrics: server,
        };
        agent.guard(&config, &scope, worker.as_deref())
    }

    /// Now that there is who answers: whoever opens something asks.
    fn guard(
        mut self,
        config: &Arc<AgentConfig>,
        scope: &Arc<Scope>,
        worker: Option<&Worker>,
    ) -> Result<Self, StartError> {
        match spawn_marks(config, &self.group, &self.gate, scope, &self.stop) {
            Ok(marks) => {
                self.threads.marks = Some(marks);
                if let Some(worker) = worker {
                    worker.guarding();
                    self.account_for(worker, config, scope)?;
                }
                Ok(self)
            }
            Err(error) => {
                self.stop.stop();
                // Why it does not guard is the error that counts.
                let _ = self.end();
                Err(error)
            }
        }
    }

    /// Looks for what happened while nobody guarded.
    fn account_for(
        &self,
        worker: &Worker,
        config: &Arc<AgentConfig>,
        scope: &Arc<Scope>,
    ) -> Result<(), StartError> {
        let tally = worker.tally();
        let is_first = tally.worker_starts == 1 && tally.takeovers == 0;
        let by_mark = || unguarded::by_mark(&config.state_dir).filter(|_| is_first);
        let unguarded = worker.unguarded().or_else(|| {
            let until_ms = supervisor::wall_ms();
            by_mark().map(|from_ms| Unguarded { from_ms, until_ms })
        });
        unguarded::mark(&config.state_dir).map_err(system("the mark of guarding"))?;
        let Some(unguarded) = unguarded else {
            return Ok(());
        };
        let (gate, config) = (Arc::clone(&self.gate), Arc::clone(config));
        let (scope, stop) = (Arc::clone(scope), self.stop.clone());
        spawn("sweep", move || {
            unguarded::sweep(&gate, &config, &scope, unguarded, &stop);
        })
        .map(drop)
    }

    /// Waits until the agent is told to stop or can no longer guard, and ends it cleanly: marks
    /// off, everybody answered, the ledger on disk.
    ///
    /// # Errors
    /// It ended by itself, and why.
    pub fn wait(self) -> Result<(), GateFailed> {
        self.stop.wait();
        daemon::notify::stopping();
        self.end()
    }

    fn end(self) -> Result<(), GateFailed> {
        // Its thread takes the marks off when told to stop: no new openers after this.
        self.threads.marks.into_iter().for_each(join);
        self.gate.input(agent_core::Input::Stop);
        drain(&self.group);
        self.halt.interrupter.interrupt();
        let read = self.reader.join();
        self.gate.input(agent_core::Input::Stop);
        self.gate.end_timer();
        join(self.threads.timer);
        self.gate.standing.end();
        join(self.threads.standing);
        // Ends the session's handler, and with it the last who gives orders.
        self.dialer.end(&self.gate);
        self.gate.end_workers();
        self.threads.workers.into_iter().for_each(join);
        join(self.threads.control);
        self.halt.keeper.stop();
        join(self.threads.keeper);
        self.threads.nearness.into_iter().for_each(join);
        self.threads.attached.into_iter().for_each(join);
        unguarded::unmark(&self.state_dir);
        match read {
            Ok(read) => read.map_err(GateFailed::Read),
            Err(_) => Err(GateFailed::Panicked),
        }
    }
}

/// The other ends of what a session says.
struct Ends {
    orders: Receiver<v1::Order>,
    turns: Receiver<Said>,
    from_fleet: FromFleet,
}

fn outlets(config: &AgentConfig) -> (Outlets, Ends) {
    let (orders, orders_end) = bounded(config.limits.orders_queue_len_max);
    let (renewed, renewed_end) = bounded(1);
    let (rekey, rekey_end) = bounded(1);
    let (turns, turns_end) = bounded(TURNS_SAID_MAX);
    let outlets = Outlets {
        orders,
        renewed,
        rekey,
        turns,
    };
    let from_fleet = FromFleet {
        renewed: renewed_end,
        rekey: rekey_end,
    };
    let ends = Ends {
        orders: orders_end,
        turns: turns_end,
        from_fleet,
    };
    (outlets, ends)
}

/// Waits until every event that was queued when the marks went has been read.
fn drain(group: &Group) {
    for _ in 0..DRAIN_ROUNDS_MAX {
        let mut sources = [PollFd::new(group, PollFlags::IN)];
        let none = Timespec::default();
        if rustix::event::poll(&mut sources, Some(&none)) == Ok(0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl From<DialError> for StartError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Credentials(error) => Self::Credentials(error),
            DialError::Thread(error) => Self::Link(error),
        }
    }
}

fn join(thread: JoinHandle<()>) {
    // A panic there was reported by its own thread.
    let _ = thread.join();
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Raises the limit on descriptors; where even that is small, fewer files are held at once.
fn with_descriptors(mut config: AgentConfig) -> Result<AgentConfig, StartError> {
    let limit = fanotify::limits::raise_nofile().map_err(system("descriptors"))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let for_events = limit.saturating_sub(DESCRIPTORS_ASIDE + 2 * BATCH);
    let limits = &mut config.limits;
    // Openers, files that have a job, and files given up that a worker has yet to come to.
    let in_flight = workers::tasks_max(1).saturating_add(1);
    let wanted = limits.openers_max
        + limits.queue_len_max
        + limits.in_flight_max.saturating_mul(in_flight)
        + limits.standing_max
        + GATHERED_MAX;
    if wanted > for_events {
        let share = |part: usize| (part.saturating_mul(for_events) / wanted).max(1);
        limits.openers_max = share(limits.openers_max);
        limits.queue_len_max = share(limits.queue_len_max);
        limits.in_flight_max = share(limits.in_flight_max);
        limits.standing_max = limits.standing_max.min(share(limits.standing_max));
        tracing::warn!(
            descriptors = limit,
            openers_max = limits.openers_max,
            queue_len_max = limits.queue_len_max,
            in_flight_max = limits.in_flight_max,
            standing_max = limits.standing_max,
            "few file descriptors: fewer files are held at once"
        );
    }
    let room = wanted.min(for_events) + DESCRIPTORS_ASIDE + 2 * BATCH;
    if let Err(error) = fanotify::limits::make_room(room.min(limit) as u64) {
        tracing::warn!(%error, room, "the table of file descriptors grows while openers wait");
    }
    Ok(config)
}

fn serve_metrics(
    config: &AgentConfig,
    gate: &Arc<Gate>,
) -> Result<Option<daemon::metrics::Server>, StartError> {
    let Some(address) = config.metrics.listen else {
        return Ok(None);
    };
    let registry = Registry::new();
    let published = Published::new(&registry, &gate.tally);
    let gate = Arc::clone(gate);
    let refresh = move || published.update(&gate);
    let server = daemon::metrics::serve_fresh(address, registry, refresh)?;
    Ok(Some(server))
}
