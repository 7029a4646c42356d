//! Compiled regular expressions: those that were used last. Content can be made that has the needles
//! of all patterns of a rule set, and each expression takes memory of its own.

use std::sync::{Arc, Mutex, PoisonError};

use regex::bytes::{Regex, RegexBuilder};

/// Compiled expressions that are kept.
const KEPT_MAX: usize = 64;
/// Compiled size of an expression, in bytes.
const SIZE_MAX: usize = 1 << 19;
/// The same of the states that searches make of it: fewer would be made again and again.
const STATES_MAX: usize = 2 << 20;

/// By the plan's pattern, the one used last at the end; `None`: it is too large.
#[derive(Debug, Default)]
pub(crate) struct Expressions {
    kept: Mutex<Vec<(usize, Option<Arc<Regex>>)>>,
}

impl Expressions {
    /// The expression of a pattern, compiled if it is not at hand; `None`: it is too large.
    pub(crate) fn of(&self, pattern: usize, source: &str) -> Option<Arc<Regex>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().rposition(|(other, _)| *other == pattern);
        let used = match found {
            Some(place) => kept.remove(place),
            None => (pattern, compile(source).map(Arc::new)),
        };
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push(used.clone());
        used.1
    }
}

fn compile(source: &str) -> Option<Regex> {
    let mut builder = RegexBuilder::new(source);
    builder.unicode(false).dot_matches_new_line(true);
    builder.size_limit(SIZE_MAX).dfa_size_limit(STATES_MAX);
    builder.build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_used_last_are_kept() {
        let expressions = Expressions::default();
        let of = |pattern: usize| expressions.of(pattern, &format!("a{{{pattern}}}"));
        let first = of(0).expect("small");
        for pattern in 1..KEPT_MAX {
            assert!(of(pattern).expect("small").is_match(&b"a".repeat(pattern)));
        }
        let is_kept = |of: Option<Arc<Regex>>| of.is_some_and(|of| Arc::ptr_eq(&of, &first));
        assert!(is_kept(of(0)), "there is room");
        // The second one goes, for the first was used since.
        of(KEPT_MAX);
        assert!(is_kept(of(0)));
        for pattern in 0..2 * KEPT_MAX {
            of(pattern);
        }
        assert!(!is_kept(of(0)));
        assert_eq!(expressions.kept.lock().expect("unpoisoned").len(), KEPT_MAX);
    }

    #[test]
    fn large_ones_are_not_compiled() {
        let large = "(?:.{0,1000}a){1000}";
        assert!(Expressions::default().of(1, large).is_none());
    }
}
