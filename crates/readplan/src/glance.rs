//! How a close look begins: one pass over the content for what is looked for in almost every file,
//! the patterns that the filter leaves out, of rules that nothing cheaper shuts. A pattern of which
//! no needle is met is absent.

use std::ops::ControlFlow;

use literal_filter::{FilterError, Needle, Needles};

use crate::compile::PlanError;
use crate::eval::Presence;
use crate::pattern::{Exact, PatternInfo};

/// Needles of one pattern.
const OF_PATTERN_MAX: usize = 16;

/// From this rarity on, in quarters of a bit, three bytes are met too seldom to count.
const COMMONEST: i32 = 4 * 24;

/// What to look for in files of one class.
#[derive(Debug, Default)]
pub(crate) struct Glance {
    needles: Needles,
    /// By needle: the place in `patterns`.
    users: Vec<u32>,
    /// Patterns of the plan, and whether a needle is a match.
    patterns: Vec<(usize, bool)>,
}

impl Glance {
    /// For these patterns of the plan, those that have needles.
    pub(crate) fn of<'p>(
        patterns: impl Iterator<Item = (usize, &'p PatternInfo)>,
    ) -> Result<Self, PlanError> {
        Self::built(patterns, Needles::build)
    }

    /// The same in little time, for one look.
    pub(crate) fn once<'p>(
        patterns: impl Iterator<Item = (usize, &'p PatternInfo)>,
    ) -> Result<Self, PlanError> {
        Self::built(patterns, Needles::build_for_once)
    }

    fn built<'p>(
        patterns: impl Iterator<Item = (usize, &'p PatternInfo)>,
        build: impl FnOnce(Vec<Needle>) -> Result<Needles, FilterError>,
    ) -> Result<Self, PlanError> {
        let (mut list, mut users, mut covered) = (Vec::new(), Vec::new(), Vec::new());
        for (pattern, info) in patterns.filter(|(_, info)| Self::cost(info).is_some()) {
            for part in &info.needles {
                list.push(part.needle.clone());
                users.push(covered.len() as u32);
            }
            covered.push((pattern, info.exact == Exact::Yes));
        }
        list.truncate(literal_filter::NEEDLES_MAX);
        // Patterns with all of their needles alone.
        covered.truncate(users.get(list.len()).map_or(covered.len(), |n| *n as usize));
        Ok(Self {
            needles: build(list)?,
            users,
            patterns: covered,
        })
    }

    /// There is nothing to look for.
    pub(crate) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// What looking for a pattern slows a glance down, by how often its needles' rarest bytes are
    /// met; `None`: a glance does not look for it.
    pub(crate) fn cost(info: &PatternInfo) -> Option<u64> {
        let has_few = (1..=OF_PATTERN_MAX).contains(&info.needles.len());
        let often = |rarity: i32| 1 << ((COMMONEST - rarity).clamp(0, COMMONEST) / 4);
        let costs = info.needles.iter().map(|part| often(part.needle.rarity()));
        has_few.then(|| costs.sum())
    }

    /// One pass over the content; `note` takes what it tells of patterns: those that are met only
    /// in part may be there. Of content that takes too much work (`literal_filter::STEPS_MAX`) it
    /// tells what was met until then.
    pub(crate) fn look(&self, content: &[u8], note: &mut dyn FnMut(usize, Presence)) {
        let mut met = vec![false; self.patterns.len()];
        let (all, users) = (content.len(), &self.users);
        let looked = self.needles.scan(content, 0, all, &mut |needle, _| {
            if let Some(met) = met.get_mut(users[needle as usize] as usize) {
                *met = true;
            }
            ControlFlow::Continue(())
        });
        for ((pattern, is_match), met) in self.patterns.iter().zip(met) {
            match (met, is_match) {
                (false, _) if looked.is_continue() => note(*pattern, Presence::Absent),
                (false, _) => {}
                (true, true) => note(*pattern, Presence::Present(None)),
                (true, false) => note(*pattern, Presence::Maybe(None)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use literal_filter::NeedleToken;

    use super::*;
    use crate::needle::{NeedlePart, of_text};

    #[test]
    fn what_is_not_met_is_absent() {
        let info = |bytes: &[u8], nocase, exact| PatternInfo {
            needles: of_text(bytes, nocase, true, false),
            exact,
            ..PatternInfo::resident()
        };
        let infos = [
            info(b"q#\x91", false, Exact::Yes),
            info(b"#\x91\x92", false, Exact::No),
            info(b"\x92Zq", true, Exact::Yes),
            info(b"\x81\x93\x95", false, Exact::Yes),
        ];
        let glance = Glance::of(infos.iter().enumerate()).expect("a glance");
        let check = |content: &[u8], expected: &[(usize, Presence)]| {
            let mut told = Vec::new();
            glance.look(content, &mut |pattern, presence| {
                told.push((pattern, presence))
            });
            assert_eq!(told, expected);
        };
        let (here, absent) = (Presence::Present(None), Presence::Absent);
        let maybe = Presence::Maybe(None);
        let told = [(0, here), (1, maybe), (2, here), (3, absent)];
        check(b"...q#\x91\x92zQ...", &told);
        check(b"", &[0, 1, 2, 3].map(|pattern| (pattern, absent)));
    }

    #[test]
    fn what_was_not_looked_for_to_the_end_may_be_there() {
        let byte = |value| NeedleToken::Byte { value, mask: 0xff };
        let gap = NeedleToken::Gap {
            least: 0,
            most: 255,
        };
        let endless = [byte(b'a'), byte(b'a'), gap, byte(b'a'), gap, byte(b'#')];
        let part = NeedlePart {
            needle: Needle::new(endless.to_vec(), 0).expect("a needle"),
            before: None,
            after: None,
            bits: 0,
        };
        let endless = PatternInfo {
            needles: vec![part],
            ..PatternInfo::resident()
        };
        let met = PatternInfo {
            needles: of_text(b"q#\x91", false, true, false),
            exact: Exact::Yes,
            ..PatternInfo::resident()
        };
        let behind = PatternInfo {
            needles: of_text(b"\x92Zq", false, true, false),
            exact: Exact::Yes,
            ..PatternInfo::resident()
        };
        let infos = [endless, met, behind];
        let glance = Glance::of(infos.iter().enumerate()).expect("a glance");
        let content = [b"q#\x91", b"a".repeat(100_000).as_slice(), b"\x92Zq"].concat();
        let mut told = Vec::new();
        glance.look(&content, &mut |pattern, presence| {
            told.push((pattern, presence))
        });
        assert_eq!(told, [(1, Presence::Present(None))]);
    }
}
