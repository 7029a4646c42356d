//! Patterns: which literals must occur for a pattern to match, and how far a match reaches.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind};
use literal_filter::{LITERAL_MAX, LITERAL_MIN};
use yara_x_parser::ast::{HexSubPattern, HexToken, Pattern, PatternModifier, RegexpPattern, TextPattern};

/// Literals of one pattern, beyond which it counts as having none.
const LITERALS_MAX: usize = 1024;
/// Literals of one regular expression.
const REGEX_LITERALS_MAX: usize = 64;
/// Bytes kept of a literal that is only a part of its pattern: enough to be rare.
const PART_MAX: usize = 24;
/// Size limit of a reach that still counts as bounded.
const REACH_MAX: u64 = 1 << 20;

/// What has to be in a file for a pattern to match there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PatternInfo {
    /// At least one of these occurs in every match. Empty: nothing of the kind is known (the
    /// pattern is a *resident*, it may match anywhere).
    pub(crate) literals: Vec<Part>,
    /// An occurrence of a literal is a match, and there are no others.
    pub(crate) exact: Exact,
    /// The exact bytes of all matches, for patterns that are one plain string.
    pub(crate) fixed: Option<Vec<u8>>,
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
    fn resident() -> Self {
        Self {
            literals: Vec::new(),
            exact: Exact::No,
            fixed: None,
        }
    }
}

/// What `pattern` needs.
pub(crate) fn analyse(pattern: &Pattern<'_>) -> PatternInfo {
    let mut info = match pattern {
        Pattern::Text(text) => text_info(text),
        Pattern::Hex(hex) => hex_info(&hex.sub_patterns),
        Pattern::Regexp(regex) => regex_info(regex),
    };
    let weak = |part: &Part| part.bytes.len() < LITERAL_MIN || part.bytes.iter().all(|b| *b == 0);
    if info.literals.len() > LITERALS_MAX || info.literals.iter().any(weak) {
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
    let mut variants = variants(bytes, modifiers.ascii().is_some(), modifiers.wide().is_some());
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
    let plain = xor.is_none() && modifiers.wide().is_none() && !nocase;
    PatternInfo {
        literals: variants
            .into_iter()
            .map(|(bytes, wide)| part_of(&bytes, nocase, wide, whole))
            .collect(),
        exact,
        fixed: plain.then(|| bytes.to_vec()),
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
fn part_of(bytes: &[u8], nocase: bool, wide: bool, whole: bool) -> Part {
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
    let sources = variants(bytes, modifiers.ascii().is_some(), modifiers.wide().is_some());
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
    PatternInfo {
        literals,
        exact: Exact::No,
        fixed: None,
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

// --- hex ---------------------------------------------------------------------------------------

fn hex_info(tokens: &HexSubPattern) -> PatternInfo {
    let fixed = fixed_hex(tokens);
    if let Some(bytes) = &fixed
        && bytes.len() <= LITERAL_MAX
    {
        return PatternInfo {
            literals: vec![part_of(bytes, false, false, true)],
            exact: Exact::Yes,
            fixed,
        };
    }
    let total = hex_length(tokens);
    let mut best: Option<(i64, Vec<Part>)> = None;
    let mut consider = |runs: Vec<Vec<u8>>, start: Option<u64>| {
        let parts: Vec<Part> = runs.iter().map(|run| run_part(run, start, total)).collect();
        let worst = parts.iter().map(|part| rarity(&part.bytes)).min().unwrap_or(0);
        let usable = parts.iter().all(|part| part.bytes.len() >= LITERAL_MIN);
        if usable && best.as_ref().is_none_or(|(score, _)| worst > *score) {
            best = Some((worst, parts));
        }
    };
    let mut run = Vec::new();
    // The furthest that the pattern can have got at the run's first byte, and here.
    let (mut run_start, mut here) = (Some(0), Some(0u64));
    for token in tokens.iter() {
        if let HexToken::Byte(byte) = token
            && byte.mask == 0xff
        {
            if run.is_empty() {
                run_start = here;
            }
            run.push(byte.value);
            here = here.map(|h| h + 1);
            continue;
        }
        if !run.is_empty() {
            consider(vec![std::mem::take(&mut run)], run_start);
        }
        let next = add(here, token_length(token));
        if let HexToken::Alternative(alternative) = token {
            let runs: Option<Vec<_>> = alternative.alternatives.iter().map(fixed_hex).collect();
            if let Some(runs) = runs {
                consider(runs, here);
            }
        }
        here = next;
    }
    if !run.is_empty() {
        consider(vec![run], run_start);
    }
    PatternInfo {
        literals: best.map(|(_, parts)| parts).unwrap_or_default(),
        exact: Exact::No,
        fixed: None,
    }
}

/// The rarest window of a run of fixed bytes that starts at `start` at most within the pattern,
/// and what may lie on either side of it.
fn run_part(run: &[u8], start: Option<u64>, total: Option<u64>) -> Part {
    let (from, to) = window(run);
    Part {
        bytes: run.get(from..to).unwrap_or_default().to_vec(),
        nocase: false,
        wide: false,
        before: start.map(|s| s + from as u64),
        // The whole length: what lies before the run may be shorter than `start`.
        after: total,
    }
}

/// The bytes of a pattern without masks, jumps and alternatives.
fn fixed_hex(tokens: &HexSubPattern) -> Option<Vec<u8>> {
    let byte = |token: &HexToken| match token {
        HexToken::Byte(byte) if byte.mask == 0xff => Some(byte.value),
        _ => None,
    };
    tokens.iter().map(byte).collect()
}

/// The longest match in bytes; `None`: no bound.
fn hex_length(tokens: &HexSubPattern) -> Option<u64> {
    tokens.iter().fold(Some(0), |sum, token| add(sum, token_length(token)))
}

fn token_length(token: &HexToken) -> Option<u64> {
    match token {
        HexToken::Byte(_) | HexToken::NotByte(_) => Some(1),
        HexToken::Jump(jump) => jump.end.map(u64::from),
        HexToken::Alternative(alternative) => {
            let lengths = alternative.alternatives.iter().map(hex_length);
            lengths.fold(Some(0), |longest, length| Some(longest?.max(length?)))
        }
    }
}

fn add(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a?.checked_add(b?).filter(|sum| *sum <= REACH_MAX)
}

// --- regular expressions -----------------------------------------------------------------------

fn regex_info(pattern: &RegexpPattern<'_>) -> PatternInfo {
    let modifiers = &pattern.modifiers;
    let nocase = pattern.regexp.case_insensitive || modifiers.nocase().is_some();
    let parsed = ParserBuilder::new()
        .utf8(false)
        .unicode(false)
        .case_insensitive(nocase)
        .dot_matches_new_line(pattern.regexp.dot_matches_new_line)
        .build()
        .parse(&pattern.regexp.src.replace("\\/", "/"));
    // YARA-X accepts more than this parser; what only YARA-X understands is a resident.
    let Ok(hir) = parsed else {
        return PatternInfo::resident();
    };
    let Some(required) = required(&hir, nocase) else {
        return PatternInfo::resident();
    };
    if required.len() > REGEX_LITERALS_MAX {
        return PatternInfo::resident();
    }
    let reach = hir.properties().maximum_len().map(|n| n as u64).filter(|n| *n <= REACH_MAX);
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
        exact: Exact::No,
        fixed: None,
    }
}

/// Literals one of which is in every match; lower case where case does not matter.
fn required(hir: &Hir, nocase: bool) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Literal(literal) => Some(vec![literal.0.to_vec()]),
        HirKind::Class(_) => one_byte(hir, nocase).map(|byte| vec![vec![byte]]),
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
        HirKind::Empty | HirKind::Look(_) | HirKind::Repetition(_) => None,
    }
}

fn required_of_sequence(items: &[Hir], nocase: bool) -> Option<Vec<Vec<u8>>> {
    let mut best: Option<(i64, Vec<Vec<u8>>)> = None;
    let mut consider = |literals: Vec<Vec<u8>>| {
        let worst = literals.iter().map(|l| rarity(l)).min().unwrap_or(0);
        let score = worst * 8 - literals.len() as i64;
        let usable = literals.iter().all(|l| !l.is_empty());
        if usable && best.as_ref().is_none_or(|(other, _)| score > *other) {
            best = Some((score, literals));
        }
    };
    let mut run = Vec::new();
    for item in items {
        // What is between two runs may be empty, but it ends a run all the same.
        if let Some(bytes) = fixed(item, nocase) {
            run.extend(bytes);
            continue;
        }
        if !run.is_empty() {
            consider(vec![std::mem::take(&mut run)]);
        }
        if let Some(inner) = required(item, nocase) {
            consider(inner);
        }
    }
    if !run.is_empty() {
        consider(vec![run]);
    }
    best.map(|(_, literals)| literals)
}

/// The bytes of an expression that matches nothing else.
fn fixed(hir: &Hir, nocase: bool) -> Option<Vec<u8>> {
    match hir.kind() {
        HirKind::Literal(literal) => Some(literal.0.to_vec()),
        HirKind::Class(_) => one_byte(hir, nocase).map(|byte| vec![byte]),
        HirKind::Capture(capture) => fixed(&capture.sub, nocase),
        HirKind::Concat(items) => {
            let parts: Option<Vec<_>> = items.iter().map(|item| fixed(item, nocase)).collect();
            parts.map(|parts| parts.concat())
        }
        HirKind::Repetition(r) if r.max == Some(r.min) && (1..=16).contains(&r.min) => {
            fixed(&r.sub, nocase).map(|bytes| bytes.repeat(r.min as usize))
        }
        _ => None,
    }
}

/// The byte of a class of one, or of both cases of one letter where case does not matter.
fn one_byte(hir: &Hir, nocase: bool) -> Option<u8> {
    let HirKind::Class(class) = hir.kind() else {
        return None;
    };
    let mut bytes = Vec::new();
    let mut take = |start: u32, end: u32| {
        for value in start..=end.min(start + 2) {
            bytes.push(u8::try_from(value).ok().filter(u8::is_ascii)?);
        }
        Some(())
    };
    match class {
        Class::Bytes(class) => {
            for range in class.ranges() {
                take(range.start().into(), range.end().into())?;
            }
        }
        Class::Unicode(class) => {
            for range in class.ranges() {
                take(range.start().into(), range.end().into())?;
            }
        }
    }
    match bytes.as_slice() {
        [byte] => Some(*byte),
        [a, b] if nocase && a.eq_ignore_ascii_case(b) => Some(a.to_ascii_lowercase()),
        _ => None,
    }
}

// --- choice of literals ------------------------------------------------------------------------

/// The rarest window of at most [`PART_MAX`] bytes, as a range.
fn window(bytes: &[u8]) -> (usize, usize) {
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
fn rarity(bytes: &[u8]) -> i64 {
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
