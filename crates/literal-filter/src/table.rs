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
    /// The size of the largest bitmap, as a power of two, in bits.
    max_bits: u32,
}

/// The classes. The bitmaps of all together should fit into the second-level cache.
pub(crate) const CLASSES: [Class; 2] = [
    Class {
        min: 7,
        max: 255,
        stride: 4,
        width: 4,
        max_bits: 22,
    },
    Class {
        min: 4,
        max: 6,
        stride: 2,
        width: 3,
        max_bits: 18,
    },
];

/// Bits of the bitmap for each gram, at least.
const BITS_PER_GRAM: usize = 32;
/// 2^32 divided by the golden ratio, odd: Knuth's multiplicative hash.
const GOLDEN: u32 = 0x9e37_79b1;
/// Another odd multiplier, so that what collides in the bitmap does not collide in the buckets.
const OTHER: u32 = 0x85eb_ca6b;

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

/// A slot of the open hash table; `count` is 0 in an empty one.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    gram: u32,
    first: u32,
    count: u32,
}

#[derive(Debug)]
pub(crate) struct Table {
    stride: usize,
    width: usize,
    /// The bitmap has `1 << bits` bits.
    bits: u32,
    bitmap: Box<[u64]>,
    /// `1 << slot_bits` slots, at most half of them in use.
    slots: Box<[Slot]>,
    slot_bits: u32,
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
        entries.sort_by_key(|(gram, entry)| (*gram, entry.id, entry.gram_at));
        let wanted = (grams * BITS_PER_GRAM).next_power_of_two().ilog2();
        let bits = SIZES
            .into_iter()
            .find(|bits| *bits >= wanted)
            .unwrap_or(u32::MAX);
        let bits = bits.min(class.max_bits);
        let slot_bits = (grams * 2).next_power_of_two().ilog2().max(1);
        let mut table = Table {
            stride: class.stride,
            width: class.width,
            bits,
            bitmap: vec![0; 1 << (bits - 6)].into(),
            slots: vec![Slot::default(); 1 << slot_bits].into(),
            slot_bits,
            entries: entries.iter().map(|(_, entry)| *entry).collect(),
        };
        let mut first = 0;
        for run in entries.chunk_by(|a, b| a.0 == b.0) {
            let gram = run[0].0;
            let hash = gram.wrapping_mul(table.multiplier()) >> (32 - bits);
            table.bitmap[(hash >> 6) as usize] |= 1 << (hash & 63);
            let mut at = table.slot_of(gram);
            while table.slots[at].count > 0 {
                at = (at + 1) & (table.slots.len() - 1);
            }
            table.slots[at] = Slot {
                gram,
                first,
                count: run.len() as u32,
            };
            first += run.len() as u32;
        }
        table
    }

    /// The high bytes that are not part of a gram fall out of the product.
    fn multiplier(&self) -> u32 {
        GOLDEN << (32 - 8 * self.width as u32)
    }

    fn slot_of(&self, gram: u32) -> usize {
        (gram.wrapping_mul(OTHER) >> (32 - self.slot_bits)) as usize
    }

    /// Reports the literals whose gram is looked at in `from..to`; `from` is a multiple of 256.
    pub(crate) fn scan(&self, scan: &mut Scan, from: usize, to: usize) -> ControlFlow<()> {
        match self.stride {
            4 => self.scan_stride::<4, 256>(scan, from, to),
            _ => self.scan_stride::<2, 130>(scan, from, to),
        }
    }

    fn scan_stride<const STRIDE: usize, const WINDOW: usize>(
        &self,
        scan: &mut Scan,
        from: usize,
        to: usize,
    ) -> ControlFlow<()> {
        match self.bits {
            16 => self.scan_sized::<STRIDE, WINDOW, 16, { 1 << 10 }>(scan, from, to),
            18 => self.scan_sized::<STRIDE, WINDOW, 18, { 1 << 12 }>(scan, from, to),
            20 => self.scan_sized::<STRIDE, WINDOW, 20, { 1 << 14 }>(scan, from, to),
            _ => self.scan_sized::<STRIDE, WINDOW, 22, { 1 << 16 }>(scan, from, to),
        }
    }

    /// All sizes are constants here, so that the compiler can drop the bounds checks.
    fn scan_sized<const STRIDE: usize, const WINDOW: usize, const BITS: u32, const WORDS: usize>(
        &self,
        scan: &mut Scan,
        from: usize,
        to: usize,
    ) -> ControlFlow<()> {
        let Some(bitmap) = self.bitmap.first_chunk::<WORDS>() else {
            unreachable!("a bitmap of {BITS} bits has {WORDS} words");
        };
        let multiplier = self.multiplier();
        let mut padded = [0; WINDOW];
        for at in (from..to).step_by(STRIDE * LOOKS) {
            let rest = &scan.data[at..];
            let window = rest.first_chunk::<WINDOW>().unwrap_or_else(|| {
                padded[..rest.len()].copy_from_slice(rest);
                padded[rest.len()..].fill(0);
                &padded
            });
            let looks = look::<STRIDE, WINDOW, BITS, WORDS>(bitmap, window, multiplier);
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
        let keep = u32::MAX >> (32 - 8 * self.width);
        while looks != 0 {
            let at = base + stride * looks.trailing_zeros() as usize;
            looks &= looks - 1;
            let gram = gram_at(scan.data, at) & keep;
            let mut slot = self.slot_of(gram);
            loop {
                let Slot {
                    gram: found,
                    first,
                    count,
                } = self.slots[slot];
                if count == 0 {
                    break;
                }
                if found == gram {
                    let first = first as usize;
                    for entry in &self.entries[first..first + count as usize] {
                        compare(scan, entry, at)?;
                    }
                    break;
                }
                slot = (slot + 1) & (self.slots.len() - 1);
            }
        }
        ControlFlow::Continue(())
    }
}

/// Looks are made in groups of this many; each is a bit of the result.
const LOOKS: usize = 64;
/// The sizes of bitmaps, as powers of two.
const SIZES: [u32; 4] = [16, 18, 20, 22];

/// Looks at every `STRIDE`-th position of a window: bit n is set if there may be a gram at
/// `n * STRIDE`.
#[inline(always)]
fn look<const STRIDE: usize, const WINDOW: usize, const BITS: u32, const WORDS: usize>(
    bitmap: &[u64; WORDS],
    window: &[u8; WINDOW],
    multiplier: u32,
) -> u64 {
    let mut looks = 0;
    for n in (0..LOOKS).rev() {
        let at = n * STRIDE;
        let Some(bytes) = window[at..].first_chunk::<4>() else {
            unreachable!("a window has 3 bytes more than its looks");
        };
        let gram = u32::from_le_bytes(*bytes);
        let hash = gram.wrapping_mul(multiplier) >> (32 - BITS);
        let bit = bitmap[(hash >> 6) as usize] >> (hash & 63) & 1;
        looks = looks << 1 | bit;
    }
    looks
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
