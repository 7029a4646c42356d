//! A scan from beginning to end.

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use allowlist::Shelf;
use crossbeam_channel::{Receiver, Sender, bounded};
use daemon::signal::Stop;
use link::client::{Config, Limits as LinkLimits};
use model::{Digest, Generation, Policy};
use proto::v1;
use rustix::io::Errno;

use crate::credentials::{Credentials, CredentialsError, hello};
use crate::filter_file::FilterFile;
use crate::foresight::Foresight;
use crate::{AgentConfig, allow};

use super::args::{ProgressMode, ScanArgs};
use super::content::Opened;
use super::control::Neighbour;
use super::filter::Kept;
use super::halt::Halt;
use super::journal::{Journal, JournalError, Progress};
use super::judge::Judge;
use super::pace::Pace;
use super::progress::{Expected, Rates, Standing};
use super::removal::Hands;
use super::report::{Report, Summary};
use super::session::Session;
use super::totals::Totals;
use super::tracker::Tracker;
use super::turn::ScanTurns;
use super::walk::{Met, Position, Skip, Walk, WalkOptions};

/// Files hashed, asked about or sent at once, where the appliance allows as many. They mostly wait.
const WORKERS_MAX: u32 = 16;
/// Stack of a worker, in bytes: nothing of a file lies on it.
const WORKER_STACK_BYTES: usize = 256 * 1024;
/// Between two lines of the bar on a terminal.
const DRAW_AFTER: Duration = Duration::from_millis(200);
/// Between two questions to the agent beside us.
const ASK_AFTER: Duration = Duration::from_millis(200);
/// Between two looks for a renewed certificate while there is no appliance.
const RELOAD_AFTER: Duration = Duration::from_secs(10);

/// What a scan needs to know besides its arguments.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The agent's configuration: the scan uses its identity, appliances and quarantine.
    pub config: AgentConfig,
    /// How long the scan goes without an appliance before it is halted.
    pub patience: Duration,
    /// Between two writes of the journal.
    pub save_after: Duration,
    /// Times of the link.
    pub link: LinkLimits,
}

impl Setup {
    /// As that agent would; two minutes of patience, the journal written every five seconds.
    #[must_use]
    pub fn of(config: &AgentConfig) -> Self {
        Self {
            config: config.clone(),
            patience: Duration::from_secs(120),
            save_after: Duration::from_secs(5),
            link: LinkLimits::default(),
        }
    }
}

/// How a scan ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Counts, of earlier runs too where it was resumed.
    pub totals: Totals,
    /// Why it did not come to its end; `None`: it did.
    pub halted: Option<String>,
}

impl Ended {
    /// clamscan's: 0 nothing found, 1 found, 2 something could not be scanned.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.totals.exit_code(self.halted.is_none())
    }
}

/// A scan that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Key, certificate or appliances are not there or not usable.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A path that cannot be made absolute.
    #[error("cannot scan {path:?}")]
    Path {
        /// As given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No appliance, or stopped before there was one.
    #[error("the scan did not begin: {0}")]
    NotBegun(String),
    /// No threads.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Everything the threads of a scan share.
struct Scan<'a> {
    args: &'a ScanArgs,
    setup: &'a Setup,
    walk: WalkOptions,
    /// Where this run began.
    begun: Position,
    /// That is behind what an earlier run did.
    resumed: bool,
    session: &'a Session,
    shelf: Option<Arc<Shelf>>,
    journal: &'a Journal,
    generation: Generation,
    tracker: Tracker,
    report: &'a Report<'a>,
    halt: &'a Halt,
    pace: Pace,
    turns: ScanTurns,
    hands: Hands,
    bytes_read: AtomicU64,
    foresight: Foresight,
    expected: Mutex<Option<Expected>>,
    /// All is judged: there is nothing left to count for.
    judged: AtomicBool,
    started: Instant,
}

/// Scans as the arguments say, printing results to `out`.
///
/// # Errors
/// Where the scan cannot begin; what goes wrong later is counted and reported.
pub fn scan(
    args: &ScanArgs,
    setup: &Setup,
    stop: &Stop,
    out: Box<dyn Write + Send>,
) -> Result<Ended, ScanError> {
    let halt = Halt::new(stop.clone());
    let report = Report::new(out, args.json, &halt);
    let walk = walk_options(args, setup)?;
    let journal = Journal::open(&setup.config.state_dir, journal_key(args, &walk))?;
    let shelf = allowlists(args, &setup.config);
    let session = connect(setup, shelf.clone())?;
    let appliance = session
        .appliance(&halt)
        .map_err(|_| ScanError::NotBegun(halt.reason().unwrap_or_default()))?;
    let before = resume(args, &journal, appliance.generation, &report);
    let resumed = before.is_some();
    if !resumed {
        journal.clear()?;
    }
    let (begun, totals) = before.map_or_else(Default::default, |p| (p.position, p.totals));
    let vault = (!args.no_removal).then(|| vault_of(&setup.config));
    let scan = Scan {
        args,
        setup,
        walk,
        begun: begun.clone(),
        resumed,
        session: &session,
        shelf,
        journal: &journal,
        generation: appliance.generation,
        tracker: Tracker::new(begun, totals),
        report: &report,
        halt: &halt,
        pace: Pace::default(),
        turns: ScanTurns::new(args.within),
        hands: Hands::new(vault),
        bytes_read: AtomicU64::new(totals.bytes),
        foresight: Foresight::default(),
        expected: Mutex::new(None),
        judged: AtomicBool::new(false),
        started: Instant::now(),
    };
    scan.threads(appliance.in_flight_max.min(WORKERS_MAX))?;
    scan.turns.done(&session);
    session.stop();
    let ended = scan.finish()?;
    Ok(ended)
}

/// Roots are made absolute and free of symbolic links: an order's path must be.
fn walk_options(args: &ScanArgs, setup: &Setup) -> Result<WalkOptions, ScanError> {
    let resolve = |path: &PathBuf| {
        // What does not exist is reported by the walk, like anything that cannot be opened.
        let resolved = path.canonicalize().or_else(|_| std::path::absolute(path));
        resolved.map_err(|source| ScanError::Path {
            path: path.clone(),
            source,
        })
    };
    let roots: Result<_, _> = args.paths.iter().map(resolve).collect();
    let quarantine = std::fs::metadata(setup.config.quarantine_dir());
    Ok(WalkOptions {
        roots: roots?,
        excludes: args.exclude.clone(),
        one_file_system: args.one_file_system,
        never: quarantine
            .iter()
            .map(|dir| (dir.dev(), dir.ino()))
            .collect(),
    })
}

fn vault_of(config: &AgentConfig) -> (PathBuf, quarantine::Limits) {
    let limits = quarantine::Limits {
        bytes_max: config.limits.quarantine_bytes_max,
        ..quarantine::Limits::default()
    };
    (config.quarantine_dir(), limits)
}

/// All that decides what is walked and judged, but for the rules.
fn journal_key(args: &ScanArgs, walk: &WalkOptions) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    };
    field(&(walk.roots.len() as u64).to_be_bytes());
    for root in &walk.roots {
        field(root.as_os_str().as_bytes());
    }
    for exclude in &walk.excludes {
        field(format!("{exclude:?}").as_bytes());
    }
    field(&[
        u8::from(args.one_file_system),
        u8::from(args.no_removal),
        u8::from(args.no_allowlist),
    ]);
    field(&args.max_size.map_or([0xff; 8], u64::to_be_bytes));
    Digest(*hasher.finalize().as_bytes())
}

/// The lists as the agent has them; its own process keeps what is kept of them.
fn allowlists(args: &ScanArgs, config: &AgentConfig) -> Option<Arc<Shelf>> {
    if args.no_allowlist {
        return None;
    }
    let shelf = allow::open(config, false)?;
    allow::log(&shelf.reload());
    Some(shelf)
}

fn connect(setup: &Setup, shelf: Option<Arc<Shelf>>) -> Result<Session, ScanError> {
    let credentials = Credentials::load(&setup.config)?;
    let config = Config {
        tls: credentials.tls()?,
        seed: credentials.seed(),
        appliances: credentials.appliances,
        epoch: 0,
        hello: hello(v1::SessionRole::Scan, &setup.config.sys_dir),
        limits: setup.link.clone(),
    };
    let filter = Kept::new(FilterFile::of(&setup.config));
    Session::start(config, setup.patience, shelf, filter).map_err(ScanError::Thread)
}

/// Where to go on from; `None`: from the beginning.
fn resume(
    args: &ScanArgs,
    journal: &Journal,
    generation: Generation,
    report: &Report<'_>,
) -> Option<Progress> {
    if !args.resume {
        return None;
    }
    let progress = journal.load();
    match &progress {
        None => report.remark("There is no unfinished scan of these paths; starting anew."),
        Some(progress) if progress.generation != generation => {
            report.remark("The rules have changed since that scan began; starting anew.");
            return None;
        }
        Some(_) => {}
    }
    progress
}

impl Scan<'_> {
    /// Runs until everything is walked and judged, or the scan is halted.
    fn threads(&self, workers: u32) -> Result<(), ScanError> {
        let (jobs, todo) = bounded(workers as usize);
        let (done, over) = bounded::<()>(0);
        let thread = |name: &str| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .stack_size(WORKER_STACK_BYTES)
        };
        std::thread::scope(|scope| {
            // Before the first file is opened: the gate lets this process's opens through.
            let neighbour = Neighbour::find(&self.setup.config.control_socket());
            let watch = thread("watch")
                .spawn_scoped(scope, move || self.watch(neighbour, &over))
                .map_err(ScanError::Thread)?;
            let mut running = Vec::new();
            for _ in 0..workers {
                let todo = todo.clone();
                let worker = thread("worker").spawn_scoped(scope, move || self.work(&todo));
                running.push(worker.map_err(ScanError::Thread)?);
            }
            // With the last worker the queue ends, too.
            drop(todo);
            if self.shows_progress() {
                // A second walk, over names and sizes alone, for the time that is left.
                let counted = thread("count").spawn_scoped(scope, || self.count());
                counted.map_err(ScanError::Thread)?;
            }
            self.walk(&jobs);
            drop(jobs);
            // A worker that panicked leaves its file unjudged: the scan is not complete.
            let mut whole = true;
            for worker in running {
                whole &= worker.join().is_ok();
            }
            self.judged.store(true, Ordering::Relaxed);
            drop(done);
            whole &= watch.join().is_ok();
            if !whole {
                self.halt.halt("a thread of the scan failed".into());
            }
            Ok(())
        })
    }

    fn shows_progress(&self) -> bool {
        match self.args.progress {
            ProgressMode::Auto => io::stderr().is_terminal(),
            ProgressMode::Always => true,
            ProgressMode::Never => false,
        }
    }

    fn new_walk(&self) -> Walk {
        let after = self.resumed.then(|| self.begun.clone());
        Walk::new(self.walk.clone(), after)
    }

    /// Feeds the workers.
    fn walk(&self, jobs: &Sender<(u64, Opened)>) {
        let mut walk = self.new_walk();
        while let Some(met) = walk.next() {
            if self.halt.is_set() {
                return;
            }
            self.pace.give_way(self.halt);
            self.turns.wait(self.session, self.halt);
            let number = self.tracker.met(walk.position());
            let counts = match met {
                Met::File => match self.open(&walk) {
                    Ok(opened) => {
                        if jobs.send((number, opened)).is_err() {
                            return;
                        }
                        continue;
                    }
                    Err(counts) => counts,
                },
                Met::Skipped(skip) => self.skipped(&walk.path(), skip),
                Met::Failed(error) => self.failed(&walk.path(), error),
                Met::TooDeep => {
                    let text = "nested too deeply to be scanned";
                    self.trouble(&walk.path(), text)
                }
            };
            self.tracker.done(number, counts);
        }
    }

    /// The file met last, or what it counts for instead.
    fn open(&self, walk: &Walk) -> Result<Opened, Totals> {
        let path = walk.path();
        match walk.open() {
            Ok(Some((file, stat))) => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                if self.args.max_size.is_some_and(|max| size > max) {
                    return Err(self.skipped(&path, Skip::Excluded));
                }
                Ok(Opened {
                    path,
                    file,
                    size,
                    uid: stat.st_uid,
                    mode: stat.st_mode,
                })
            }
            Ok(None) => Err(self.skipped(&path, Skip::Special)),
            Err(error) => Err(self.failed(&path, error)),
        }
    }

    /// Left out on purpose. A root was asked for by name: that it is left out is worth a remark.
    fn skipped(&self, path: &Path, skip: Skip) -> Totals {
        if self.walk.roots.iter().any(|root| root == path) {
            let what = match skip {
                Skip::Excluded => "excluded",
                Skip::Symlink => "a symbolic link",
                Skip::Special => "no regular file",
                Skip::OtherFileSystem => "on another file system",
                Skip::KernelFileSystem => "a view of the kernel, no files",
                Skip::Never => "the quarantine",
            };
            let path = daemon::log::escape(path.as_os_str().as_bytes());
            self.report.remark(&format!("{path}: skipped ({what})"));
        }
        Totals {
            skipped: 1,
            ..Totals::default()
        }
    }

    /// What vanished since its directory was read is nothing to report, unless it was asked for.
    fn failed(&self, path: &Path, error: Errno) -> Totals {
        let is_root = self.walk.roots.iter().any(|root| root == path);
        if error == Errno::NOENT && !is_root {
            return Totals::default();
        }
        let error = io::Error::from(error);
        self.trouble(path, &format!("cannot be read: {error}"))
    }

    fn trouble(&self, path: &Path, message: &str) -> Totals {
        self.report.trouble(path, message);
        Totals {
            errors: 1,
            ..Totals::default()
        }
    }

    /// Judges files until there are no more; after a halt it only takes them off the queue.
    fn work(&self, todo: &Receiver<(u64, Opened)>) {
        let judge = Judge {
            session: self.session,
            hands: &self.hands,
            report: self.report,
            pace: &self.pace,
            halt: self.halt,
            bytes_read: &self.bytes_read,
            shelf: self.shelf.as_deref(),
            foresight: &self.foresight,
        };
        for (number, opened) in todo {
            if self.halt.is_set() {
                continue;
            }
            if let Some(counts) = judge.file(&opened) {
                self.tracker.done(number, counts);
            }
        }
    }

    /// How much there is to scan.
    fn count(&self) {
        let already = self.tracker.snapshot().totals;
        let mut expected = Expected {
            files: already.files,
            bytes: already.bytes,
        };
        let size_max = self.session.appliance(self.halt);
        let size_max = size_max
            .map_or(Policy::default(), |a| a.policy)
            .size_max_bytes;
        let mut walk = self.new_walk();
        while let Some(met) = walk.next() {
            if self.halt.is_set() || self.judged.load(Ordering::Relaxed) {
                return;
            }
            if met != Met::File {
                continue;
            }
            let size = walk.size();
            if self.args.max_size.is_none_or(|max| size <= max) {
                expected.files += 1;
                expected.bytes += if size <= size_max { size } else { 0 };
            }
        }
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(expected);
    }

    /// Draws, saves and listens until `over` is closed.
    fn watch(&self, mut neighbour: Neighbour, over: &Receiver<()>) {
        let mut rates = Rates::default();
        let draw_after = if io::stderr().is_terminal() {
            DRAW_AFTER
        } else {
            DRAW_AFTER * 5
        };
        let shows_progress = self.shows_progress();
        let now = Instant::now();
        let (mut drawn, mut saved, mut reloaded) = (now, now, now);
        while over.recv_timeout(ASK_AFTER) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            self.pace.set_busy(neighbour.has_openers());
            if shows_progress && drawn.elapsed() >= draw_after {
                drawn = Instant::now();
                self.report
                    .bar(&rates.line(self.started.elapsed(), &self.standing()));
            }
            if saved.elapsed() >= self.setup.save_after {
                saved = Instant::now();
                self.save_or_remark();
            }
            if !self.session.is_up() && reloaded.elapsed() >= RELOAD_AFTER {
                reloaded = Instant::now();
                // The agent may have renewed it since; where not, the old one is as good.
                let renewed = Credentials::load(&self.setup.config).and_then(|c| c.tls());
                if let Ok(tls) = renewed {
                    self.session.client().set_tls(tls);
                }
            }
        }
        self.report.end_bar();
    }

    fn standing(&self) -> Standing {
        Standing {
            totals: self.tracker.snapshot().totals_now,
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            expected: *self.expected.lock().unwrap_or_else(PoisonError::into_inner),
            paused: if !self.session.is_up() {
                Some("no appliance, waiting")
            } else if self.pace.is_busy() {
                Some("openers first")
            } else if self.turns.is_waiting() {
                Some("other guests of this host first")
            } else {
                None
            },
        }
    }

    fn save_or_remark(&self) {
        if let Err(error) = self.save() {
            self.report.remark(&format!("{error}; the scan goes on"));
        }
    }

    fn save(&self) -> Result<(), JournalError> {
        let snapshot = self.tracker.snapshot();
        if !self.resumed
            && snapshot.position == Position::default()
            && snapshot.totals == Totals::default()
        {
            // Nothing is done yet, and the first root's own path is a position too.
            return Ok(());
        }
        self.journal.save(&Progress {
            generation: self.generation,
            position: snapshot.position,
            totals: snapshot.totals,
        })
    }

    /// The journal's last word, and the report's.
    fn finish(&self) -> Result<Ended, ScanError> {
        let halted = self.halt.reason();
        let totals = if halted.is_some() {
            self.save()?;
            self.tracker.snapshot().totals_now
        } else {
            self.journal.clear()?;
            self.tracker.snapshot().totals
        };
        let ended = Ended {
            totals,
            halted: halted.clone(),
        };
        self.report.summary(&Summary {
            totals,
            generation: self.generation,
            seconds: self.started.elapsed().as_secs_f64(),
            halted,
        });
        Ok(ended)
    }
}
