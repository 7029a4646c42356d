//! What is surely not in a segment, told from memory: most questions are about content that nobody
//! has seen, and to learn that from the tree takes two changes of threads.
//!
//! A Bloom filter over the digests that keys begin with (Bloom, *Space/Time Trade-offs in Hash Coding
//! with Allowable Errors*, 1970); a digest's own bytes are its hashes. Digests that a guest made up
//! make the filter say "perhaps", which costs what every question cost without it.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

/// Bytes of keys and values for each byte of the filter. An entry takes about 200: so 12 bits each,
/// of which four are set, and 1 answer of 100 is "perhaps" in a full segment.
const BYTES_PER_FILTER_BYTE: u64 = 128;

/// What a segment surely lacks.
pub(super) struct Absent {
    /// Pages that nothing is noted in are not there.
    bits: RwLock<Vec<u64>>,
    /// All keys of the segment are noted.
    is_whole: AtomicBool,
}

impl Absent {
    /// For a segment of so many bytes; `is_whole` where it is empty.
    pub(super) fn new(segment_bytes_max: u64, is_whole: bool) -> Self {
        let words = segment_bytes_max / (BYTES_PER_FILTER_BYTE * 8);
        let words = usize::try_from(words).unwrap_or(0).max(1);
        Self {
            bits: RwLock::new(vec![0; words]),
            is_whole: AtomicBool::new(is_whole),
        }
    }

    /// Before the key can be found in the segment.
    pub(super) fn note(&self, key: &[u8]) {
        let mut bits = self.bits.write();
        let places = places(key, bits.len());
        for (word, bit) in places {
            if let Some(word) = bits.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// All keys are noted from now on.
    pub(super) fn complete(&self) {
        self.is_whole.store(true, Ordering::Release);
    }

    /// True: the key is not there. False says nothing.
    pub(super) fn is_sure_of(&self, key: &[u8]) -> bool {
        if !self.is_whole.load(Ordering::Acquire) {
            return false;
        }
        let bits = self.bits.read();
        places(key, bits.len()).any(|(word, bit)| bits.get(word).is_some_and(|it| it & bit == 0))
    }
}

/// Four words and a bit in each, by the first 32 bytes of a key.
fn places(key: &[u8], words: usize) -> impl Iterator<Item = (usize, u64)> {
    let (lanes, _) = key.as_chunks::<8>();
    lanes.iter().take(4).map(move |lane| {
        let hash = u64::from_le_bytes(*lane);
        let word = (hash >> 6) % words.max(1) as u64;
        (word as usize, 1 << (hash & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> [u8; 48] {
        let hash = blake3::hash(&n.to_le_bytes());
        std::array::from_fn(|at| *hash.as_bytes().get(at).unwrap_or(&7))
    }

    #[test]
    fn what_is_noted_is_never_absent_and_most_else_is() {
        let absent = Absent::new(200 * 10_000, true);
        for n in 0..10_000 {
            absent.note(&key(n));
        }
        assert!((0..10_000).all(|n| !absent.is_sure_of(&key(n))));
        let unsure = (10_000..20_000).filter(|n| !absent.is_sure_of(&key(*n)));
        assert!(unsure.count() < 300);
    }

    #[test]
    fn nothing_is_sure_before_all_is_noted() {
        let absent = Absent::new(1, false);
        assert!(!absent.is_sure_of(&key(1)));
        absent.complete();
        assert!(absent.is_sure_of(&key(1)));
    }
}
