//! What every store can do.

use std::pin::Pin;
use std::time::Duration;

use model::{Digest, Generation, GuestId};
use scan_core::CacheKey;

use crate::Sealed;

/// Keys, entries or sightings in one call at most.
pub const BATCH_MAX: usize = 10_000;
/// Guests in one page of [`Sightings::holders`] at most.
pub const HOLDERS_MAX: usize = 10_000;

/// What a store answers, later. Boxed, because the configuration chooses the store.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The store gave no answer. The caller goes on without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No answer in the time that the caller allowed.
    #[error("{store}: no answer within {} ms", waited.as_millis())]
    Deadline {
        /// Name of the store.
        store: &'static str,
        /// What was allowed.
        waited: Duration,
    },
    /// The store failed shortly before; it was not asked.
    #[error("{store}: not asked, it failed shortly before")]
    Resting {
        /// Name of the store.
        store: &'static str,
    },
    /// It cannot be reached, or failed.
    #[error("{store}: cannot {doing}: {reason}")]
    Failed {
        /// Name of the store.
        store: &'static str,
        /// What was tried.
        doing: &'static str,
        /// What it said.
        reason: String,
    },
    /// More than [`BATCH_MAX`] at once: a mistake of the caller.
    #[error("{found} items in one call, at most {BATCH_MAX} are allowed")]
    TooMany {
        /// How many there were.
        found: usize,
    },
    /// The store was laid out by a newer version of this software.
    #[error("{store}: the layout is {found}, this version knows up to {known}")]
    Newer {
        /// Name of the store.
        store: &'static str,
        /// Its layout.
        found: u32,
        /// Ours.
        known: u32,
    },
}

impl StoreError {
    pub(crate) fn failed(
        store: &'static str,
        doing: &'static str,
        reason: impl std::fmt::Display,
    ) -> Self {
        Self::Failed {
            store,
            doing,
            reason: reason.to_string(),
        }
    }
}

pub(crate) fn check_batch(len: usize) -> Result<(), StoreError> {
    if len > BATCH_MAX {
        return Err(StoreError::TooMany { found: len });
    }
    Ok(())
}

/// Sealed verdicts under the keys that they depend on. A store never looks into an entry.
pub trait VerdictStore: Send + Sync + std::fmt::Debug {
    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// One answer for each key, in their order; `None`: not there.
    ///
    /// # Errors
    /// [`StoreError`]; what was found by then is lost.
    fn get_many<'a>(&'a self, keys: &'a [CacheKey]) -> StoreFuture<'a, Vec<Option<Sealed>>>;

    /// Keeps entries; an entry that is there is replaced, the last of equal keys stays.
    ///
    /// # Errors
    /// [`StoreError`]; some of the entries may have been kept.
    fn put_many<'a>(&'a self, entries: &'a [(CacheKey, Sealed)]) -> StoreFuture<'a, ()>;

    /// Removes all entries of a generation. Entries that others put meanwhile may stay.
    ///
    /// # Errors
    /// [`StoreError`]; some of them may be gone.
    fn forget_generation(&self, generation: Generation) -> StoreFuture<'_, ()>;
}

/// A guest was seen with some content. Only content that an appliance has verified is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The guest.
    pub guest: GuestId,
    /// The content.
    pub digest: Digest,
    /// Unix seconds.
    pub first_seen: u64,
    /// Unix seconds, not before `first_seen`.
    pub last_seen: u64,
}

/// A guest that holds, or held, some content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The guest.
    pub guest: GuestId,
    /// Unix seconds.
    pub first_seen: u64,
    /// Unix seconds.
    pub last_seen: u64,
}

/// One page of holders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holders {
    /// In order of the guests' ids.
    pub guests: Vec<Holder>,
    /// There are more: ask again after the last of these.
    pub more: bool,
}

impl Holders {
    /// Cuts a list of up to `limit` + 1 holders to a page.
    pub(crate) fn page(mut guests: Vec<Holder>, limit: usize) -> Self {
        let more = guests.len() > limit;
        guests.truncate(limit);
        Self { guests, more }
    }
}

/// Which guests hold which content, since when.
pub trait Sightings: Send + Sync + std::fmt::Debug {
    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// Adds sightings to what is known: the earliest first and the latest last time stay.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been recorded. Recording again does no harm.
    fn record<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()>;

    /// The guests that were seen with this content, in order of their ids, those after `after`; at
    /// most `limit` or [`HOLDERS_MAX`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn holders(
        &self,
        digest: Digest,
        after: Option<GuestId>,
        limit: usize,
    ) -> StoreFuture<'_, Holders>;
}
