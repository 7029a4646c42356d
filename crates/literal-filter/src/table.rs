//! The table of grams, the buckets behind it, the comparison.

use std::ops::ControlFlow;

use byte_sets::{GRAM_MAX, Grams, PLACES_MAX, SPAN, STRIDE, Width};
use rustc_hash::FxHashMap;

use crate::filter::{LITERAL_MIN, Pool, Span};
use crate::grams::{Place, bytes_at};

/// The sizes of tables, as powers of two words of 32 bits. The largest fits into the second-level
/// cache.
const SIZES: [u32; 5] = [9, 11, 13, 15, 17];
/// So many of the places that pass are gone through together: what has to come from memory for
/// them comes at the same time.
const BATCH: usize = 32;
const WIDTHS: usize = Width::ALL.len();
/// Bits of the number of a use.
const FIRST_BITS: u32 = 22;
const FIRST_MASK: u32 = (1 << FIRST_BITS) - 1;
const BUCKET_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// The bits that make letters of either case equal in four bytes.
const CHECK_FOLD: u32 = byte_sets::FOLD as u32;

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
    width: Width,
    len: u8,
    nocase: bool,
}

impl Entry {
    fn new(id: u32, span: &Span, literal: &[u8], place: Place) -> Entry {
        let fold = if span.nocase { CHECK_FOLD } else { 0 };
        let check_at = (0..=literal.len() - 4)
            .max_by_key(|at| place.rarity_beside(literal, *at))
            .unwrap_or(0);
        Entry {
            id,
            start: span.start,
            check: bytes_at(literal, check_at) as u32 | fold,
            fold,
            check_at: check_at as u8,
            gram_at: place.at as i16,
            width: place.width,
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
    width: Width,
}

impl Use {
    /// Of grams of several widths at one place an entry belongs to one.
    fn leads(&self, data: &[u8], met: &Met) -> bool {
        let check = met.at.checked_add_signed(isize::from(self.check_from_gram));
        let is_like = |check| four_at(data, check) | self.fold == self.check;
        self.width == met.width && check.is_some_and(is_like)
    }
}

fn four_at(data: &[u8], at: usize) -> u32 {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or_else(
        || bytes_at(data, at) as u32,
        |four| u32::from_le_bytes(*four),
    )
}

/// How many literals have a gram, and how many grams start with the same four bytes.
#[derive(Default)]
struct Users {
    of_gram: FxHashMap<u64, i32>,
    of_start: FxHashMap<u32, i32>,
}

impl Users {
    fn add(&mut self, gram: u64) {
        let users = self.of_gram.entry(gram).or_default();
        if *users == 0 {
            *self.of_start.entry(gram as u32).or_default() += 1;
        }
        *users += 1;
    }

    /// How bad it is to have the gram once more. Grams that start with the same four bytes share a
    /// word of the table, which too many of them fill.
    fn burden(&self, gram: u64) -> i32 {
        let users = self.of_gram.get(&gram).copied().unwrap_or(0);
        let fellows = self.of_start.get(&(gram as u32)).copied().unwrap_or(0);
        users.saturating_add(fellows.saturating_mul(fellows) / 4)
    }
}

/// Where the gram is that stands for a literal whose first byte is `residue` bytes before a look,
/// modulo the stride: the rarest there, one that starts with rare bytes and is not used much.
fn best_place(literal: &[u8], residue: usize, users: &Users) -> Option<Place> {
    let mut best: Option<(i32, Place)> = None;
    for place in Place::of(literal, residue) {
        let start = place.rarity_of_start(literal).min(START_RARE);
        let worth = place.rarity(literal) + 2 * start;
        let is_best = |worth| best.is_none_or(|(most, _)| worth >= most);
        // A burden only makes it worse.
        if !is_best(worth) {
            continue;
        }
        // What has more than one spelling has no choice.
        let burden = place.gram(literal).map_or(0, |gram| users.burden(gram));
        if is_best(worth - 2 * burden) {
            best = Some((worth - 2 * burden, place));
        }
    }
    best.map(|(_, place)| place)
}

/// Whether a literal cannot be found but by a gram that most files are full of, such as zeros:
/// looking for it makes the filter slow.
#[must_use]
pub fn is_common(literal: &[u8]) -> bool {
    let is_rare = |residue| {
        let place = best_place(literal, residue, &Users::default());
        place.is_some_and(|place| place.rarity(literal) >= RARE_MIN)
    };
    literal.len() < LITERAL_MIN || !(0..STRIDE).all(is_rare)
}

/// Below this, in quarters of a bit, a gram is found everywhere: once in some hundred bytes.
const RARE_MIN: i32 = 4 * 9;
/// From this on, in quarters of a bit, the first four bytes of a gram are rare enough.
const START_RARE: i32 = 4 * 14;

#[derive(Debug, Default)]
pub(crate) struct Table {
    grams: Grams,
    /// By a hash of the gram: the first of its uses in the lower [`FIRST_BITS`], above these a bit
    /// for the tag of each gram. One more than there are hashes.
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

/// A gram that may be at a place.
#[derive(Clone, Copy, Default)]
struct Asked {
    at: usize,
    bucket: usize,
    tag: u32,
    width: Width,
}

/// A gram that is at a place, and the uses that its bucket has.
#[derive(Clone, Copy, Default)]
struct Met {
    at: usize,
    width: Width,
    first: u32,
    end: u32,
}

impl Table {
    pub(crate) fn build(pool: &Pool) -> Table {
        let mut entries: Vec<Entry> = Vec::new();
        // Grams and the entries that they lead to.
        let mut uses: Vec<(u64, u32)> = Vec::new();
        let mut users = Users::default();
        for (id, (span, (literal, _))) in pool.spans.iter().zip(pool.iter()).enumerate() {
            for residue in 0..STRIDE {
                let Some(place) = best_place(literal, residue, &users) else {
                    unreachable!("a literal has {LITERAL_MIN} bytes");
                };
                for gram in place.grams(literal) {
                    users.add(gram);
                    uses.push((gram, entries.len() as u32));
                }
                entries.push(Entry::new(id as u32, span, literal, place));
            }
        }
        Table::from_uses(users.of_gram.len(), uses, entries)
    }

    fn from_uses(grams: usize, mut uses: Vec<(u64, u32)>, entries: Vec<Entry>) -> Table {
        if entries.is_empty() {
            return Table::default();
        }
        let bits = SIZES.into_iter().find(|bits| 1 << bits >= grams);
        let bucket_bits = grams.next_power_of_two().ilog2().clamp(1, 17);
        let mut table = Table {
            grams: Grams::new(bits.unwrap_or(SIZES[SIZES.len() - 1])),
            buckets: vec![0; (1 << bucket_bits) + 1].into(),
            bucket_bits,
            uses: Box::default(),
            entries: entries.into(),
        };
        let bucket = |gram: u64| bucket_of(gram, bucket_bits);
        uses.sort_by_key(|(gram, entry)| (bucket(*gram), *entry));
        for (gram, _) in &uses {
            table.grams.insert(*gram);
            table.buckets[bucket(*gram)] |= tag_of(*gram);
        }
        // Spellings of one gram that share a bucket would report an occurrence twice.
        uses.dedup_by_key(|(gram, entry)| (bucket(*gram), *entry));
        assert!(uses.len() <= FIRST_MASK as usize, "a pool has its limits");
        let mut next = 0;
        for (number, slot) in table.buckets.iter_mut().enumerate() {
            *slot |= next as u32;
            let of_bucket = uses[next..].iter();
            let of_bucket = of_bucket.take_while(|(gram, _)| bucket(*gram) == number);
            next += of_bucket.count();
        }
        let way = |(_, entry): (u64, u32)| {
            let to = &table.entries[entry as usize];
            Use {
                check: to.check,
                fold: to.fold,
                entry,
                check_from_gram: i16::from(to.check_at) - to.gram_at,
                width: to.width,
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
        let mut places = [0; PLACES_MAX];
        let mut base = 0;
        loop {
            let (looked, count) = self.grams.look(&scan.data[base..], &mut places);
            if looked == 0 {
                break;
            }
            self.resolve(scan, base, &places[..count])?;
            base += looked;
        }
        // The rest: less than a span and a gram.
        let rest = &scan.data[base..];
        let mut padded = [0; 2 * SPAN + GRAM_MAX];
        padded[..rest.len()].copy_from_slice(rest);
        let (_, count) = self.grams.look(&padded, &mut places);
        let inside = places[..count].partition_point(|at| (*at as usize) < rest.len());
        self.resolve(scan, base, &places[..inside])
    }

    /// Goes from places, seen from `base`, to occurrences.
    fn resolve(&self, scan: &mut Scan, base: usize, places: &[u32]) -> ControlFlow<()> {
        for places in places.chunks(BATCH) {
            let mut asked = [Asked::default(); BATCH * WIDTHS];
            let count = self.ask(scan.data, base, places, &mut asked);
            let mut met = [Met::default(); BATCH * WIDTHS];
            let count = self.meet(&asked[..count], &mut met);
            for met in &met[..count] {
                self.follow(scan, met)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// The grams that may be at these places, by the table of grams.
    fn ask(&self, data: &[u8], base: usize, places: &[u32], asked: &mut [Asked]) -> usize {
        let mut count = 0;
        for at in places {
            let at = base + *at as usize;
            let bytes = bytes_at(data, at);
            let mut widths = self.grams.at(bytes);
            while widths != 0 {
                let width = Width::ALL[widths.trailing_zeros() as usize];
                let gram = width.of(bytes);
                let bucket = bucket_of(gram, self.bucket_bits);
                byte_sets::fetch(&self.buckets, bucket);
                let tag = tag_of(gram);
                asked[count] = Asked {
                    at,
                    bucket,
                    tag,
                    width,
                };
                count += 1;
                widths &= widths - 1;
            }
        }
        count
    }

    /// Those of the grams that some literal may have, by the tags of their buckets.
    fn meet(&self, asked: &[Asked], met: &mut [Met]) -> usize {
        let mut count = 0;
        for asked in asked {
            let slot = self.buckets[asked.bucket];
            let first = slot & FIRST_MASK;
            byte_sets::fetch(&self.uses, first as usize);
            met[count] = Met {
                at: asked.at,
                width: asked.width,
                first,
                end: self.buckets[asked.bucket + 1] & FIRST_MASK,
            };
            // Without a branch, which would be guessed wrong.
            count += usize::from(slot & asked.tag != 0);
        }
        count
    }

    /// Goes from a gram to occurrences.
    fn follow(&self, scan: &mut Scan, met: &Met) -> ControlFlow<()> {
        for way in &self.uses[met.first as usize..met.end as usize] {
            if way.leads(scan.data, met) {
                compare(scan, &self.entries[way.entry as usize], met.at)?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// By the high bits of a product with an odd number.
fn bucket_of(gram: u64, bits: u32) -> usize {
    (gram.wrapping_mul(BUCKET_FACTOR) >> (64 - bits)) as usize
}

/// One of the bits above [`FIRST_BITS`].
fn tag_of(gram: u64) -> u32 {
    let spread = gram.wrapping_mul(BUCKET_FACTOR) as u32 >> 16;
    1 << (FIRST_BITS + ((spread * (u32::BITS - FIRST_BITS)) >> 16))
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
