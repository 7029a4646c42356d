//! A first pass over the content for what is looked for in almost every file: the patterns that no
//! gate guards, of rules that no literal shuts. Three bytes of each of their literals are looked
//! for all at once; a pattern of which none is met is absent.

use aho_corasick::packed::{Config, MatchKind, Searcher};
use literal_filter::rarity;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::pattern::PatternInfo;

/// Bytes of a triple. All are equally long, so that at one place at most one matches.
const TRIPLE: usize = 3;
/// Triples of one searcher: more make it slow.
const TRIPLES_MAX: usize = 60;
/// Triples of one pattern, spellings and all.
const OF_PATTERN_MAX: usize = 16;
/// Below this rarity, in quarters of a bit, a triple is met so often that a search for the whole
/// literal is faster.
const RARITY_MIN: i32 = 4 * 13;

/// What to look for in files of one class.
#[derive(Debug, Default)]
pub(crate) struct Triples {
    searchers: Vec<Part>,
    /// Patterns of which all triples are looked for.
    covered: FxHashSet<usize>,
}

#[derive(Debug)]
struct Part {
    searcher: Searcher,
    /// By triple: the patterns that it is of.
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

impl Triples {
    /// Of these patterns of the plan.
    pub(crate) fn of<'p>(patterns: impl Iterator<Item = (usize, &'p PatternInfo)>) -> Self {
        let mut by_triple: FxHashMap<Vec<u8>, Vec<usize>> = FxHashMap::default();
        let mut covered = FxHashSet::default();
        for (pattern, info) in patterns {
            let Some(triples) = triples_of(info) else {
                continue;
            };
            covered.insert(pattern);
            for triple in triples {
                by_triple.entry(triple).or_default().push(pattern);
            }
        }
        let mut all: Vec<_> = by_triple.into_iter().collect();
        all.sort();
        let mut searchers = Vec::new();
        for some in all.chunks(TRIPLES_MAX) {
            let mut config = Config::new();
            let mut builder = config.match_kind(MatchKind::LeftmostFirst).builder();
            builder.extend(some.iter().map(|(triple, _)| triple));
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
                let triple = found.pattern().as_usize();
                if !std::mem::replace(&mut seen[triple], true) {
                    met.extend(&part.users[triple]);
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

/// Triples one of which is in every match; `None`: some would be common, or they are too many.
fn triples_of(info: &PatternInfo) -> Option<Vec<Vec<u8>>> {
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
    let letters = |triple: &[u8]| match nocase {
        true => triple.iter().filter(|b| b.is_ascii_alphabetic()).count(),
        false => 0,
    };
    let best = literal
        .windows(TRIPLE)
        .filter(|triple| rarity(triple) >= RARITY_MIN)
        .min_by_key(|triple| (letters(triple), -rarity(triple)))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_triples_are_all_met() {
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
        let triples = Triples::of(infos.iter().enumerate());
        let met = triples.look(b"...q#\x91\x92zQ...");
        let ruled_out: Vec<bool> = (0..5).map(|pattern| met.rules_out(pattern)).collect();
        assert_eq!(ruled_out, [false, false, false, true, false]);
        assert!(triples.look(b"").rules_out(0));
    }
}
