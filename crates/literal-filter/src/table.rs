//! The bitmap of grams, the buckets behind it, the comparison.

use std::ops::ControlFlow;

use rustc_hash::FxHashMap;

use crate::filter::{LITERAL_MIN, Pool, Span};
use crate::grams::{FOLD, Place, WIDTH, gram_at, rarity};

/// Every fourth position is looked at.
const STRIDE: usize = 4;
/// Looks are made in groups of this many; each is a bit of the result.
const LOOKS: usize = 64;
/// Bytes that a group of looks reads.
const WINDOW: usize = LOOKS * STRIDE;
const _: () = assert!(STRIDE == WIDTH, "a look reads the bytes up to the next");

/// The sizes of bitmaps, in words. The largest fits into the second-level cache.
const SIZES: [usize; 4] = [1 << 10, 1 << 12, 1 << 14, 1 << 16];
/// Where the bitmap may be as large: then one look in some hundreds passes for no reason.
const GRAMS_PER_WORD: usize = 2;

/// Odd multipliers that spread a gram over its high bits: one for the word of the bitmap, one for
/// its bits in the word, one for the bucket.
const WORD_FACTOR: u32 = 0x9e37_79b1;
const BITS_FACTOR: u32 = 0x85eb_ca6b;
const BUCKET_FACTOR: u32 = 0xc2b2_ae3d;

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
    /// Where the gram is, seen from the literal's first byte.
    gram_at: i16,
    len: u8,
    nocase: bool,
}

impl Entry {
    fn new(id: u32, span: &Span, literal: &[u8], place: Place) -> Entry {
        let fold = if span.nocase { FOLD } else { 0 };
        // Far from the gram, which is known to match.
        let worth = |at: &usize| {
            let far = (*at as i32).abs_diff(place.0).min(4) as i32;
            rarity(&literal[*at..*at + 4]) + 16 * far
        };
        let check_at = (0..=literal.len() - 4).max_by_key(worth).unwrap_or(0);
        Entry {
            id,
            start: span.start,
            check: gram_at(literal, check_at) | fold,
            fold,
            check_at: check_at as u8,
            gram_at: place.0 as i16,
            len: span.len,
            nocase: span.nocase,
        }
    }
}

/// A gram's way to an entry, with what is compared first: most ways end here.
#[derive(Clone, Copy, Debug)]
struct Use {
    /// Four bytes of the literal, `fold` set.
    check: u32,
    fold: u32,
    entry: u32,
    /// Where the bytes are, seen from the gram.
    check_from_gram: i16,
}

impl Use {
    fn leads(&self, data: &[u8], at: usize) -> bool {
        let check = at.checked_add_signed(isize::from(self.check_from_gram));
        check.is_some_and(|check| gram_at(data, check) | self.fold == self.check)
    }
}

/// Where the gram is that stands for a literal whose first byte is `residue` bytes before a look,
/// modulo the stride: the rarest there, and one that is not used much.
fn best_place(literal: &[u8], residue: usize, users: &FxHashMap<u32, i32>) -> Place {
    let inside = (residue..=literal.len() - WIDTH).step_by(STRIDE);
    let best = inside.map(|at| Place(at as i32)).max_by_key(|place| {
        let gram = gram_at(literal, place.0 as usize) | FOLD;
        place.rarity(literal) - 2 * users.get(&gram).copied().unwrap_or(0)
    });
    // A short literal has to do with a gram that lies across one of its ends.
    best.unwrap_or_else(|| {
        let behind = Place(residue as i32);
        let before = Place(behind.0 - STRIDE as i32);
        let worth = |place: &Place| (place.known(literal).len(), place.rarity(literal));
        [before, behind]
            .into_iter()
            .max_by_key(worth)
            .unwrap_or(behind)
    })
}

/// Whether a literal cannot be found but by a gram that most files are full of, such as zeros:
/// looking for it makes the filter slow.
#[must_use]
pub fn is_common(literal: &[u8]) -> bool {
    literal.len() < LITERAL_MIN
        || (0..STRIDE).any(|residue| {
            best_place(literal, residue, &FxHashMap::default()).rarity(literal) < RARE_MIN
        })
}

/// Below this, in quarters of a bit, a gram is found everywhere: once in some hundred bytes.
const RARE_MIN: i32 = 4 * 9;

#[derive(Debug, Default)]
pub(crate) struct Table {
    /// A word for some of the grams, of which each sets three bits there.
    bitmap: Box<[u64]>,
    /// By a hash of the gram: the first of its uses. One more than there are hashes.
    buckets: Box<[u32]>,
    bucket_bits: u32,
    /// In the order of the hashes.
    uses: Box<[Use]>,
    entries: Box<[Entry]>,
}

/// What a scan works on.
pub(crate) struct Scan<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) pool: &'a [u8],
    pub(crate) on_hit: &'a mut dyn FnMut(u32, usize) -> ControlFlow<()>,
}

impl Table {
    pub(crate) fn build(pool: &Pool) -> Table {
        let mut entries: Vec<Entry> = Vec::new();
        // Grams and the entries that they lead to.
        let mut uses: Vec<(u32, u32)> = Vec::new();
        let mut users: FxHashMap<u32, i32> = FxHashMap::default();
        for (id, (span, (literal, _))) in pool.spans.iter().zip(pool.iter()).enumerate() {
            for residue in 0..STRIDE {
                let place = best_place(literal, residue, &users);
                for gram in place.grams(literal) {
                    *users.entry(gram).or_default() += 1;
                    uses.push((gram, entries.len() as u32));
                }
                entries.push(Entry::new(id as u32, span, literal, place));
            }
        }
        Table::from_uses(users.len(), uses, entries)
    }

    fn from_uses(grams: usize, mut uses: Vec<(u32, u32)>, entries: Vec<Entry>) -> Table {
        let wanted = grams.div_ceil(GRAMS_PER_WORD);
        let words = SIZES.into_iter().find(|words| *words >= wanted);
        let words = words.unwrap_or(SIZES[SIZES.len() - 1]);
        let bucket_bits = grams.next_power_of_two().ilog2().clamp(1, 17);
        let mut table = Table {
            bitmap: vec![0; words].into(),
            buckets: vec![0; (1 << bucket_bits) + 1].into(),
            bucket_bits,
            uses: Box::default(),
            entries: entries.into(),
        };
        for (gram, _) in &uses {
            table.bitmap[word_of(*gram, words.ilog2())] |= MASKS[mask_of(*gram)];
        }
        let bucket = |gram: u32| bucket_of(gram, bucket_bits);
        uses.sort_by_key(|(gram, entry)| (bucket(*gram), *entry));
        // Spellings of one gram that share a bucket would report an occurrence twice.
        uses.dedup_by_key(|(gram, entry)| (bucket(*gram), *entry));
        for (gram, _) in &uses {
            table.buckets[bucket(*gram) + 1] += 1;
        }
        let mut before = 0;
        for bucket in &mut table.buckets {
            before += *bucket;
            *bucket = before;
        }
        let way = |(_, entry): (u32, u32)| {
            let to = &table.entries[entry as usize];
            Use {
                check: to.check,
                fold: to.fold,
                entry,
                check_from_gram: i16::from(to.check_at) - to.gram_at,
            }
        };
        table.uses = uses.into_iter().map(way).collect();
        table
    }

    /// Reports the literals whose gram is looked at in `data`.
    pub(crate) fn scan(&self, scan: &mut Scan) -> ControlFlow<()> {
        if self.entries.is_empty() {
            return ControlFlow::Continue(());
        }
        match self.bitmap.len() {
            0x400 => self.scan_sized::<0x400>(scan),
            0x1000 => self.scan_sized::<0x1000>(scan),
            0x4000 => self.scan_sized::<0x4000>(scan),
            _ => self.scan_sized::<0x10000>(scan),
        }
    }

    /// All sizes are constants here, so that the compiler can drop the bounds checks.
    fn scan_sized<const WORDS: usize>(&self, scan: &mut Scan) -> ControlFlow<()> {
        let Some(bitmap) = self.bitmap.first_chunk::<WORDS>() else {
            unreachable!("bitmaps are as large as SIZES say");
        };
        let (windows, rest) = scan.data.as_chunks::<WINDOW>();
        let mut base = 0;
        for window in windows {
            let looks = look(bitmap, window);
            if looks != 0 {
                self.resolve(scan, base, looks)?;
            }
            base += WINDOW;
        }
        let mut padded = [0; WINDOW];
        padded[..rest.len()].copy_from_slice(rest);
        let beyond = u64::MAX.unbounded_shl(rest.len().div_ceil(STRIDE) as u32);
        self.resolve(scan, base, look(bitmap, &padded) & !beyond)
    }

    /// Goes from bits to occurrences.
    fn resolve(&self, scan: &mut Scan, base: usize, mut looks: u64) -> ControlFlow<()> {
        while looks != 0 {
            let at = base + STRIDE * looks.trailing_zeros() as usize;
            looks &= looks - 1;
            let bucket = bucket_of(gram_at(scan.data, at) | FOLD, self.bucket_bits);
            let first = self.buckets[bucket] as usize;
            let end = self.buckets[bucket + 1] as usize;
            for way in &self.uses[first..end] {
                if way.leads(scan.data, at) {
                    compare(scan, &self.entries[way.entry as usize], at)?;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// Looks at every fourth position of a window: bit n is set if there may be a gram at 4 * n.
#[inline(always)]
fn look<const WORDS: usize>(bitmap: &[u64; WORDS], window: &[u8; WINDOW]) -> u64 {
    let (grams, _) = window.as_chunks::<STRIDE>();
    let mut looks = 0;
    for bytes in grams.iter().rev() {
        let gram = u32::from_le_bytes(*bytes) | FOLD;
        let word = bitmap[word_of(gram, WORDS.ilog2())];
        let mask = MASKS[mask_of(gram)];
        looks = looks << 1 | u64::from(word & mask == mask);
    }
    looks
}

/// The word of a bitmap of `1 << bits` words.
#[inline(always)]
fn word_of(gram: u32, bits: u32) -> usize {
    (gram.wrapping_mul(WORD_FACTOR) >> (32 - bits)) as usize
}

/// Which of [`MASKS`] has the bits of a gram.
#[inline(always)]
fn mask_of(gram: u32) -> usize {
    (gram.wrapping_mul(BITS_FACTOR) >> 24) as usize
}

/// Words with some three bits each: a table is faster than shifts.
static MASKS: [u64; 256] = {
    let mut masks = [0; 256];
    let (mut index, mut state) = (0, 1u64);
    while index < masks.len() {
        // Knuth's linear congruential generator, as good as any.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mask: u64 = 1 << (state >> 58) | 1 << (state >> 52 & 63) | 1 << (state >> 46 & 63);
        // Three different ones.
        if mask.count_ones() == 3 {
            masks[index] = mask;
            index += 1;
        }
    }
    masks
};

fn bucket_of(gram: u32, bits: u32) -> usize {
    (gram.wrapping_mul(BUCKET_FACTOR) >> (32 - bits)) as usize
}

/// Compares one literal that may have a gram at `at` with the data.
#[inline]
fn compare(scan: &mut Scan, entry: &Entry, at: usize) -> ControlFlow<()> {
    let Some(start) = at.checked_add_signed(-isize::from(entry.gram_at)) else {
        return ControlFlow::Continue(());
    };
    let Some(found) = scan.data.get(start..start + usize::from(entry.len)) else {
        return ControlFlow::Continue(());
    };
    let pool_at = entry.start as usize;
    let literal = &scan.pool[pool_at..pool_at + usize::from(entry.len)];
    if found == literal || entry.nocase && found.eq_ignore_ascii_case(literal) {
        return (scan.on_hit)(entry.id, start);
    }
    ControlFlow::Continue(())
}
