//! The chunks of one guest: a nameless file that grows at its end and is made sparse at its start.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;

use chunks::ChunkId;
use rustix::fs::{FallocateFlags, fallocate};

/// Beyond this offset the file begins anew: file systems have their own, larger limits.
const OFFSET_MAX: u64 = 1 << 40;
/// Room is given back in units of a file system's blocks.
const BLOCK_BYTES: u64 = 4096;

type Name = (ChunkId, u32);

/// Chunks in the order in which they were written.
#[derive(Debug)]
pub(super) struct Ring {
    file: File,
    offsets: HashMap<Name, u64>,
    order: VecDeque<(Name, u64)>,
    head: u64,
    tail: u64,
}

impl Ring {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            offsets: HashMap::new(),
            order: VecDeque::new(),
            head: 0,
            tail: 0,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.tail - self.head
    }

    /// What lies under this name; the caller checks it.
    pub(super) fn read(&self, id: ChunkId, len: u32) -> Option<Vec<u8>> {
        let offset = *self.offsets.get(&(id, len))?;
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// Writes a chunk, unless it is there and will be for long: what is among the oldest quarter of
    /// `bytes_max` is written once more. A disk that is full keeps nothing.
    pub(super) fn write(&mut self, id: ChunkId, bytes: &[u8], bytes_max: u64) {
        let Ok(len) = u32::try_from(bytes.len()) else {
            return;
        };
        let name = (id, len);
        let old_before = self.tail.saturating_sub(bytes_max / 4 * 3);
        let is_young = |offset: &u64| *offset >= old_before;
        if self.offsets.get(&name).is_some_and(is_young) {
            return;
        }
        if self.tail > OFFSET_MAX {
            self.clear();
        }
        if self.file.write_all_at(bytes, self.tail).is_ok() {
            self.offsets.insert(name, self.tail);
            self.order.push_back((name, self.tail));
            self.tail += u64::from(len);
        }
    }

    /// Lets the oldest go until at most `bytes_max` are left.
    pub(super) fn evict(&mut self, bytes_max: u64) {
        let before = self.head;
        while self.bytes() > bytes_max
            && let Some((name, offset)) = self.order.pop_front()
        {
            if self.offsets.get(&name) == Some(&offset) {
                self.offsets.remove(&name);
            }
            self.head = offset + u64::from(name.1);
        }
        let hole = before / BLOCK_BYTES * BLOCK_BYTES..self.head / BLOCK_BYTES * BLOCK_BYTES;
        if hole.is_empty() {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, flags, hole.start, hole.end - hole.start).is_err() {
            // A file system without holes: all goes instead.
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.offsets.clear();
        self.order.clear();
        (self.head, self.tail) = (0, 0);
        // Fails on no file system that let us write; what would be left is overwritten.
        let _ = self.file.set_len(0);
    }
}

#[cfg(test)]
impl Ring {
    /// Overwrites what lies under this name.
    pub(super) fn damage(&self, id: ChunkId, len: u32) {
        let offset = self.offsets[&(id, len)];
        self.file.write_all_at(b"damaged", offset).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn id(n: u32) -> ChunkId {
        ChunkId(u64::from(n).to_le_bytes())
    }

    #[test]
    fn what_goes_gives_its_room_back() {
        let mut ring = Ring::new(tempfile::tempfile().unwrap());
        for n in 0..200 {
            ring.write(id(n), &[n as u8; 10_000], 100_000);
            ring.evict(100_000);
            assert_eq!(ring.bytes(), u64::from(n + 1).min(10) * 10_000);
        }
        let on_disk = ring.file.metadata().unwrap().blocks() * 512;
        assert!(on_disk <= 120_000, "{on_disk}");
        assert_eq!(ring.read(id(189), 10_000), None);
        assert_eq!(ring.read(id(190), 10_000), Some(vec![190; 10_000]));
        assert_eq!(ring.read(id(190), 9999), None, "another length");
        ring.evict(0);
        assert_eq!((ring.bytes(), ring.offsets.len()), (0, 0));
    }

    #[test]
    fn the_same_is_not_written_twice_unless_it_is_about_to_go() {
        let mut ring = Ring::new(tempfile::tempfile().unwrap());
        ring.write(id(0), &[0; 1000], 10_000);
        ring.write(id(0), &[0; 1000], 10_000);
        assert_eq!(ring.bytes(), 1000);
        for n in 1..10 {
            ring.write(id(n), &[n as u8; 1000], 10_000);
        }
        ring.write(id(0), &[0; 1000], 10_000);
        assert_eq!(ring.bytes(), 11_000);
        ring.evict(5000);
        assert_eq!(ring.read(id(0), 1000), Some(vec![0; 1000]));
    }

    #[test]
    fn a_disk_that_fails_keeps_nothing() {
        let read_only = File::open("/dev/null").unwrap();
        let mut ring = Ring::new(read_only);
        ring.write(id(0), &[0; 1000], 10_000);
        assert_eq!((ring.bytes(), ring.read(id(0), 1000)), (0, None));
    }
}
