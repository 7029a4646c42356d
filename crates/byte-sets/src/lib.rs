//! Where bytes may be that somebody looks for: three bytes in a row of certain sets, for eight
//! triples of sets at once ([`ByteSets`]), and grams of a table of many ([`Grams`]).
//!
//! The idea of the sets is Teddy's (Geoffrey Langdale, Hyperscan), with tables of whole bytes, which AVX-512
//! VBMI looks up 64 at a time. Where a processor has it not, [`ByteSets::new`] says so: looking up
//! hashes of grams one by one is then as fast as this would be.

mod grams;
mod vector;

pub use grams::{FOLD, GRAM_MAX, Grams, PLACES_MAX, SPAN, STRIDE, Width};

/// Says that an element of a slice will be read soon, so that it is fetched from memory while other
/// things are done.
pub fn fetch<T>(all: &[T], index: usize) {
    vector::fetch(all, index);
}

/// Bytes in a row.
pub const WIDTH: usize = 3;
/// Positions that one word of [`ByteSets::look`] stands for.
pub const LOOKS: usize = 64;

/// For each of three bytes in a row and each value of it, the triples (a bit for each) that have
/// the value in their set.
pub type Sets = [[u8; 256]; WIDTH];

/// Looks for triples of sets. The processor has the instructions.
#[derive(Debug, Clone)]
pub struct ByteSets {
    sets: Box<Sets>,
}

impl ByteSets {
    /// `None`: the processor has no instructions for it.
    #[must_use]
    pub fn new(sets: Sets) -> Option<Self> {
        vector::is_there().then(|| Self {
            sets: Box::new(sets),
        })
    }

    /// Looks at all positions that have so many bytes behind them, in groups of [`LOOKS`]: bit `n`
    /// of word `w` is set if some triple has the bytes from `LOOKS * w + n` on in its sets. Returns
    /// how many words there are, at most as many as `looks` has.
    pub fn look(&self, data: &[u8], looks: &mut [u64]) -> usize {
        let whole = data.len().saturating_sub(WIDTH - 1) / LOOKS;
        let count = whole.min(looks.len());
        vector::look(&self.sets, data, &mut looks[..count]);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slowly(sets: &Sets, data: &[u8], words: usize) -> Vec<u64> {
        let is_there = |at: usize| {
            let found = sets.iter().zip(&data[at..]);
            found.fold(0xff, |all, (set, byte)| all & set[usize::from(*byte)]) != 0
        };
        let word =
            |first: usize| (0..LOOKS).fold(0, |word, n| word | u64::from(is_there(first + n)) << n);
        (0..words).map(|n| word(LOOKS * n)).collect()
    }

    fn sets(triples: &[[Vec<u8>; WIDTH]]) -> Sets {
        let mut sets = [[0; 256]; WIDTH];
        for (bit, triple) in triples.iter().enumerate() {
            for (set, bytes) in sets.iter_mut().zip(triple) {
                bytes
                    .iter()
                    .for_each(|byte| set[usize::from(*byte)] |= 1 << bit);
            }
        }
        sets
    }

    /// Few values, from all quarters of the tables.
    fn byte() -> impl Strategy<Value = u8> {
        prop_oneof![
            4 => prop::sample::select(vec![0u8, 1, 63, 64, 127, 128, 191, 192, 254, 255]),
            1 => any::<u8>(),
        ]
    }

    fn triple() -> impl Strategy<Value = [Vec<u8>; WIDTH]> {
        let set = || prop::collection::vec(byte(), 0..4);
        (set(), set(), set()).prop_map(|(a, b, c)| [a, b, c])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn as_one_by_one(
            triples in prop::collection::vec(triple(), 0..8),
            data in prop::collection::vec(byte(), 0..400),
            words in 0usize..8,
        ) {
            let sets = sets(&triples);
            // Without the instructions there is nothing to compare.
            if let Some(fast) = ByteSets::new(sets) {
                let mut looks = vec![0; words];
                let count = fast.look(&data, &mut looks);
                prop_assert_eq!(count, words.min(data.len().saturating_sub(2) / LOOKS));
                prop_assert_eq!(&looks[..count], slowly(&sets, &data, count));
            }
        }
    }
}
