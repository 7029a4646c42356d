//! Hex patterns: their literals, and a close look at the places where one may match.

use std::fmt::Write as _;
use std::sync::Arc;

use literal_filter::{LITERAL_MAX, LITERAL_MIN};
use memchr::memmem;
use regex::bytes::Regex;
use yara_x_parser::ast::{HexSubPattern, HexToken};

use crate::needle;
use crate::pattern::{Exact, Part, PatternInfo, REACH_MAX, part_of, rarity, window};

/// Places that are looked at closely; where a needle occurs more often, YARA-X decides.
const PLACES_MAX: usize = 4096;
/// Bytes that are looked at closely, in terms of the content's.
pub(crate) const EFFORT_MAX: usize = 4;
/// Bytes of a needle; more do not make it rarer.
const NEEDLE_MAX: usize = 8;

/// Bytes of a jump in a sample.
const SAMPLE_JUMP_MAX: u32 = 4096;

/// What a hex pattern needs.
pub(crate) fn info(tokens: &HexSubPattern) -> PatternInfo {
    let fixed = fixed(tokens);
    if let Some(bytes) = &fixed
        && bytes.len() <= LITERAL_MAX
    {
        return PatternInfo {
            literals: vec![part_of(bytes, false, false, true)],
            exact: Exact::Yes,
            longest: Some(bytes.len() as u64),
            needles: needle::of_hex(tokens),
            fixed,
            verifier: None,
            sample: Vec::new(),
        };
    }
    PatternInfo {
        literals: best_literals(tokens),
        exact: Exact::No,
        longest: length(tokens),
        needles: needle::of_hex(tokens),
        fixed: None,
        verifier: Verifier::of(tokens),
        sample: sample(tokens),
    }
}

/// The rarest run of fixed bytes, or alternatives that are each such a run.
fn best_literals(tokens: &HexSubPattern) -> Vec<Part> {
    let total = length(tokens);
    let mut best: Option<(i64, Vec<Part>)> = None;
    let mut consider = |runs: Vec<Vec<u8>>, start: Option<u64>| {
        let parts: Vec<Part> = runs.iter().map(|run| run_part(run, start, total)).collect();
        let long = parts.iter().all(|part| part.bytes.len() >= LITERAL_MIN);
        let worst = parts
            .iter()
            .map(|part| rarity(&part.bytes))
            .min()
            .unwrap_or(0);
        let score = worst + if long { 1000 } else { 0 };
        if best.as_ref().is_none_or(|(other, _)| score > *other) {
            best = Some((score, parts));
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
        if let HexToken::Alternative(alternative) = token {
            let runs: Option<Vec<_>> = alternative.alternatives.iter().map(fixed).collect();
            if let Some(runs) = runs {
                consider(runs, here);
            }
        }
        here = add(here, token_length(token));
    }
    if !run.is_empty() {
        consider(vec![run], run_start);
    }
    best.map(|(_, parts)| parts).unwrap_or_default()
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
fn fixed(tokens: &HexSubPattern) -> Option<Vec<u8>> {
    let byte = |token: &HexToken| match token {
        HexToken::Byte(byte) if byte.mask == 0xff => Some(byte.value),
        _ => None,
    };
    tokens.iter().map(byte).collect()
}

/// The shortest match, zeros where any byte will do.
fn sample(tokens: &HexSubPattern) -> Vec<u8> {
    let mut bytes = Vec::new();
    for token in tokens.iter() {
        match token {
            HexToken::Byte(byte) => bytes.push(byte.value),
            HexToken::NotByte(byte) => bytes.push(!byte.value & byte.mask),
            HexToken::Jump(jump) => {
                let least = jump.start.unwrap_or(0).min(SAMPLE_JUMP_MAX) as usize;
                bytes.extend(std::iter::repeat_n(0, least));
            }
            HexToken::Alternative(alternative) => {
                bytes.extend(
                    alternative
                        .alternatives
                        .first()
                        .map(sample)
                        .unwrap_or_default(),
                );
            }
        }
    }
    bytes
}

/// The longest match in bytes; `None`: no bound.
fn length(tokens: &HexSubPattern) -> Option<u64> {
    tokens
        .iter()
        .try_fold(0, |sum, token| add(Some(sum), token_length(token)))
}

fn token_length(token: &HexToken) -> Option<u64> {
    match token {
        HexToken::Byte(_) | HexToken::NotByte(_) => Some(1),
        HexToken::Jump(jump) => jump.end.map(u64::from),
        HexToken::Alternative(alternative) => {
            let mut lengths = alternative.alternatives.iter().map(length);
            lengths.try_fold(0, |longest: u64, length| Some(longest.max(length?)))
        }
    }
}

fn add(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a?.checked_add(b?).filter(|sum| *sum <= REACH_MAX)
}

/// Finds a stretch of a pattern, which every match has: first a rare run of plain bytes, then by
/// a regular expression around it.
#[derive(Debug)]
pub(crate) struct Verifier {
    needle: Vec<u8>,
    /// Bytes of the stretch that may lie before the needle.
    before: usize,
    /// Bytes of the stretch at most.
    length: usize,
    pub(crate) source: String,
}

impl Verifier {
    /// Of the stretch with the rarest needle; jumps without an end divide a pattern.
    fn of(tokens: &HexSubPattern) -> Option<Self> {
        let mut stretches = vec![Stretch::default()];
        for token in tokens.iter() {
            match (token, token_length(token)) {
                (_, Some(length)) => stretches.last_mut()?.push(token, length),
                (_, None) => stretches.push(Stretch::default()),
            }
        }
        let stretches = stretches.into_iter().map(Stretch::finish);
        let (_, best) = stretches.flatten().max_by_key(|(score, _)| *score)?;
        Some(best)
    }

    /// Whether the stretch occurs; `None`: too much work to find out. `compiled` is asked for the
    /// expression of the stretch where the needle is met.
    pub(crate) fn is_in(
        &self,
        content: &[u8],
        compiled: &dyn Fn() -> Option<Arc<Regex>>,
    ) -> Option<bool> {
        let mut effort = content.len().saturating_mul(EFFORT_MAX);
        let mut expression = None;
        for (place, found) in memmem::find_iter(content, &self.needle).enumerate() {
            if expression.is_none() {
                expression = compiled();
            }
            let regex = expression.as_ref()?;
            let from = found.saturating_sub(self.before);
            let to = content.len().min(found.saturating_add(self.length));
            effort = effort.checked_sub(to - from)?;
            if place >= PLACES_MAX {
                return None;
            }
            if regex.is_match(content.get(from..to)?) {
                return Some(true);
            }
        }
        Some(false)
    }
}

/// A stretch under way.
#[derive(Default)]
struct Stretch {
    source: String,
    /// Bytes so far at most.
    length: u64,
    run: Vec<u8>,
    run_start: u64,
    /// Score, bytes, where it starts at most.
    best: Option<(i64, Vec<u8>, u64)>,
}

impl Stretch {
    fn push(&mut self, token: &HexToken, length: u64) {
        write_token(&mut self.source, token);
        match token {
            HexToken::Byte(byte) if byte.mask == 0xff => {
                if self.run.is_empty() {
                    self.run_start = self.length;
                }
                self.run.push(byte.value);
            }
            _ => self.end_run(),
        }
        self.length = self.length.saturating_add(length);
    }

    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        for (at, needle) in run.windows(run.len().clamp(1, NEEDLE_MAX)).enumerate() {
            let score = rarity(needle);
            if needle.len() >= 2 && self.best.as_ref().is_none_or(|(other, ..)| score > *other) {
                self.best = Some((score, needle.to_vec(), self.run_start + at as u64));
            }
        }
    }

    fn finish(mut self) -> Option<(i64, Verifier)> {
        self.end_run();
        let (score, needle, before) = self.best?;
        let verifier = Verifier {
            needle,
            before: usize::try_from(before).ok()?,
            length: usize::try_from(self.length).ok()?,
            source: self.source,
        };
        (self.length <= REACH_MAX).then_some((score, verifier))
    }
}

/// The token as a regular expression.
fn write_token(out: &mut String, token: &HexToken) {
    // Writing to a String cannot fail.
    let _ = match token {
        HexToken::Byte(byte) => write_class(out, byte.value, byte.mask, false),
        HexToken::NotByte(byte) => write_class(out, byte.value, byte.mask, true),
        HexToken::Jump(jump) => {
            let (start, end) = (jump.start.unwrap_or(0), jump.end.unwrap_or(0));
            write!(out, ".{{{start},{end}}}")
        }
        HexToken::Alternative(alternative) => {
            out.push_str("(?:");
            for (number, tokens) in alternative.alternatives.iter().enumerate() {
                if number > 0 {
                    out.push('|');
                }
                tokens.iter().for_each(|token| write_token(out, token));
            }
            out.push(')');
            Ok(())
        }
    };
}

fn write_class(out: &mut String, value: u8, mask: u8, not: bool) -> std::fmt::Result {
    match (mask, not) {
        (0xff, false) => write!(out, "\\x{value:02x}"),
        (0, false) => write!(out, "."),
        _ => {
            out.push_str(if not { "[^" } else { "[" });
            for byte in (0..=255u8).filter(|byte| byte & mask == value & mask) {
                write!(out, "\\x{byte:02x}")?;
            }
            out.push(']');
            Ok(())
        }
    }
}
