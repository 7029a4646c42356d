//! Sightings on the appliance's own disk: 56 bytes each, digest first, so that the holders of a
//! content lie together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use model::{Digest, Generation, GuestId};
use parking_lot::Mutex;

use super::segments::Segments;
use super::{OpenError, blocking};
use crate::sightings::{HOLDERS_MAX, Holder, Holders, Seen, Sighting, Sightings};
use crate::store::{StoreFuture, check_batch};

const DIGEST_BYTES: usize = 32;
const KEY_BYTES: usize = DIGEST_BYTES + 16;
/// Sightings are of no generation.
const ALL: Generation = Generation([0; 16]);

/// The sightings of a single appliance.
#[derive(Debug)]
pub struct EmbeddedSightings {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    segments: Segments,
    /// Recording reads what is known before it writes.
    recording: Mutex<()>,
}

impl EmbeddedSightings {
    /// Opens or begins a store in a folder of its own, of at most about `bytes_max` bytes of
    /// sightings; beyond that the eighth goes that was not seen again for longest. Blocks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, OpenError> {
        let inner = Inner {
            segments: Segments::open(dir, bytes_max, false)?,
            recording: Mutex::new(()),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Bytes on disk, journals included.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.inner.segments.disk_bytes()
    }
}

impl Sightings for EmbeddedSightings {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn record<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
        if let Err(error) = check_batch(sightings.len()) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let merged = merged(sightings);
        blocking(&self.inner, "record sightings", move |inner| {
            inner.record(merged)
        })
    }

    fn holders(
        &self,
        digest: Digest,
        after: Option<GuestId>,
        limit: usize,
    ) -> StoreFuture<'_, Holders> {
        let limit = limit.min(HOLDERS_MAX);
        blocking(&self.inner, "list holders", move |inner| {
            inner.holders(&digest, after, limit)
        })
    }

    fn page(&self, after: (Digest, GuestId), limit: usize) -> StoreFuture<'_, Vec<Sighting>> {
        let limit = limit.min(HOLDERS_MAX);
        blocking(&self.inner, "list sightings", move |inner| {
            let merged = inner.first_after(&key_of(&after.0, &after.1), limit)?;
            let sightings = merged.into_iter().filter_map(|(key, seen)| {
                let (digest, guest) = key.split_at(DIGEST_BYTES);
                Some(Sighting {
                    digest: Digest::from_slice(digest)?,
                    guest: GuestId::from_slice(guest)?,
                    seen,
                })
            });
            Ok(sightings.take(limit).collect())
        })
    }
}

/// One page of [`Sightings::page`] at most, by key.
type Merged = BTreeMap<[u8; KEY_BYTES], Seen>;

impl Inner {
    fn record(&self, mut merged: Merged) -> Result<(), fjall::Error> {
        let _recording = self.recording.lock();
        for (key, seen) in &mut merged {
            let known = self.segments.newest(ALL, key)?;
            if let Some(known) = known.as_deref().and_then(seen_of) {
                *seen = seen.and(known);
            }
        }
        let items = merged.into_iter().map(|(key, seen)| {
            let times = [seen.first_s.to_be_bytes(), seen.last_s.to_be_bytes()];
            (key.to_vec(), times.concat())
        });
        self.segments.insert(ALL, items.collect())
    }

    /// The first `limit` of each segment: among them are the first `limit` of all.
    fn first_after(&self, after: &[u8; KEY_BYTES], limit: usize) -> Result<Merged, fjall::Error> {
        let mut merged = Merged::new();
        for segment in self.segments.of(ALL) {
            let items = segment.range(*after..).map(fjall::Guard::into_inner);
            let mut found = 0;
            for item in items {
                let (key, value) = item?;
                let key: Option<[u8; KEY_BYTES]> = (*key).try_into().ok();
                let (Some(key), Some(seen)) = (key, seen_of(&value)) else {
                    continue;
                };
                if key == *after {
                    continue;
                }
                add(&mut merged, key, seen);
                found += 1;
                if found >= limit {
                    break;
                }
            }
        }
        Ok(merged)
    }

    /// The first `limit` + 1 of each segment are enough to know the first `limit` of all.
    fn holders(
        &self,
        digest: &Digest,
        after: Option<GuestId>,
        limit: usize,
    ) -> Result<Holders, fjall::Error> {
        let end = key_of(digest, &GuestId([0xff; 16]));
        let begin = key_of(digest, &after.unwrap_or_default());
        let mut merged = BTreeMap::new();
        for segment in self.segments.of(ALL) {
            let mut found = 0;
            for item in segment.range(begin..=end).map(fjall::Guard::into_inner) {
                let (key, value) = item?;
                if after.is_some() && *key == begin {
                    continue;
                }
                let guest = key.get(DIGEST_BYTES..).and_then(GuestId::from_slice);
                if let (Some(guest), Some(seen)) = (guest, seen_of(&value)) {
                    add(&mut merged, guest, seen);
                }
                found += 1;
                if found > limit {
                    break;
                }
            }
        }
        let holders = merged
            .into_iter()
            .map(|(guest, seen)| Holder { guest, seen });
        Ok(Holders::page(holders.take(limit + 1).collect(), limit))
    }
}

fn merged(sightings: &[Sighting]) -> Merged {
    let mut merged = Merged::new();
    for sighting in sightings {
        add(
            &mut merged,
            key_of(&sighting.digest, &sighting.guest),
            sighting.seen,
        );
    }
    merged
}

fn add<K: Ord>(into: &mut BTreeMap<K, Seen>, key: K, seen: Seen) {
    into.entry(key)
        .and_modify(|known| *known = known.and(seen))
        .or_insert(seen);
}

fn key_of(digest: &Digest, guest: &GuestId) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    out[..DIGEST_BYTES].copy_from_slice(&digest.0);
    out[DIGEST_BYTES..].copy_from_slice(&guest.0);
    out
}

/// `None` for what we did not write.
fn seen_of(value: &[u8]) -> Option<Seen> {
    let (first, rest) = value.split_first_chunk()?;
    Some(Seen {
        first_s: u32::from_be_bytes(*first),
        last_s: u32::from_be_bytes(rest.try_into().ok()?),
    })
}
