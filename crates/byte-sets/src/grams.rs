//! Where some of many grams may be: a table that is looked up at every fourth position.

use crate::vector;

/// Positions from one look to the next.
pub const STRIDE: usize = 4;
/// Bytes that a look reads.
pub const GRAM_MAX: usize = 8;
/// Looks are made so many bytes of data at a time.
pub const SPAN: usize = LOOKS * STRIDE;
/// Looks in [`SPAN`].
const LOOKS: usize = 64;
/// Places that one call of [`Grams::look`] finds at most.
pub const PLACES_MAX: usize = 512;
/// Bytes of data that one call of [`Grams::look`] looks at, at most.
const DATA_MAX: usize = 1 << 20;
/// Set in each byte of a gram before it is compared: letters of either case become equal.
pub const FOLD: u64 = 0x2020_2020_2020_2020;

/// Bytes of a gram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Width {
    /// 4.
    #[default]
    Four,
    /// 6.
    Six,
    /// 8.
    Eight,
}

impl Width {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Four, Self::Six, Self::Eight];

    /// So many bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Six => 6,
            Self::Eight => 8,
        }
    }

    /// Of eight bytes, the first being the lowest, the gram of the first ones, folded.
    #[must_use]
    pub const fn of(self, bytes: u64) -> u64 {
        (bytes | FOLD) & (u64::MAX >> (64 - 8 * self.bytes()))
    }
}

/// Odd multipliers that spread a gram over high bits: its first four bytes for the word of the
/// table, these and those behind them for bits in the word.
pub(crate) const WORD_FACTOR: u32 = 0x9e37_79b1;
pub(crate) const FIRST_FACTOR: u32 = 0x85eb_ca6b;
pub(crate) const BEHIND_FACTOR: u32 = 0xc2b2_ae3d;
/// Where the numbers of the bits are in the sum of products.
pub(crate) const SHIFTS: [u32; 3] = [27, 22, 17];

/// A table of grams of some widths, letters of either case being equal. A blocked Bloom filter:
/// three bits in one word for each gram, and grams that begin with the same four bytes share a
/// word, so that one access tells for all widths.
#[derive(Debug, Clone, Default)]
pub struct Grams {
    /// `1 << bits`; none where there are no grams.
    words: Box<[u32]>,
    bits: u32,
    way: Way,
}

/// How the table is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Way {
    /// By AVX-512.
    Wide,
    /// By AVX2.
    Half,
    /// Without vectors.
    #[default]
    Plain,
}

impl Grams {
    /// A table of `1 << bits` words of 32 bits without grams.
    ///
    /// # Panics
    /// `bits` is not from 1 to 24.
    #[must_use]
    pub fn new(bits: u32) -> Self {
        assert!((1..=24).contains(&bits), "a table of 2^{bits} words");
        Self {
            words: vec![0; 1 << bits].into(),
            bits,
            way: vector::best(),
        }
    }

    /// Adds a gram, which is as [`Width::of`] makes it.
    pub fn insert(&mut self, gram: u64) {
        self.words[word_of(gram, self.bits)] |= mask_of(gram);
    }

    /// Of which widths a gram that these bytes start with may have been added: a bit for each of
    /// [`Width::ALL`].
    #[must_use]
    pub fn at(&self, bytes: u64) -> u8 {
        let word = self.words.get(word_of(bytes | FOLD, self.bits.max(1)));
        widths_in(word.copied().unwrap_or(0), bytes)
    }

    /// Looks at every fourth position of the data, [`SPAN`] bytes at a time, as long as all looks
    /// have [`GRAM_MAX`] bytes and there is room for what they may find. Returns how many bytes
    /// were looked at, and in how many places, the first ones in `places`, some gram may be.
    pub fn look(&self, data: &[u8], places: &mut [u32; PLACES_MAX]) -> (usize, usize) {
        let data = &data[..data.len().min(DATA_MAX)];
        let spans = data.len().saturating_sub(GRAM_MAX - STRIDE) / SPAN;
        let (spans, count) = match self.way {
            _ if self.words.is_empty() => (spans, 0),
            Way::Plain => self.look_plainly(data, spans, places),
            way => vector::look_up(way, &self.words, self.bits, data, spans, places),
        };
        (SPAN * spans, count)
    }

    fn look_plainly(
        &self,
        data: &[u8],
        spans: usize,
        places: &mut [u32; PLACES_MAX],
    ) -> (usize, usize) {
        let mut count = 0;
        for number in 0..spans {
            if count + LOOKS > PLACES_MAX {
                return (number, count);
            }
            for at in (SPAN * number..SPAN * (number + 1)).step_by(STRIDE) {
                let bytes = data[at..].first_chunk::<GRAM_MAX>();
                let bytes = bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
                let word = self.words[word_of(bytes | FOLD, self.bits)];
                if word == 0 {
                    continue;
                }
                places[count] = at as u32;
                // Without a branch, which would be guessed wrong.
                count += usize::from(widths_in(word, bytes) != 0);
            }
        }
        (spans, count)
    }
}

/// Which word of `1 << bits` has the bits of a gram.
fn word_of(gram: u64, bits: u32) -> usize {
    ((gram as u32).wrapping_mul(WORD_FACTOR) >> (32 - bits)) as usize
}

/// As [`Grams::at`], by the word of these bytes.
fn widths_in(word: u32, bytes: u64) -> u8 {
    let [four, six, eight] =
        Width::ALL.map(|width| u8::from(!word & mask_of(width.of(bytes)) == 0));
    four | six << 1 | eight << 2
}

/// The bits of a gram in its word.
fn mask_of(gram: u64) -> u32 {
    let behind = (gram >> 32) as u32;
    let spread = (gram as u32).wrapping_mul(FIRST_FACTOR);
    let spread = spread.wrapping_add(behind.wrapping_mul(BEHIND_FACTOR));
    let bits = SHIFTS.map(|shift| 1 << (spread >> shift & 31));
    bits[0] | bits[1] | bits[2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Those that this processor has.
    fn ways() -> Vec<Way> {
        let best = vector::best();
        let all = [Way::Wide, Way::Half, Way::Plain];
        all.into_iter().skip_while(|way| *way != best).collect()
    }

    fn gram() -> impl Strategy<Value = u64> {
        (byte_run(), prop::sample::select(Width::ALL.to_vec()))
            .prop_map(|(bytes, width)| width.of(u64::from_le_bytes(bytes)))
    }

    /// Few values, so that grams are met.
    fn byte() -> impl Strategy<Value = u8> {
        prop::sample::select(b"aBb\0\xff".to_vec())
    }

    fn byte_run() -> impl Strategy<Value = [u8; GRAM_MAX]> {
        prop::array::uniform8(byte())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn every_way_tells_the_same(
            grams in prop::collection::vec(gram(), 0..20),
            data in prop::collection::vec(byte(), 0..6000),
            bits in 1u32..14,
        ) {
            let mut table = Grams::new(bits);
            grams.iter().for_each(|gram| table.insert(*gram));
            for gram in &grams {
                let width = Width::ALL.iter().position(|width| width.of(*gram) == *gram);
                prop_assert!(width.is_some_and(|width| table.at(*gram) >> width & 1 == 1));
            }
            for way in ways() {
                table.way = way;
                let mut places = [0; PLACES_MAX];
                let (looked, count) = table.look(&data, &mut places);
                let all = data.len().saturating_sub(4) / SPAN * SPAN;
                prop_assert!(looked == all || count + LOOKS > PLACES_MAX);
                let wanted = (0..looked as u32).step_by(STRIDE).filter(|at| {
                    let bytes = data[*at as usize..].first_chunk().unwrap();
                    table.at(u64::from_le_bytes(*bytes)) != 0
                });
                prop_assert_eq!(&places[..count], wanted.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn without_grams_nothing_is_found() {
        let mut places = [0; PLACES_MAX];
        assert_eq!(
            Grams::default().look(&[b'a'; 1000], &mut places),
            (3 * SPAN, 0)
        );
        assert_eq!(Grams::default().at(0), 0);
    }
}
