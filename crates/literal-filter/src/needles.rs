//! Patterns that have no literal to look for: bytes of which some bits count, and gaps. An agent
//! looks for a few of them besides the literals.
//!
//! A needle is found by its *key*, two neighbouring bytes, and reported where that is. Three bytes
//! around the key, the rarest, are looked up at every position of the data (`spots.rs`); there the
//! needle's tokens are followed as a set of positions.
//!
//! Serialised: `LZND`, a version byte, the number of needles (varint); for each the number of
//! tokens (1 byte), which of them the key starts at (1 byte), and the tokens: a byte of value and
//! one of mask (`0`, value, mask), or a gap (`1`, least, most).

use std::ops::ControlFlow;

use crate::FilterError;
use crate::spots::{Spots, rarity_of_best};
use crate::triples::Effort;
use crate::wire::{Reader, put_varint};

/// Needles of one set.
pub const NEEDLES_MAX: usize = 1 << 14;
/// Tokens of one needle.
pub const TOKENS_MAX: usize = 255;
/// Bytes that a needle reaches on either side of its key.
pub const REACH_MAX: usize = 1 << 10;
/// Byte pairs that the key of one needle may be.
pub const KEYS_MAX: usize = 64;
/// Steps that a scan takes at most for each byte, a step being a token that is tried somewhere.
/// Ordinary content takes less than one; content can be made of which every byte may start many
/// needles, whose gaps have to be followed.
pub const STEPS_MAX: u64 = 16;
/// The same for a scan, however short.
const STEPS_LEAST: u64 = 1 << 16;

const MAGIC: [u8; 5] = *b"LZND\x01";
const WHAT: &str = "needles";

/// A part of a needle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Token {
    /// A byte that has these bits where `mask` has some.
    Byte {
        /// Bits outside of the mask are 0.
        value: u8,
        /// Which bits count.
        mask: u8,
    },
    /// Between so many bytes and so many, both included.
    Gap {
        /// At least.
        least: u8,
        /// At most.
        most: u8,
    },
}

/// Something to look for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Needle {
    pub(crate) tokens: Vec<Token>,
    pub(crate) key: usize,
}

impl Needle {
    /// A needle whose key are the two bytes from token `key` on. `None`: there are none, they may
    /// be too many pairs, or the needle reaches too far.
    #[must_use]
    pub fn new(tokens: Vec<Token>, key: usize) -> Option<Self> {
        let needle = Self { tokens, key };
        let reach = needle.before() <= REACH_MAX && needle.after() <= REACH_MAX;
        let fits = needle.tokens.len() <= TOKENS_MAX && reach;
        let usable = fits && needle.key_pairs().is_some();
        usable.then_some(needle)
    }

    /// Bytes of an occurrence before its key, at most.
    #[must_use]
    pub fn before(&self) -> usize {
        longest(self.tokens.get(..self.key).unwrap_or_default())
    }

    /// Bytes of an occurrence behind the start of its key, at most.
    #[must_use]
    pub fn after(&self) -> usize {
        longest(self.tokens.get(self.key..).unwrap_or_default())
    }

    /// How rare the bytes are that it is looked for by, in quarters of a bit; larger is rarer.
    #[must_use]
    pub fn rarity(&self) -> i32 {
        rarity_of_best(self)
    }

    /// The byte pairs that the key may be.
    fn key_pairs(&self) -> Option<Vec<u16>> {
        let [
            Token::Byte { value: a, mask: m },
            Token::Byte { value: b, mask: n },
        ] = *self.tokens.get(self.key..self.key.checked_add(2)?)?
        else {
            return None;
        };
        let count = (m.count_zeros() + n.count_zeros()).min(16);
        if 1usize << count > KEYS_MAX {
            return None;
        }
        let of = |value: u8, mask: u8| (0..=255u8).filter(move |byte| byte & mask == value);
        let pairs = of(a, m).flat_map(|a| of(b, n).map(move |b| u16::from_le_bytes([a, b])));
        Some(pairs.collect())
    }

    /// Whether it is there with its key at `at`; adds to `steps` what it took to find out.
    fn is_at(&self, data: &[u8], at: usize, steps: &mut u64) -> bool {
        let (before, after) = self.tokens.split_at(self.key);
        let rest = data.get(at..).unwrap_or_default();
        let head = data.get(..at).unwrap_or_default();
        follows(after.iter(), |n| rest.get(n).copied(), steps)
            && follows(
                before.iter().rev(),
                |n| {
                    let at = head.len().checked_sub(n + 1)?;
                    head.get(at).copied()
                },
                steps,
            )
    }
}

/// Whether the tokens follow each other; `byte` gives the bytes in their direction.
fn follows<'t>(
    mut tokens: impl Iterator<Item = &'t Token>,
    byte: impl Fn(usize) -> Option<u8>,
    steps: &mut u64,
) -> bool {
    let mut at = 0;
    while let Some(token) = tokens.next() {
        *steps += 1;
        match *token {
            Token::Byte { value, mask } if byte(at).is_some_and(|b| b & mask == value) => at += 1,
            Token::Byte { .. } => return false,
            // From here on there may be several ways.
            Token::Gap { .. } => {
                let rest = std::iter::once(token).chain(tokens);
                return follows_somehow(at, rest, byte, steps);
            }
        }
    }
    true
}

fn follows_somehow<'t>(
    start: usize,
    tokens: impl Iterator<Item = &'t Token>,
    byte: impl Fn(usize) -> Option<u8>,
    steps: &mut u64,
) -> bool {
    // Where the next token may start.
    let mut here = vec![start];
    for token in tokens {
        *steps += here.len() as u64;
        match *token {
            Token::Byte { value, mask } => {
                here.retain(|at| byte(*at).is_some_and(|byte| byte & mask == value));
                here.iter_mut().for_each(|at| *at += 1);
            }
            Token::Gap { least, most } => {
                let (least, most) = (usize::from(least), usize::from(most));
                let mut next: Vec<usize> = Vec::with_capacity(here.len() + most - least);
                for at in &here {
                    let from = next.last().map_or(0, |last| last + 1).max(at + least);
                    // The last byte of a gap has to be there.
                    let there =
                        (from..=at + most).take_while(|end| *end == 0 || byte(end - 1).is_some());
                    next.extend(there);
                }
                here = next;
            }
        }
        if here.is_empty() {
            return false;
        }
    }
    true
}

fn longest(tokens: &[Token]) -> usize {
    let lengths = tokens.iter().map(|token| match token {
        Token::Byte { .. } => 1,
        Token::Gap { most, .. } => usize::from(*most),
    });
    lengths.sum()
}

/// A fixed set of needles.
#[derive(Debug, Default)]
pub struct Needles {
    list: Vec<Needle>,
    spots: Spots,
    reach: usize,
}

impl Needles {
    /// Makes the table of keys. A needle's id is its index.
    ///
    /// # Errors
    /// There are more than [`NEEDLES_MAX`].
    pub fn build(list: Vec<Needle>) -> Result<Self, FilterError> {
        Self::built(list, Effort::Lasting)
    }

    /// The same in little time, for one scan: that may take a little longer.
    ///
    /// # Errors
    /// There are more than [`NEEDLES_MAX`].
    pub fn build_for_once(list: Vec<Needle>) -> Result<Self, FilterError> {
        Self::built(list, Effort::Once)
    }

    fn built(list: Vec<Needle>, effort: Effort) -> Result<Self, FilterError> {
        if list.len() > NEEDLES_MAX {
            return Err(FilterError::TooMany {
                count: list.len() as u64,
            });
        }
        let spots = Spots::build(&list, effort);
        let reach = list.iter().map(|n| n.before().max(n.after())).max();
        Ok(Self {
            list,
            spots,
            reach: reach.unwrap_or(0),
        })
    }

    /// The same set with others, whose ids follow.
    ///
    /// # Errors
    /// There are more than [`NEEDLES_MAX`].
    pub fn with(&self, others: impl IntoIterator<Item = Needle>) -> Result<Self, FilterError> {
        Self::build(self.list.iter().cloned().chain(others).collect())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How far a needle reaches on either side of its key at most, in bytes.
    #[must_use]
    pub fn reach(&self) -> usize {
        self.reach
    }

    /// Reports each place in `from..to` where the key of a needle is that is whole in the data, as
    /// the needle's id and that place.
    ///
    /// Returns `Break` as soon as `on_hit` does, or where this takes more than [`STEPS_MAX`] steps
    /// a byte: there may be more then that was not looked for.
    pub fn scan(
        &self,
        data: &[u8],
        from: usize,
        to: usize,
        on_hit: &mut dyn FnMut(u32, usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.list.is_empty() {
            return ControlFlow::Continue(());
        }
        let bytes = to.min(data.len()).saturating_sub(from) as u64;
        let most = bytes.saturating_mul(STEPS_MAX).max(STEPS_LEAST);
        let mut steps = 0;
        self.spots.scan(data, from, to, &mut |id, at| {
            if self.list[id as usize].is_at(data, at, &mut steps) {
                on_hit(id, at)?;
            }
            match steps > most {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
    }

    /// The set for storage and transport.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, self.list.len() as u64);
        for needle in &self.list {
            out.extend([needle.tokens.len() as u8, needle.key as u8]);
            for token in &needle.tokens {
                out.extend(match *token {
                    Token::Byte { value, mask } => [0, value, mask],
                    Token::Gap { least, most } => [1, least, most],
                });
            }
        }
        out
    }

    /// Reads [`Self::to_bytes`].
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FilterError> {
        let mut reader = Reader {
            what: WHAT,
            bytes,
            at: 0,
        };
        reader.magic(MAGIC)?;
        let count = reader.count()?;
        let mut list = Vec::new();
        for _ in 0..count {
            let at = reader.at;
            let tokens = reader.byte("a number of tokens")?;
            let key = reader.byte("a key")?;
            let read = |reader: &mut Reader<'_>| {
                let at = reader.at;
                let [kind, a, b] = *reader.take(3, "a token")? else {
                    return Err(reader.bad("token", at, 0));
                };
                match kind {
                    0 if a & !b == 0 => Ok(Token::Byte { value: a, mask: b }),
                    1 if a <= b => Ok(Token::Gap { least: a, most: b }),
                    _ => Err(reader.bad("token", at, u64::from(kind))),
                }
            };
            let tokens = (0..tokens).map(|_| read(&mut reader));
            let tokens: Vec<Token> = tokens.collect::<Result<_, _>>()?;
            let needle = Needle::new(tokens, usize::from(key));
            list.push(needle.ok_or_else(|| reader.bad("needle", at, u64::from(key)))?);
        }
        reader.end()?;
        Self::build(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(value: u8) -> Token {
        Token::Byte { value, mask: 0xff }
    }

    fn gap(least: u8, most: u8) -> Token {
        Token::Gap { least, most }
    }

    fn hits(needles: &Needles, data: &[u8]) -> Vec<(u32, usize)> {
        let mut found = Vec::new();
        let _ = needles.scan(data, 0, data.len(), &mut |id, at| {
            found.push((id, at));
            ControlFlow::Continue(())
        });
        found
    }

    /// The same by trying everything.
    fn is_at(tokens: &[Token], data: &[u8], at: usize) -> bool {
        match tokens.split_first() {
            None => true,
            Some((Token::Byte { value, mask }, rest)) => {
                data.get(at).is_some_and(|b| b & mask == *value) && is_at(rest, data, at + 1)
            }
            Some((Token::Gap { least, most }, rest)) => (*least..=*most).any(|gap| {
                let end = at + usize::from(gap);
                end <= data.len() && is_at(rest, data, end)
            }),
        }
    }

    #[test]
    fn needles_are_found_by_their_keys() {
        let nocase = Token::Byte {
            value: b'A',
            mask: 0xdf,
        };
        let list = vec![
            Needle::new(
                vec![
                    byte(b'x'),
                    gap(1, 3),
                    byte(b'k'),
                    byte(b'y'),
                    gap(0, 2),
                    byte(b'z'),
                ],
                2,
            )
            .unwrap(),
            Needle::new(vec![nocase, byte(b'b'), gap(2, 2)], 0).unwrap(),
        ];
        let needles = Needles::build(list).unwrap();
        assert_eq!(hits(&needles, b"x.ky..z"), [(0, 2)]);
        assert_eq!(hits(&needles, b"xkyz x....kyz"), []);
        assert_eq!(
            hits(&needles, b"x...kyz x.ky...z abc Abcd"),
            [(0, 4), (1, 17), (1, 21)]
        );
        assert_eq!(hits(&needles, b"ab."), [], "its end is missing");
        assert_eq!((needles.reach(), needles.len()), (5, 2));
        let other = Needle::new(vec![byte(b'.'), byte(b'z')], 1);
        assert!(other.is_none(), "its key is one byte");
        let other = Needle::new(vec![byte(b'.'), byte(b'z')], 0).unwrap();
        let more = needles.with([other]).unwrap();
        assert_eq!(hits(&more, b"x.ky..z"), [(0, 2), (2, 5)]);
    }

    #[test]
    fn content_made_to_take_long_is_given_up() {
        // From each `a` on there are 256 ways to each of the next ones, and no end to any.
        let mut tokens = vec![byte(b'a'), byte(b'a')];
        tokens.extend([gap(0, 255), byte(b'a'), gap(0, 255), byte(b'a'), byte(b'b')]);
        let needle = Needle::new(tokens, 0).unwrap();
        let needles = Needles::build(vec![needle]).unwrap();
        let scan = |data: &[u8]| needles.scan(data, 0, data.len(), &mut |_, _| unreachable!());
        assert!(scan(&[b'a'; 100_000]).is_break());
        // Fewer than it is worth giving up for.
        assert!(scan(&[b'a'; 50]).is_continue());
        assert!(scan(&b"a.".repeat(50_000)).is_continue());
    }

    #[test]
    fn as_by_trying_everything() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..3000 {
            let mut tokens = vec![byte(b'a'), byte(b'b')];
            let key = random(3) as usize;
            for place in [0usize; 3].into_iter().take(key) {
                let token = if random(2) == 0 {
                    byte(b'a' + random(3) as u8)
                } else {
                    gap(random(2) as u8, 1 + random(3) as u8)
                };
                tokens.insert(place, token);
            }
            for _ in 0..random(4) {
                tokens.push(if random(2) == 0 {
                    byte(b'a' + random(3) as u8)
                } else {
                    gap(random(2) as u8, 1 + random(3) as u8)
                });
            }
            let data: Vec<u8> = (0..random(14)).map(|_| b'a' + random(3) as u8).collect();
            let needles = Needles::build(vec![Needle::new(tokens.clone(), key).unwrap()]).unwrap();
            let expected = (0..data.len()).any(|at| is_at(&tokens, &data, at));
            assert_eq!(
                !hits(&needles, &data).is_empty(),
                expected,
                "{tokens:?} {data:?}"
            );
        }
    }

    /// Long data, several needles, bytes of which not all bits count; each place just once.
    #[test]
    fn every_place_in_a_window_is_told_once() {
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..400 {
            let mut list = Vec::new();
            for _ in 0..1 + random(12) {
                let tokens = (0..2 + random(5)).map(|_| match random(8) {
                    0 => gap(random(2) as u8, 1 + random(3) as u8),
                    1 => Token::Byte {
                        value: b'A',
                        mask: 0xdf,
                    },
                    _ => byte(b'a' + random(4) as u8),
                });
                let tokens: Vec<Token> = tokens.collect();
                let key = random(tokens.len() as u64) as usize;
                list.extend(Needle::new(tokens, key));
            }
            let letters = b"abcdA";
            let data: Vec<u8> = (0..random(700))
                .map(|_| letters[random(5) as usize])
                .collect();
            let from = random(data.len() as u64 + 1) as usize;
            let to = from + random((data.len() - from) as u64 + 1) as usize;
            let mut expected = Vec::new();
            for (needle, id) in list.iter().zip(0..) {
                let there = (from..to.min(data.len().saturating_sub(1)))
                    .filter(|at| needle.is_at(&data, *at, &mut 0));
                expected.extend(there.map(|at| (id, at)));
            }
            expected.sort_unstable();
            let mut needles = Needles::build(list).unwrap();
            // As this processor does it, and as one without vector instructions.
            for _ in 0..2 {
                let mut found = Vec::new();
                let _ = needles.scan(&data, from, to, &mut |id, at| {
                    found.push((id, at));
                    ControlFlow::Continue(())
                });
                found.sort_unstable();
                assert_eq!(found, expected);
                needles.spots.forget_sets();
            }
        }
    }

    #[test]
    fn what_is_sent_is_read_and_nothing_else() {
        let list = vec![
            Needle::new(vec![byte(1), gap(0, 9), byte(2), byte(3)], 2).unwrap(),
            Needle::new(
                vec![
                    byte(7),
                    Token::Byte {
                        value: 0x10,
                        mask: 0xf0,
                    },
                ],
                0,
            )
            .unwrap(),
        ];
        let bytes = Needles::build(list.clone()).unwrap().to_bytes();
        assert_eq!(Needles::from_bytes(&bytes).unwrap().list, list);
        for end in 0..bytes.len() {
            assert!(Needles::from_bytes(&bytes[..end]).is_err());
        }
        let mut more = bytes.clone();
        more.push(0);
        assert!(Needles::from_bytes(&more).is_err());
        // A mask that the value leaves, a gap that ends before it starts, a key that is none.
        // The first needle: 6 tokens, 7 key, 8.. its tokens of three bytes each.
        for (at, value) in [(10, 0), (12, 10), (7, 0), (6, 5), (8, 2)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert!(Needles::from_bytes(&bad).is_err(), "{at}");
        }
    }

    #[test]
    fn what_cannot_be_found_is_no_needle() {
        assert!(
            Needle::new(vec![byte(1), gap(0, 1), byte(2)], 0).is_none(),
            "no key"
        );
        let any = Token::Byte { value: 0, mask: 0 };
        assert!(
            Needle::new(vec![byte(1), any], 0).is_none(),
            "too many keys"
        );
        let far = std::iter::repeat_n(gap(0, 255), 5);
        assert!(Needle::new([byte(1), byte(2)].into_iter().chain(far).collect(), 0).is_none());
        assert!(Needle::new(vec![byte(1), byte(2)], 1).is_none());
    }
}
