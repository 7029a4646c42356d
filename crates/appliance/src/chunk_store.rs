//! Chunks of content that guests have sent, so that what is like it need not be sent whole.
//!
//! Every guest has its own, of which another learns nothing. Chunks lie in a nameless file for each
//! guest: whatever happens to the process, nothing stays behind, and after a restart content is
//! sent whole again. What is read is checked by its name; what is gone is asked for.
//!
//! Chunks of golden images, which every guest has had, are there for all.

mod ring;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use chunks::{Chunk, Kind, Lister, Manifest};
use daemon::metrics::{Counters, Registry};
use image_chunks::ImageChunks;
use model::GuestId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::assembly::Spool;
use ring::Ring;

/// Contents of one guest that may wait to be cut; more are not kept.
const GUEST_WAITING_MAX: usize = 4;
/// Contents that are cut at once, so that uploads of others do not wait for it.
const CUTTING_MAX: usize = 2;
/// Bytes read at a time to be cut.
const READ_BYTES: usize = 256 * 1024;

/// What the store may hold and when it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkLimits {
    /// Smaller content is neither kept nor asked about. 0: none is.
    pub(crate) size_min_bytes: u64,
    pub(crate) bytes_max: u64,
    pub(crate) guest_bytes_max: u64,
    /// All guests have one store in common.
    pub(crate) shared: bool,
}

/// The chunks of all guests.
pub(crate) struct ChunkStore {
    spool: Spool,
    state: Mutex<State>,
    images: RwLock<Images>,
    cutting: Arc<Semaphore>,
    /// Chunks that were looked for, by where they were.
    found: Counters<1>,
}

/// Chunks of golden images.
pub(crate) type Images = Arc<[ImageChunks]>;

struct State {
    limits: ChunkLimits,
    guests: HashMap<GuestId, Entry>,
    bytes: u64,
}

struct Entry {
    ring: Arc<Mutex<Ring>>,
    bytes: u64,
    waiting: usize,
}

/// A place among the contents that wait to be cut.
pub(crate) struct Waiting {
    store: Arc<ChunkStore>,
    owner: GuestId,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(entry) = self.store.state.lock().guests.get_mut(&self.owner) {
            entry.waiting -= 1;
        }
    }
}

impl ChunkStore {
    pub(crate) fn new(
        spool: Spool,
        limits: ChunkLimits,
        images: Images,
        registry: &Registry,
    ) -> Self {
        Self {
            spool,
            images: RwLock::new(images),
            state: Mutex::new(State {
                limits,
                guests: HashMap::new(),
                bytes: 0,
            }),
            cutting: Arc::new(Semaphore::new(CUTTING_MAX)),
            found: registry.counters(
                "lazaret_chunks_found",
                "Chunks that guests listed: guest (sent before), image (in a file of chunks.images), nowhere; damaged (in either, under a name that its bytes have not).",
                ["where"],
            ),
        }
    }

    /// What is over a new limit goes when the next content is kept.
    pub(crate) fn set_limits(&self, limits: ChunkLimits) {
        self.state.lock().limits = limits;
    }

    /// Other images, from now on.
    pub(crate) fn set_images(&self, images: Images) {
        *self.images.write() = images;
    }

    /// Whether a list of chunks of this guest's content might show something that is held.
    pub(crate) fn may_know(&self, guest: GuestId, size: u64) -> bool {
        let has_images = !self.images.read().is_empty();
        let state = self.state.lock();
        let held = state.guests.get(&state.limits.owner(guest));
        let has_sent = held.is_some_and(|entry| entry.bytes > 0);
        state.limits.keeps(size) && (has_sent || has_images)
    }

    /// Bytes held, and guests that hold some.
    pub(crate) fn totals(&self) -> (u64, usize) {
        let state = self.state.lock();
        let holders = state.guests.values().filter(|entry| entry.bytes > 0);
        (state.bytes, holders.count())
    }

    /// The bytes of a chunk of a guest's file. May block on the disk.
    pub(crate) fn take(&self, guest: GuestId, kind: Kind, chunk: &Chunk) -> Option<Vec<u8>> {
        let count = |place| self.found.with([place]).inc();
        let is_it = |bytes: &Vec<u8>| {
            let is_it = kind.name(chunk.offset, bytes) == chunk.id;
            if !is_it {
                count("damaged");
            }
            is_it
        };
        if let Some(sent) = self.take_sent(guest, chunk).filter(is_it) {
            count("guest");
            return Some(sent);
        }
        let images = self.images.read().clone();
        let of = |image: &ImageChunks| image.read(chunk.id, chunk.len).filter(is_it);
        let found = images.iter().find_map(of);
        count(if found.is_some() { "image" } else { "nowhere" });
        found
    }

    fn take_sent(&self, guest: GuestId, chunk: &Chunk) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let ring = state.guests.get(&state.limits.owner(guest))?.ring.clone();
        drop(state);
        ring.lock().read(chunk.id, chunk.len)
    }

    /// A place for content that is to be kept; `None`: it is not.
    pub(crate) fn wait(self: &Arc<Self>, guest: GuestId, size: u64) -> Option<Waiting> {
        let mut state = self.state.lock();
        if !state.limits.keeps(size) {
            return None;
        }
        let owner = state.limits.owner(guest);
        let entry = match state.guests.entry(owner) {
            Slot::Occupied(slot) => slot.into_mut(),
            Slot::Vacant(slot) => {
                // Whoever cannot have a file keeps nothing.
                let ring = Ring::new(self.spool.create_sparse().ok()?);
                slot.insert(Entry {
                    ring: Arc::new(Mutex::new(ring)),
                    bytes: 0,
                    waiting: 0,
                })
            }
        };
        if entry.waiting >= GUEST_WAITING_MAX {
            return None;
        }
        entry.waiting += 1;
        drop(state);
        let store = self.clone();
        Some(Waiting { store, owner })
    }

    /// Forgets guests that hold nothing and wait for nothing.
    pub(crate) fn forget_idle(&self) {
        let mut state = self.state.lock();
        let is_of_use = |entry: &Entry| entry.bytes > 0 || entry.waiting > 0;
        state.guests.retain(|_, entry| is_of_use(entry));
    }

    /// Keeps a chunk under the name that its own bytes have, whatever a guest called it.
    fn keep(&self, owner: GuestId, kind: Kind, offset: u64, bytes: &[u8]) {
        let state = self.state.lock();
        let Some(entry) = state.guests.get(&owner) else {
            return;
        };
        let (ring, guest_bytes_max) = (entry.ring.clone(), state.limits.guest_bytes_max);
        drop(state);
        let mut held = ring.lock();
        held.write(kind.name(offset, bytes), bytes, guest_bytes_max);
        held.evict(guest_bytes_max);
        let bytes = held.bytes();
        drop(held);
        self.account(owner, bytes);
    }

    /// Notes what a guest holds; whoever holds most makes room where all hold too much.
    fn account(&self, owner: GuestId, bytes: u64) {
        let mut state = self.state.lock();
        state.note(owner, bytes);
        while state.bytes > state.limits.bytes_max {
            let over = state.bytes - state.limits.bytes_max;
            let largest = state.guests.iter().max_by_key(|(_, entry)| entry.bytes);
            let Some((&owner, entry)) = largest else {
                return;
            };
            let (ring, left) = (entry.ring.clone(), entry.bytes.saturating_sub(over));
            drop(state);
            let mut ring = ring.lock();
            ring.evict(left);
            let bytes = ring.bytes();
            drop(ring);
            state = self.state.lock();
            state.note(owner, bytes);
        }
    }
}

impl State {
    fn note(&mut self, owner: GuestId, bytes: u64) {
        if let Some(entry) = self.guests.get_mut(&owner) {
            self.bytes = self.bytes.saturating_sub(entry.bytes) + bytes;
            entry.bytes = bytes;
        }
    }
}

impl ChunkLimits {
    /// Whether anything is kept of content of this size.
    pub(crate) fn keeps(&self, size: u64) -> bool {
        let has_room = self.bytes_max > 0 && self.guest_bytes_max > 0;
        has_room && self.size_min_bytes > 0 && size >= self.size_min_bytes
    }

    /// Whose chunks a guest's are.
    fn owner(&self, guest: GuestId) -> GuestId {
        if self.shared { GuestId([0; 16]) } else { guest }
    }
}

impl Waiting {
    /// Waits for its turn; then [`Self::cut`] may be called.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.store.cutting.clone().acquire_owned().await.ok()
    }

    /// Cuts content and keeps its chunks. Blocks on the disk.
    pub(crate) fn cut(&self, content: &OwnedFd, size: u64, listed: Option<&Manifest>) {
        // Content that changes under our hands, or a disk that fails, is a loss of savings only.
        let _kept = match listed {
            Some(manifest) => self.keep_listed(content, manifest),
            None => self.keep_cut(content, size),
        };
    }

    fn keep_listed(&self, content: &OwnedFd, manifest: &Manifest) -> rustix::io::Result<()> {
        let mut buffer = vec![0; chunks::CHUNK_BYTES_MAX as usize];
        for chunk in manifest.chunks() {
            let Some(bytes) = buffer.get_mut(..chunk.len as usize) else {
                continue;
            };
            let read = rustix::io::pread(content, &mut *bytes, chunk.offset)?;
            if read == bytes.len() {
                let (store, kind) = (&self.store, manifest.kind());
                store.keep(self.owner, kind, chunk.offset, bytes);
            }
        }
        Ok(())
    }

    fn keep_cut(&self, content: &OwnedFd, size: u64) -> rustix::io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        let mut lister = None;
        loop {
            let read = rustix::io::pread(content, &mut buffer, offset)?;
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            if lister.is_none() {
                lister = Kind::of(size, bytes).map(Lister::new);
            }
            let Some(lister) = &mut lister else {
                return Ok(());
            };
            lister.update(bytes);
            offset += read as u64;
        }
        match lister {
            Some(lister) => self.keep_listed(content, &lister.finish().0),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    const A: GuestId = GuestId([0xa; 16]);
    const B: GuestId = GuestId([0xb; 16]);
    const LIMITS: ChunkLimits = ChunkLimits {
        size_min_bytes: 1000,
        bytes_max: 1_000_000,
        guest_bytes_max: 600_000,
        shared: false,
    };

    struct Rig {
        store: Arc<ChunkStore>,
        _dir: tempfile::TempDir,
    }

    fn rig(limits: ChunkLimits) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(ChunkStore::new(
            Spool::new(dir.path().to_owned()),
            limits,
            Images::default(),
            &Registry::new(),
        ));
        Rig { store, _dir: dir }
    }

    fn content(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new()
            .update(&[seed])
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    fn list(bytes: &[u8]) -> Manifest {
        let mut lister = Lister::new(Kind::of(bytes.len() as u64, bytes).unwrap());
        lister.update(bytes);
        lister.finish().0
    }

    impl Rig {
        fn keep(&self, guest: GuestId, bytes: &[u8]) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            let fd: OwnedFd = File::into(file);
            let size = bytes.len() as u64;
            self.store.wait(guest, size).unwrap().cut(&fd, size, None);
        }

        /// Bytes of this content that the store has for the guest.
        fn held(&self, guest: GuestId, bytes: &[u8]) -> u64 {
            let manifest = list(bytes);
            let own = |chunk: &Chunk| &bytes[chunk.offset as usize..chunk.end() as usize];
            let chunks = manifest.chunks().iter();
            let taken = chunks.filter_map(|chunk| {
                let taken = self.store.take(guest, manifest.kind(), chunk)?;
                assert!(taken == own(chunk));
                Some(u64::from(chunk.len))
            });
            taken.sum()
        }
    }

    #[test]
    fn what_was_kept_is_found_by_its_guest_alone() {
        let rig = rig(LIMITS);
        let bytes = content(1, 300_000);
        rig.keep(A, &bytes);
        assert_eq!(rig.held(A, &bytes), 300_000);
        assert_eq!(rig.held(B, &bytes), 0);
        assert!(rig.store.may_know(A, 5000) && !rig.store.may_know(B, 5000));
        assert!(!rig.store.may_know(A, 999), "too small to be asked about");
        assert_eq!(rig.store.totals(), (300_000, 1));
    }

    #[test]
    fn guests_share_where_that_is_wanted() {
        let shared = ChunkLimits {
            shared: true,
            ..LIMITS
        };
        let rig = rig(shared);
        let bytes = content(1, 300_000);
        rig.keep(A, &bytes);
        assert_eq!(rig.held(B, &bytes), 300_000);
    }

    #[test]
    fn a_guest_has_its_budget_and_the_oldest_goes() {
        let rig = rig(LIMITS);
        for seed in 0..10 {
            rig.keep(A, &content(seed, 200_000));
            assert!(rig.store.totals().0 <= LIMITS.guest_bytes_max);
        }
        assert_eq!(rig.held(A, &content(9, 200_000)), 200_000);
        assert_eq!(rig.held(A, &content(0, 200_000)), 0);
    }

    #[test]
    fn who_holds_most_makes_room() {
        let rig = rig(LIMITS);
        let modest = content(100, 300_000);
        rig.keep(B, &modest);
        for seed in 0..5 {
            rig.keep(A, &content(seed, 400_000));
        }
        rig.keep(GuestId([10; 16]), &content(10, 300_000));
        assert!(rig.store.totals().0 <= LIMITS.bytes_max);
        assert_eq!(rig.held(B, &modest), 300_000, "A held more");
    }

    #[test]
    fn what_is_used_again_stays() {
        let rig = rig(LIMITS);
        let used = content(0, 100_000);
        for seed in 1..20 {
            rig.keep(A, &used);
            rig.keep(A, &content(seed, 100_000));
        }
        assert_eq!(rig.held(A, &used), 100_000);
    }

    #[test]
    fn a_guest_may_not_have_everybody_wait() {
        let rig = rig(LIMITS);
        let waiting: Vec<_> = (0..GUEST_WAITING_MAX)
            .map(|_| rig.store.wait(A, 5000).unwrap())
            .collect();
        assert!(rig.store.wait(A, 5000).is_none());
        assert!(rig.store.wait(B, 5000).is_some());
        drop(waiting);
        assert!(rig.store.wait(A, 5000).is_some());
        rig.store.forget_idle();
        assert_eq!(rig.store.state.lock().guests.len(), 0);
    }

    #[test]
    fn what_is_not_what_it_is_called_is_not_there() {
        let rig = rig(LIMITS);
        let bytes = content(1, 300_000);
        rig.keep(A, &bytes);
        let ring = rig.store.state.lock().guests[&A].ring.clone();
        let manifest = list(&bytes);
        let damaged = manifest.chunks()[2];
        ring.lock().damage(damaged.id, damaged.len);
        let left = 300_000 - u64::from(damaged.len);
        assert_eq!(rig.held(A, &bytes), left);
    }

    #[test]
    fn zero_is_none() {
        for limits in [
            ChunkLimits {
                size_min_bytes: 0,
                ..LIMITS
            },
            ChunkLimits {
                bytes_max: 0,
                ..LIMITS
            },
            ChunkLimits {
                guest_bytes_max: 0,
                ..LIMITS
            },
        ] {
            assert!(rig(limits).store.wait(A, 1 << 20).is_none());
        }
    }
}
