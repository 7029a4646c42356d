//! Needles: what an agent looks for of a pattern that has no literal worth looking for.
//!
//! A needle is a stretch of a pattern between gaps without bound, as bytes of which some bits
//! count, and gaps. Every match of the pattern has it; what the needle's tokens do not say (which
//! of several branches, which member of a class) makes it occur more often, never less.

use literal_filter::{Needle, NeedleToken as Token};
use regex_syntax::hir::{Class, Hir, HirKind};
use yara_x_parser::ast::{HexSubPattern, HexToken};

use crate::pattern::{Part, rarity};

/// Bits that a needle must have: two bytes.
const BITS_MIN: u32 = 16;
/// Repetitions that are spelt out.
const REPETITIONS_MAX: u32 = 32;

/// A needle of a pattern, and how far a match reaches around the needle's key.
#[derive(Debug, Clone)]
pub(crate) struct NeedlePart {
    pub(crate) needle: Needle,
    /// `None`: any distance.
    pub(crate) before: Option<u64>,
    pub(crate) after: Option<u64>,
    /// Bits that are compared.
    pub(crate) bits: u32,
}

impl NeedlePart {
    /// What lies around the key, as around a literal of no bytes.
    pub(crate) fn around(&self) -> Part {
        Part {
            bytes: Vec::new(),
            nocase: false,
            wide: false,
            before: self.before,
            after: self.after,
        }
    }
}

/// The best needle of a pattern in hex.
pub(crate) fn of_hex(tokens: &HexSubPattern) -> Vec<NeedlePart> {
    let mut draft = Draft::default();
    draft.hex(tokens);
    draft.finish().into_iter().collect()
}

/// The needles of a regular expression in ASCII and wide; none where one of them has none.
pub(crate) fn of_regex(hir: &Hir, ascii: bool, wide: bool) -> Vec<NeedlePart> {
    let mut draft = Draft::default();
    draft.regex(hir);
    draft.variants(ascii, wide)
}

/// Exact strings, each a needle.
pub(crate) fn of_strings<'b>(strings: impl Iterator<Item = &'b [u8]>) -> Vec<NeedlePart> {
    let needles = strings.map(|bytes| {
        let mut draft = Draft::default();
        bytes.iter().for_each(|byte| draft.push(exactly(*byte)));
        draft.finish()
    });
    needles.collect::<Option<_>>().unwrap_or_default()
}

/// The needles of a string.
pub(crate) fn of_text(bytes: &[u8], nocase: bool, ascii: bool, wide: bool) -> Vec<NeedlePart> {
    let mut draft = Draft::default();
    for byte in bytes {
        draft.push(match nocase && byte.is_ascii_alphabetic() {
            true => Token::Byte {
                value: byte & 0xdf,
                mask: 0xdf,
            },
            false => exactly(*byte),
        });
    }
    draft.variants(ascii, wide)
}

fn exactly(value: u8) -> Token {
    Token::Byte { value, mask: 0xff }
}

const ANY: Token = Token::Byte { value: 0, mask: 0 };

/// A pattern as stretches of tokens.
#[derive(Debug, Clone)]
struct Draft {
    stretches: Vec<Vec<Token>>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            stretches: vec![Vec::new()],
        }
    }
}

impl Draft {
    fn push(&mut self, token: Token) {
        if let Some(stretch) = self.stretches.last_mut() {
            stretch.push(token);
        }
    }

    /// Bytes of which only their number is known.
    fn gap(&mut self, least: u64, most: Option<u64>) {
        match (u8::try_from(least), most.map(u8::try_from)) {
            (Ok(least), Some(Ok(most))) if least == most && most <= 8 => {
                (0..most).for_each(|_| self.push(ANY));
            }
            (Ok(least), Some(Ok(most))) => self.push(Token::Gap { least, most }),
            _ => self.stretches.push(Vec::new()),
        }
    }

    fn hex(&mut self, tokens: &HexSubPattern) {
        for token in tokens.iter() {
            match token {
                HexToken::Byte(byte) => self.push(Token::Byte {
                    value: byte.value & byte.mask,
                    mask: byte.mask,
                }),
                HexToken::NotByte(_) => self.push(ANY),
                HexToken::Jump(jump) => {
                    let least = u64::from(jump.start.unwrap_or(0));
                    self.gap(least, jump.end.map(u64::from));
                }
                HexToken::Alternative(alternative) => {
                    let branches = alternative.alternatives.iter().map(|branch| {
                        let mut draft = Self::default();
                        draft.hex(branch);
                        draft
                    });
                    self.branches(branches.collect());
                }
            }
        }
    }

    fn regex(&mut self, hir: &Hir) {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => literal.0.iter().for_each(|b| self.push(exactly(*b))),
            HirKind::Class(class) => match common_bits(class) {
                Some(token) => self.push(token),
                None => self.stretches.push(Vec::new()),
            },
            HirKind::Capture(capture) => self.regex(&capture.sub),
            HirKind::Concat(items) => items.iter().for_each(|item| self.regex(item)),
            HirKind::Alternation(branches) => {
                let branches = branches.iter().map(|branch| {
                    let mut draft = Self::default();
                    draft.regex(branch);
                    draft
                });
                self.branches(branches.collect());
            }
            HirKind::Repetition(repetition) => {
                for _ in 0..repetition.min.min(REPETITIONS_MAX) {
                    self.regex(&repetition.sub);
                }
                if repetition.max == Some(repetition.min) && repetition.min <= REPETITIONS_MAX {
                    return;
                }
                let spelt = repetition.min.min(REPETITIONS_MAX);
                let sub = repetition.sub.properties().maximum_len();
                let rest = repetition.max.map(|max| u64::from(max - spelt));
                let most = rest.zip(sub).and_then(|(n, len)| n.checked_mul(len as u64));
                self.gap(0, most);
            }
        }
    }

    /// One of several: what they have in common where they are equally long.
    fn branches(&mut self, branches: Vec<Self>) {
        let single: Option<Vec<&[Token]>> = branches
            .iter()
            .map(|draft| match draft.stretches.as_slice() {
                [only] => Some(only.as_slice()),
                _ => None,
            })
            .collect();
        let Some(single) = single else {
            self.stretches.push(Vec::new());
            return;
        };
        let plain = |tokens: &&[Token]| tokens.iter().all(|t| matches!(t, Token::Byte { .. }));
        let first = single.first().map_or(0, |tokens| tokens.len());
        if single
            .iter()
            .all(|tokens| tokens.len() == first && plain(tokens))
        {
            for at in 0..first {
                let tokens = single.iter().filter_map(|tokens| tokens.get(at).copied());
                self.push(tokens.reduce(common).unwrap_or(ANY));
            }
            return;
        }
        let bounds = |tokens: &&[Token]| {
            tokens
                .iter()
                .fold((0u64, 0u64), |(least, most), token| match token {
                    Token::Byte { .. } => (least + 1, most + 1),
                    Token::Gap { least: l, most: m } => {
                        (least + u64::from(*l), most + u64::from(*m))
                    }
                })
        };
        let least = single.iter().map(|t| bounds(t).0).min().unwrap_or(0);
        let most = single.iter().map(|t| bounds(t).1).max().unwrap_or(0);
        self.gap(least, Some(most));
    }

    fn variants(self, ascii: bool, wide: bool) -> Vec<NeedlePart> {
        let mut drafts = Vec::new();
        if wide {
            drafts.push(self.widened());
        }
        if ascii {
            drafts.push(self);
        }
        let needles: Option<Vec<_>> = drafts.into_iter().map(Self::finish).collect();
        needles.unwrap_or_default()
    }

    /// A zero behind each byte.
    fn widened(&self) -> Self {
        let mut wide = Self::default();
        for (number, stretch) in self.stretches.iter().enumerate() {
            if number > 0 {
                wide.stretches.push(Vec::new());
            }
            for token in stretch {
                match token {
                    Token::Byte { .. } => {
                        wide.push(*token);
                        wide.push(exactly(0));
                    }
                    Token::Gap { least, most } => {
                        wide.gap(2 * u64::from(*least), Some(2 * u64::from(*most)));
                    }
                }
            }
        }
        wide
    }

    /// The needle that is the rarest.
    fn finish(self) -> Option<NeedlePart> {
        let last = self.stretches.len() - 1;
        let stretches = self.stretches.into_iter().enumerate();
        let of_stretch = |(number, tokens): (usize, Vec<Token>)| {
            let bits = tokens.iter().map(bits).sum();
            let key = key(&tokens)?;
            let needle = Needle::new(tokens, key)?;
            Some(NeedlePart {
                before: (number == 0).then_some(needle.before() as u64),
                after: (number == last).then_some(needle.after() as u64),
                needle,
                bits,
            })
        };
        let found = stretches.filter_map(of_stretch);
        found
            .filter(|part| part.bits >= BITS_MIN)
            .max_by_key(|part| part.bits)
    }
}

/// Where the rarest two bytes next to each other are.
fn key(tokens: &[Token]) -> Option<usize> {
    let places = tokens.windows(2).enumerate().filter_map(|(at, pair)| {
        let [
            Token::Byte { value: a, mask: m },
            Token::Byte { value: b, mask: n },
        ] = *pair
        else {
            return None;
        };
        let loose = i64::from(m.count_zeros() + n.count_zeros());
        let usable = Needle::new(pair.to_vec(), 0).is_some();
        usable.then_some((2 * rarity(&[a, b]) - 2 * loose, at))
    });
    let best = places.max_by_key(|(score, at)| (*score, std::cmp::Reverse(*at)));
    best.map(|(_, at)| at)
}

fn bits(token: &Token) -> u32 {
    match token {
        Token::Byte { mask, .. } => mask.count_ones(),
        Token::Gap { .. } => 0,
    }
}

/// The bits that two tokens agree in.
fn common(a: Token, b: Token) -> Token {
    let (Token::Byte { value: a, mask: m }, Token::Byte { value: b, mask: n }) = (a, b) else {
        return ANY;
    };
    let mask = m & n & !(a ^ b);
    Token::Byte {
        value: a & mask,
        mask,
    }
}

/// The bits that all members of a class agree in; `None`: some are no single bytes.
fn common_bits(class: &Class) -> Option<Token> {
    let ranges: Vec<(u8, u8)> = match class {
        Class::Bytes(class) => class
            .ranges()
            .iter()
            .map(|r| (r.start(), r.end()))
            .collect(),
        Class::Unicode(class) => {
            let ranges = class.ranges().iter();
            ranges
                .map(|r| {
                    let end = u8::try_from(u32::from(r.end())).ok().filter(u8::is_ascii)?;
                    Some((u8::try_from(u32::from(r.start())).ok()?, end))
                })
                .collect::<Option<_>>()?
        }
    };
    let members = ranges.into_iter().flat_map(|(start, end)| start..=end);
    Some(members.map(exactly).reduce(common).unwrap_or(ANY))
}
