//! Which patterns of a rule are worth looking for: its *gate*.
//!
//! A rule whose gate is a set of patterns comes to *false* in every file in which none of them
//! occurs. `all of them` needs one pattern, the cheapest; `any of them` needs all. So most
//! literals of a rule set need not be looked for in every file, and of a rule with one long and
//! one short literal only the long one. The search here is a heuristic: [`crate::Plan::compile`]
//! lets the evaluation in three values prove each gate, and a rule without a proven one is a
//! resident.

use std::collections::BTreeSet;

use crate::compile::{Plan, RuleEntry, RuleId};
use crate::expr::{Comparison, Expr, Quantifier};
use crate::look::Look;
use crate::pattern::{Part, PatternInfo, rarity};

/// What it costs to look for a pattern of the rule; `None`: it cannot be looked for.
pub(crate) type Cost<'a> = &'a dyn Fn(usize) -> Option<u64>;

/// Indices of patterns within the rule, and what they cost together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) patterns: BTreeSet<usize>,
    cost: u64,
    /// Something else has to be false, too: what modules say, sizes, other rules.
    soft: bool,
}

impl Gate {
    fn soft() -> Self {
        Self {
            soft: true,
            ..Self::default()
        }
    }
}

/// The best gate of a rule; whether it keeps the rule shut is for the evaluation to find out.
pub(crate) fn of_rule(rule: &RuleEntry, cost: Cost<'_>) -> Gate {
    Search { cost }.of(&rule.condition, None)
}

struct Search<'a> {
    cost: Cost<'a>,
}

impl Search<'_> {
    /// A gate of `expr`; `looped` is the pattern of the loop around.
    fn of(&self, expr: &Expr, looped: Option<usize>) -> Gate {
        match expr {
            Expr::Bool(false) => Gate::default(),
            Expr::Pattern(index, _) => self.pattern(Some(*index)),
            Expr::LoopPattern(_) => self.pattern(looped),
            Expr::Count(index) => self.pattern(index.or(looped)),
            Expr::Detail { pattern, .. } => self.pattern(pattern.or(looped)),
            Expr::And(all) => self.cheapest(all.iter().map(|e| self.of(e, looped))),
            Expr::Or(any) => self.all(any.iter().map(|e| self.of(e, looped))),
            Expr::Probe(_, direct) => self.of(direct, looped),
            // Undefined where a part of it is: `uint32(@a + 8)`.
            Expr::Read(_, at) => self.of(at, looped),
            Expr::Arithmetic(_, parts) => self.arithmetic(parts, looped),
            Expr::Needing(index, inner) => {
                let gates = [self.pattern(Some(*index)), self.of(inner, looped)];
                self.cheapest(gates.into_iter())
            }
            Expr::Compare(comparison, left, right) => {
                self.compare(*comparison, left, right, looped)
            }
            Expr::OfPatterns(quantifier, patterns, _) => {
                let gates = patterns.iter().map(|p| self.pattern(Some(*p))).collect();
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
            Expr::ForIn(Quantifier::Any | Quantifier::AtLeast(_), body) => self.of(body, looped),
            _ => Gate::soft(),
        }
    }

    fn pattern(&self, index: Option<usize>) -> Gate {
        match index.and_then(|index| Some((index, (self.cost)(index)?))) {
            Some((index, cost)) => Gate {
                patterns: BTreeSet::from([index]),
                cost,
                soft: false,
            },
            None => Gate::soft(),
        }
    }

    /// One that needs nothing else; or else one that looks for something.
    fn cheapest(&self, gates: impl Iterator<Item = Gate>) -> Gate {
        let best = gates.min_by_key(|gate| (gate.soft, gate.patterns.is_empty(), gate.cost));
        best.unwrap_or_else(Gate::soft)
    }

    fn all(&self, gates: impl Iterator<Item = Gate>) -> Gate {
        let mut joined = Gate::default();
        for gate in gates {
            joined.patterns.extend(gate.patterns);
            joined.soft |= gate.soft;
        }
        let costs = joined.patterns.iter().filter_map(|p| (self.cost)(*p));
        joined.cost = costs.sum();
        joined
    }

    /// Undefined where any part is, but counts never are: a sum of them is 0 where all are.
    fn arithmetic(&self, parts: &[Expr], looped: Option<usize>) -> Gate {
        let is_defined = |e: &&Expr| matches!(e, Expr::Count(_) | Expr::Int(_) | Expr::Filesize);
        if !parts.iter().all(|e| is_defined(&e)) {
            let others = parts.iter().filter(|e| !is_defined(e));
            return self.cheapest(others.map(|e| self.of(e, looped)));
        }
        let counts = parts.iter().filter(|e| matches!(e, Expr::Count(_)));
        self.all(counts.map(|e| self.of(e, looped)))
    }

    /// `#a > 2`, `@a < 100`: either side may be what needs the pattern, but not what has to be
    /// less, which a count of 0 is.
    fn compare(
        &self,
        comparison: Comparison,
        left: &Expr,
        right: &Expr,
        looped: Option<usize>,
    ) -> Gate {
        let side = |expr: &Expr, is_less: bool| match expr {
            Expr::Count(_) | Expr::Arithmetic(..) if is_less => Gate::soft(),
            other => self.of(other, looped),
        };
        let (less, more) = match comparison {
            Comparison::Lt | Comparison::Le => (true, false),
            Comparison::Gt | Comparison::Ge => (false, true),
            Comparison::Eq | Comparison::Ne => (false, false),
        };
        let mut gate = self.cheapest([side(left, less), side(right, more)].into_iter());
        gate.soft |= comparison == Comparison::Ne;
        gate
    }

    fn quantified(&self, quantifier: &Quantifier, mut gates: Vec<Gate>) -> Gate {
        let wanted = match quantifier {
            Quantifier::None => return Gate::soft(),
            Quantifier::Any | Quantifier::Percentage => 1,
            Quantifier::All => gates.len(),
            Quantifier::AtLeast(wanted) => match **wanted {
                Expr::Int(wanted) if wanted > 0 => usize::try_from(wanted).unwrap_or(usize::MAX),
                _ => return Gate::soft(),
            },
        };
        if wanted > gates.len() {
            return Gate::default();
        }
        // If all but `wanted` - 1 are false, there are too few.
        gates.sort_by_key(|gate| (gate.soft, gate.cost));
        let needed = gates.len() - wanted + 1;
        self.all(gates.into_iter().take(needed))
    }
}

impl Plan {
    /// Of the patterns that are looked for those that may suffice to shut a rule, such as occur in
    /// few files.
    pub(crate) fn seldom_gate(&self, rule: RuleId, look: &Look) -> BTreeSet<usize> {
        let first = self.rule(rule).first_pattern;
        let cost = |index: usize| {
            let info = &self.patterns().get(first + index)?.info;
            look.seeks(first + index).then(|| how_often(info))
        };
        let gate = of_rule(self.rule(rule), &cost);
        gate.patterns
            .into_iter()
            .map(|index| first + index)
            .collect()
    }
}

/// How often a pattern is to be expected, without a unit.
fn how_often(info: &PatternInfo) -> u64 {
    let often = |part: &Part| 1 << (40 - rarity(&part.bytes).clamp(0, 40));
    let all = info.literals.iter().map(often);
    all.fold(1, u64::saturating_add)
}

/// How much looking for a literal slows the filter down: short ones need more looks, and frequent
/// ones more comparisons.
pub(crate) fn literal_cost(bytes: &[u8], nocase: bool) -> u64 {
    let length = match bytes.len() {
        ..=5 => 60,
        6 => 30,
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

    fn gate(expr: &Expr, costs: &[Option<u64>]) -> (Vec<usize>, bool) {
        let cost = |index: usize| costs.get(index).copied().flatten();
        let gate = Search { cost: &cost }.of(expr, None);
        (gate.patterns.into_iter().collect(), !gate.soft)
    }

    fn pattern(index: usize) -> Expr {
        Expr::Pattern(index, Anchor::None)
    }

    #[test]
    fn and_needs_one_or_needs_all() {
        let costs = [Some(5), Some(1), None];
        let check = |expr: &Expr, expected: &[usize], suffices: bool| {
            assert_eq!(gate(expr, &costs), (expected.to_vec(), suffices));
        };
        check(&Expr::And(vec![pattern(0), pattern(1)]), &[1], true);
        check(&Expr::And(vec![pattern(0), pattern(2)]), &[0], true);
        check(&Expr::And(vec![pattern(0), Expr::Bool(true)]), &[0], true);
        check(&Expr::Or(vec![pattern(0), pattern(1)]), &[0, 1], true);
        check(&Expr::Or(vec![pattern(0), pattern(2)]), &[0], false);
        check(&Expr::Not(Box::new(pattern(0))), &[], false);
    }

    #[test]
    fn of_needs_as_many_as_leave_too_few() {
        let costs = [Some(5), Some(1), Some(3), Some(2)];
        let of = |quantifier| Expr::OfPatterns(quantifier, vec![0, 1, 2, 3], Anchor::None);
        let at_least = |n| Quantifier::AtLeast(Box::new(Expr::Int(n)));
        let check = |quantifier, expected: &[usize], suffices: bool| {
            let expected = (expected.to_vec(), suffices);
            assert_eq!(gate(&of(quantifier), &costs), expected);
        };
        check(Quantifier::All, &[1], true);
        check(Quantifier::Any, &[0, 1, 2, 3], true);
        check(at_least(3), &[1, 3], true);
        check(at_least(9), &[], true);
        check(Quantifier::None, &[], false);
    }
}
