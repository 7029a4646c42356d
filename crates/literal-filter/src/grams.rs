//! Which grams of a literal stand for it: the rarest, by what files were measured to contain.

use std::sync::LazyLock;

use byte_sets::{FOLD, STRIDE, Width};

/// Bytes of the shortest gram.
const SHORTEST: usize = Width::Four.bytes();

/// Rarity of each pair of folded bytes, in quarters of a bit: minus four times the binary
/// logarithm of its share of all pairs. Folded bytes are numbered as [`number`] does. Measured by
/// `examples/measure_grams.rs` over Debian's /usr and libwine, programs for Linux, programs for
/// Windows, texts and the rest weighing the same.
static PAIRS: &[u8; 1 << 14] = include_bytes!("pairs.bin");

/// Eight bytes of `data` from `at` on, the first being the lowest, with zeros behind the end.
pub(crate) fn bytes_at(data: &[u8], at: usize) -> u64 {
    let rest = data.get(at..).unwrap_or(&[]);
    match rest.first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => rest
            .iter()
            .rev()
            .fold(0, |gram, byte| gram << 8 | u64::from(*byte)),
    }
}

/// Folded bytes.
pub(crate) const NUMBERS: usize = 128;

/// Of [`NUMBERS`], as the fold bit does not count.
pub(crate) fn number(byte: u8) -> usize {
    usize::from(byte & 0x1f | (byte & 0xc0) >> 1)
}

/// The share of positions that have these two folded bytes, by their numbers.
pub(crate) fn share_of_pair(first: usize, second: usize) -> f64 {
    (f64::from(PAIRS[first << 7 | second]) / -4.0).exp2()
}

/// The share of positions that have a folded byte, by its number.
pub(crate) fn share_of_byte(byte: usize) -> f64 {
    (0..NUMBERS).map(|second| share_of_pair(byte, second)).sum()
}

fn pair(first: u8, second: u8) -> i32 {
    i32::from(PAIRS[number(first) << 7 | number(second)])
}

/// Rarity of each byte: that of all pairs that it starts, in quarters of a bit.
static SINGLES: LazyLock<[i32; NUMBERS]> =
    LazyLock::new(|| std::array::from_fn(|byte| (share_of_byte(byte).log2() * -4.0) as i32));

fn single(byte: u8) -> i32 {
    SINGLES[number(byte)]
}

/// How rare a run of bytes is at some place in a file, letters of either case being equal, in
/// quarters of a bit; larger is rarer. Each byte depends on the one before it.
pub(crate) fn rarity(gram: &[u8]) -> i32 {
    match gram {
        [] => 0,
        [byte] => single(*byte),
        [_, middle @ .., _] => {
            let pairs: i32 = gram.windows(2).map(|two| pair(two[0], two[1])).sum();
            pairs - middle.iter().map(|byte| single(*byte)).sum::<i32>()
        }
    }
}

/// Where a gram stands in a literal, relative to its first byte; some of the bytes of a short gram
/// may lie before or behind the literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: i32,
    pub(crate) width: Width,
}

impl Place {
    /// All that can stand for a literal whose first byte is `residue` bytes before a look, modulo
    /// the stride. A short literal has to do with a gram that lies across one of its ends.
    pub(crate) fn of(literal: &[u8], residue: usize) -> impl Iterator<Item = Self> {
        let inside = Width::ALL.into_iter().flat_map(move |width| {
            let last = (literal.len() + 1).saturating_sub(width.bytes());
            let at = (residue..last).step_by(STRIDE).map(|at| at as i32);
            at.map(move |at| Self { at, width })
        });
        let is_short = residue + SHORTEST > literal.len();
        let [behind, before] = [residue as i32, residue as i32 - STRIDE as i32];
        let across = [before, behind].map(|at| Self {
            at,
            width: Width::Four,
        });
        let most = across.into_iter().filter(move |_| is_short);
        let most = most.max_by_key(|place| (place.known(literal).len(), place.rarity(literal)));
        inside.chain(most)
    }

    /// The part of the literal that the gram covers.
    fn known(self, literal: &[u8]) -> &[u8] {
        let from = self.at.max(0) as usize;
        let to = (self.at + self.width.bytes() as i32).max(0) as usize;
        literal.get(from..to.min(literal.len())).unwrap_or(&[])
    }

    /// Rarity of what the gram knows of the literal.
    pub(crate) fn rarity(self, literal: &[u8]) -> i32 {
        rarity(self.known(literal))
    }

    /// The same of its first four bytes, which choose the word of the table.
    pub(crate) fn rarity_of_start(self, literal: &[u8]) -> i32 {
        let known = self.known(literal);
        rarity(&known[..known.len().min(SHORTEST)])
    }

    /// How much four of the literal's bytes tell that the gram does not.
    pub(crate) fn rarity_beside(self, literal: &[u8], at: usize) -> i32 {
        let gram = self.at..self.at + self.width.bytes() as i32;
        let new = (at as i32..at as i32 + 4).filter(|at| !gram.contains(at));
        rarity(&literal[at..at + 4]) + 16 * new.count() as i32
    }

    /// The gram that stands here where the literal occurs; `None`: there are many.
    pub(crate) fn gram(self, literal: &[u8]) -> Option<u64> {
        let at = usize::try_from(self.at).ok()?;
        let is_whole = at + self.width.bytes() <= literal.len();
        is_whole.then(|| self.width.of(bytes_at(literal, at)))
    }

    /// All grams that may stand here where the literal occurs.
    pub(crate) fn grams(self, literal: &[u8]) -> Vec<u64> {
        if let Some(gram) = self.gram(literal) {
            return vec![gram];
        }
        let mut grams = vec![0];
        for index in 0..self.width.bytes() as i32 {
            let shift = 8 * index as u32;
            let byte = usize::try_from(self.at + index);
            let bytes = match byte.ok().and_then(|at| literal.get(at)) {
                Some(byte) => vec![*byte | FOLD as u8],
                None => (0..=u8::MAX)
                    .filter(|byte| byte & FOLD as u8 != 0)
                    .collect(),
            };
            grams = bytes
                .iter()
                .flat_map(|byte| {
                    grams
                        .iter()
                        .map(move |gram| gram | u64::from(*byte) << shift)
                })
                .collect();
        }
        grams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fillers_are_common_and_names_are_rare() {
        let zeros = rarity(&[0; 4]);
        let word = rarity(b"ting");
        let odd = rarity(b"q7z#");
        assert!(zeros < word && word < odd, "{zeros} {word} {odd}");
        assert_eq!(rarity(b"TiNg"), word);
    }

    #[test]
    fn places_of_all_widths() {
        let places = |literal: &[u8], residue| {
            let all = Place::of(literal, residue);
            all.map(|place| (place.at, place.width.bytes()))
                .collect::<Vec<_>>()
        };
        assert_eq!(places(b"abcdefghijk", 3), [(3, 4), (7, 4), (3, 6), (3, 8)]);
        assert_eq!(places(b"abcdefghi", 0), [(0, 4), (4, 4), (0, 6), (0, 8)]);
        assert_eq!(places(b"abcdefg", 3), [(3, 4)]);
        assert_eq!(places(b"abcdef", 3), [(-1, 4)]);
        // Of two bytes beyond one end and one before the other the latter knows more.
        assert_eq!(places(b"abcde", 3), [(-1, 4)]);
        assert_eq!(places(b"abcde", 2), [(2, 4)]);
    }

    #[test]
    fn grams_of_a_place() {
        let grams = |at, literal| {
            let width = Width::Four;
            Place { at, width }.grams(literal)
        };
        assert_eq!(grams(1, b"ABCDE"), [bytes_at(b"bcde", 0)]);
        let open = grams(-1, b"ABCDE");
        assert_eq!(open.len(), 128);
        assert!(open.iter().all(|gram| gram >> 8 == bytes_at(b"abc", 0)));
        assert_eq!(grams(3, b"ABCDEF").len(), 128);
        let width = Width::Eight;
        let whole = Place { at: 1, width }.grams(b"ABCDEFGHI");
        assert_eq!(whole, [bytes_at(b"bcdefghi", 0)]);
    }
}
