//! Patterns: which literals must occur for a pattern to match, and how far a match reaches.

use literal_filter::{LITERAL_MAX, LITERAL_MIN, is_common};
use memchr::memmem;
use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::hir::translate::TranslatorBuilder;
use regex_syntax::hir::{Class, Hir, HirKind};
use yara_x_parser::ast::{Pattern, PatternModifier, RegexpPattern, TextPattern};

use crate::gate::literal_cost;
use crate::hex::{self, EFFORT_MAX, Verifier};
use crate::needle::{self, NeedlePart};

/// Literals of one pattern, beyond which the filter does not look for it.
const LITERALS_MAX: usize = 1024;
/// Bytes of a literal that the filter looks for at no cost to speak of.
const LONG: usize = 11;
/// As many of these one pattern may have.
const LONG_MAX: usize = 16;
/// Literals of one pattern that are looked for one by one where content is at hand.
const SEARCHES_MAX: usize = 12;
/// Literals of one regular expression.
const REGEX_LITERALS_MAX: usize = 64;
/// Members of a class that is spelt out.
const CLASS_MAX: u64 = 8;
/// Repetitions that are spelt out.
const REPETITIONS_MAX: u32 = 16;
/// Bytes kept of a literal that is only a part of its pattern: enough to be rare.
const PART_MAX: usize = 24;
/// Size limit of a reach that still counts as bounded.
pub(crate) const REACH_MAX: u64 = 1 << 20;

/// What has to be in a file for a pattern to match there.
#[derive(Debug)]
pub(crate) struct PatternInfo {
    /// At least one of these occurs in every match. Empty: nothing of the kind is known (the
    /// pattern is a *resident*, it may match anywhere).
    pub(crate) literals: Vec<Part>,
    /// An occurrence of a literal is a match, and there are no others.
    pub(crate) exact: Exact,
    /// Bytes of the longest match; `None`: no bound.
    pub(crate) longest: Option<u64>,
    /// What an agent may look for instead of literals; one of these occurs in every match.
    pub(crate) needles: Vec<NeedlePart>,
    /// The exact bytes of all matches, for patterns that are one plain string.
    pub(crate) fixed: Option<Vec<u8>>,
    /// Finds out where content is at hand.
    pub(crate) verifier: Option<Verifier>,
    /// Bytes that match, or nearly so: for making test files.
    pub(crate) sample: Vec<u8>,
}

/// Whether occurrences of literals are matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exact {
    /// They need not be.
    No,
    /// They are.
    Yes,
    /// They are where no letter or digit adjoins (YARA's `fullword`).
    Fullword,
}

/// A literal within a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) bytes: Vec<u8>,
    pub(crate) nocase: bool,
    /// Each byte is followed by a zero in the file (already in `bytes`).
    pub(crate) wide: bool,
    /// Bytes of a match that may lie before it; `None`: any number.
    pub(crate) before: Option<u64>,
    /// Bytes of a match that may lie behind it; `None`: any number.
    pub(crate) after: Option<u64>,
}

impl PatternInfo {
    /// What it costs the filter to look for it; `None`: it cannot.
    pub(crate) fn cost(&self) -> Option<u64> {
        let weak = |part: &Part| part.bytes.len() < LITERAL_MIN || is_common(&part.bytes);
        if self.literals.is_empty()
            || self.literals.len() > LITERALS_MAX
            || self.literals.iter().any(weak)
        {
            return None;
        }
        let costs = self.literals.iter();
        Some(
            costs
                .map(|part| literal_cost(&part.bytes, part.nocase))
                .sum(),
        )
    }

    /// All its literals are so long that the filter finds them at no cost to speak of.
    pub(crate) fn is_long(&self) -> bool {
        self.literals.iter().all(|part| part.bytes.len() >= LONG) && self.literals.len() <= LONG_MAX
    }

    /// It has literals, and few enough to be looked for one by one.
    pub(crate) fn is_searched(&self) -> bool {
        !self.literals.is_empty() && self.literals.len() <= SEARCHES_MAX
    }

    /// Whether some literal occurs in the content; `None`: there is none, or there are so many, or
    /// so much that nearly is one, that YARA-X finds out faster.
    pub(crate) fn is_in(&self, content: &[u8]) -> Option<bool> {
        if !self.is_searched() {
            return None;
        }
        let mut effort = content.len().saturating_mul(EFFORT_MAX);
        for part in &self.literals {
            if part.is_in(content, &mut effort)? {
                return Some(true);
            }
        }
        Some(false)
    }

    pub(crate) fn resident() -> Self {
        Self {
            literals: Vec::new(),
            exact: Exact::No,
            longest: None,
            needles: Vec::new(),
            fixed: None,
            verifier: None,
            sample: Vec::new(),
        }
    }
}

impl Part {
    /// `None`: at more than `effort` bytes would have to be looked more than once.
    fn is_in(&self, content: &[u8], effort: &mut usize) -> Option<bool> {
        if !self.nocase {
            return Some(memmem::find(content, &self.bytes).is_some());
        }
        // The rarest byte, in both cases.
        let places = self.bytes.iter().enumerate();
        let rarest = places.max_by_key(|(_, byte)| rarity(&[**byte]));
        let Some((at, byte)) = rarest else {
            return Some(true);
        };
        let (lower, upper) = (byte.to_ascii_lowercase(), byte.to_ascii_uppercase());
        for found in memchr::memchr2_iter(lower, upper, content) {
            let start = found.checked_sub(at);
            let there = start.and_then(|start| content.get(start..start + self.bytes.len()));
            let mut pairs = there.unwrap_or_default().iter().zip(&self.bytes);
            let differs = pairs.position(|(one, other)| !one.eq_ignore_ascii_case(other));
            if there.is_some() && differs.is_none() {
                return Some(true);
            }
            *effort = effort.checked_sub(differs.unwrap_or(0))?;
        }
        Some(false)
    }
}

/// What `pattern` needs.
pub(crate) fn analyse(pattern: &Pattern<'_>) -> PatternInfo {
    let mut info = match pattern {
        Pattern::Text(text) => text_info(text),
        Pattern::Hex(hex) => hex::info(&hex.sub_patterns),
        Pattern::Regexp(regex) => regex_info(regex),
    };
    if info.sample.is_empty() {
        let first = info.literals.first();
        info.sample = first.map(|part| part.bytes.clone()).unwrap_or_default();
    }
    if info.literals.iter().any(|part| part.bytes.is_empty()) {
        info.literals.clear();
        info.exact = Exact::No;
    }
    info
}

fn text_info(text: &TextPattern<'_>) -> PatternInfo {
    let bytes: &[u8] = text.text.value.as_ref();
    let modifiers = &text.modifiers;
    if bytes.is_empty() {
        return PatternInfo::resident();
    }
    if modifiers.base64().is_some() || has_base64wide(text) {
        return base64_info(text, bytes);
    }
    let mut variants = variants(
        bytes,
        modifiers.ascii().is_some(),
        modifiers.wide().is_some(),
    );
    let xor = modifiers.xor();
    if let Some(PatternModifier::Xor { start, end, .. }) = xor {
        let keys = *start..=*end;
        variants = keys
            .flat_map(|key| {
                let xored = |(bytes, wide): &(Vec<u8>, bool)| {
                    (bytes.iter().map(|b| b ^ key).collect(), *wide)
                };
                variants.iter().map(xored).collect::<Vec<_>>()
            })
            .collect();
    }
    let whole = variants.iter().all(|(bytes, _)| bytes.len() <= LITERAL_MAX);
    let exact = match (whole && xor.is_none(), modifiers.fullword().is_some()) {
        (false, _) => Exact::No,
        (true, false) => Exact::Yes,
        (true, true) => Exact::Fullword,
    };
    let nocase = modifiers.nocase().is_some();
    let longest = variants.iter().map(|(bytes, _)| bytes.len() as u64).max();
    let needles = match xor {
        Some(_) if nocase => Vec::new(),
        Some(_) => needle::of_strings(variants.iter().map(|(bytes, _)| bytes.as_slice())),
        None => {
            let wide = modifiers.wide().is_some();
            let ascii = modifiers.ascii().is_some() || !wide;
            needle::of_text(bytes, nocase, ascii, wide)
        }
    };
    let plain = xor.is_none() && modifiers.wide().is_none() && !nocase;
    PatternInfo {
        literals: variants
            .into_iter()
            .map(|(bytes, wide)| part_of(&bytes, nocase, wide, whole))
            .collect(),
        exact,
        longest,
        needles,
        fixed: plain.then(|| bytes.to_vec()),
        verifier: None,
        sample: Vec::new(),
    }
}

fn has_base64wide(text: &TextPattern<'_>) -> bool {
    let wide = |m: &PatternModifier<'_>| matches!(m, PatternModifier::Base64Wide { .. });
    text.modifiers.iter().any(wide)
}

/// The ASCII and the wide form, as the modifiers ask; neither asked for means ASCII.
fn variants(bytes: &[u8], ascii: bool, wide: bool) -> Vec<(Vec<u8>, bool)> {
    let mut variants = Vec::new();
    if ascii || !wide {
        variants.push((bytes.to_vec(), false));
    }
    if wide {
        variants.push((widened(bytes), true));
    }
    variants
}

fn widened(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [*byte, 0]).collect()
}

/// The whole of `bytes`, or its rarest window.
pub(crate) fn part_of(bytes: &[u8], nocase: bool, wide: bool, whole: bool) -> Part {
    let (from, to) = match whole {
        true => (0, bytes.len()),
        false => window(bytes),
    };
    Part {
        bytes: bytes.get(from..to).unwrap_or_default().to_vec(),
        nocase,
        wide,
        before: Some(from as u64),
        after: Some((bytes.len() - to) as u64),
    }
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The three alignments of the string inside base64; the characters that neighbours share in are
/// left out.
fn base64_info(text: &TextPattern<'_>, bytes: &[u8]) -> PatternInfo {
    let modifiers = &text.modifiers;
    let sources = variants(
        bytes,
        modifiers.ascii().is_some(),
        modifiers.wide().is_some(),
    );
    let mut literals = Vec::new();
    for modifier in modifiers.iter() {
        let (alphabet, wide) = match modifier {
            PatternModifier::Base64 { alphabet, .. } => (alphabet, false),
            PatternModifier::Base64Wide { alphabet, .. } => (alphabet, true),
            _ => continue,
        };
        let alphabet: &[u8] = match alphabet {
            Some(own) => own.value.as_ref(),
            None => BASE64,
        };
        if alphabet.len() != 64 {
            return PatternInfo::resident();
        }
        for (source, _) in &sources {
            for shift in 0..3 {
                let core = base64_core(alphabet, source, shift);
                let core = if wide { widened(&core) } else { core };
                let mut part = part_of(&core, false, wide, core.len() <= LITERAL_MAX);
                // Characters at either end, wide ones too.
                part.before = part.before.map(|b| b + 8);
                part.after = part.after.map(|a| a + 8);
                literals.push(part);
            }
        }
    }
    // Never asked for: what is encoded is looked for by its literals.
    PatternInfo {
        literals,
        ..PatternInfo::resident()
    }
}

/// The characters of base64 that `bytes` alone decide, where `shift` bytes stand before them.
fn base64_core(alphabet: &[u8], bytes: &[u8], shift: usize) -> Vec<u8> {
    let bit = |index: usize| {
        let byte = bytes.get(index / 8)?;
        Some((byte >> (7 - index % 8)) & 1)
    };
    let first = (shift * 8).div_ceil(6);
    let last = (shift + bytes.len()) * 8 / 6;
    let character = |n: usize| {
        let value = (0..6).fold(0u8, |value, i| {
            let at = (n * 6 + i).checked_sub(shift * 8);
            value << 1 | at.and_then(bit).unwrap_or(0)
        });
        alphabet.get(usize::from(value)).copied().unwrap_or(0)
    };
    (first..last).map(character).collect()
}

// --- regular expressions -----------------------------------------------------------------------

fn regex_info(pattern: &RegexpPattern<'_>) -> PatternInfo {
    let modifiers = &pattern.modifiers;
    let nocase = pattern.regexp.case_insensitive || modifiers.nocase().is_some();
    // YARA-X accepts more than this parser; what only YARA-X understands is a resident.
    let Some(hir) = parse(pattern, nocase) else {
        return PatternInfo::resident();
    };
    let required = required(&hir, nocase).unwrap_or_default();
    let required = match required.len() > REGEX_LITERALS_MAX {
        true => Vec::new(),
        false => required,
    };
    let reach = hir
        .properties()
        .maximum_len()
        .map(|n| n as u64)
        .filter(|n| *n <= REACH_MAX);
    let wide = modifiers.wide().is_some();
    let ascii = modifiers.ascii().is_some() || !wide;
    let mut literals = Vec::new();
    for literal in required {
        for (bytes, is_wide) in variants(&literal, ascii, wide) {
            let (from, to) = window(&bytes);
            let reach = reach.map(|r| if is_wide { 2 * r } else { r });
            literals.push(Part {
                bytes: bytes.get(from..to).unwrap_or_default().to_vec(),
                nocase,
                wide: is_wide,
                before: reach,
                after: reach,
            });
        }
    }
    PatternInfo {
        literals,
        longest: reach.map(|reach| if wide { 2 * reach } else { reach }),
        needles: needle::of_regex(&hir, ascii, wide),
        ..PatternInfo::resident()
    }
}

fn parse(pattern: &RegexpPattern<'_>, nocase: bool) -> Option<Hir> {
    let source = pattern.regexp.src.replace("\\/", "/");
    // As YARA-X does: `{,n}` is `{0,n}`.
    let parser = ParserBuilder::new().empty_min_range(true).build();
    let ast = { parser }.parse(&source).ok()?;
    let mut translator = TranslatorBuilder::new();
    translator
        .utf8(false)
        .unicode(false)
        .case_insensitive(nocase)
        .dot_matches_new_line(pattern.regexp.dot_matches_new_line);
    translator.build().translate(&source, &ast).ok()
}

/// Literals one of which is in every match.
fn required(hir: &Hir, nocase: bool) -> Option<Vec<Vec<u8>>> {
    if let Some(all) = language(hir, nocase) {
        return all.iter().all(|word| !word.is_empty()).then_some(all);
    }
    match hir.kind() {
        HirKind::Capture(capture) => required(&capture.sub, nocase),
        HirKind::Repetition(repetition) if repetition.min >= 1 => required(&repetition.sub, nocase),
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(required(branch, nocase)?);
            }
            Some(all)
        }
        HirKind::Concat(items) => required_of_sequence(items, nocase),
        HirKind::Empty
        | HirKind::Look(_)
        | HirKind::Literal(_)
        | HirKind::Class(_)
        | HirKind::Repetition(_) => None,
    }
}

/// The best of: runs of items that have few words each, and what single items need.
fn required_of_sequence(items: &[Hir], nocase: bool) -> Option<Vec<Vec<u8>>> {
    let mut best: Option<(i64, Vec<Vec<u8>>)> = None;
    let mut consider = |words: &[Vec<u8>]| {
        let worst = words.iter().map(|word| rarity(word)).min().unwrap_or(0);
        let long = words.iter().all(|word| word.len() >= LITERAL_MIN);
        let score = worst * 8 - words.len() as i64 + if long { 1000 } else { 0 };
        let usable = words.iter().all(|word| !word.is_empty());
        if usable && best.as_ref().is_none_or(|(other, _)| score > *other) {
            best = Some((score, words.to_vec()));
        }
    };
    // Words of the run that ends before each item.
    let mut run = vec![Vec::new()];
    for item in items {
        let words = language(item, nocase);
        let longer = words.as_ref().and_then(|words| product(&run, words));
        if let Some(longer) = longer {
            run = longer;
            continue;
        }
        consider(&run);
        run = match words {
            Some(words) => words,
            None => {
                if let Some(inner) = required(item, nocase) {
                    consider(&inner);
                }
                vec![Vec::new()]
            }
        };
    }
    consider(&run);
    best.map(|(_, words)| words)
}

/// All words of an expression that has few; lower case where case does not matter.
fn language(hir: &Hir, nocase: bool) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        // They take no room, and only keep words from matching.
        HirKind::Empty | HirKind::Look(_) => Some(vec![Vec::new()]),
        HirKind::Literal(literal) => Some(vec![literal.0.to_vec()]),
        HirKind::Class(_) => members(hir, nocase),
        HirKind::Capture(capture) => language(&capture.sub, nocase),
        HirKind::Concat(items) => {
            let mut words = vec![Vec::new()];
            for item in items {
                words = product(&words, &language(item, nocase)?)?;
            }
            Some(words)
        }
        HirKind::Alternation(branches) => {
            let mut words = Vec::new();
            for branch in branches {
                words.extend(language(branch, nocase)?);
            }
            (words.len() <= REGEX_LITERALS_MAX).then_some(words)
        }
        HirKind::Repetition(repetition) => {
            let max = repetition.max.filter(|max| *max <= REPETITIONS_MAX)?;
            let once = language(&repetition.sub, nocase)?;
            let (mut words, mut power) = (Vec::new(), vec![Vec::new()]);
            for times in 0..=max {
                if times >= repetition.min {
                    words.extend(power.iter().cloned());
                }
                if times < max {
                    power = product(&power, &once)?;
                }
            }
            (words.len() <= REGEX_LITERALS_MAX).then_some(words)
        }
    }
}

/// Each of `a` followed by each of `b`; `None`: too many or too long.
fn product(a: &[Vec<u8>], b: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let longest = |words: &[Vec<u8>]| words.iter().map(Vec::len).max().unwrap_or(0);
    if a.len() * b.len() > REGEX_LITERALS_MAX || longest(a) + longest(b) > LITERAL_MAX {
        return None;
    }
    let joined = a
        .iter()
        .flat_map(|x| b.iter().map(move |y| [x.as_slice(), y].concat()));
    Some(joined.collect())
}

/// The bytes of a small class; both cases of a letter are one where case does not matter.
fn members(hir: &Hir, nocase: bool) -> Option<Vec<Vec<u8>>> {
    let HirKind::Class(class) = hir.kind() else {
        return None;
    };
    let ranges: Vec<(u32, u32)> = match class {
        Class::Bytes(class) => {
            let ranges = class.ranges().iter();
            ranges.map(|r| (r.start().into(), r.end().into())).collect()
        }
        Class::Unicode(class) => {
            let ranges = class.ranges().iter();
            ranges.map(|r| (r.start().into(), r.end().into())).collect()
        }
    };
    let size: u64 = ranges
        .iter()
        .map(|(start, end)| u64::from(end - start) + 1)
        .sum();
    if size > 2 * CLASS_MAX {
        return None;
    }
    let mut bytes = Vec::new();
    for value in ranges.into_iter().flat_map(|(start, end)| start..=end) {
        let byte = u8::try_from(value).ok()?;
        // What a wide or a Unicode match makes of other characters is left to YARA-X.
        if !byte.is_ascii() {
            return None;
        }
        bytes.push(if nocase {
            byte.to_ascii_lowercase()
        } else {
            byte
        });
    }
    bytes.sort_unstable();
    bytes.dedup();
    (bytes.len() as u64 <= CLASS_MAX).then(|| bytes.into_iter().map(|byte| vec![byte]).collect())
}

// --- choice of literals ------------------------------------------------------------------------

/// The rarest window of at most [`PART_MAX`] bytes, as a range.
pub(crate) fn window(bytes: &[u8]) -> (usize, usize) {
    if bytes.len() <= PART_MAX {
        return (0, bytes.len());
    }
    let windows = bytes.windows(PART_MAX).enumerate();
    // The first of the best.
    let best = windows.rev().max_by_key(|(_, window)| rarity(window));
    let from = best.map_or(0, |(from, _)| from);
    (from, from + PART_MAX)
}

/// Higher for what is seldom found in files: zeros and fillers say nothing, letters little.
pub(crate) fn rarity(bytes: &[u8]) -> i64 {
    let mut seen = [false; 256];
    let mut sum = 0;
    for byte in bytes {
        let folded = byte.to_ascii_lowercase();
        let worth = match folded {
            0 => 0,
            0xff | b' ' | 0xcc | 0x90 => 1,
            b'a'..=b'z' | b'0'..=b'9' => 3,
            _ => 4,
        };
        if let Some(seen) = seen.get_mut(usize::from(folded)) {
            sum += if *seen { (worth + 1) / 2 } else { worth };
            *seen = true;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nearly_occurs_everywhere_is_left_to_yara_x() {
        let part = Part {
            bytes: [&b"Z".repeat(20)[..], b"e", &b"Z".repeat(20)].concat(),
            nocase: true,
            wide: false,
            before: Some(0),
            after: Some(0),
        };
        let is_in = |content: &[u8]| part.is_in(content, &mut (content.len() * EFFORT_MAX));
        let near = b"z".repeat(10_000);
        assert_eq!(is_in(&near), None);
        let there = [&near[..20], b"E", &near[..20]].concat();
        assert_eq!(is_in(&there), Some(true));
        assert_eq!(is_in(&b"zebra ".repeat(1000)), Some(false));
    }
}
