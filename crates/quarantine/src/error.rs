//! What the operations' errors share.

use std::io;
use std::path::{Path, PathBuf};

/// The system refused something.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path:?}")]
pub struct IoError {
    /// What was tried, such as "read".
    pub what: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl IoError {
    pub(crate) fn new(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self {
            what,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

/// The sort of a failure, as a removal order's answer tells it. Whatever the sort: nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The file does not have the content that the order is about.
    Changed,
    /// No such file or item.
    Missing,
    /// Something is in the way: the target exists, or it is no regular file.
    Conflict,
    /// It could not be done.
    Failed,
}
