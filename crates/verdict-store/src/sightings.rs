//! Which guests were seen with which content.

use model::{Digest, GuestId};

use crate::store::StoreFuture;

/// Guests in one page of [`Sightings::holders`] at most.
pub const HOLDERS_MAX: usize = 10_000;

/// When something was seen, in seconds since 1970 UTC; good until 2106.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The first time.
    pub first_s: u32,
    /// The last time, not before the first.
    pub last_s: u32,
}

impl Seen {
    /// Once.
    #[must_use]
    pub fn at(now_s: u32) -> Self {
        Self {
            first_s: now_s,
            last_s: now_s,
        }
    }

    /// The earliest first and the latest last time.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            first_s: self.first_s.min(other.first_s),
            last_s: self.last_s.max(other.last_s),
        }
    }
}

/// A guest was seen with some content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The content.
    pub digest: Digest,
    /// The guest.
    pub guest: GuestId,
    /// When.
    pub seen: Seen,
}

/// A guest that holds, or held, some content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The guest.
    pub guest: GuestId,
    /// When.
    pub seen: Seen,
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
    /// Cuts up to `limit` + 1 holders to a page.
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

    /// Adds sightings to what is known: the earliest first and the latest last time stay. At most
    /// [`BATCH_MAX`](crate::BATCH_MAX).
    ///
    /// # Errors
    /// [`StoreError`](crate::StoreError); some may have been recorded. Recording again does no harm.
    fn record<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()>;

    /// The guests that were seen with this content, in order of their ids, those after `after`; at
    /// most `limit` or [`HOLDERS_MAX`].
    ///
    /// # Errors
    /// [`StoreError`](crate::StoreError).
    fn holders(
        &self,
        digest: Digest,
        after: Option<GuestId>,
        limit: usize,
    ) -> StoreFuture<'_, Holders>;

    /// Sightings in order of digest and guest, those after `after`: with which all can be gone
    /// through. At most `limit` or [`HOLDERS_MAX`]; none: there are no more.
    ///
    /// # Errors
    /// [`StoreError`](crate::StoreError).
    fn page(&self, after: (Digest, GuestId), limit: usize) -> StoreFuture<'_, Vec<Sighting>>;

    /// Brings the store back within its bounds, where it does not do so by itself: what was not
    /// seen again for longest goes.
    ///
    /// # Errors
    /// [`StoreError`](crate::StoreError); it is tried again.
    fn trim(&self) -> StoreFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}
