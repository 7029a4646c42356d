//! What can be wrong with a list, a key or a source, each by its own name.

use std::io;
use std::path::PathBuf;

/// Why a list was refused, or could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not begin like a list.
    #[error("not an allowlist: it does not begin with the magic bytes")]
    Magic,
    /// A format that this program does not know.
    #[error("unknown format version {found} at byte 8; this program reads version {known}", known = crate::format::VERSION)]
    Version {
        /// The version in the header.
        found: u32,
    },
    /// The header holds something that this version does not define.
    #[error("bad header at byte {offset}: {what}")]
    Header {
        /// Where.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The counts in the header need another length than the file has.
    #[error(
        "the header's counts need {expected} bytes, the file has {found}: truncated or extended"
    )]
    Length {
        /// Bytes that the counts need.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The trailer is not where the end of the file is.
    #[error("bad trailer at byte {offset}: {what}")]
    Trailer {
        /// Where.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Entries are not strictly rising.
    #[error("{section} digests are not sorted at entry {entry}")]
    Unsorted {
        /// `listed` or `revoked`.
        section: &'static str,
        /// The first entry that is not above the one before it.
        entry: usize,
    },
    /// The list carries no signature.
    #[error("not signed")]
    Unsigned,
    /// The signing key is none of those that are trusted.
    #[error("signed by key {key}, which is not trusted here")]
    Untrusted {
        /// The key that the trailer names, hexadecimal.
        key: String,
    },
    /// The signature is not of these bytes.
    #[error("bad signature: the list was changed after signing")]
    Signature,
    /// An older list than the one in force, or a changed one of the same serial.
    #[error("roll-back of `{name}`: serial {found} is not above {in_force}, which is in force")]
    RollBack {
        /// The list's name.
        name: String,
        /// The serial of the refused list.
        found: u64,
        /// The serial in force.
        in_force: u64,
    },
    /// Another list came under the path of the one in force.
    #[error("the list is named `{found}`, the one in force is `{in_force}`")]
    Renamed {
        /// The refused list's name.
        found: String,
        /// The name in force.
        in_force: String,
    },
    /// A name that does not fit the header.
    #[error("bad list name {0:?}: 1 to 64 bytes without control characters")]
    Name(String),
    /// A key that cannot be read.
    #[error("bad key: {0}")]
    Key(&'static str),
    /// A package that the database does not have.
    #[error("{database}: no package `{package}`", database = .database.display())]
    Package {
        /// The database.
        database: PathBuf,
        /// The package.
        package: String,
    },
    /// A header of rpm's database that cannot be read.
    #[error("bad package header in rpm's database: {0}")]
    RpmHeader(&'static str),
    /// A file that is larger than the reader allows.
    #[error("{path}: has {found} bytes, at most {max} are read", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes it has.
        found: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// A file of this program that it did not write so.
    #[error("{path}: {what}", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// What should be a file is none.
    #[error("{path}: not a regular file", path = .path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// A line of a digest list that is none.
    #[error("{path}, line {line}: {what}", path = .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
