//! What shuts most rules of most files in a moment. Evaluating a condition means waiting for memory
//! a dozen times; a guard is one line of the cache.
//!
//! A guard says less than the evaluation, and the same: where it shuts a rule, the rule's condition
//! comes to *false*.

use std::ops::Range;

use crate::bits::Bits;
use crate::class::Class;
use crate::compile::{Plan, RuleId};
use crate::expr::{Comparison, Expr, Quantifier};
use crate::look::Look;
use crate::value::Truth;

/// What a file has to have for one rule.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    /// Its size in bytes, the least and the largest.
    sizes: (u64, u64),
    /// The rule's patterns.
    patterns: (u32, u32),
    /// Classes that do not shut the rule: a bit for each.
    classes: u32,
    /// How many of the patterns have to occur.
    occurring: u32,
}

impl Guard {
    /// Of all rules, where `look` tells which patterns occur.
    pub(crate) fn all(plan: &Plan, look: &Look) -> Vec<Self> {
        let of = |rule: RuleId| {
            let open =
                Class::all().filter(|class| plan.by_class_alone(rule, *class) != Truth::False);
            let patterns = plan.patterns_of(rule);
            let first = patterns.start;
            let seeks = |index: usize| look.seeks(first + index);
            let condition = &plan.rule(rule).condition;
            Self {
                sizes: sizes(condition),
                patterns: (patterns.start as u32, patterns.end as u32),
                classes: open.fold(0, |all, class| all | 1 << class.index()),
                occurring: occurring(condition, &seeks),
            }
        };
        (0..plan.len()).map(of).collect()
    }

    /// The rule may match a file of this size and class of which these patterns occur.
    pub(crate) fn lets(&self, size: u64, class: Option<Class>, touched: &Bits) -> bool {
        let (least, most) = self.sizes;
        let is_of_class = class.is_none_or(|class| self.classes >> class.index() & 1 != 0);
        is_of_class
            && (least..=most).contains(&size)
            && (self.occurring == 0 || touched.count(self.patterns()) >= self.occurring)
    }

    /// Nothing of the rule's patterns occurs.
    pub(crate) fn is_untouched(&self, touched: &Bits) -> bool {
        touched.count(self.patterns()) == 0
    }

    fn patterns(&self) -> Range<usize> {
        self.patterns.0 as usize..self.patterns.1 as usize
    }
}

const ANY_SIZE: (u64, u64) = (0, u64::MAX);
/// No file has a size between these.
const NO_SIZE: (u64, u64) = (u64::MAX, 0);

/// The least and the largest size of a file for which the condition is not false.
fn sizes(expr: &Expr) -> (u64, u64) {
    match expr {
        Expr::And(all) => all
            .iter()
            .map(sizes)
            .fold(ANY_SIZE, |(a, b), (least, most)| {
                (a.max(least), b.min(most))
            }),
        Expr::Or(any) => any
            .iter()
            .map(sizes)
            .fold(NO_SIZE, |(a, b), (least, most)| match least <= most {
                true => (a.min(least), b.max(most)),
                false => (a, b),
            }),
        Expr::Compare(comparison, left, right) => match (&**left, &**right) {
            (Expr::Filesize, Expr::Int(bound)) => sizes_by(*comparison, *bound),
            (Expr::Int(bound), Expr::Filesize) => sizes_by(turned(*comparison), *bound),
            _ => ANY_SIZE,
        },
        _ => ANY_SIZE,
    }
}

fn sizes_by(comparison: Comparison, bound: i64) -> (u64, u64) {
    // Bounds beyond what a size can be are left to the evaluation.
    let Some(bound) = u64::try_from(bound).ok().filter(|bound| *bound > 0) else {
        return ANY_SIZE;
    };
    match comparison {
        Comparison::Eq => (bound, bound),
        Comparison::Ne => ANY_SIZE,
        Comparison::Lt => (0, bound - 1),
        Comparison::Le => (0, bound),
        Comparison::Gt => (bound + 1, u64::MAX),
        Comparison::Ge => (bound, u64::MAX),
    }
}

/// The same with the sides exchanged.
fn turned(comparison: Comparison) -> Comparison {
    match comparison {
        Comparison::Lt => Comparison::Gt,
        Comparison::Gt => Comparison::Lt,
        Comparison::Le => Comparison::Ge,
        Comparison::Ge => Comparison::Le,
        Comparison::Eq | Comparison::Ne => comparison,
    }
}

/// So many of the rule's patterns that are looked for (`seeks`) have to occur for the condition not
/// to be false.
fn occurring(expr: &Expr, seeks: &dyn Fn(usize) -> bool) -> u32 {
    let of_set = |quantifier: &Quantifier, patterns: &[usize]| {
        // One that stands there twice counts twice.
        let mut once = patterns.to_vec();
        once.sort_unstable();
        once.dedup();
        let wanted = match quantifier {
            Quantifier::Any => 1,
            Quantifier::All => patterns.len(),
            Quantifier::AtLeast(wanted) => match **wanted {
                Expr::Int(wanted) => usize::try_from(wanted).unwrap_or(0),
                _ => 0,
            },
            Quantifier::None | Quantifier::Percentage => 0,
        };
        let others = patterns.len() - once.iter().filter(|index| seeks(**index)).count();
        wanted.min(patterns.len()).saturating_sub(others) as u32
    };
    match expr {
        Expr::Pattern(index, _) => u32::from(seeks(*index)),
        Expr::Needing(index, inner) => u32::from(seeks(*index)).max(occurring(inner, seeks)),
        Expr::OfPatterns(quantifier, patterns, _) => of_set(quantifier, patterns),
        Expr::And(all) => all.iter().map(|e| occurring(e, seeks)).max().unwrap_or(0),
        Expr::Or(any) => any.iter().map(|e| occurring(e, seeks)).min().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Anchor;

    fn filesize(comparison: Comparison, bound: i64) -> Expr {
        let (left, right) = (Expr::Filesize, Expr::Int(bound));
        Expr::Compare(comparison, Box::new(left), Box::new(right))
    }

    #[test]
    fn sizes_of_conditions() {
        let check = |expr: Expr, expected| assert_eq!(sizes(&expr), expected, "{expr:?}");
        let less = || filesize(Comparison::Lt, 100);
        let more = || filesize(Comparison::Ge, 200);
        check(less(), (0, 99));
        check(more(), (200, u64::MAX));
        check(filesize(Comparison::Eq, 7), (7, 7));
        check(filesize(Comparison::Lt, -1), ANY_SIZE);
        check(Expr::And(vec![less(), Expr::Opaque]), (0, 99));
        check(Expr::Or(vec![less(), Expr::Opaque]), ANY_SIZE);
        check(Expr::Or(vec![less(), more()]), ANY_SIZE);
        let never = Expr::And(vec![less(), more()]);
        let small = filesize(Comparison::Le, 5);
        check(Expr::Or(vec![never, small]), (0, 5));
        let turned = Expr::Compare(
            Comparison::Gt,
            Box::new(Expr::Int(100)),
            Box::new(Expr::Filesize),
        );
        check(turned, (0, 99));
        check(Expr::Not(Box::new(less())), ANY_SIZE);
    }

    #[test]
    fn patterns_that_have_to_occur() {
        // Number 3 is not looked for.
        let check = |expr: Expr, expected| {
            assert_eq!(occurring(&expr, &|index| index != 3), expected, "{expr:?}");
        };
        let of = |quantifier, patterns: &[usize]| {
            Expr::OfPatterns(quantifier, patterns.to_vec(), Anchor::None)
        };
        let at_least = |n| Quantifier::AtLeast(Box::new(Expr::Int(n)));
        let pattern = |index| Expr::Pattern(index, Anchor::None);
        check(pattern(0), 1);
        check(pattern(3), 0);
        check(of(Quantifier::Any, &[0, 1]), 1);
        check(of(Quantifier::Any, &[0, 3]), 0);
        check(of(Quantifier::All, &[0, 1, 2, 3]), 3);
        check(of(at_least(3), &[0, 1, 2, 3]), 2);
        check(of(at_least(2), &[0, 0]), 1);
        check(of(Quantifier::None, &[0, 1]), 0);
        let all = || of(Quantifier::All, &[0, 1, 2]);
        check(Expr::And(vec![pattern(0), all()]), 3);
        check(Expr::Or(vec![pattern(0), all()]), 1);
        check(Expr::Or(vec![pattern(3), all()]), 0);
        check(Expr::Not(Box::new(all())), 0);
    }
}
