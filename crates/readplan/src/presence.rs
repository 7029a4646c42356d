//! What is known of one pattern in one file.

use crate::compile::Plan;
use crate::eval::Presence;
use crate::hex::EFFORT_MAX;
use crate::known::{Bytes, HITS_MAX, Hits};
use crate::look::{Side, Sought};
use crate::pattern::{Exact, Part};

impl Plan {
    /// What the hits say of a pattern. `bytes` tell what adjoins them.
    pub(crate) fn presence(&self, pattern: usize, hits: &Hits, bytes: &dyn Bytes) -> Presence {
        let look = self.look(hits.side());
        // Nearly all are untouched, and of these nothing has to come from memory.
        let touched = hits.touched(look, self.patterns().len());
        if !touched.contains(pattern) {
            return look.without_hits(pattern);
        }
        let Some(sought) = self.sought(pattern, hits) else {
            return Presence::Maybe(None);
        };
        let (mut sure, mut open, mut more) = (0u32, 0u32, false);
        for (part, literal) in sought.parts.iter().zip(sought.ids) {
            let offsets = hits.of(*literal);
            more |= offsets.len() > HITS_MAX;
            for offset in offsets {
                match sought.exact {
                    Exact::Yes => sure += 1,
                    Exact::No => open += 1,
                    Exact::Fullword => match is_full_word(*offset, part, bytes) {
                        Some(true) => sure += 1,
                        Some(false) => {}
                        None => open += 1,
                    },
                }
            }
        }
        let counts = sought.exact != Exact::No && !more;
        let most = counts.then_some(sure + open);
        match (sure, open, more) {
            (0, 0, false) => Presence::Absent,
            (0, _, _) => Presence::Maybe(most),
            _ => Presence::Present(most),
        }
    }

    /// What was looked for to find a pattern; `None`: it was not looked for.
    pub(crate) fn sought(&self, pattern: usize, hits: &Hits) -> Option<Sought<'_>> {
        let entry = self.patterns().get(pattern)?;
        self.look(hits.side()).sought(pattern, &entry.info)
    }

    /// Bytes of a pattern's longest match; `None`: no bound.
    pub(crate) fn longest(&self, pattern: usize) -> Option<u64> {
        self.patterns().get(pattern)?.info.longest
    }

    /// Looks for a pattern in the content itself.
    pub(crate) fn look_for(&self, pattern: usize, hits: &Hits, content: &[u8]) -> Presence {
        let Some(entry) = self.patterns().get(pattern) else {
            return Presence::Maybe(None);
        };
        if let Some(verifier) = &entry.info.verifier {
            // Where it may be is known for most.
            let effort = content.len().saturating_mul(EFFORT_MAX);
            let told = self.look_at_hits(pattern, hits, &content, effort);
            let compiled = || self.expressions().of(pattern, &verifier.source);
            return match told.or_else(|| verifier.is_in(content, &compiled)) {
                Some(false) => Presence::Absent,
                Some(true) | None => Presence::Maybe(None),
            };
        }
        // Its literals occur, and a search would tell just that.
        if hits.side() == Side::Appliance && self.look(Side::Appliance).seeks(pattern) {
            return Presence::Maybe(None);
        }
        match (entry.info.is_in(content), entry.info.exact) {
            (Some(false), _) => Presence::Absent,
            (Some(true), Exact::Yes) => Presence::Present(None),
            (Some(true), Exact::No | Exact::Fullword) | (None, _) => Presence::Maybe(None),
        }
    }

    /// Looks at the places where a hex pattern may match, at no more bytes than `effort`: false
    /// where it matches at none of them, `None` where that cannot be told.
    pub(crate) fn look_at_hits(
        &self,
        pattern: usize,
        hits: &Hits,
        bytes: &dyn Bytes,
        mut effort: usize,
    ) -> Option<bool> {
        let sought = self.sought(pattern, hits)?;
        let verifier = self.patterns().get(pattern)?.info.verifier.as_ref()?;
        let compiled = || self.expressions().of(pattern, &verifier.source);
        for (part, literal) in sought.parts.iter().zip(sought.ids) {
            let offsets = hits.of(*literal);
            if offsets.len() > HITS_MAX {
                return None;
            }
            for offset in offsets {
                let start = offset.saturating_sub(part.before?);
                let end = offset + part.bytes.len() as u64 + part.after?;
                let window = bytes.get(start, usize::try_from(end - start).ok()?)?;
                effort = effort.checked_sub(window.len())?;
                if verifier.is_in(window, &compiled)? {
                    return Some(true);
                }
            }
        }
        Some(false)
    }
}

/// Whether no letter or digit adjoins a match of the whole literal; `None`: not known.
pub(crate) fn is_full_word(offset: u64, part: &Part, bytes: &dyn Bytes) -> Option<bool> {
    let end = offset + part.bytes.len() as u64;
    let unit = if part.wide { 2 } else { 1 };
    let letter = |unit: &[u8]| match unit {
        [byte] => byte.is_ascii_alphanumeric(),
        [byte, 0] => byte.is_ascii_alphanumeric(),
        _ => false,
    };
    let before = match offset.checked_sub(unit) {
        Some(start) => letter(bytes.get(start, unit as usize)?),
        None => false,
    };
    let after = bytes.get(end, unit as usize)?;
    let after = after.len() == unit as usize && letter(after);
    Some(!before && !after)
}
