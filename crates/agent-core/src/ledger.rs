//! Opens that were answered without a verdict, and how much of that debt is paid.
//!
//! Entries are keyed by path: a file is opened again by its path to be judged. What was renamed
//! or replaced meanwhile needs no entry, because nothing unscanned is ever remembered as
//! scanned: its next open is judged like any other.
//!
//! Each change is one line of text for the caller to append to a file; [`Ledger::snapshot`] is
//! the whole as such lines. A torn last line is no error, and lines may be replayed twice.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use model::UnscannedReason;

/// The first pause before paying back is tried again; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Longest path kept, as `PATH_MAX` of the kernel.
const PATH_BYTES_MAX: usize = 4096;

#[derive(Debug)]
struct Entry {
    reason: UnscannedReason,
    not_before: Duration,
    pause: Duration,
    under_way: bool,
}

/// What became of an entry to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerAdded {
    /// A new entry.
    New,
    /// The file has one already.
    Known,
    /// The ledger is full: the guest needs a full scan.
    Overflowed,
}

/// The ledger's sums, as reported to the appliance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerTotals {
    /// Entries not paid yet.
    pub open_entries: u64,
    /// Entries ever made.
    pub entries_total: u64,
    /// Entries paid by a later verdict, or whose file is gone.
    pub paid_total: u64,
    /// Entries lost because the ledger was full or the kernel's queue overflowed.
    pub overflow_total: u64,
}

/// A line that no version of this ledger has written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ledger line {line}: not understood")]
pub struct LedgerLineError {
    /// Counted from 1.
    pub line: usize,
}

/// The debt. Bounded by the number of entries.
#[derive(Debug)]
pub struct Ledger {
    entries: BTreeMap<Vec<u8>, Entry>,
    entries_max: usize,
    under_way: usize,
    totals: LedgerTotals,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            entries_max,
            under_way: 0,
            totals: LedgerTotals::default(),
        }
    }

    /// The sums.
    #[must_use]
    pub fn totals(&self) -> LedgerTotals {
        LedgerTotals {
            open_entries: self.entries.len() as u64,
            ..self.totals
        }
    }

    /// Adds a file; a new entry's line is appended to `lines`.
    pub fn add(&mut self, path: &[u8], reason: UnscannedReason, lines: &mut String) -> LedgerAdded {
        if self.entries.contains_key(path) {
            return LedgerAdded::Known;
        }
        if self.entries.len() >= self.entries_max || path.len() > PATH_BYTES_MAX {
            self.overflowed();
            return LedgerAdded::Overflowed;
        }
        self.totals.entries_total += 1;
        self.insert(path.to_vec(), reason);
        push_line(lines, '+', path, Some(reason));
        LedgerAdded::New
    }

    /// Opens went unseen, so no entry can name them.
    pub fn overflowed(&mut self) {
        self.totals.overflow_total += 1;
    }

    /// The sums as a line. Overflows are in no other line, so that a flood of them is not one of
    /// lines: append this from time to time.
    #[must_use]
    pub fn totals_line(&self) -> String {
        let mut line = String::new();
        push_totals(&mut line, &self.totals);
        line
    }

    /// Up to `count` files that may be judged again at `now`. Each is under way until
    /// [`paid`](Self::paid) or [`unpaid`](Self::unpaid) says how it ended.
    pub fn due(&mut self, now: Duration, count: usize) -> Vec<Vec<u8>> {
        let due = |entry: &Entry| !entry.under_way && entry.not_before <= now;
        let entries = self.entries.iter_mut();
        let picked = entries.filter(|(_, entry)| due(entry)).take(count);
        let paths: Vec<_> = picked
            .map(|(path, entry)| {
                entry.under_way = true;
                path.clone()
            })
            .collect();
        self.under_way += paths.len();
        paths
    }

    /// When the next file may be judged again; `None`: none waits for that.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let waiting = self.entries.values().filter(|entry| !entry.under_way);
        waiting.map(|entry| entry.not_before).min()
    }

    /// Files under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// There is a verdict for this file, or it is gone. True if there was an entry.
    pub fn paid(&mut self, path: &[u8], lines: &mut String) -> bool {
        let Some(entry) = self.entries.remove(path) else {
            return false;
        };
        self.under_way -= usize::from(entry.under_way);
        self.totals.paid_total += 1;
        push_line(lines, '-', path, None);
        true
    }

    /// Still no verdict; not again before a pause, which doubles each time.
    pub fn unpaid(&mut self, path: &[u8], now: Duration) {
        if let Some(entry) = self.entries.get_mut(path) {
            self.under_way -= usize::from(entry.under_way);
            entry.under_way = false;
            entry.not_before = now + entry.pause;
            entry.pause = (entry.pause * 2).min(PAUSE_MAX);
        }
    }

    /// A link came up: whatever failed for lack of one may be tried at once.
    pub fn forgive(&mut self, now: Duration) {
        for entry in self.entries.values_mut() {
            entry.not_before = entry.not_before.min(now);
            entry.pause = PAUSE_MIN;
        }
    }

    /// The whole as lines.
    #[must_use]
    pub fn snapshot(&self) -> String {
        // Replaying the entries counts them again, so those are taken off here.
        let mut totals = self.totals;
        totals.entries_total -= self.entries.len() as u64;
        let mut lines = String::new();
        push_totals(&mut lines, &totals);
        for (path, entry) in &self.entries {
            push_line(&mut lines, '+', path, Some(entry.reason));
        }
        lines
    }

    /// Replays lines. An unfinished last line is what a crash leaves: it is ignored.
    ///
    /// # Errors
    /// [`LedgerLineError`] names the first line that is not understood; the lines before it
    /// count.
    pub fn replay(&mut self, text: &str) -> Result<(), LedgerLineError> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (index, line) in whole.split('\n').filter(|l| !l.is_empty()).enumerate() {
            self.replay_line(line)
                .ok_or(LedgerLineError { line: index + 1 })?;
        }
        Ok(())
    }

    fn replay_line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        match words.next()? {
            "+" => {
                let reason = UnscannedReason::from_name(words.next()?)?;
                let path = decode_hex(words.next()?)?;
                if self.entries.contains_key(&path) {
                    return Some(());
                }
                if self.entries.len() >= self.entries_max {
                    self.totals.overflow_total += 1;
                    return Some(());
                }
                self.totals.entries_total += 1;
                self.insert(path, reason);
            }
            "-" => {
                let path = decode_hex(words.next()?)?;
                if self.entries.remove(&path).is_some() {
                    self.totals.paid_total += 1;
                }
            }
            "=" => {
                let mut number = || words.next()?.parse().ok();
                self.totals.entries_total = number()?;
                self.totals.paid_total = number()?;
                self.totals.overflow_total = number()?;
            }
            _ => return None,
        }
        Some(())
    }

    fn insert(&mut self, path: Vec<u8>, reason: UnscannedReason) {
        let entry = Entry {
            reason,
            not_before: Duration::ZERO,
            pause: PAUSE_MIN,
            under_way: false,
        };
        self.entries.insert(path, entry);
    }
}

fn push_totals(lines: &mut String, totals: &LedgerTotals) {
    let LedgerTotals {
        entries_total,
        paid_total,
        overflow_total,
        ..
    } = totals;
    // Writing to a String cannot fail.
    let _ = writeln!(lines, "= {entries_total} {paid_total} {overflow_total}");
}

/// Paths are hostile bytes, newlines included: hexadecimal keeps a line a line.
fn push_line(lines: &mut String, sign: char, path: &[u8], reason: Option<UnscannedReason>) {
    lines.push(sign);
    lines.push(' ');
    if let Some(reason) = reason {
        lines.push_str(reason.name());
        lines.push(' ');
    }
    for byte in path {
        let _ = write!(lines, "{byte:02x}");
    }
    lines.push('\n');
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() > 2 * PATH_BYTES_MAX {
        return None;
    }
    let digit = |c: u8| (c as char).to_digit(16);
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|pair| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn entries_are_due_until_paid() {
        let mut ledger = Ledger::new(10);
        let mut lines = String::new();
        let reason = UnscannedReason::Unreachable;
        assert_eq!(ledger.add(b"/a\n", reason, &mut lines), LedgerAdded::New);
        assert_eq!(ledger.add(b"/a\n", reason, &mut lines), LedgerAdded::Known);
        assert_eq!(ledger.due(NOW, 5), [b"/a\n".to_vec()]);
        assert!(ledger.due(NOW, 5).is_empty(), "it is under way");
        ledger.unpaid(b"/a\n", NOW);
        assert!(ledger.due(NOW, 5).is_empty(), "it rests");
        assert_eq!(ledger.next_due(), Some(NOW + PAUSE_MIN));
        ledger.forgive(NOW);
        assert_eq!(ledger.due(NOW, 5).len(), 1);
        assert!(ledger.paid(b"/a\n", &mut lines));
        assert!(!ledger.paid(b"/a\n", &mut lines));
        assert_eq!(ledger.totals().paid_total, 1);
        assert_eq!(ledger.totals().open_entries, 0);
    }

    #[test]
    fn the_pause_grows() {
        let mut ledger = Ledger::new(10);
        ledger.add(b"/a", UnscannedReason::EngineCrashed, &mut String::new());
        assert_eq!(ledger.due(NOW, 1).len(), 1);
        for pause in [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4] {
            assert_eq!(ledger.under_way(), 1);
            ledger.unpaid(b"/a", NOW);
            let just_before = NOW + pause - Duration::from_millis(1);
            assert!(ledger.due(just_before, 1).is_empty());
            assert_eq!(ledger.due(NOW + pause, 1).len(), 1);
        }
    }

    #[test]
    fn it_is_bounded_and_says_so() {
        let mut ledger = Ledger::new(1);
        let mut lines = String::new();
        ledger.add(b"/a", UnscannedReason::Deadline, &mut lines);
        let added = ledger.add(b"/b", UnscannedReason::Deadline, &mut lines);
        assert_eq!(added, LedgerAdded::Overflowed);
        assert_eq!(ledger.totals().overflow_total, 1);
        assert_eq!(ledger.totals().open_entries, 1);
    }

    #[test]
    fn a_crash_between_any_two_bytes_loses_at_most_the_last_line() {
        let mut ledger = Ledger::new(3);
        let mut lines = ledger.snapshot();
        for path in [&b"/a"[..], b"/b", b"/c", b"/too many"] {
            ledger.add(path, UnscannedReason::Deadline, &mut lines);
        }
        ledger.paid(b"/b", &mut lines);
        lines.push_str(&ledger.totals_line());
        for end in 0..=lines.len() {
            let mut read = Ledger::new(3);
            assert_eq!(read.replay(&lines[..end]), Ok(()), "cut at {end}");
        }
        let mut read = Ledger::new(3);
        read.replay(&lines).unwrap();
        assert_eq!(read.totals(), ledger.totals());
        let mut compacted = Ledger::new(3);
        compacted.replay(&ledger.snapshot()).unwrap();
        assert_eq!(compacted.totals(), ledger.totals());
    }

    #[test]
    fn junk_is_named() {
        let mut ledger = Ledger::new(3);
        let text = "= 0 0 0\n+ deadline 2f\n+ sunshine 2f\n";
        assert_eq!(ledger.replay(text), Err(LedgerLineError { line: 3 }));
        assert_eq!(ledger.totals().open_entries, 1);
        for junk in ["+ deadline 2", "- zz", "= 1 2", "?", "+"] {
            let text = format!("{junk}\n");
            assert!(Ledger::new(1).replay(&text).is_err(), "{junk:?}");
        }
    }
}
