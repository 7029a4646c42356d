//! Where needles may be: three bytes of each, looked up at every position.

use std::ops::{ControlFlow, Range};

use byte_sets::{ByteSets, WIDTH};

use crate::grams::rarity;
use crate::needles::{Needle, Token};
use crate::triples::{Effort, divide};

/// Positions that are looked up at once; each is a bit of the result.
const LOOKS: usize = 64;
/// Bytes that a group of looks reads.
const WINDOW: usize = LOOKS + WIDTH;
/// Bits of a gram that need not be known: so many spellings has it at most.
const LOOSE_MAX: u32 = 8;

/// The sizes of bitmaps, as powers of two bits. The smallest fits into the first-level cache.
const SIZES: [u32; 3] = [15, 18, 21];
/// A bitmap has so many bits for each spelling of a gram, if it is not the largest.
const BITS_PER_GRAM: usize = 32;
const FACTOR: u32 = 0x9e37_79b1;

/// Words of looks at once.
const WORDS_MAX: usize = 64;
/// Sets of bytes are looked for first if at most one position in so many has some.
const SETS_RARE: f64 = 5.0;

/// Finds places by grams.
#[derive(Debug, Default)]
pub(crate) struct Spots {
    /// `1 << bits` bits: grams that some needle has.
    bitmap: Box<[u64]>,
    bits: u32,
    /// By a hash of the gram: the first of its uses. One more than there are hashes.
    buckets: Box<[u32]>,
    bucket_bits: u32,
    /// In the order of the hashes.
    uses: Box<[Use]>,
    /// Finds most positions without a gram; `None`: no instructions for it, or too many grams.
    sets: Option<ByteSets>,
    /// How far before and behind their keys grams start, at most.
    reach: (usize, usize),
}

/// A needle, and where its gram starts, seen from its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    needle: u32,
    from_key: i16,
}

impl Spots {
    pub(crate) fn build(list: &[Needle], effort: Effort) -> Self {
        let mut grams: Vec<(u32, Use)> = Vec::new();
        let mut all = Vec::new();
        let mut reach = (0, 0);
        for (needle, id) in list.iter().zip(0..) {
            let (from_key, tokens) = best(needle);
            let distance = usize::from(from_key.unsigned_abs());
            match from_key < 0 {
                true => reach.0 = distance.max(reach.0),
                false => reach.1 = distance.max(reach.1),
            }
            let place = Use {
                needle: id,
                from_key,
            };
            all.push(tokens);
            grams.extend(spellings(&tokens).into_iter().map(|gram| (gram, place)));
        }
        let wanted = grams.len() * BITS_PER_GRAM;
        let fits = |bits: &u32| 1 << bits >= wanted;
        let bits = SIZES.into_iter().find(fits).unwrap_or(SIZES[2]);
        let bucket_bits = grams.len().next_power_of_two().ilog2().clamp(1, 16);
        let mut bitmap = vec![0u64; 1 << (bits - 6)];
        for (gram, _) in &grams {
            let at = hash(*gram, bits);
            bitmap[at >> 6] |= 1 << (at & 63);
        }
        let mut uses: Vec<(usize, Use)> = grams
            .into_iter()
            .map(|(gram, place)| (hash(gram, bucket_bits), place))
            .collect();
        uses.sort_unstable();
        // Spellings that share a bucket would report a place twice.
        uses.dedup();
        let mut buckets = vec![0u32; (1 << bucket_bits) + 1];
        for (bucket, _) in &uses {
            buckets[bucket + 1] += 1;
        }
        let mut before = 0;
        for bucket in &mut buckets {
            before += *bucket;
            *bucket = before;
        }
        Self {
            bitmap: bitmap.into(),
            bits,
            buckets: buckets.into(),
            bucket_bits,
            uses: uses.into_iter().map(|(_, place)| place).collect(),
            sets: sets(&all, effort),
            reach,
        }
    }

    /// Reports needles whose key may be in `from..to`, and where.
    pub(crate) fn scan(
        &self,
        data: &[u8],
        from: usize,
        to: usize,
        on_spot: &mut dyn FnMut(u32, usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match self.bits {
            15 => self.scan_sized::<0x200, 15>(data, from, to, on_spot),
            18 => self.scan_sized::<0x1000, 18>(data, from, to, on_spot),
            21 => self.scan_sized::<0x8000, 21>(data, from, to, on_spot),
            // Nothing to find.
            _ => ControlFlow::Continue(()),
        }
    }

    /// All sizes are constants here, so that the compiler can drop the bounds checks.
    fn scan_sized<const WORDS: usize, const BITS: u32>(
        &self,
        data: &[u8],
        from: usize,
        to: usize,
        on_spot: &mut dyn FnMut(u32, usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(bitmap) = self.bitmap.first_chunk::<WORDS>() else {
            unreachable!("bitmaps are as large as SIZES say");
        };
        let keys = from..to.min(data.len());
        let mut base = from.saturating_sub(self.reach.0);
        let end = keys.end.saturating_add(self.reach.1).min(data.len());
        if let Some(sets) = &self.sets {
            let mut words = [0; WORDS_MAX];
            loop {
                let count = sets.look(&data[base.min(end)..end], &mut words);
                for (word, first) in words[..count].iter().zip((base..).step_by(LOOKS)) {
                    let mut looks = *word;
                    while looks != 0 {
                        let at = first + looks.trailing_zeros() as usize;
                        looks &= looks - 1;
                        let found = hash(gram_of(data, at), BITS);
                        if bitmap[found >> 6] >> (found & 63) & 1 != 0 {
                            self.resolve(data, at, &keys, on_spot)?;
                        }
                    }
                }
                base += LOOKS * count;
                if count == 0 {
                    break;
                }
            }
        }
        while base < end {
            let rest = &data[base..];
            let mut looks = match rest.first_chunk::<WINDOW>() {
                Some(window) => look::<WORDS, BITS>(bitmap, window),
                None => {
                    let mut padded = [0; WINDOW];
                    padded[..rest.len()].copy_from_slice(rest);
                    look::<WORDS, BITS>(bitmap, &padded)
                }
            };
            if end - base < LOOKS {
                looks &= (1 << (end - base)) - 1;
            }
            while looks != 0 {
                let at = base + looks.trailing_zeros() as usize;
                looks &= looks - 1;
                self.resolve(data, at, &keys, on_spot)?;
            }
            base += LOOKS;
        }
        ControlFlow::Continue(())
    }

    /// As where the processor has no instructions for sets of bytes.
    #[cfg(test)]
    pub(crate) fn forget_sets(&mut self) {
        self.sets = None;
    }

    fn resolve(
        &self,
        data: &[u8],
        at: usize,
        keys: &Range<usize>,
        on_spot: &mut dyn FnMut(u32, usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let bucket = hash(gram_of(data, at), self.bucket_bits);
        let first = self.buckets[bucket] as usize;
        let end = self.buckets[bucket + 1] as usize;
        for place in &self.uses[first..end] {
            let key = at.checked_add_signed(-isize::from(place.from_key));
            if let Some(key) = key.filter(|key| keys.contains(key)) {
                on_spot(place.needle, key)?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// The bytes at a place, zeros where the data ends.
fn gram_of(data: &[u8], at: usize) -> u32 {
    let byte = |n: usize| u32::from(data.get(at + n).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16
}

/// Grams in triples of sets, those that are alike together; `None`: they are met too often.
fn sets(all: &[[Token; WIDTH]], effort: Effort) -> Option<ByteSets> {
    let bytes = |token: &Token| (0..=255).filter(|b| allows(*token, *b)).collect();
    let grams = all.iter().map(|tokens| tokens.each_ref().map(bytes));
    let (sets, share) = divide(grams.collect(), effort);
    (share * SETS_RARE <= 1.0).then(|| ByteSets::new(sets))?
}

fn allows(token: Token, byte: u8) -> bool {
    match token {
        Token::Byte { value, mask } => byte & mask == value,
        Token::Gap { .. } => true,
    }
}

/// Looks at every position of a window: bit n is set if there may be a gram at n.
#[inline(always)]
fn look<const WORDS: usize, const BITS: u32>(bitmap: &[u64; WORDS], window: &[u8; WINDOW]) -> u64 {
    let mut looks = 0;
    for at in (0..LOOKS).rev() {
        let bytes = [window[at], window[at + 1], window[at + 2], window[at + 3]];
        let found = hash(u32::from_le_bytes(bytes), BITS);
        looks = looks << 1 | bitmap[found >> 6] >> (found & 63) & 1;
    }
    looks
}

/// Of the lower three bytes.
#[inline(always)]
fn hash(gram: u32, bits: u32) -> usize {
    ((gram << 8).wrapping_mul(FACTOR) >> (32 - bits)) as usize
}

/// The rarest three bytes at a fixed distance from the key. Where there are but two, any byte may
/// follow.
fn best(needle: &Needle) -> (i16, [Token; WIDTH]) {
    let (_, from_key, gram) = best_scored(needle);
    (from_key, gram)
}

/// Rarity of the bytes that a needle is looked for by, less what is not known of them.
pub(crate) fn rarity_of_best(needle: &Needle) -> i32 {
    best_scored(needle).0
}

fn best_scored(needle: &Needle) -> (i32, i16, [Token; WIDTH]) {
    let is_byte = |token: &Token| matches!(token, Token::Byte { .. });
    let tokens = needle.tokens.as_slice();
    let behind = tokens.iter().skip(needle.key).take_while(|t| is_byte(t));
    let before = tokens.iter().take(needle.key).rev();
    let before = before.take_while(|t| is_byte(t)).count();
    let first = needle.key - before;
    let run = tokens
        .get(first..needle.key + behind.count())
        .unwrap_or_default();
    let score = |gram: &[Token; WIDTH]| {
        let loose = gram.iter().map(loose).sum::<u32>();
        (rarity(&gram.map(value)) - 4 * loose as i32, loose)
    };
    let grams = run.windows(WIDTH).zip(first..).filter_map(|(gram, at)| {
        let gram: [Token; WIDTH] = gram.try_into().ok()?;
        let (score, loose) = score(&gram);
        (loose <= LOOSE_MAX).then_some((score, at, gram))
    });
    let from_key = |at: usize| at as i16 - needle.key as i16;
    match grams.max_by_key(|(score, ..)| *score) {
        Some((score, at, gram)) => (score, from_key(at), gram),
        None => {
            const ANY: Token = Token::Byte { value: 0, mask: 0 };
            let token = |n: usize| tokens.get(needle.key + n).copied().unwrap_or(ANY);
            let gram = [token(0), token(1), ANY];
            (score(&gram).0, 0, gram)
        }
    }
}

fn value(token: Token) -> u8 {
    match token {
        Token::Byte { value, .. } => value,
        Token::Gap { .. } => 0,
    }
}

/// Bits that are not known.
fn loose(token: &Token) -> u32 {
    match token {
        Token::Byte { mask, .. } => mask.count_zeros(),
        Token::Gap { .. } => u8::BITS,
    }
}

/// All grams that the tokens allow.
fn spellings(tokens: &[Token; WIDTH]) -> Vec<u32> {
    let mut grams = vec![0];
    for (token, shift) in tokens.iter().zip([0, 8, 16]) {
        let bytes: Vec<u8> = (0..=255).filter(|b| allows(*token, *b)).collect();
        grams = grams
            .iter()
            .flat_map(|gram| bytes.iter().map(move |b| gram | u32::from(*b) << shift))
            .collect();
    }
    grams
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With sets of bytes and without the same places are told.
    #[test]
    fn sets_change_nothing() {
        let byte = |value| Token::Byte { value, mask: 0xff };
        let gap = Token::Gap { least: 0, most: 3 };
        let list: Vec<Needle> = [
            vec![byte(b'q'), byte(b'#'), byte(0x91)],
            vec![byte(b'q'), byte(b'#')],
            vec![byte(0x91), byte(b'Z'), gap, byte(b'q'), byte(b'x')],
        ]
        .map(|tokens| Needle::new(tokens, 0).expect("a needle"))
        .into();
        let mut spots = Spots::build(&list, Effort::Lasting);
        let mut data = vec![b'.'; 10_000];
        for at in [0, 60, 63, 127, 4095, 9990, 9997] {
            data[at..at + 3].copy_from_slice(b"q#\x91");
        }
        data.extend(b"q#");
        let places = |spots: &Spots, from, to| {
            let mut found = Vec::new();
            let _ = spots.scan(&data, from, to, &mut |id, at| {
                found.push((id, at));
                ControlFlow::Continue(())
            });
            found.sort_unstable();
            found
        };
        let ranges = [(0, data.len()), (60, 4097), (64, 65), (9990, 10_002)];
        let fast = ranges.map(|(from, to)| places(&spots, from, to));
        assert!(fast[0].contains(&(0, 4095)) && fast[0].contains(&(1, 10_000)));
        spots.forget_sets();
        let slow = ranges.map(|(from, to)| places(&spots, from, to));
        assert_eq!(fast, slow);
    }
}
