//! The thread that does what has time: keeps the ledger on disk, reports it, pays it back, has the
//! guest's identity looked after, loads allowlists that changed, publishes metrics.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent_core::{Input, LedgerTotals};
use crossbeam_channel::Receiver;
use daemon::log::RateLimit;
use daemon::signal::Stop;
use fanotify::{FileIdentity, FileKind, lease};
use model::{AccessClass, ChannelId};
use proto::v1::{self, envelope::Body};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::bell::wait;
use crate::books::LedgerFile;
use crate::gate::Gate;
use crate::gate::content::Content;
use crate::member::Member;
use crate::orders::chain;
use crate::turns::{Said, Work};
use crate::unguarded;

/// The least time between two rounds: what happens in it is done at once.
const ROUND: Duration = Duration::from_millis(250);
/// A round that nothing asks for.
const IDLE: Duration = Duration::from_secs(6 * 3600);
/// When nothing was to do for so long, the start is over.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// At most one ledger report in this time.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// Frames about the channel to the host in a minute: fewer than an appliance counts.
pub(crate) const ATTACHED_PER_MINUTE: u32 = 24;
/// How often the files of allowlists are looked at where the kernel does not tell of changes.
const ALLOWLIST_PAUSE: Duration = Duration::from_secs(2);
/// How often where it does: it is silent about what a link leads to.
const ALLOWLIST_PAUSE_TOLD: Duration = Duration::from_secs(600);

/// What a round of paying back takes at most, and within which time it is to be done.
const SWEEP: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(60)];
/// Files that are judged again for an appliance at once, and how long a turn is kept for the next ones.
const RECHECKED_AT_ONCE: usize = 4;
const RECHECK_LINGER: Duration = Duration::from_secs(5);
/// Within which time it is that of the sweep over what was open before the start: long enough to be
/// put off until the many guests of a host that start at once have started.
const START_SWEEP_WITHIN: Duration = Duration::from_secs(180);
/// The same of fetching a list or a filter.
const UPDATE: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(600)];

/// The keeper's work that the guests of one host do in turns.
pub(crate) struct Turns {
    answers: Receiver<Said>,
    sweep: Work,
    update: Work,
    /// When files were judged again for an appliance.
    rechecked_at: Option<Instant>,
}

impl Turns {
    pub(crate) fn new(answers: Receiver<Said>) -> Self {
        let work = |kind, [takes, within]: [Duration; 2]| Work::new(kind, takes, within);
        Self {
            answers,
            sweep: work(v1::TurnKind::Sweep, SWEEP),
            update: work(v1::TurnKind::ContentUpdate, UPDATE),
            rechecked_at: None,
        }
    }

    /// How long the turn is kept because there may soon be more to be judged again.
    fn lingers(&self) -> Option<Duration> {
        let left = RECHECK_LINGER.checked_sub(self.rechecked_at?.elapsed())?;
        (!left.is_zero()).then_some(left)
    }

    fn take_answers(&mut self) {
        while let Ok(said) = self.answers.try_recv() {
            let now = Instant::now();
            self.sweep.take(&said, now);
            self.update.take(&said, now);
        }
    }
}

/// Whether this work may be done now; asks where it has to.
fn may(work: &mut Work, gate: &Gate) -> bool {
    work.may(Instant::now(), |ask| {
        let request_id = gate.new_request_id();
        let sent = gate.send_control(request_id, Body::AskTurn(ask));
        sent.then_some(request_id)
    })
}

/// Gives back what was reserved.
fn done(work: &mut Work, gate: &Gate) {
    if let Some(turn_id) = work.done() {
        gate.send_control(0, Body::TurnOver(v1::TurnOver { turn_id }));
    }
}

/// Everything the keeper keeps.
pub(crate) struct Keeper {
    pub(crate) gate: Arc<Gate>,
    pub(crate) ledger_file: LedgerFile,
    pub(crate) member: Member,
    pub(crate) turns: Turns,
    pub(crate) reported: Option<(LedgerTotals, Instant)>,
    /// As the appliance of this session knows it.
    pub(crate) fast_paths: Option<v1::FastPaths>,
    /// What was told in this session of the channel to the host; `None`: nothing was, after its
    /// Hello.
    pub(crate) attached: Option<Option<ChannelId>>,
    /// How often that may be said.
    pub(crate) attached_rate: RateLimit,
    /// Who was told: the appliance, and the session by its number.
    pub(crate) reported_to: (Option<String>, u64),
    pub(crate) allowlists_seen: Instant,
    /// Tells of changes in the folders of allowlists.
    pub(crate) allowlist_changes: Option<OwnedFd>,
}

impl Keeper {
    /// Works until told to stop; the ledger is on disk when this returns.
    pub(crate) fn run(&mut self, stop: &Stop) {
        let mut has_settled = false;
        while !stop.is_set() {
            self.round();
            let stop_fd = stop.as_fd();
            if self.is_paying_back() {
                // Whatever is paid makes room for the next, and rings.
                self.gate.bell.wait(&[stop_fd], ROUND);
                continue;
            }
            let pause = self.pause();
            // Bursts are taken together.
            wait(stop_fd, ROUND.min(pause));
            if let Some(more) = pause.checked_sub(ROUND) {
                let changes = self.allowlist_changes.as_ref().map(AsFd::as_fd);
                let others: Vec<_> = changes.into_iter().chain([stop_fd]).collect();
                let is_settling = !has_settled && self.gate.is_link_up();
                let at_most = if is_settling {
                    more.min(SETTLED_AFTER)
                } else {
                    more
                };
                let is_quiet = self.gate.bell.wait(&others, at_most);
                if is_settling && is_quiet {
                    supervisor::give_back_code();
                    has_settled = true;
                }
            }
        }
    }

    /// As many files as may be are being judged again, and more are due.
    fn is_paying_back(&self) -> bool {
        let gate = &self.gate;
        gate.is_link_up()
            && gate
                .books
                .is_full(gate.now(), gate.limits.ledger_in_flight_max)
    }

    /// How long nothing is to do, unless the bell rings.
    fn pause(&self) -> Duration {
        let gate = &self.gate;
        let mut pause = IDLE;
        let mut at_most = |wait: Duration| pause = pause.min(wait);
        if !gate.allowlist_files().is_empty() {
            at_most(self.allowlist_pause());
        }
        if gate.books.is_unwritten() {
            at_most(ROUND);
        }
        if gate.is_link_up() {
            if self
                .reported
                .is_none_or(|(reported, _)| reported != gate.books.totals())
            {
                at_most(ROUND);
            }
            let attached = gate.attached.get();
            if self.fast_paths != Some(gate.fast_paths()) || self.attached != Some(attached) {
                at_most(ROUND);
            }
            if let Some(due) = gate.books.next_due() {
                // What is due and waits for its turn is not looked at all the time.
                let turn = self.turns.sweep.until_look(Instant::now());
                at_most(due.saturating_sub(gate.now()).max(turn));
            }
            if gate.whereabouts.is_wanted() {
                at_most(self.turns.sweep.until_look(Instant::now()).max(ROUND));
            } else if let Some(left) = self.turns.lingers() {
                at_most(left.max(ROUND));
            }
            if gate.sweeping.is_under_way() {
                at_most(self.turns.sweep.until_change(Instant::now()));
            }
            let lists = gate.is_delivering().then_some(Duration::ZERO);
            if let Some(due) = lists.or_else(|| gate.filter_due_in(self.member.seed())) {
                // Nobody looks before the time comes that is this guest's own.
                let turn = self.turns.update.until_look(Instant::now());
                at_most(turn.max(due).max(ROUND));
            }
        }
        pause.min(self.member.pause(gate))
    }

    fn allowlist_pause(&self) -> Duration {
        match self.allowlist_changes {
            Some(_) => ALLOWLIST_PAUSE_TOLD,
            None => ALLOWLIST_PAUSE,
        }
    }

    /// What is not on disk yet.
    pub(crate) fn finish(&mut self) {
        self.write_ledger();
    }

    fn round(&mut self) {
        self.write_ledger();
        let appliance = self.gate.client().and_then(|client| client.connected_to());
        let listener = (appliance, self.gate.sessions.load(Ordering::Relaxed));
        if listener != self.reported_to {
            // It knows nothing of what the last one was told.
            (self.reported, self.reported_to) = (None, listener);
            (self.fast_paths, self.attached) = (None, None);
        }
        if self.gate.is_link_up() {
            unguarded::tell(&self.gate);
            self.report();
            self.tell_fast_paths();
            self.tell_attached();
            self.turns.take_answers();
            self.pay_back();
            self.deliver();
        } else {
            self.reported = None;
            (self.fast_paths, self.attached) = (None, None);
        }
        if self.have_allowlists_changed() {
            self.gate.reload_allowlists();
            self.allowlists_seen = Instant::now();
        }
        if self.member.round(&self.gate) {
            // Whoever is told next knows nothing of this guest, be it the same appliance.
            self.reported = None;
            (self.fast_paths, self.attached) = (None, None);
        }
    }

    fn have_allowlists_changed(&self) -> bool {
        let mut is_told = self.allowlists_seen.elapsed() >= self.allowlist_pause();
        let Some(changes) = &self.allowlist_changes else {
            return is_told;
        };
        let mut told = [0; 4096];
        // Whatever changed there: the shelf looks itself.
        while rustix::io::read(changes, &mut told).is_ok_and(|length| length > 0) {
            is_told = true;
        }
        is_told
    }

    fn write_ledger(&mut self) {
        if let Err(error) = self.ledger_file.write(&self.gate.books)
            && let Some(suppressed) = self.gate.lines.lost.allow(Instant::now())
        {
            tracing::error!(error = chain(&error), suppressed, "ledger");
        }
    }

    /// Tells the appliance when a session begins and when the sums change.
    fn report(&mut self) {
        let totals = self.gate.books.totals();
        let due = self
            .reported
            .is_none_or(|(reported, at)| reported != totals && at.elapsed() >= REPORT_PAUSE);
        if !due {
            return;
        }
        let report = v1::LedgerReport {
            open_entries: totals.open_entries,
            entries_total: totals.entries_total,
            paid_total: totals.paid_total,
            overflow_total: totals.overflow_total,
        };
        if self.gate.send_control(0, Body::LedgerReport(report)) {
            self.reported = Some((totals, Instant::now()));
        }
    }

    fn tell_fast_paths(&mut self) {
        let found = self.gate.fast_paths();
        if self.fast_paths != Some(found) && self.gate.send_control(0, Body::FastPaths(found)) {
            self.fast_paths = Some(found);
        }
    }

    fn tell_attached(&mut self) {
        let attached = self.gate.attached.get();
        if self.attached == Some(attached) {
            return;
        }
        // What is one too many counts no more, and would never be told again.
        if self.attached_rate.allow(Instant::now()).is_none() {
            return;
        }
        let channel = attached.map_or_else(Vec::new, |id| id.0.to_vec());
        if self
            .gate
            .send_control(0, Body::Attached(v1::Attached { channel }))
        {
            self.attached = Some(attached);
        }
    }

    /// Judges what is owed and what an appliance wants to be judged again, and lets the sweep go on,
    /// when it is their turn.
    fn pay_back(&mut self) {
        let gate = &self.gate;
        let now = gate.now();
        let (is_owed, is_sweeping) = (gate.books.has_work(now), gate.sweeping.is_under_way());
        let is_wanted = gate.whereabouts.is_wanted();
        let lingers = self.turns.lingers().is_some();
        let turn = &mut self.turns.sweep;
        if !is_owed && !is_sweeping && !is_wanted {
            if !lingers {
                done(turn, gate);
            }
            return;
        }
        turn.set_within(if is_owed || is_wanted {
            SWEEP[1]
        } else {
            START_SWEEP_WITHIN
        });
        let may = may(turn, gate);
        gate.sweeping.allow(may);
        if !may {
            return;
        }
        if is_wanted && gate.has_room_for_background() {
            self.turns.rechecked_at = Some(Instant::now());
            recheck(gate);
        }
        for path in gate.books.due(now, gate.limits.ledger_in_flight_max) {
            match open_to_judge(&path) {
                Ok(Some(content)) => {
                    let writer_free = lease::is_unwritten(content.file.as_fd());
                    gate.take_in(content, writer_free);
                }
                Ok(None) => gate.books.paid(&path),
                Err(_) => gate.books.unpaid(&path, now),
            }
        }
    }

    /// Fetches the lists and the filter that are wanted: both in one turn.
    fn deliver(&mut self) {
        let (gate, seed) = (&self.gate, self.member.seed());
        let update = &mut self.turns.update;
        let lists = gate.deliver(seed, || may(update, gate));
        let filter = gate.deliver_filter(seed, || may(update, gate));
        if !lists && !filter {
            done(update, gate);
        }
    }
}

/// Has the kernel tell of changes in the folders that these files are in; `None`: it cannot for
/// all of them, such as one that does not exist yet.
pub(crate) fn watch_folders(files: &[std::path::PathBuf]) -> Option<OwnedFd> {
    use rustix::fs::inotify;
    if files.is_empty() {
        return None;
    }
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let changes = inotify::init(flags).ok()?;
    let wanted = inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::ATTRIB;
    for file in files {
        inotify::add_watch(&changes, file.parent()?, wanted).ok()?;
    }
    Some(changes)
}

/// Has files judged whose content an appliance wants to be judged again. What is not where it was, or
/// is in another state, is not that content any more.
fn recheck(gate: &Gate) {
    let mut not_held = Vec::new();
    for digest in gate.whereabouts.take_wanted(RECHECKED_AT_ONCE) {
        let places = gate.whereabouts.find(&digest);
        let file = places.into_iter().find_map(|(path, state)| {
            let content = open_to_judge(&path).ok()??;
            state.is(&content.key).then_some(content)
        });
        let Some(content) = file else {
            not_held.push(digest.0.to_vec());
            continue;
        };
        let content = content.on_demand(gate.is_context_sensitive());
        let writer_free = lease::is_unwritten(content.file.as_fd());
        gate.tally.rechecked.add(1);
        // What is remembered of it is what the appliance doubts: it is to be asked.
        let node = content.key.node;
        gate.input(Input::Written { node });
        gate.take_in(content, writer_free);
    }
    if !not_held.is_empty() {
        gate.tally.not_held.add(not_held.len() as u64);
        gate.send_control(0, Body::NotHeld(v1::NotHeld { digests: not_held }));
    }
}

/// Opens a file of the ledger without ever opening a device or waiting for a FIFO's other end.
/// `None`: there is nothing (left) to judge.
fn open_to_judge(path: &[u8]) -> Result<Option<Content>, Errno> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The kernel printed this path, so there was no link in it; one put there since might lead
    // to a file system that never answers.
    let found = rustix::fs::openat2(
        CWD,
        Path::new(OsStr::from_bytes(path)),
        look,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    );
    let found = match found {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_judged = |fd: &OwnedFd| {
        let identity = FileIdentity::of(fd.as_fd()).map_err(|_| Errno::IO)?;
        let judged = identity.kind == FileKind::Regular && identity.size > 0;
        Ok::<_, Errno>(judged.then_some(identity))
    };
    if is_judged(&found)?.is_none() {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = rustix::fs::open(link, flags, Mode::empty())?;
    let Some(identity) = is_judged(&file)? else {
        return Ok(None);
    };
    let content = Content::new(Arc::new(file), &identity, AccessClass::Ledger, 0);
    Ok(Some(content.with_path(path.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let judged = |path: &Path| {
            open_to_judge(path.as_os_str().as_bytes()).map(|content| content.is_some())
        };
        assert_eq!(judged(&file), Ok(false), "missing");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(judged(&file), Ok(false), "empty");
        std::fs::write(&file, b"x").unwrap();
        assert_eq!(judged(&file), Ok(true));
        assert_eq!(judged(dir.path()), Ok(false), "directory");
        assert_eq!(judged(Path::new("/dev/zero")), Ok(false), "device");
        let fifo = dir.path().join("fifo");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(judged(&fifo), Ok(false), "FIFO");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(judged(&link), Ok(false), "symbolic link");
        let folder = dir.path().join("folder");
        std::os::unix::fs::symlink(dir.path(), &folder).unwrap();
        assert_eq!(judged(&folder.join("f")), Ok(false), "through a link");
    }
}
