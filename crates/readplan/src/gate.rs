//! Which patterns of a rule are worth looking for: its *gate*.
//!
//! A rule whose gate is a set of patterns comes to *false* in every file in which none of them
//! occurs. `all of them` needs one pattern, the cheapest; `any of them` needs all. So most
//! literals of a rule set need not be looked for in every file, and of a rule with one long and
//! one short literal only the long one. The search here is a heuristic: [`crate::Plan::compile`]
//! lets the evaluation in three values prove each gate, and a rule without a proven one is a
//! resident.

use std::collections::BTreeSet;

use crate::compile::RuleEntry;
use crate::expr::{Comparison, Expr, Quantifier};

/// What it costs to look for a pattern of the rule; `None`: it cannot be looked for.
pub(crate) type Cost<'a> = &'a dyn Fn(usize) -> Option<u64>;

/// Indices of patterns within the rule, and what they cost together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) patterns: BTreeSet<usize>,
    pub(crate) cost: u64,
}

impl Gate {
    fn join(mut self, other: &Self, cost: Cost<'_>) -> Self {
        self.patterns.extend(&other.patterns);
        self.cost = self.patterns.iter().filter_map(|p| cost(*p)).sum();
        self
    }
}

/// The gate of a rule. `None`: it may match with none of its patterns in the file.
pub(crate) fn of_rule(rule: &RuleEntry, cost: Cost<'_>) -> Option<Gate> {
    Search { cost }.of(&rule.condition, None)
}

struct Search<'a> {
    cost: Cost<'a>,
}

impl Search<'_> {
    /// A gate of `expr`; `looped` is the pattern of the loop around.
    fn of(&self, expr: &Expr, looped: Option<usize>) -> Option<Gate> {
        match expr {
            Expr::Bool(false) => Some(Gate::default()),
            Expr::Pattern(index, _) => self.pattern(*index),
            Expr::LoopPattern(_) => self.pattern(looped?),
            Expr::Count(index) => self.pattern((*index).or(looped)?),
            Expr::Detail { pattern, .. } => self.pattern((*pattern).or(looped)?),
            Expr::And(all) => self.cheapest(all.iter().map(|e| self.of(e, looped))),
            Expr::Or(any) => self.all(any.iter().map(|e| self.of(e, looped))),
            Expr::Probe(_, direct) => self.of(direct, looped),
            Expr::Compare(comparison, left, right) => {
                self.compare(*comparison, left, right, looped)
            }
            Expr::OfPatterns(quantifier, patterns, _) => {
                let gates = patterns.iter().map(|p| self.pattern(*p)).collect();
                self.quantified(quantifier, gates)
            }
            Expr::OfExpressions(quantifier, items) => {
                let gates = items.iter().map(|e| self.of(e, looped)).collect();
                self.quantified(quantifier, gates)
            }
            Expr::ForOf(quantifier, patterns, body) => {
                let gates = patterns.iter().map(|p| self.of(body, Some(*p))).collect();
                self.quantified(quantifier, gates)
            }
            Expr::ForIn(quantifier, body) => match quantifier {
                Quantifier::Any | Quantifier::AtLeast(_) => self.of(body, looped),
                _ => None,
            },
            _ => None,
        }
    }

    fn pattern(&self, index: usize) -> Option<Gate> {
        Some(Gate {
            patterns: BTreeSet::from([index]),
            cost: (self.cost)(index)?,
        })
    }

    fn cheapest(&self, gates: impl Iterator<Item = Option<Gate>>) -> Option<Gate> {
        gates.flatten().min_by_key(|gate| gate.cost)
    }

    fn all(&self, gates: impl Iterator<Item = Option<Gate>>) -> Option<Gate> {
        let mut joined = Gate::default();
        for gate in gates {
            joined = joined.join(&gate?, self.cost);
        }
        Some(joined)
    }

    /// `#a > 2`, `@a < 100`: either side may be what needs the pattern.
    fn compare(
        &self,
        comparison: Comparison,
        left: &Expr,
        right: &Expr,
        looped: Option<usize>,
    ) -> Option<Gate> {
        let zero = matches!((left, right), (_, Expr::Int(0)) | (Expr::Int(0), _));
        if comparison == Comparison::Ne && !zero {
            return None;
        }
        self.cheapest([self.of(left, looped), self.of(right, looped)].into_iter())
    }

    fn quantified(&self, quantifier: &Quantifier, mut gates: Vec<Option<Gate>>) -> Option<Gate> {
        let wanted = match quantifier {
            Quantifier::None => return None,
            Quantifier::Any | Quantifier::Percentage => 1,
            Quantifier::All => gates.len(),
            Quantifier::AtLeast(wanted) => match **wanted {
                Expr::Int(wanted) if wanted > 0 => usize::try_from(wanted).ok()?,
                _ => return None,
            },
        };
        if wanted > gates.len() {
            return Some(Gate::default());
        }
        // If all but `wanted` - 1 are false, there are too few.
        gates.sort_by_key(|gate| gate.as_ref().map_or(u64::MAX, |gate| gate.cost));
        let needed = gates.len() - wanted + 1;
        self.all(gates.into_iter().take(needed))
    }
}

/// How much looking for a literal slows the filter down: short ones need more looks, and frequent
/// ones more comparisons.
pub(crate) fn literal_cost(bytes: &[u8], nocase: bool) -> u64 {
    let length = match bytes.len() {
        ..=4 => 400,
        5..=6 => 120,
        7..=10 => 12,
        _ => 8,
    };
    let plain = bytes.iter().all(u8::is_ascii_alphabetic);
    length * if plain && bytes.len() < 9 { 3 } else { 1 } + if nocase { 2 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Anchor;

    fn gate(expr: &Expr, costs: &[Option<u64>]) -> Option<Vec<usize>> {
        let cost = |index: usize| costs.get(index).copied().flatten();
        let gate = Search { cost: &cost }.of(expr, None)?;
        Some(gate.patterns.into_iter().collect())
    }

    fn pattern(index: usize) -> Expr {
        Expr::Pattern(index, Anchor::None)
    }

    #[test]
    fn and_needs_one_or_needs_all() {
        let costs = [Some(5), Some(1), None];
        let check = |expr: &Expr, expected: Option<&[usize]>| {
            assert_eq!(gate(expr, &costs).as_deref(), expected);
        };
        check(&Expr::And(vec![pattern(0), pattern(1)]), Some(&[1]));
        check(&Expr::And(vec![pattern(0), pattern(2)]), Some(&[0]));
        check(&Expr::Or(vec![pattern(0), pattern(1)]), Some(&[0, 1]));
        check(&Expr::Or(vec![pattern(0), pattern(2)]), None);
        check(&Expr::Not(Box::new(pattern(0))), None);
    }

    #[test]
    fn of_needs_as_many_as_leave_too_few() {
        let costs = [Some(5), Some(1), Some(3), Some(2)];
        let of = |quantifier| Expr::OfPatterns(quantifier, vec![0, 1, 2, 3], Anchor::None);
        let at_least = |n| Quantifier::AtLeast(Box::new(Expr::Int(n)));
        let check = |quantifier, expected: Option<&[usize]>| {
            assert_eq!(gate(&of(quantifier), &costs).as_deref(), expected);
        };
        check(Quantifier::All, Some(&[1]));
        check(Quantifier::Any, Some(&[0, 1, 2, 3]));
        check(at_least(3), Some(&[1, 3]));
        check(at_least(9), Some(&[]));
        check(Quantifier::None, None);
    }
}
