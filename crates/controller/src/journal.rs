//! Where members and tokens are kept: a file of lines, each a change with its checksum. A change
//! is one line, so that after a crash it is there whole or not at all. (A database takes this
//! place when there is more to keep.)

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file's name within its folder.
pub(crate) const FILE: &str = "members.journal";
/// Hexadecimal digits of the checksum before each line.
const CHECKSUM_DIGITS: usize = 16;

/// The journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// An operation failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{0} is in use by another controller")]
    InUse(PathBuf),
    /// A line other than the last is damaged: nothing is guessed.
    #[error("{path}:{line}: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Change {
    /// A join token was made.
    Token {
        hash: String,
        uses_max: u32,
        expires_at_s: u64,
    },
    /// A guest joined and spent one use of a token.
    Joined {
        guest: String,
        token_hash: String,
        hostname: String,
        system_uuid: Option<[u8; 16]>,
        address: std::net::IpAddr,
        at_s: u64,
    },
    /// A guest was revoked.
    Revoked { guest: String, at_s: u64 },
}

/// The open file, locked for this process.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines.
    len: u64,
}

impl Journal {
    /// Opens the journal in `dir`, making both where they are missing; every change so far.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Vec<Change>), JournalError> {
        let fail = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io {
                doing,
                path,
                source,
            }
        };
        std::fs::create_dir_all(dir).map_err(fail("create", dir))?;
        let path = dir.join(FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse(path)),
            Err(TryLockError::Error(source)) => return Err(fail("lock", &path)(source)),
        }
        let folder = File::open(dir).and_then(|folder| folder.sync_all());
        folder.map_err(fail("sync", dir))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail("read", &path))?;
        let (changes, len) = replay(&bytes, &path)?;
        let cut_bytes = bytes.len() as u64 - len;
        if cut_bytes > 0 {
            let path = path.display();
            tracing::warn!(%path, cut_bytes, "a change that was never completed is taken back");
        }
        let mut journal = Self { file, path, len };
        journal.cut().map_err(fail("repair", &journal.path))?;
        Ok((journal, changes))
    }

    /// Adds a change and waits until the disk has it.
    pub(crate) fn append(&mut self, change: &Change) -> Result<(), JournalError> {
        let written = line_of(change).and_then(|line| {
            self.file.write_all(line.as_bytes())?;
            self.file.sync_data()?;
            self.len += line.len() as u64;
            Ok(())
        });
        written.map_err(|source| {
            // Takes a part of a line away, or the next change would end up behind it. Where that
            // fails too, opening does it.
            let _ = self.cut();
            JournalError::Io {
                doing: "write",
                path: self.path.clone(),
                source,
            }
        })
    }

    /// Leaves nothing behind the last whole line.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        self.file.seek(SeekFrom::Start(self.len))?;
        self.file.sync_data()
    }
}

fn checksum(json: &str) -> String {
    let mut hex = pki::Fingerprint::of(json.as_bytes()).to_string();
    hex.truncate(CHECKSUM_DIGITS);
    hex
}

fn line_of(change: &Change) -> io::Result<String> {
    let json = serde_json::to_string(change)?;
    Ok(format!("{} {json}\n", checksum(&json)))
}

fn change_of(line: &[u8]) -> Result<Change, String> {
    let text = std::str::from_utf8(line).map_err(|_| "not text".to_owned())?;
    let (sum, json) = text.split_once(' ').ok_or("no checksum")?;
    if sum != checksum(json) {
        return Err("its checksum does not match".into());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// Changes and the length of the whole lines. A damaged last line is a write that a crash cut
/// short: nobody was told that it had happened.
fn replay(bytes: &[u8], path: &Path) -> Result<(Vec<Change>, u64), JournalError> {
    let mut changes = Vec::new();
    let mut len = 0;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for (index, line) in lines.iter().enumerate() {
        let is_last = index + 1 == lines.len();
        let change = match line.strip_suffix(b"\n") {
            Some(whole) => change_of(whole),
            None => Err("it does not end".into()),
        };
        match change {
            Ok(change) => changes.push(change),
            Err(_) if is_last => break,
            Err(problem) => {
                return Err(JournalError::Damaged {
                    path: path.to_owned(),
                    line: index + 1,
                    problem,
                });
            }
        }
        len += line.len() as u64;
    }
    Ok((changes, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revoked(n: u64) -> Change {
        Change::Revoked {
            guest: format!("{n:032x}"),
            at_s: n,
        }
    }

    fn written(count: u64) -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, changes) = Journal::open(dir.path()).unwrap();
        assert!(changes.is_empty());
        for n in 0..count {
            journal.append(&revoked(n)).unwrap();
        }
        let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
        (dir, bytes)
    }

    #[test]
    fn a_crash_at_any_byte_loses_at_most_the_last_change() {
        let (dir, bytes) = written(3);
        let path = dir.path().join(FILE);
        let line = bytes.len() / 3;
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let (mut journal, changes) = Journal::open(dir.path()).unwrap();
            assert_eq!(changes.len(), cut / line, "cut at {cut}");
            journal.append(&revoked(9)).unwrap();
            drop(journal);
            let (_, changes) = Journal::open(dir.path()).unwrap();
            assert_eq!(changes.len(), cut / line + 1);
            assert_eq!(changes.last(), Some(&revoked(9)));
        }
    }

    #[test]
    fn a_damaged_line_is_named_and_nothing_is_changed() {
        let (dir, mut bytes) = written(3);
        let path = dir.path().join(FILE);
        bytes[30] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = Journal::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("members.journal:1: "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Journal::open(dir.path()).unwrap();
        let second = Journal::open(dir.path()).unwrap_err();
        assert!(matches!(second, JournalError::InUse(_)), "{second}");
        drop(first);
        Journal::open(dir.path()).unwrap();
    }
}
