//! The ledger's file: lines appended, now and then replaced by a shorter whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use agent_core::Ledger;

use super::Books;

const FILE: &str = "ledger";
/// Where a file goes that no version of this program wrote.
const DAMAGED: &str = "ledger.damaged";
/// Longest file read: more than any ledger grows to before it is written anew.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// Bytes appended before the whole is written anew.
const APPENDED_BYTES_MAX: u64 = 1 << 20;

/// Stands for bytes appended where an append failed: the whole is due, changed since or not.
const FAILED: u64 = u64::MAX;

/// The ledger cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the ledger {}", path.display())]
pub struct LedgerFileError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The open file.
pub(crate) struct LedgerFile {
    path: PathBuf,
    file: File,
    appended: u64,
}

impl LedgerFile {
    /// Reads the ledger of the last run. One that is damaged is put aside, and counts as debts
    /// that nobody can name: an overflow.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(crate) fn open(
        state_dir: &Path,
        entries_max: usize,
    ) -> Result<(Self, Ledger), LedgerFileError> {
        let path = state_dir.join(FILE);
        let failed = |doing| {
            let path = path.clone();
            move |source| LedgerFileError {
                doing,
                path,
                source,
            }
        };
        let mut ledger = Ledger::new(entries_max);
        let text = read(&path).map_err(failed("read"))?;
        if let Err(error) = ledger.replay(&text) {
            let aside = state_dir.join(DAMAGED);
            std::fs::rename(&path, &aside).map_err(failed("put aside"))?;
            tracing::error!(%error, aside = %aside.display(), "the ledger is damaged");
            ledger.overflowed();
        }
        write_whole(&path, &ledger.snapshot()).map_err(failed("write"))?;
        let file = append_to(&path).map_err(failed("open"))?;
        let appended = 0;
        Ok((
            Self {
                path,
                file,
                appended,
            },
            ledger,
        ))
    }

    /// Brings the file up to date with the books.
    ///
    /// # Errors
    /// What was to be written stays due: the next call writes the whole.
    pub(crate) fn write(&mut self, books: &Books) -> Result<(), LedgerFileError> {
        let written = match books.take_unwritten() {
            None if self.appended != FAILED => return Ok(()),
            Some(unwritten) if self.appended <= APPENDED_BYTES_MAX => self.append(&unwritten.lines),
            None | Some(_) => self.write_anew(books),
        };
        written.map_err(|source| {
            self.appended = FAILED;
            LedgerFileError {
                doing: "write",
                path: self.path.clone(),
                source,
            }
        })
    }

    fn append(&mut self, lines: &str) -> io::Result<()> {
        self.file.write_all(lines.as_bytes())?;
        self.appended += lines.len() as u64;
        self.file.sync_data()
    }

    fn write_anew(&mut self, books: &Books) -> io::Result<()> {
        write_whole(&self.path, &books.snapshot())?;
        self.file = append_to(&self.path)?;
        self.appended = 0;
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    // Lines are ASCII; anything else is damage, which the replay names.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// Written beside, then renamed: a crash leaves the old one or the new one.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::UnscannedReason;

    #[test]
    fn debts_outlive_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, ledger) = LedgerFile::open(dir.path(), 10).unwrap();
        let books = Books::new(ledger);
        books.add(b"/a\n", UnscannedReason::Deadline);
        books.add(b"/b", UnscannedReason::Deadline);
        books.paid(b"/b");
        books.overflowed();
        file.write(&books).unwrap();
        books.add(b"/c", UnscannedReason::Unreachable);
        file.appended = APPENDED_BYTES_MAX + 1;
        file.write(&books).unwrap();
        let (_, read) = LedgerFile::open(dir.path(), 10).unwrap();
        assert_eq!(read.totals(), books.totals());
        assert_eq!(read.totals().open_entries, 2);
        assert_eq!(read.totals().overflow_total, 1);
    }

    #[test]
    fn what_could_not_be_written_is_written_without_a_further_change() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, ledger) = LedgerFile::open(dir.path(), 10).unwrap();
        let books = Books::new(ledger);
        books.add(b"/a", UnscannedReason::Deadline);
        let beside = dir.path().join(FILE).with_extension("new");
        std::fs::create_dir(&beside).unwrap();
        file.appended = APPENDED_BYTES_MAX + 1;
        assert!(file.write(&books).is_err(), "a folder is in the way");
        std::fs::remove_dir(&beside).unwrap();
        file.write(&books).unwrap();
        let (_, read) = LedgerFile::open(dir.path(), 10).unwrap();
        assert_eq!(read.totals().open_entries, 1);
    }

    #[test]
    fn a_damaged_ledger_is_put_aside_and_said_to_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "+ deadline 2f61\nnonsense\n").unwrap();
        let (_, ledger) = LedgerFile::open(dir.path(), 10).unwrap();
        assert_eq!(ledger.totals().overflow_total, 1);
        assert_eq!(ledger.totals().open_entries, 1);
        assert!(dir.path().join(DAMAGED).exists());
    }

    #[test]
    fn a_file_without_a_name_needs_a_full_scan() {
        let books = Books::new(Ledger::new(10));
        books.add(b"", UnscannedReason::Deadline);
        assert_eq!(books.totals().overflow_total, 1);
        assert_eq!(books.totals().open_entries, 0);
    }
}
