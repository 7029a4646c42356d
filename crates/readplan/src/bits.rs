//! A set of small numbers, a bit for each: thousands of them stay in the cache.

use std::ops::Range;

/// Numbers below a bound.
#[derive(Debug, Default, Clone)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// Empties the set, and makes room for numbers below `bound`.
    pub(crate) fn reset(&mut self, bound: usize) {
        self.words.clear();
        self.words.resize(bound.div_ceil(64), 0);
    }

    /// Adds a number below the bound. False: it was there.
    pub(crate) fn insert(&mut self, number: usize) -> bool {
        let (word, bit) = (&mut self.words[number / 64], 1 << (number % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// A number that is not below the bound is not in the set.
    pub(crate) fn contains(&self, number: usize) -> bool {
        let word = self.words.get(number / 64).copied().unwrap_or(0);
        word >> (number % 64) & 1 != 0
    }

    /// How many of these are in the set.
    pub(crate) fn count(&self, range: Range<usize>) -> u32 {
        let end = range.end.div_ceil(64).min(self.words.len());
        let first = (range.start / 64).min(end);
        let words = self.words[first..end].iter();
        let inside = words.zip((64 * first..).step_by(64)).map(|(word, from)| {
            let low = range.start.saturating_sub(from).min(64) as u32;
            let high = range.end.saturating_sub(from).min(64) as u32;
            let below = |bits: u32| 1u64.checked_shl(bits).map_or(u64::MAX, |bit| bit - 1);
            (word & below(high) & !below(low)).count_ones()
        });
        inside.sum()
    }

    /// The numbers, rising.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let words = self.words.iter().zip((0..).step_by(64));
        words.flat_map(|(word, first)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(first + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_apart() {
        let mut bits = Bits::default();
        assert!(!bits.contains(0));
        bits.reset(130);
        for number in [0, 63, 64, 129] {
            assert!(bits.insert(number) && !bits.insert(number));
        }
        assert!(bits.iter().eq([0, 63, 64, 129]));
        let all: Vec<usize> = (0..300).filter(|number| bits.contains(*number)).collect();
        assert_eq!(all, [0, 63, 64, 129]);
        for (range, count) in [
            (0..130, 4),
            (0..64, 2),
            (1..64, 1),
            (64..65, 1),
            (65..129, 0),
            (129..130, 1),
            (5..5, 0),
            (200..300, 0),
        ] {
            assert_eq!(bits.count(range.clone()), count, "{range:?}");
        }
        bits.reset(130);
        assert_eq!(bits.iter().count(), 0);
    }
}
