//! What supervisor and worker share: who waits, who reads, what policy says. Plain words of
//! memory in a file, so that each can read what the other left when it died, and whoever comes
//! next can too.
//!
//! A slot stands for a descriptor number. Its word changes by compare-and-swap, so that of two
//! processes that want to answer an opener one does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use fanotify::{Answer, OpenKind};
use rustix::time::{ClockId, clock_gettime};

use crate::sys;

/// Descriptor numbers that have a slot; the limit on descriptors is set to it.
pub const SLOTS: usize = 65_536;
/// Events that the supervisor answered, or closes that it read, kept open for the next worker to
/// judge. Beyond that they are only counted.
pub const KEPT_MAX: usize = 1024;

const HEADER_WORDS: usize = 64;
const WORDS: usize = HEADER_WORDS + SLOTS;
/// Changes with the layout: another version's board is not read.
const MAGIC: u64 = u64::from_be_bytes(*b"LZRTbrd1");
const FILE: &str = "board";

/// A word of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Word {
    Magic,
    /// The boot it was made in.
    BootA,
    BootB,
    SupervisorPid,
    SupervisorStart,
    WorkerPid,
    WorkerStart,
    /// Numbers in the worker's descriptor table.
    GroupFd,
    TimerFd,
    BellFd,
    InterruptFd,
    ExecBudgetMs,
    OpenBudgetMs,
    /// 1: openers that nobody judged are denied.
    Denies,
    /// [`Reader`].
    Reader,
    /// When the reader began with the events at hand; 0: it waits for some.
    BusySinceMs,
    LastReadMs,
    LastAnswerMs,
    /// When the worker began to guard; 0: it does not yet.
    GuardingSinceMs,
    /// 1: some worker has guarded.
    HasGuarded,
    /// 1: the supervisor's timer will go off.
    Armed,
    /// One more than the greatest slot ever used.
    SlotsUsed,
    /// 1: everybody is ending, and nobody is to be brought back.
    Stopping,
    /// 1: ended in order.
    Ended,
    /// Openers that the supervisor answered.
    Answered,
    /// Opens and closes that no slot names any more.
    Unnamed,
    /// Of those, how many a worker has entered in its ledger.
    UnnamedTaken,
    WorkerStarts,
    WorkerHangs,
    /// How often a supervisor took over from another one.
    Takeovers,
    /// An interval without a guard, as wall-clock milliseconds; 0: none.
    UnguardedFromMs,
    UnguardedUntilMs,
    StartedWallMs,
}

/// Who reads the kernel's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Reader {
    Supervisor = 0,
    /// The worker wants to; the supervisor may still be at it.
    WorkerAsks = 1,
    Worker = 2,
    /// A new supervisor wants the worker to stop.
    WorkerShallStop = 3,
    Nobody = 4,
}

/// What a slot's number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    /// An opener waits.
    Waiting,
    /// The worker is answering.
    Answering,
    /// The supervisor is answering.
    Superseded,
    /// The supervisor answered by policy; the file is to be judged.
    Owed,
    /// A writer closed the file; nobody waits.
    Closed,
}

/// A slot, unpacked. `pid` and `at_ms` have room for what the kernel gives: 22 bits and 35 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) state: State,
    pub(crate) kind: OpenKind,
    pub(crate) pid: i32,
    /// When the event was read, milliseconds of the monotonic clock.
    pub(crate) at_ms: u64,
}

const PID_BITS: u32 = 22;
const AT_BITS: u32 = 38;

impl Slot {
    pub(crate) const FREE: Self = Self {
        state: State::Free,
        kind: OpenKind::Open,
        pid: 0,
        at_ms: 0,
    };

    fn pack(self) -> u64 {
        let state = match self.state {
            State::Free => return 0,
            State::Waiting => 1,
            State::Answering => 2,
            State::Superseded => 3,
            State::Owed => 4,
            State::Closed => 5,
        };
        let is_exec = u64::from(self.kind == OpenKind::OpenExec);
        let pid = u64::try_from(self.pid).unwrap_or(0) & ((1 << PID_BITS) - 1);
        let at = self.at_ms & ((1 << AT_BITS) - 1);
        state | is_exec << 3 | pid << 4 | at << (4 + PID_BITS)
    }

    fn unpack(word: u64) -> Self {
        let state = match word & 7 {
            1 => State::Waiting,
            2 => State::Answering,
            3 => State::Superseded,
            4 => State::Owed,
            5 => State::Closed,
            _ => return Self::FREE,
        };
        let kind = if word & 8 == 0 {
            OpenKind::Open
        } else {
            OpenKind::OpenExec
        };
        let pid = (word >> 4) & ((1 << PID_BITS) - 1);
        Self {
            state,
            kind,
            pid: i32::try_from(pid).unwrap_or(0),
            at_ms: word >> (4 + PID_BITS),
        }
    }
}

/// The board cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// Its file cannot be made or mapped.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The board's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent has it.
    #[error("another agent runs with {}", path.display())]
    Taken {
        /// The board's file.
        path: PathBuf,
    },
}

/// The shared words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Board {
    words: &'static [AtomicU64],
}

impl Board {
    /// A new board in this folder. One that is there stays as it is for whoever has it mapped.
    pub(crate) fn create(dir: &Path) -> Result<Self, BoardError> {
        let path = dir.join(FILE);
        let beside = dir.join("board.new");
        let failed = |doing| {
            let path = path.clone();
            move |source| BoardError::File {
                doing,
                path,
                source,
            }
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.mode(0o600).open(&beside).map_err(failed("make"))?;
        file.set_len((WORDS * size_of::<u64>()) as u64)
            .map_err(failed("size"))?;
        let board = Self::map(&file).map_err(failed("map"))?;
        board.set(Word::Magic, MAGIC);
        let [a, b] = boot_words();
        board.set(Word::BootA, a);
        board.set(Word::BootB, b);
        std::fs::rename(&beside, &path).map_err(failed("name"))?;
        Ok(board)
    }

    /// The board of whoever ran here last in this boot.
    pub(crate) fn find(dir: &Path) -> Option<Self> {
        let path = dir.join(FILE);
        let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        let board = Self::map(&file).ok()?;
        let boot = [board.get(Word::BootA), board.get(Word::BootB)];
        (board.get(Word::Magic) == MAGIC && boot == boot_words()).then_some(board)
    }

    pub(crate) fn remove(dir: &Path) {
        // One that stays says that it ended in order.
        let _ = std::fs::remove_file(dir.join(FILE));
    }

    fn map(file: &File) -> io::Result<Self> {
        sys::map_shared(file, WORDS).map(|words| Self { words })
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        &self.words[word as usize]
    }

    pub(crate) fn get(&self, word: Word) -> u64 {
        self.word(word).load(SeqCst)
    }

    pub(crate) fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, SeqCst);
    }

    pub(crate) fn add(&self, word: Word, more: u64) {
        self.word(word).fetch_add(more, SeqCst);
    }

    /// True if it was `from` and is `to` now.
    pub(crate) fn change(&self, word: Word, from: u64, to: u64) -> bool {
        let changed = self.word(word).compare_exchange(from, to, SeqCst, SeqCst);
        changed.is_ok()
    }

    pub(crate) fn reader(&self) -> u64 {
        self.get(Word::Reader)
    }

    pub(crate) fn set_reader(&self, reader: Reader) {
        self.set(Word::Reader, reader as u64);
    }

    /// A descriptor's number as it stands in the header.
    pub(crate) fn number(&self, word: Word) -> i32 {
        i32::try_from(self.get(word)).unwrap_or(-1)
    }

    /// A process's number as it stands in the header; 0: none.
    pub(crate) fn pid(&self, word: Word) -> i32 {
        i32::try_from(self.get(word)).unwrap_or(0)
    }

    fn slot_word(&self, number: i32) -> Option<&AtomicU64> {
        let index = usize::try_from(number).ok()?;
        self.words.get(HEADER_WORDS..)?.get(index)
    }

    pub(crate) fn slot(&self, number: i32) -> Slot {
        let word = self.slot_word(number).map_or(0, |word| word.load(SeqCst));
        Slot::unpack(word)
    }

    pub(crate) fn set_slot(&self, number: i32, slot: Slot) {
        if let Some(word) = self.slot_word(number) {
            word.store(slot.pack(), SeqCst);
            let used = number as u64 + 1;
            if self.get(Word::SlotsUsed) < used {
                self.word(Word::SlotsUsed).fetch_max(used, SeqCst);
            }
        }
    }

    /// True if the slot was as expected and is in this state now.
    pub(crate) fn change_slot(&self, number: i32, from: Slot, state: State) -> bool {
        let to = Slot { state, ..from };
        self.slot_word(number).is_some_and(|word| {
            let changed = word.compare_exchange(from.pack(), to.pack(), SeqCst, SeqCst);
            changed.is_ok()
        })
    }

    /// Every slot in use, by number.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (i32, Slot)> + '_ {
        let used = i32::try_from(self.get(Word::SlotsUsed)).unwrap_or(i32::MAX);
        let slots = (0..used).map(|number| (number, self.slot(number)));
        slots.filter(|(_, slot)| slot.state != State::Free)
    }

    pub(crate) fn budget_ms(&self, kind: OpenKind) -> u64 {
        self.get(match kind {
            OpenKind::Open => Word::OpenBudgetMs,
            OpenKind::OpenExec => Word::ExecBudgetMs,
        })
    }

    pub(crate) fn set_policy(&self, policy: Fallback) {
        let millis = |budget: Duration| u64::try_from(budget.as_millis()).unwrap_or(u64::MAX);
        self.set(Word::ExecBudgetMs, millis(policy.exec_budget));
        self.set(Word::OpenBudgetMs, millis(policy.open_budget));
        self.set(Word::Denies, u64::from(policy.answer == Answer::Deny));
    }

    pub(crate) fn policy_answer(&self) -> Answer {
        match self.get(Word::Denies) {
            0 => Answer::Allow,
            _ => Answer::Deny,
        }
    }
}

/// What the supervisor goes by where no worker answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fallback {
    /// Budget of an execution.
    pub exec_budget: Duration,
    /// Budget of an open.
    pub open_budget: Duration,
    /// What an opener gets when its budget is over.
    pub answer: Answer,
}

/// Milliseconds of the clock that deadlines are kept by; never 0.
pub(crate) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let millis = now.tv_sec.saturating_mul(1000) + now.tv_nsec / 1_000_000;
    u64::try_from(millis).unwrap_or(0).max(1)
}

/// Milliseconds since 1970.
#[must_use]
pub fn wall_ms() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(now.tv_sec.saturating_mul(1000) + now.tv_nsec / 1_000_000).unwrap_or(0)
}

/// This boot's identity.
fn boot_words() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |range| {
        let half = digits.get(range).unwrap_or_default();
        u64::from_str_radix(half, 16).unwrap_or(0)
    };
    [half(0..16), half(16..32)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(state: State) -> Slot {
        Slot {
            state,
            kind: OpenKind::OpenExec,
            pid: 4_194_303,
            at_ms: 123_456_789_012,
        }
    }

    #[test]
    fn a_slot_is_one_word() {
        for state in [
            State::Waiting,
            State::Answering,
            State::Superseded,
            State::Owed,
            State::Closed,
        ] {
            assert_eq!(Slot::unpack(slot(state).pack()), slot(state));
        }
        assert_eq!(slot(State::Free).pack(), 0);
        assert_eq!(Slot::unpack(0), Slot::FREE);
    }

    #[test]
    fn of_two_who_want_to_answer_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let one = Board::create(dir.path()).unwrap();
        let other = Board::find(dir.path()).unwrap();
        one.set_slot(7, slot(State::Waiting));
        let seen = other.slot(7);
        assert!(one.change_slot(7, seen, State::Answering));
        assert!(!other.change_slot(7, seen, State::Superseded));
        assert_eq!(other.slots().count(), 1);
    }

    #[test]
    fn numbers_without_a_slot_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::create(dir.path()).unwrap();
        for number in [-1, SLOTS as i32, i32::MAX] {
            board.set_slot(number, slot(State::Waiting));
            assert_eq!(board.slot(number), Slot::FREE);
        }
        assert_eq!(board.slots().count(), 0);
    }

    #[test]
    fn another_boots_board_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Board::find(dir.path()).is_none());
        let board = Board::create(dir.path()).unwrap();
        board.set(Word::BootA, !board.get(Word::BootA));
        assert!(Board::find(dir.path()).is_none());
        std::fs::write(dir.path().join(FILE), b"short").unwrap();
        assert!(Board::find(dir.path()).is_none());
    }
}
