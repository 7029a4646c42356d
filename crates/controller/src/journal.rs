//! Where earlier versions kept members and tokens: a file of lines, each a change with its
//! checksum. It is read once, into the database, and set aside.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use daemon::lock::LockedFile;
use model::{GuestId, Machine};
use pki::SecretHash;
use serde::{Deserialize, Serialize};

use crate::members::{Ended, Member, Members, Put, TokenInfo, moment};

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
    /// A change in it makes no sense.
    #[error("{path}: {change} makes no sense")]
    Senseless {
        /// The file.
        path: PathBuf,
        /// The change.
        change: String,
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

/// A journal as it was found, locked for this process.
#[derive(Debug)]
pub(crate) struct Old {
    changes: Vec<Change>,
    path: PathBuf,
    /// Of its content: a journal is taken over once.
    pub(crate) fingerprint: String,
    _lock: LockedFile,
}

/// The journal in `dir`; `None` where there is none. A change that a crash cut short is left out.
pub(crate) fn read(dir: &Path) -> Result<Option<Old>, JournalError> {
    let path = dir.join(FILE);
    let fail = |doing| {
        let path = path.clone();
        move |source| JournalError::Io {
            doing,
            path,
            source,
        }
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail("open")(error)),
    };
    let lock = match LockedFile::try_lock(file) {
        Ok(lock) => lock,
        Err(TryLockError::WouldBlock) => return Err(JournalError::InUse(path)),
        Err(TryLockError::Error(source)) => return Err(fail("lock")(source)),
    };
    let mut bytes = Vec::new();
    lock.as_ref()
        .read_to_end(&mut bytes)
        .map_err(fail("read"))?;
    let (changes, len) = replay(&bytes, &path)?;
    let cut_bytes = bytes.len() as u64 - len;
    if cut_bytes > 0 {
        let path = path.display();
        tracing::warn!(%path, cut_bytes, "a change that was never completed is left out");
    }
    Ok(Some(Old {
        changes,
        fingerprint: pki::Fingerprint::of(&bytes).to_string(),
        path,
        _lock: lock,
    }))
}

impl Old {
    /// What it holds, as rows of the database; what is there already is newer.
    pub(crate) fn puts(&self, members: &Members) -> Result<Vec<Put>, JournalError> {
        let (mut tokens, mut joined) = (BTreeMap::new(), BTreeMap::new());
        for change in &self.changes {
            let taken = take(&mut tokens, &mut joined, change);
            taken.ok_or_else(|| JournalError::Senseless {
                path: self.path.clone(),
                change: format!("{change:?}"),
            })?;
        }
        let tokens = tokens.values().filter(|token: &&TokenInfo| {
            token.uses_left > 0 && members.token(&token.hash).is_none()
        });
        let mut puts: Vec<Put> = tokens.map(Put::token).collect();
        let joined = joined.values();
        let new = joined.filter(|member: &&Member| members.member(member.id).is_none());
        puts.extend(new.map(Put::member));
        puts.push(Put::journal(self.fingerprint.clone()));
        Ok(puts)
    }

    /// Gives it another name: everything is in the database.
    pub(crate) fn set_aside(&self) -> Result<(), JournalError> {
        let aside = self.path.with_extension("journal.taken-over");
        std::fs::rename(&self.path, aside).map_err(|source| JournalError::Io {
            doing: "set aside",
            path: self.path.clone(),
            source,
        })
    }
}

/// `None`: the change makes no sense.
fn take(
    tokens: &mut BTreeMap<String, TokenInfo>,
    joined: &mut BTreeMap<GuestId, Member>,
    change: &Change,
) -> Option<()> {
    match change {
        Change::Token {
            hash,
            uses_max,
            expires_at_s,
        } => {
            let token = TokenInfo {
                hash: SecretHash::from_hex(hash)?,
                uses_left: *uses_max,
                expires_at: moment(*expires_at_s)?,
                pool: None,
                vm: None,
            };
            tokens.insert(hash.clone(), token);
        }
        Change::Joined {
            guest,
            token_hash,
            hostname,
            system_uuid,
            address,
            at_s,
        } => {
            if let Some(token) = tokens.get_mut(token_hash) {
                token.uses_left = token.uses_left.saturating_sub(1);
            }
            let id = GuestId::from_hex(guest)?;
            let machine = Machine {
                system_uuid: *system_uuid,
                ..Machine::default()
            };
            let member = Member {
                id,
                hostname: hostname.clone(),
                machine,
                address: *address,
                joined_s: *at_s,
                token: token_hash.clone(),
                pool: None,
                ephemeral: false,
                vm: None,
                ek: None,
                serial: 1,
                key: None,
                issued: Vec::new(),
                copy_of: None,
                origin: None,
                vm_gone_s: None,
                told: Vec::new(),
                ended: None,
            };
            joined.insert(id, member);
        }
        Change::Revoked { guest, at_s } => {
            let member = joined.get_mut(&GuestId::from_hex(guest)?)?;
            member.ended = Some(Ended {
                at_s: *at_s,
                revoked: true,
                why: String::new(),
            });
        }
    }
    Some(())
}

fn checksum(json: &str) -> String {
    let mut hex = pki::Fingerprint::of(json.as_bytes()).to_string();
    hex.truncate(CHECKSUM_DIGITS);
    hex
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

    fn token(n: u64) -> Change {
        Change::Token {
            hash: format!("{n:064x}"),
            uses_max: 3,
            expires_at_s: 1 << 40,
        }
    }

    fn line(change: &Change) -> String {
        let json = serde_json::to_string(change).unwrap();
        format!("{} {json}\n", checksum(&json))
    }

    fn written(dir: &Path, changes: &[Change]) -> Vec<u8> {
        let text: String = changes.iter().map(line).collect();
        std::fs::write(dir.join(FILE), &text).unwrap();
        text.into_bytes()
    }

    #[test]
    fn a_change_that_was_cut_short_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        let bytes = written(dir.path(), &[token(1), token(2), token(3)]);
        let line = bytes.len() / 3;
        for cut in 0..=bytes.len() {
            std::fs::write(dir.path().join(FILE), &bytes[..cut]).unwrap();
            let old = read(dir.path()).unwrap().unwrap();
            assert_eq!(old.changes.len(), cut / line, "cut at {cut}");
            // The journal's own mark comes besides.
            let puts = old.puts(&Members::default()).unwrap();
            assert_eq!(puts.len(), cut / line + 1);
        }
    }

    #[test]
    fn a_damaged_line_is_named_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut bytes = written(dir.path(), &[token(1), token(2)]);
        bytes[30] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("members.journal:1: "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_change_without_sense_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let revoked = Change::Revoked {
            guest: "12".repeat(16),
            at_s: 1,
        };
        written(dir.path(), &[revoked]);
        let old = read(dir.path()).unwrap().unwrap();
        let error = old.puts(&Members::default()).unwrap_err();
        assert!(matches!(error, JournalError::Senseless { .. }), "{error}");
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), &[token(1)]);
        let first = read(dir.path()).unwrap();
        let second = read(dir.path()).unwrap_err();
        assert!(matches!(second, JournalError::InUse(_)), "{second}");
        drop(first);
        read(dir.path()).unwrap();
    }
}
