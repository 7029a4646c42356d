//! Which grams of a literal stand for it: the rarest, by what files were measured to contain.

use std::sync::LazyLock;

/// Bytes of a gram.
pub(crate) const WIDTH: usize = 4;
/// Set in each byte of a gram before it is compared: letters of either case become equal.
pub(crate) const FOLD: u32 = 0x2020_2020;

/// Rarity of each pair of folded bytes, in quarters of a bit: minus four times the binary
/// logarithm of its share of all pairs. Folded bytes are numbered as [`number`] does. Measured by
/// `examples/measure_grams.rs` over Debian's /usr and libwine, programs for Linux, programs for
/// Windows, texts and the rest weighing the same.
static PAIRS: &[u8; 1 << 14] = include_bytes!("pairs.bin");

/// Up to 4 bytes of `data` from `at` on, little-endian, with zeros behind the end.
pub(crate) fn gram_at(data: &[u8], at: usize) -> u32 {
    let rest = data.get(at..).unwrap_or(&[]);
    match rest.first_chunk::<WIDTH>() {
        Some(bytes) => u32::from_le_bytes(*bytes),
        None => rest
            .iter()
            .rev()
            .fold(0, |gram, byte| gram << 8 | u32::from(*byte)),
    }
}

/// Of 128, as the fold bit does not count.
fn number(byte: u8) -> usize {
    usize::from(byte & 0x1f | (byte & 0xc0) >> 1)
}

fn pair(first: u8, second: u8) -> i32 {
    i32::from(PAIRS[number(first) << 7 | number(second)])
}

/// Rarity of each byte: that of all pairs that it starts, in quarters of a bit.
static SINGLES: LazyLock<[i32; 128]> = LazyLock::new(|| {
    let share = |rarity: &u8| (f64::from(*rarity) / -4.0).exp2();
    std::array::from_fn(|byte| {
        let all: f64 = PAIRS[byte << 7..][..128].iter().map(share).sum();
        (all.log2() * -4.0) as i32
    })
});

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

/// Where a gram stands in a literal, relative to its first byte; some of its bytes may lie before
/// or behind the literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) i32);

impl Place {
    /// The part of the literal that the gram covers.
    pub(crate) fn known(self, literal: &[u8]) -> &[u8] {
        let from = self.0.max(0) as usize;
        let to = (self.0 + WIDTH as i32).max(0) as usize;
        literal.get(from..to.min(literal.len())).unwrap_or(&[])
    }

    /// Rarity of what the gram knows of the literal.
    pub(crate) fn rarity(self, literal: &[u8]) -> i32 {
        rarity(self.known(literal))
    }

    /// All folded grams that may stand here where the literal occurs.
    pub(crate) fn grams(self, literal: &[u8]) -> Vec<u32> {
        if let Ok(at) = usize::try_from(self.0)
            && at + WIDTH <= literal.len()
        {
            return vec![gram_at(literal, at) | FOLD];
        }
        let mut grams = vec![0];
        for index in 0..WIDTH as i32 {
            let shift = 8 * index as u32;
            let byte = usize::try_from(self.0 + index);
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
                        .map(move |gram| gram | u32::from(*byte) << shift)
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
    fn grams_of_a_place() {
        assert_eq!(Place(1).grams(b"ABCDE"), [u32::from_le_bytes(*b"bcde")]);
        let open = Place(-1).grams(b"ABCDE");
        assert_eq!(open.len(), 128);
        assert!(
            open.iter()
                .all(|gram| gram >> 8 == u32::from_le_bytes(*b"abc\0"))
        );
        assert_eq!(Place(3).grams(b"ABCDEF").len(), 128);
    }
}
