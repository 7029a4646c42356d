//! What every store can do.

use std::pin::Pin;

use scan_core::CacheKey;

use crate::Sealed;

/// Keys or entries in one call at most.
pub const BATCH_MAX: usize = 10_000;

/// What a store answers, later. Boxed, because the configuration chooses the store.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The store gave no answer. The caller goes on without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or failed.
    #[error("cannot {doing}: {reason}")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        reason: String,
    },
    /// More than [`BATCH_MAX`] at once: a mistake of the caller.
    #[error("{0} items in one call, at most {BATCH_MAX} are allowed")]
    TooMany(usize),
    /// The store was laid out by a newer version of this software.
    #[error("the layout is {found}, this version knows up to {known}")]
    Newer {
        /// Its layout.
        found: u32,
        /// Ours.
        known: u32,
    },
}

impl StoreError {
    pub(crate) fn failed(doing: &'static str, reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string();
        Self::Failed { doing, reason }
    }
}

/// Sealed verdicts under the keys that they depend on. A store never looks into an entry.
pub trait VerdictStore: Send + Sync + std::fmt::Debug {
    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// One answer for each key, in their order; `None`: not there.
    ///
    /// # Errors
    /// [`StoreError`]; what was found by then is lost.
    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> StoreFuture<'a, Vec<Option<Sealed>>>;

    /// Whether there is surely nothing under a key, told without waiting. False says nothing.
    fn surely_lacks(&self, _key: &CacheKey) -> bool {
        false
    }

    /// Keeps entries; an entry that is there is replaced, the last of equal keys stays.
    ///
    /// # Errors
    /// [`StoreError`]; some of the entries may have been kept.
    fn put<'a>(&'a self, entries: &'a [(CacheKey, Sealed)]) -> StoreFuture<'a, ()>;

    /// Brings the store back within its bounds, where it does not do so by itself. Called every
    /// few minutes, by each appliance.
    ///
    /// # Errors
    /// [`StoreError`]; it is tried again.
    fn trim(&self) -> StoreFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

pub(crate) fn check_batch(len: usize) -> Result<(), StoreError> {
    if len > BATCH_MAX {
        return Err(StoreError::TooMany(len));
    }
    Ok(())
}
