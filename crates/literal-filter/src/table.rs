//! One class of literals: the bitmap, the exact grams behind it, the comparison.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::filter::{Pool, Span};
use crate::grams::{gram_at, rarity, spellings};

/// How literals of some lengths are looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    /// Literals of `min..=max` bytes.
    min: u8,
    max: u8,
    /// Every `stride`-th position is looked at.
    stride: usize,
    /// Bytes of a gram: 3 or 4. `width + stride - 1 <= min`.
    width: usize,
    /// The largest bitmap, in words of 64 bits. All bitmaps together should fit into the
    /// second-level cache, those of short strides into the first.
    words_max: usize,
}

/// The classes.
pub(crate) const CLASSES: [Class; 3] = [
    Class {
        min: 7,
        max: 255,
        stride: 4,
        width: 4,
        words_max: 1 << 16,
    },
    Class {
        min: 5,
        max: 6,
        stride: 2,
        width: 4,
        words_max: 1 << 12,
    },
    Class {
        min: 4,
        max: 4,
        stride: 2,
        width: 3,
        words_max: 1 << 12,
    },
];

/// 2^64 divided by the golden ratio, odd: Knuth's multiplicative hash.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Another odd multiplier, so that what collides in the bitmap does not collide in the buckets.
const OTHER: u64 = 0xc2b2_ae3d_27d4_eb4f;

/// A literal that has some gram.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u32,
    /// Where the literal is in the pool.
    start: u32,
    /// Four of its bytes, `fold` set: most entries of a met gram fail here.
    check: u32,
    /// The bits that make letters of either case equal, or 0 where case counts.
    fold: u32,
    /// Where they are in the literal.
    check_at: u8,
    /// Where the gram is in the literal.
    gram_at: u8,
    len: u8,
    nocase: bool,
}

impl Entry {
    fn new(id: u32, span: &Span, literal: &[u8], gram_at: usize) -> Entry {
        let fold = if span.nocase { 0x2020_2020 } else { 0 };
        // Far from the gram, which is known to match.
        let worth =
            |at: &usize| rarity(&literal[*at..*at + 4]) + 8 * at.abs_diff(gram_at).min(4) as i32;
        let check_at = (0..=literal.len() - 4).max_by_key(worth).unwrap_or(0);
        Entry {
            id,
            start: span.start,
            check: crate::grams::gram_at(literal, check_at) | fold,
            fold,
            check_at: check_at as u8,
            gram_at: gram_at as u8,
            len: span.len,
            nocase: span.nocase,
        }
    }
}

impl Class {
    fn gram(&self, literal: &[u8], at: usize) -> u32 {
        crate::grams::gram_at(literal, at) & (u32::MAX >> (32 - 8 * self.width))
    }

    /// Where the rarest gram is among those that a look can meet at this residue.
    fn best_place(
        &self,
        literal: &[u8],
        nocase: bool,
        residue: usize,
        users: &HashMap<u32, i32>,
    ) -> Option<usize> {
        let places = residue..=literal.len() - self.width;
        places.step_by(self.stride).max_by_key(|at| {
            let gram = &literal[*at..*at + self.width];
            let letters = gram
                .iter()
                .filter(|byte| nocase && byte.is_ascii_alphabetic());
            let known = users.get(&self.gram(literal, *at)).copied().unwrap_or(0);
            rarity(gram) - known - 3 * letters.count() as i32
        })
    }
}

/// Whether a literal cannot be found but by a gram that most files are full of, such as zeros:
/// looking for it makes the filter slow.
#[must_use]
pub fn is_common(literal: &[u8]) -> bool {
    let class = CLASSES
        .iter()
        .find(|class| usize::from(class.min) <= literal.len());
    class.is_none_or(|class| {
        (0..class.stride).any(|residue| {
            let place = class.best_place(literal, false, residue, &HashMap::new());
            place.is_none_or(|at| rarity(&literal[at..at + class.width]) < RARE_MIN)
        })
    })
}

/// Below this a gram is found everywhere.
const RARE_MIN: i32 = 8;

#[derive(Debug)]
pub(crate) struct Table {
    stride: usize,
    width: usize,
    /// A word for some of the grams, of which each sets two bits there.
    bitmap: Box<[u64]>,
    /// By a hash of the gram: the first of its entries. One more than there are hashes.
    buckets: Box<[u32]>,
    bucket_bits: u32,
    /// In the order of the hashes.
    entries: Box<[Entry]>,
}

/// What a scan works on.
pub(crate) struct Scan<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) pool: &'a [u8],
    pub(crate) on_hit: &'a mut dyn FnMut(u32, usize) -> ControlFlow<()>,
}

impl Table {
    /// `None` if there are no literals of this class.
    pub(crate) fn build(class: Class, pool: &Pool) -> Option<Table> {
        let of_class = |len: u8| (class.min..=class.max).contains(&len);
        let mut entries: Vec<(u32, Entry)> = Vec::new();
        let mut users: HashMap<u32, i32> = HashMap::new();
        for (id, (span, (literal, nocase))) in pool.spans.iter().zip(pool.iter()).enumerate() {
            if !of_class(span.len) {
                continue;
            }
            for residue in 0..class.stride {
                let Some(at) = class.best_place(literal, nocase, residue, &users) else {
                    continue;
                };
                let entry = Entry::new(id as u32, span, literal, at);
                let gram = class.gram(literal, at);
                let grams = if nocase { spellings(gram) } else { vec![gram] };
                for gram in grams {
                    *users.entry(gram).or_default() += 1;
                    entries.push((gram, entry));
                }
            }
        }
        (!entries.is_empty()).then(|| Table::from_entries(class, users.len(), entries))
    }

    fn from_entries(class: Class, grams: usize, mut entries: Vec<(u32, Entry)>) -> Table {
        let wanted = grams.div_ceil(GRAMS_PER_WORD);
        let words = SIZES.into_iter().find(|words| *words >= wanted);
        let words = words.unwrap_or(usize::MAX).min(class.words_max);
        let bucket_bits = grams.next_power_of_two().ilog2().max(1);
        let mut table = Table {
            stride: class.stride,
            width: class.width,
            bitmap: vec![0; words].into(),
            buckets: vec![0; (1 << bucket_bits) + 1].into(),
            bucket_bits,
            entries: Box::default(),
        };
        for (gram, _) in &entries {
            let hash = hash(*gram, table.dropped());
            let word = &mut table.bitmap[word_of(hash, words.ilog2())];
            *word |= 1 << low_bit_of(hash) | 1 << high_bit_of(hash);
        }
        let place =
            |(gram, entry): &(u32, Entry)| (table.bucket_of(*gram), entry.id, entry.gram_at);
        entries.sort_by_key(place);
        // Spellings of one gram that share a bucket would report an occurrence twice.
        entries.dedup_by_key(|entry| place(entry));
        for (gram, _) in &entries {
            table.buckets[table.bucket_of(*gram) + 1] += 1;
        }
        let mut before = 0;
        for bucket in &mut table.buckets {
            before += *bucket;
            *bucket = before;
        }
        table.entries = entries.into_iter().map(|(_, entry)| entry).collect();
        table
    }

    /// Bits of four bytes that are not part of a gram.
    fn dropped(&self) -> u32 {
        32 - 8 * self.width as u32
    }

    fn bucket_of(&self, gram: u32) -> usize {
        let hash = u64::from(gram << self.dropped()).wrapping_mul(OTHER);
        (hash >> (64 - self.bucket_bits)) as usize
    }

    /// Reports the literals whose gram is looked at in `from..to`; `from` is a multiple of 256.
    pub(crate) fn scan(&self, scan: &mut Scan, from: usize, to: usize) -> ControlFlow<()> {
        match (self.stride, self.width) {
            (4, _) => self.scan_class::<4, 256, 0>(scan, from, to),
            (_, 4) => self.scan_class::<2, 130, 0>(scan, from, to),
            (_, _) => self.scan_class::<2, 130, 8>(scan, from, to),
        }
    }

    fn scan_class<const STRIDE: usize, const WINDOW: usize, const DROPPED: u32>(
        &self,
        scan: &mut Scan,
        from: usize,
        to: usize,
    ) -> ControlFlow<()> {
        match self.bitmap.len() {
            0x400 => self.scan_sized::<STRIDE, WINDOW, DROPPED, 0x400>(scan, from, to),
            0x1000 => self.scan_sized::<STRIDE, WINDOW, DROPPED, 0x1000>(scan, from, to),
            0x4000 => self.scan_sized::<STRIDE, WINDOW, DROPPED, 0x4000>(scan, from, to),
            _ => self.scan_sized::<STRIDE, WINDOW, DROPPED, 0x10000>(scan, from, to),
        }
    }

    /// All sizes are constants here, so that the compiler can drop the bounds checks.
    fn scan_sized<
        const STRIDE: usize,
        const WINDOW: usize,
        const DROPPED: u32,
        const WORDS: usize,
    >(
        &self,
        scan: &mut Scan,
        from: usize,
        to: usize,
    ) -> ControlFlow<()> {
        let Some(bitmap) = self.bitmap.first_chunk::<WORDS>() else {
            unreachable!("bitmaps are as large as SIZES say");
        };
        let mut padded = [0; WINDOW];
        for at in (from..to).step_by(STRIDE * LOOKS) {
            let rest = &scan.data[at..];
            let window = rest.first_chunk::<WINDOW>().unwrap_or_else(|| {
                padded[..rest.len()].copy_from_slice(rest);
                padded[rest.len()..].fill(0);
                &padded
            });
            let looks = look::<STRIDE, WINDOW, DROPPED, WORDS>(bitmap, window);
            if looks != 0 {
                self.resolve(scan, at, STRIDE, looks)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Goes from bits to occurrences.
    fn resolve(
        &self,
        scan: &mut Scan,
        base: usize,
        stride: usize,
        mut looks: u64,
    ) -> ControlFlow<()> {
        while looks != 0 {
            let at = base + stride * looks.trailing_zeros() as usize;
            looks &= looks - 1;
            let bucket = self.bucket_of(gram_at(scan.data, at));
            let first = self.buckets[bucket] as usize;
            let end = self.buckets[bucket + 1] as usize;
            for entry in &self.entries[first..end] {
                compare(scan, entry, at)?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// Looks are made in groups of this many; each is a bit of the result.
const LOOKS: usize = 64;
/// The sizes of bitmaps, in words.
const SIZES: [usize; 4] = [1 << 10, 1 << 12, 1 << 14, 1 << 16];
/// Where the bitmap may be as large: one look in 500 passes for no reason.
const GRAMS_PER_WORD: usize = 2;

/// Looks at every `STRIDE`-th position of a window: bit n is set if there may be a gram at
/// `n * STRIDE`.
#[inline(always)]
fn look<const STRIDE: usize, const WINDOW: usize, const DROPPED: u32, const WORDS: usize>(
    bitmap: &[u64; WORDS],
    window: &[u8; WINDOW],
) -> u64 {
    let mut looks = 0;
    for n in (0..LOOKS).rev() {
        let at = n * STRIDE;
        let Some(bytes) = window[at..].first_chunk::<4>() else {
            unreachable!("a window has 3 bytes more than its looks");
        };
        let hash = hash(u32::from_le_bytes(*bytes), DROPPED);
        let word = bitmap[word_of(hash, WORDS.ilog2())];
        let bit = (word >> low_bit_of(hash)) & (word >> high_bit_of(hash)) & 1;
        looks = looks << 1 | bit;
    }
    looks
}

/// The `dropped` high bits of the gram do not count.
#[inline(always)]
fn hash(gram: u32, dropped: u32) -> u64 {
    u64::from(gram << dropped).wrapping_mul(GOLDEN)
}

/// The word of a bitmap of `1 << bits` words.
#[inline(always)]
fn word_of(hash: u64, bits: u32) -> usize {
    (hash >> (64 - bits)) as usize
}

#[inline(always)]
fn low_bit_of(hash: u64) -> u32 {
    (hash >> 36 & 63) as u32
}

#[inline(always)]
fn high_bit_of(hash: u64) -> u32 {
    (hash >> 42 & 63) as u32
}

/// Compares one literal that has the gram at `at` with the data.
#[inline]
fn compare(scan: &mut Scan, entry: &Entry, at: usize) -> ControlFlow<()> {
    let Some(start) = at.checked_sub(usize::from(entry.gram_at)) else {
        return ControlFlow::Continue(());
    };
    let Some(found) = scan.data.get(start..start + usize::from(entry.len)) else {
        return ControlFlow::Continue(());
    };
    if gram_at(found, usize::from(entry.check_at)) | entry.fold != entry.check {
        return ControlFlow::Continue(());
    }
    let pool_at = entry.start as usize;
    let literal = &scan.pool[pool_at..pool_at + usize::from(entry.len)];
    if found == literal || entry.nocase && found.eq_ignore_ascii_case(literal) {
        return (scan.on_hit)(entry.id, start);
    }
    ControlFlow::Continue(())
}
