//! Ranges of bytes of a file.

use std::ops::Range;

/// A set of bytes of a file, as ranges: sorted, never empty, never touching each other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Ranges {
    list: Vec<Range<u64>>,
}

impl Ranges {
    /// No byte.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of one range.
    #[must_use]
    pub fn of(range: Range<u64>) -> Self {
        let mut ranges = Self::new();
        ranges.add(range);
        ranges
    }

    /// Adds the bytes of a range; an empty one adds none.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.list.partition_point(|known| known.end < range.start);
        let to = self
            .list
            .partition_point(|known| known.start <= range.end)
            .max(from);
        let met = self.list.get(from..to).unwrap_or_default();
        let start = met
            .first()
            .map_or(range.start, |r| r.start.min(range.start));
        let end = met.last().map_or(range.end, |r| r.end.max(range.end));
        self.list.splice(from..to, std::iter::once(start..end));
    }

    /// Adds all bytes of another set.
    pub fn extend(&mut self, other: &Self) {
        for range in other.iter() {
            self.add(range);
        }
    }

    /// Whether all bytes of a range are in the set; of an empty one they are.
    #[must_use]
    pub fn contains(&self, range: &Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        let at = self.list.partition_point(|known| known.end <= range.start);
        let known = self.list.get(at);
        known.is_some_and(|known| known.start <= range.start && range.end <= known.end)
    }

    /// The bytes of this set that `other` has not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Self::new();
        for range in self.iter() {
            let mut from = range.start;
            let first = other.list.partition_point(|known| known.end <= from);
            let met = other.list.get(first..).unwrap_or_default();
            for known in met.iter().take_while(|known| known.start < range.end) {
                left.add(from..known.start.max(from));
                from = known.end;
            }
            left.add(from.min(range.end)..range.end);
        }
        left
    }

    /// The set with gaps of less than `gap_max` bytes filled: fewer, larger ranges.
    #[must_use]
    pub fn joined(&self, gap_max: u64) -> Self {
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in self.iter() {
            match joined.last_mut() {
                Some(last) if range.start - last.end < gap_max => last.end = range.end,
                _ => joined.push(range),
            }
        }
        Self { list: joined }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.list.iter().map(|range| range.end - range.start).sum()
    }

    /// How many ranges there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// There is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.list.iter().cloned()
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut all = Self::new();
        for range in ranges {
            all.add(range);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[Range<u64>]) -> Ranges {
        ranges.iter().cloned().collect()
    }

    /// All sets of ranges within 8 bytes against sets of bytes.
    #[test]
    fn a_set_of_ranges_is_a_set_of_bytes() {
        let bytes = |set: &Ranges| {
            let all = set.iter().flat_map(|range| range.clone());
            all.fold(0u8, |mask, byte| mask | 1 << byte)
        };
        let of_mask = |mask: u8| {
            let ranges = (0..8u64).filter(|byte| mask >> byte & 1 == 1);
            ranges.map(|byte| byte..byte + 1).collect::<Ranges>()
        };
        for a in 0..=255u8 {
            let first = of_mask(a);
            assert_eq!(bytes(&first), a);
            assert_eq!(first.bytes(), u64::from(a.count_ones()));
            let parts: Vec<_> = first.iter().collect();
            assert!(parts.windows(2).all(|pair| pair[0].end < pair[1].start));
            for b in 0..=255u8 {
                let second = of_mask(b);
                let mut both = first.clone();
                both.extend(&second);
                assert_eq!((bytes(&both), both), (a | b, of_mask(a | b)));
                assert_eq!(first.without(&second), of_mask(a & !b), "{a:b} {b:b}");
            }
            for (start, end) in (0..9u64).flat_map(|s| (s..9).map(move |e| (s, e))) {
                let inside = (start..end).all(|byte| a >> byte & 1 == 1);
                assert_eq!(first.contains(&(start..end)), inside, "{a:b} {start} {end}");
            }
        }
    }

    #[test]
    fn small_gaps_are_filled() {
        let parts = set(&[0..10, 12..20, 30..40]);
        assert_eq!(parts.joined(0), parts);
        assert_eq!(parts.joined(3), set(&[0..20, 30..40]));
        assert_eq!(parts.joined(11), Ranges::of(0..40));
        assert_eq!(Ranges::of(5..5), Ranges::new());
    }
}
