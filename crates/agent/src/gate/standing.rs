//! Verdicts that stand in the kernel: placed, watched over and taken back by one thread of their
//! own.
//!
//! They are placed a moment after they were decided, some together: whoever decides has just
//! answered an opener, which would wait for the processor meanwhile. Where many wait to be placed,
//! those who decide place them themselves.
//!
//! A writer of such a file waits in its `open` until that thread has taken the verdict back, so it
//! opens no file, waits for no other thread's work, and looks for writers between any two steps.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use agent_core::{Fallen, FileKey, Input, StandingId};
use fanotify::Group;
use fanotify::standing::{Break, BreakOwner, Breaks, StandingVerdict};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::Gate;
use super::content::{Content, key_of};

/// How many verdicts are taken back before the next look for writers.
const LIFTED_AT_ONCE: usize = 64;
/// How many are placed before the next look for writers.
const PLACED_AT_ONCE: usize = 16;
/// How long a verdict waits for others to be placed with.
const GATHERED_FOR: Duration = Duration::from_millis(2);
/// How many wait. Each holds a descriptor.
pub(crate) const GATHERED_MAX: usize = 256;

/// What stands, and what is to.
pub(crate) struct Standing {
    table: Mutex<Table>,
    /// Set while the watching thread runs.
    place: OnceLock<Place>,
    wake: OwnedFd,
    /// Becomes readable when what waits is to be placed.
    due: OwnedFd,
    ends: AtomicBool,
}

/// A verdict that is to stand.
pub(super) struct Decided {
    pub(super) id: StandingId,
    /// Of what was judged.
    pub(super) key: FileKey,
    pub(super) content: Arc<Content>,
}

struct Place {
    group: Arc<Group>,
    breaks: BreakOwner,
}

#[derive(Default)]
struct Table {
    /// Decided, not placed yet.
    pending: HashSet<StandingId>,
    /// What of them the watching thread is to place.
    gathered: Vec<Decided>,
    placed: HashMap<StandingId, StandingVerdict>,
    by_number: HashMap<i32, StandingId>,
    /// To be taken back by the watching thread.
    taken: Vec<StandingId>,
    /// The watching thread is gone: nothing may stand.
    closed: bool,
}

impl Table {
    fn remove(&mut self, id: StandingId) -> Option<StandingVerdict> {
        let verdict = self.placed.remove(&id)?;
        self.by_number.remove(&verdict.number());
        Some(verdict)
    }
}

impl Standing {
    /// # Errors
    /// As `eventfd` and `timerfd_create`.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let due_flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            table: Mutex::default(),
            place: OnceLock::new(),
            wake: rustix::event::eventfd(0, flags)?,
            due: timerfd_create(TimerfdClockId::Monotonic, due_flags)?,
            ends: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The core wants it to stand. Said under the core's lock, as is [`Self::take_back`], so that
    /// the order of both is the core's.
    pub(super) fn announce(&self, id: StandingId) {
        self.lock().pending.insert(id);
    }

    /// The core wants them to stand no more. Those not placed yet never will be.
    pub(super) fn take_back(&self, ids: Vec<StandingId>) {
        let mut table = self.lock();
        for id in ids {
            if !table.pending.remove(&id) {
                table.taken.push(id);
            }
        }
    }

    /// Takes back what the core no longer wants: a few at once, by whoever was told, so that a
    /// recall counts when it is done; more of them by the watching thread.
    pub(super) fn lift(&self) {
        if self.lift_some() {
            self.wake();
        }
    }

    /// True: there is more to be taken back.
    fn lift_some(&self) -> bool {
        let mut table = self.lock();
        let from = table.taken.len().saturating_sub(LIFTED_AT_ONCE);
        let taken = table.taken.split_off(from);
        let lifted: Vec<_> = taken.into_iter().map(|id| table.remove(id)).collect();
        let more = !table.taken.is_empty();
        drop(table);
        drop(lifted);
        more
    }

    /// Wakes the watching thread.
    fn wake(&self) {
        // Fails only if the counter is full, and then it is awake already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// How many stand.
    pub(super) fn len(&self) -> usize {
        self.lock().placed.len()
    }

    /// Places it in a moment. False: it does not stand, and will not.
    pub(super) fn place_soon(&self, decided: Decided) -> bool {
        let mut table = self.lock();
        let waits = self.place.get().is_some() && !table.closed;
        if !waits || table.gathered.len() >= GATHERED_MAX {
            drop(table);
            return self.place(&decided);
        }
        let is_first = table.gathered.is_empty();
        table.gathered.push(decided);
        drop(table);
        if is_first && self.tell_when_due().is_err() {
            self.wake();
        }
        true
    }

    fn tell_when_due(&self) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: timespec(GATHERED_FOR),
        };
        timerfd_settime(&self.due, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Some of what waits to be placed.
    fn some_gathered(&self) -> Vec<Decided> {
        let mut table = self.lock();
        let from = table.gathered.len().saturating_sub(PLACED_AT_ONCE);
        table.gathered.split_off(from)
    }

    /// False: it does not stand. All under the table's lock, so that the watching thread, when it
    /// hears of a writer, finds the verdict here.
    fn place(&self, decided: &Decided) -> bool {
        let Decided { id, key, content } = decided;
        let mut table = self.lock();
        if !table.pending.remove(id) {
            return true;
        }
        let Some(Place { group, breaks }) = self.place.get().filter(|_| !table.closed) else {
            return false;
        };
        let file = Arc::clone(&content.file);
        match group.place(file, *breaks, |identity| key_of(identity) == *key) {
            Ok(verdict) => {
                table.by_number.insert(verdict.number(), *id);
                table.placed.insert(*id, verdict);
                true
            }
            Err(error) => {
                drop(table);
                tracing::debug!(%error, "a verdict was not placed in the kernel");
                false
            }
        }
    }

    /// Ends the watching thread.
    pub(crate) fn end(&self) {
        self.ends.store(true, Ordering::Release);
        self.wake();
    }

    fn close(&self) {
        let mut table = self.lock();
        let placed = std::mem::take(&mut table.placed);
        *table = Table {
            closed: true,
            ..Table::default()
        };
        drop(table);
        drop(placed);
    }
}

/// Watches until told to end. `ready` is told once, when verdicts can be placed.
///
/// # Errors
/// The kernel does not tell of writers here; nothing stands then.
pub(crate) fn watch(gate: &Gate, group: Arc<Group>, ready: impl FnOnce()) -> io::Result<()> {
    let breaks = Breaks::here()?;
    let standing = &gate.standing;
    let _closed_at_end = CloseAtEnd(standing);
    let place = Place {
        group,
        breaks: breaks.owner(),
    };
    // Set once: an agent starts one such thread.
    let _ = standing.place.set(place);
    ready();
    let mut watcher = Watcher {
        gate,
        breaks,
        swept: Instant::now(),
        sweep_pause: Duration::from_secs(gate.limits.standing_deleted_max_s),
    };
    while !standing.ends.load(Ordering::Acquire) {
        let round = AssertUnwindSafe(|| watcher.round());
        match catch_unwind(round) {
            Ok(round) => round?,
            Err(_) => {
                gate.tally.panics.add(1);
                // Nobody arms the timer for what waits already.
                standing.wake();
            }
        }
    }
    Ok(())
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().cast_signed(),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Nobody would let writers go on any more.
struct CloseAtEnd<'a>(&'a Standing);

impl Drop for CloseAtEnd<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Watcher<'a> {
    gate: &'a Gate,
    breaks: Breaks,
    swept: Instant,
    sweep_pause: Duration,
}

impl Watcher<'_> {
    fn round(&mut self) -> io::Result<()> {
        self.wait()?;
        self.let_writers_go_on()?;
        while self.gate.standing.lift_some() {
            self.let_writers_go_on()?;
        }
        while self.place_some() {
            self.let_writers_go_on()?;
        }
        if self.swept.elapsed() >= self.sweep_pause {
            self.sweep();
            self.swept = Instant::now();
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let standing = &self.gate.standing;
        let pause = timespec(self.sweep_pause);
        let sweeps = !standing.lock().placed.is_empty();
        let mut sources = [
            PollFd::new(&self.breaks, PollFlags::IN),
            PollFd::new(&standing.wake, PollFlags::IN),
            PollFd::new(&standing.due, PollFlags::IN),
        ];
        let timeout = sweeps.then_some(&pause);
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, timeout))?;
        for told in [&standing.wake, &standing.due] {
            let mut count = [0; 8];
            // EAGAIN: it was not this that woke us.
            let _ = rustix::io::read(told, &mut count);
        }
        Ok(())
    }

    /// True: there may be more to be placed.
    fn place_some(&self) -> bool {
        let standing = &self.gate.standing;
        let some = standing.some_gathered();
        let is_more = some.len() == PLACED_AT_ONCE;
        let refused = some
            .into_iter()
            .filter(|it| !standing.place(it))
            .map(|it| it.id);
        self.tell(refused.collect(), Fallen::NotPlaced);
        is_more
    }

    fn let_writers_go_on(&self) -> io::Result<()> {
        let mut fallen = Vec::new();
        self.breaks.take(|told| {
            let mut table = self.gate.standing.lock();
            let broken = |table: &Table, id: &StandingId| {
                let verdict = table.placed.get(id);
                verdict.is_some_and(|verdict| !verdict.is_intact())
            };
            let ids: Vec<StandingId> = match told {
                Break::Of(number) => table.by_number.get(&number).copied().into_iter().collect(),
                Break::Some => table.placed.keys().copied().collect(),
            };
            for id in ids
                .into_iter()
                .filter(|id| broken(&table, id))
                .collect::<Vec<_>>()
            {
                // The mark goes, then the lease: the writer is let in.
                drop(table.remove(id));
                fallen.push(id);
            }
        })?;
        self.tell(fallen, Fallen::Writer);
        Ok(())
    }

    /// Files without a name give their space back.
    fn sweep(&self) {
        let ids: Vec<StandingId> = self.gate.standing.lock().placed.keys().copied().collect();
        for some in ids.chunks(LIFTED_AT_ONCE) {
            let mut table = self.gate.standing.lock();
            let deleted = |id: &&StandingId| {
                let verdict = table.placed.get(id);
                verdict.is_some_and(StandingVerdict::is_deleted)
            };
            let deleted: Vec<StandingId> = some.iter().filter(deleted).copied().collect();
            let lifted: Vec<_> = deleted.iter().map(|id| table.remove(*id)).collect();
            drop(table);
            drop(lifted);
            self.tell(deleted, Fallen::Deleted);
        }
    }

    fn tell(&self, fallen: Vec<StandingId>, why: Fallen) {
        for standing in fallen {
            self.gate.input(Input::Fallen { standing, why });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use fanotify::lease::ReadLease;
    use fanotify::{FileIdentity, GroupOptions};

    use super::*;
    use crate::gate::content::tests::content;

    #[test]
    fn decided_ones_wait_bounded_and_those_taken_back_are_never_placed() {
        let dir = tempfile::tempdir().unwrap();
        let options = GroupOptions {
            default_answer: fanotify::Answer::Deny,
        };
        let group = Group::new(options).expect("a group (the tests need root)");
        let breaks = Breaks::here().unwrap();
        let standing = Standing::new().unwrap();
        let place = Place {
            group: Arc::new(group),
            breaks: breaks.owner(),
        };
        assert!(standing.place.set(place).is_ok());
        let ids = 0..GATHERED_MAX as u64 + 2;
        let path = |id: u64| dir.path().join(id.to_string());
        for id in ids.clone() {
            std::fs::write(path(id), b"harmless").unwrap();
        }
        for id in ids.clone().map(StandingId) {
            let file = std::fs::File::open(path(id.0)).unwrap();
            // A child of another test's that has not run its program yet has it open for writing.
            let is_free = || ReadLease::try_take(&file).is_ok();
            assert!(testbed::wait_until(Duration::from_secs(60), is_free));
            let content = content(file);
            let key = key_of(&FileIdentity::of(content.file.as_fd()).unwrap());
            standing.announce(id);
            assert!(standing.place_soon(Decided {
                id,
                key,
                content: Arc::new(content),
            }));
        }
        assert_eq!(standing.len(), 2, "who finds it full places at once");
        standing.take_back(vec![StandingId(0), StandingId(1)]);
        std::fs::write(path(2), b"changed").unwrap();
        let mut refused = Vec::new();
        loop {
            let some = standing.some_gathered();
            if some.is_empty() {
                break;
            }
            let of = some.iter().filter(|it| !standing.place(it));
            refused.extend(of.map(|it| it.id));
        }
        assert_eq!(refused, [StandingId(2)]);
        assert_eq!(standing.len(), ids.count() - 3);
        assert!(standing.lock().pending.is_empty());
    }
}
