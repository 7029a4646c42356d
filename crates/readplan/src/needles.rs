//! A first pass over the content for what is looked for in almost every file: the patterns that no
//! gate guards, of rules that no literal shuts. Three bytes of each of their literals are looked
//! for all at once; a pattern of which none is met is absent.

use aho_corasick::packed::{Config, MatchKind, Searcher};
use literal_filter::rarity;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::class::Class;
use crate::compile::Plan;
use crate::pattern::PatternInfo;

/// Bytes of a needle. All are equally long, so that at one place at most one matches.
const NEEDLE: usize = 3;
/// Needles of one searcher: more make it slow.
const NEEDLES_MAX: usize = 60;
/// Needles of one pattern, spellings and all.
const OF_PATTERN_MAX: usize = 16;
/// Below this rarity, in quarters of a bit, a needle is met so often that a search for the whole
/// literal is faster.
const RARITY_MIN: i32 = 4 * 13;

/// What to look for in files of one class.
#[derive(Debug, Default)]
pub(crate) struct Needles {
    searchers: Vec<Part>,
    /// Patterns of which all needles are looked for.
    covered: FxHashSet<usize>,
}

#[derive(Debug)]
struct Part {
    searcher: Searcher,
    /// By needle: the patterns that it is of.
    users: Vec<Vec<usize>>,
}

/// What was met in a file.
pub(crate) struct Met<'a> {
    covered: &'a FxHashSet<usize>,
    met: FxHashSet<usize>,
}

impl Met<'_> {
    /// The pattern surely does not match.
    pub(crate) fn rules_out(&self, pattern: usize) -> bool {
        self.covered.contains(&pattern) && !self.met.contains(&pattern)
    }
}

impl Needles {
    /// Of these patterns of the plan.
    pub(crate) fn of<'p>(patterns: impl Iterator<Item = (usize, &'p PatternInfo)>) -> Self {
        let mut by_needle: FxHashMap<Vec<u8>, Vec<usize>> = FxHashMap::default();
        let mut covered = FxHashSet::default();
        for (pattern, info) in patterns {
            let Some(needles) = needles_of(info) else {
                continue;
            };
            covered.insert(pattern);
            for needle in needles {
                by_needle.entry(needle).or_default().push(pattern);
            }
        }
        let mut all: Vec<_> = by_needle.into_iter().collect();
        all.sort();
        let mut searchers = Vec::new();
        for some in all.chunks(NEEDLES_MAX) {
            let mut config = Config::new();
            let mut builder = config.match_kind(MatchKind::LeftmostFirst).builder();
            builder.extend(some.iter().map(|(needle, _)| needle));
            match builder.build() {
                Some(searcher) => searchers.push(Part {
                    searcher,
                    users: some.iter().map(|(_, users)| users.clone()).collect(),
                }),
                // No such instructions on this machine: each pattern is searched by itself.
                None => return Self::default(),
            }
        }
        Self { searchers, covered }
    }

    /// One pass over the content.
    pub(crate) fn look(&self, content: &[u8]) -> Met<'_> {
        let mut met = FxHashSet::default();
        for part in &self.searchers {
            let mut seen = vec![false; part.users.len()];
            let mut from = 0;
            while let Some(found) = part
                .searcher
                .find_in(content, aho_corasick::Span::from(from..content.len()))
            {
                let needle = found.pattern().as_usize();
                if !std::mem::replace(&mut seen[needle], true) {
                    met.extend(&part.users[needle]);
                }
                from = found.start() + 1;
            }
        }
        Met {
            covered: &self.covered,
            met,
        }
    }
}

/// Needles one of which is in every match; `None`: some would be common, or they are too many.
fn needles_of(info: &PatternInfo) -> Option<Vec<Vec<u8>>> {
    if let Some(verifier) = &info.verifier {
        return spelled(verifier.needle(), false);
    }
    if !info.is_searched() {
        return None;
    }
    let mut all = Vec::new();
    for part in &info.literals {
        all.extend(spelled(&part.bytes, part.nocase)?);
    }
    (all.len() <= OF_PATTERN_MAX).then_some(all)
}

/// The rarest three bytes of a literal, in all spellings.
fn spelled(literal: &[u8], nocase: bool) -> Option<Vec<Vec<u8>>> {
    let letters = |needle: &[u8]| match nocase {
        true => needle.iter().filter(|b| b.is_ascii_alphabetic()).count(),
        false => 0,
    };
    let best = literal
        .windows(NEEDLE)
        .filter(|needle| rarity(needle) >= RARITY_MIN)
        .min_by_key(|needle| (letters(needle), -rarity(needle)))?;
    let mut spellings = vec![Vec::new()];
    for byte in best {
        let cases = match nocase && byte.is_ascii_alphabetic() {
            true => vec![byte.to_ascii_lowercase(), byte.to_ascii_uppercase()],
            false => vec![*byte],
        };
        spellings = spellings
            .iter()
            .flat_map(|start| {
                cases
                    .iter()
                    .map(move |byte| [start.as_slice(), &[*byte]].concat())
            })
            .collect();
    }
    Some(spellings)
}

impl Plan {
    /// Needles for files of a class: those of its residents' patterns that the filter leaves out.
    pub(crate) fn needles_of_class(&self, class: Class) -> Needles {
        let residents: FxHashSet<_> = self.residents_of(class).iter().copied().collect();
        let patterns = self.patterns.iter().enumerate();
        let left_out = patterns
            .filter(|(_, entry)| !entry.gated && residents.contains(&entry.rule))
            .map(|(index, entry)| (index, &entry.info));
        Needles::of(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_needles_are_all_met() {
        let part = |bytes: &[u8], nocase| crate::pattern::part_of(bytes, nocase, false, true);
        let info = |bytes: &[u8], nocase| PatternInfo {
            literals: vec![part(bytes, nocase)],
            ..PatternInfo::resident()
        };
        let infos = [
            info(b"q#\x91", false),
            info(b"#\x91\x92", false),
            info(b"\x92Zq", true),
            info(b"\x81\x93\x95", false),
        ];
        let needles = Needles::of(infos.iter().enumerate());
        let met = needles.look(b"...q#\x91\x92zQ...");
        let ruled_out: Vec<bool> = (0..5).map(|pattern| met.rules_out(pattern)).collect();
        assert_eq!(ruled_out, [false, false, false, true, false]);
        assert!(needles.look(b"").rules_out(0));
    }
}
