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
    /// The same file as the books append to.
    file: File,
    /// Something failed: the whole is due, changed since or not.
    whole_due: bool,
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
    ) -> Result<(Self, Books), LedgerFileError> {
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
        let journal = file.try_clone().map_err(failed("open"))?;
        let ledger_file = Self {
            path,
            file,
            whole_due: false,
        };
        Ok((ledger_file, Books::new(ledger, journal)))
    }

    /// Brings the disk up to date with the books.
    ///
    /// # Errors
    /// What was to be written stays due: the next call writes the whole.
    pub(crate) fn write(&mut self, books: &Books) -> Result<(), LedgerFileError> {
        let written = if self.whole_due || books.appended() > APPENDED_BYTES_MAX {
            self.write_anew(books)
        } else {
            self.append(books)
        };
        self.whole_due = written.is_err();
        written.map_err(|source| LedgerFileError {
            doing: "write",
            path: self.path.clone(),
            source,
        })
    }

    fn append(&self, books: &Books) -> io::Result<()> {
        if books.append()? {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn write_anew(&mut self, books: &Books) -> io::Result<()> {
        let path = &self.path;
        let whole = books.snapshot();
        let mut file = write_beside(path, &whole)?;
        let mut renamed = None;
        books.replace(|meanwhile| {
            file.write_all(meanwhile.as_bytes())?;
            std::fs::rename(beside(path), path)?;
            let journal = append_to(path)?;
            renamed = Some(journal.try_clone()?);
            Ok(journal)
        })?;
        self.file = renamed.ok_or(io::ErrorKind::NotFound)?;
        self.file.sync_data()?;
        sync_folder(path)
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
    write_beside(path, text)?;
    std::fs::rename(beside(path), path)?;
    sync_folder(path)
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn write_beside(path: &Path, text: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(beside(path))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(file)
}

fn sync_folder(path: &Path) -> io::Result<()> {
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
        let (mut file, books) = LedgerFile::open(dir.path(), 10).unwrap();
        books.add(b"/a\n", UnscannedReason::Deadline);
        books.add(b"/b", UnscannedReason::Deadline);
        books.paid(b"/b");
        books.overflowed();
        file.write(&books).unwrap();
        books.add(b"/c", UnscannedReason::Unreachable);
        file.whole_due = true;
        file.write(&books).unwrap();
        let (_, read) = LedgerFile::open(dir.path(), 10).unwrap();
        assert_eq!(read.totals(), books.totals());
        assert_eq!(read.totals().open_entries, 2);
        assert_eq!(read.totals().overflow_total, 1);
    }

    #[test]
    fn a_killed_agents_debts_are_known_without_a_write_of_the_keepers() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, books) = LedgerFile::open(dir.path(), 10).unwrap();
        books.add(b"/a", UnscannedReason::Deadline);
        books.overflowed();
        let totals = || LedgerFile::open(dir.path(), 10).unwrap().1.totals();
        assert_eq!((totals().open_entries, totals().overflow_total), (1, 1));
        // That opening wrote the file anew; this agent's next whole replaces it.
        file.whole_due = true;
        file.write(&books).unwrap();
        books.add(b"/b", UnscannedReason::Deadline);
        assert_eq!((totals().open_entries, totals().overflow_total), (2, 1));
    }

    #[test]
    fn what_comes_while_the_whole_is_written_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (_, books) = LedgerFile::open(dir.path(), 10).unwrap();
        books.add(b"/a", UnscannedReason::Deadline);
        let path = dir.path().join(FILE);
        let mut beside_it = write_beside(&path, &books.snapshot()).unwrap();
        books.add(b"/b", UnscannedReason::Deadline);
        let put = |meanwhile: &str| {
            beside_it.write_all(meanwhile.as_bytes())?;
            std::fs::rename(beside(&path), &path)?;
            append_to(&path)
        };
        books.replace(put).unwrap();
        books.add(b"/c", UnscannedReason::Deadline);
        let (_, read) = LedgerFile::open(dir.path(), 10).unwrap();
        assert_eq!(read.totals().open_entries, 3);
    }

    #[test]
    fn what_could_not_be_written_is_written_without_a_further_change() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, books) = LedgerFile::open(dir.path(), 10).unwrap();
        books.add(b"/a", UnscannedReason::Deadline);
        let in_the_way = beside(&dir.path().join(FILE));
        std::fs::create_dir(&in_the_way).unwrap();
        file.whole_due = true;
        assert!(file.write(&books).is_err(), "a folder is in the way");
        std::fs::remove_dir(&in_the_way).unwrap();
        file.write(&books).unwrap();
        let (_, read) = LedgerFile::open(dir.path(), 10).unwrap();
        assert_eq!(read.totals().open_entries, 1);
    }

    #[test]
    fn a_damaged_ledger_is_put_aside_and_said_to_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "+ deadline 2f61\nnonsense\n").unwrap();
        let (_, books) = LedgerFile::open(dir.path(), 10).unwrap();
        assert_eq!(books.totals().overflow_total, 1);
        assert_eq!(books.totals().open_entries, 1);
        assert!(dir.path().join(DAMAGED).exists());
    }

    #[test]
    fn a_file_without_a_name_needs_a_full_scan() {
        let dir = tempfile::tempdir().unwrap();
        let (_, books) = LedgerFile::open(dir.path(), 10).unwrap();
        books.add(b"", UnscannedReason::Deadline);
        assert_eq!(books.totals().overflow_total, 1);
        assert_eq!(books.totals().open_entries, 0);
    }
}
