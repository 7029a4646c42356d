//! The appliance's own disk: an LSM tree in segments that are dropped whole, oldest first, so that
//! its size is bounded without ever looking for something to evict.
//!
//! It is a cache: one that cannot be read is put aside and begun anew.

mod absent;
mod segments;
mod sightings;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use model::Generation;
use scan_core::CacheKey;

use crate::Sealed;
use crate::entry::place;
use crate::store::{StoreError, StoreFuture, VerdictStore, check_batch};
use segments::{Item, Segments};
pub use sightings::EmbeddedSightings;

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by a newer version of this software.
    #[error("{}: the store has format {found}, this version knows an older one only; remove the folder or use the newer version", path.display())]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another process has it open.
    #[error("{}: the store is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The folder cannot be read or written.
    #[error("{}: cannot use the store", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A new, empty store could not be made either.
    #[error("{}: cannot begin a store: {reason}", path.display())]
    Begin {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The store of a single machine.
#[derive(Debug)]
pub struct Embedded {
    segments: Arc<Segments>,
    _noting: Noting,
}

/// Reads what an earlier process left, so that what is absent can be told.
#[derive(Debug)]
struct Noting {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Noting {
    fn begin(segments: &Arc<Segments>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (segments, stopped) = (Arc::clone(segments), Arc::clone(&stop));
        let note = move || {
            let noted = segments.note_what_is_there(|| stopped.load(Ordering::Relaxed));
            if let Err(error) = noted {
                // Each question is asked of the disk then.
                tracing::warn!(?error, "cannot read the keys of the verdict store");
            }
        };
        let thread = std::thread::Builder::new().name("verdict-keys".into());
        Self {
            stop,
            thread: thread.spawn(note).ok(),
        }
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Whoever opens the folder next must not find it in use.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Embedded {
    /// Opens or begins a store in a folder of its own, of at most about `bytes_max` bytes of keys
    /// and verdicts; beyond that the oldest eighth goes. Blocks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, OpenError> {
        let segments = Arc::new(Segments::open(dir, bytes_max, true)?);
        let noting = Noting::begin(&segments);
        Ok(Self {
            segments,
            _noting: noting,
        })
    }

    /// Entries, roughly: replaced ones count until the disk is tidied.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.segments.len()
    }

    /// Bytes on disk, journals included.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.segments.disk_bytes()
    }
}

/// On a thread that may wait for the disk; goes on when nobody waits for it.
fn blocking<S: Send + Sync + 'static, T: Send + 'static>(
    store: &Arc<S>,
    doing: &'static str,
    work: impl FnOnce(&S) -> Result<T, fjall::Error> + Send + 'static,
) -> StoreFuture<'static, T> {
    let store = Arc::clone(store);
    Box::pin(async move {
        let worked = tokio::task::spawn_blocking(move || {
            let worked = work(&store);
            // Before whoever waits goes on: they may want to open it anew.
            drop(store);
            worked
        });
        let worked = worked
            .await
            .map_err(|error| StoreError::failed(doing, error))?;
        worked.map_err(|error| StoreError::failed(doing, format!("{error:?}")))
    })
}

impl VerdictStore for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> StoreFuture<'a, Vec<Option<Sealed>>> {
        if let Err(error) = check_batch(keys.len()) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let keys = keys.to_vec();
        blocking(&self.segments, "get verdicts", move |segments| {
            let found = keys.iter().map(|key| {
                let value = segments.newest(key.generation, &place(key))?;
                Ok(value.map(|value| Sealed(value.to_vec())))
            });
            found.collect()
        })
    }

    fn surely_lacks(&self, key: &CacheKey) -> bool {
        self.segments.surely_lack(key.generation, &place(key))
    }

    fn put<'a>(&'a self, entries: &'a [(CacheKey, Sealed)]) -> StoreFuture<'a, ()> {
        if let Err(error) = check_batch(entries.len()) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let mut of: BTreeMap<Generation, Vec<Item>> = BTreeMap::new();
        for (key, sealed) in entries {
            let item = (place(key).to_vec(), sealed.0.clone());
            of.entry(key.generation).or_default().push(item);
        }
        blocking(&self.segments, "keep verdicts", move |segments| {
            of.into_iter()
                .try_for_each(|(generation, items)| segments.insert(generation, items))
        })
    }
}
