//! What of a file YARA-X must see to judge rules that are still open.
//!
//! YARA-X is run on a *view*: as many bytes as the file has, of which some ranges are known and
//! all others are zero. What is worked out here makes that sound. Of a rule that is run there
//!
//! - every byte that its condition reads is known, or is read while the file's modules are
//!   evaluated on memory that tells which pages were read (*probes*, `engine::sparse`);
//! - around every place where a pattern can match, as far as a match can reach, all bytes are
//!   known, so no match is missing from the view. Matches that the zeros make touch bytes that
//!   are not known, which is looked for afterwards.
//!
//! Parts of a condition that are false and stay false where matches are missing need nothing.

use std::ops::Range;

use model::Ranges;
use rustc_hash::FxHashSet;

use crate::compile::{Plan, RuleId};
use crate::eval::{Evaluation, Presence, Scope};
use crate::expr::{Anchor, Comparison, Expr, Quantifier};
use crate::known::{HITS_MAX, Hits};
use crate::open::Known;
use crate::pattern::{Exact, Part};
use crate::presence::is_full_word;
use crate::value::{Truth, Value};

/// Bytes on either side of a match that decide whether it is one: `fullword` of wide strings looks
/// at two, base64 decodes a few more.
const MARGIN: u64 = 16;
/// Rules that refer to rules that refer to rules.
const DEPTH_MAX: u32 = 16;

/// What must be known of a file before a rule may be run on a view of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// These bytes.
    pub ranges: Ranges,
    /// Everything that modules read.
    pub modules: bool,
    /// Answers of these probes, by index.
    pub probes: Vec<usize>,
    /// No set of ranges is known to suffice.
    pub whole: bool,
}

impl Plan {
    /// What must be known before these rules are judged on a view. `probe` tells what YARA-X said
    /// of a probe, with all that it read known.
    pub fn wants(
        &self,
        rules: &[RuleId],
        known: &Known<'_>,
        probe: &dyn Fn(usize) -> Option<bool>,
    ) -> Vec<Wants> {
        self.evaluate(known, probe, |evaluation| {
            let of = |rule: &RuleId| {
                let mut walk = Walk {
                    evaluation,
                    hits: known.hits,
                    size: known.size,
                    wants: Wants::default(),
                    seen: FxHashSet::default(),
                    depth: 0,
                };
                walk.rule(*rule);
                walk.wants
            };
            rules.iter().map(of).collect()
        })
    }
}

/// How many of a pattern's matches a view must have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Matches {
    /// One, if there are any.
    Some,
    All,
}

struct Walk<'a> {
    evaluation: &'a Evaluation<'a>,
    hits: &'a Hits,
    size: u64,
    wants: Wants,
    /// Rules that were walked through: once is enough.
    seen: FxHashSet<RuleId>,
    depth: u32,
}

impl Walk<'_> {
    fn rule(&mut self, rule: RuleId) {
        let plan = self.evaluation.plan;
        if !self.seen.insert(rule) {
            return;
        }
        // A global rule decides about others without being named.
        if self.depth >= DEPTH_MAX || plan.has_globals(rule) {
            self.wants.whole = true;
            return;
        }
        self.depth += 1;
        let scope = Scope { rule, looped: None };
        let entry = plan.rule(rule);
        self.wants.modules |= entry.hidden.modules;
        self.wants.modules |= entry.hidden.literals && !self.evaluation.is_foreign("pe");
        self.wants.whole |= entry.hidden.content;
        for index in &entry.hidden.patterns {
            self.pattern(*index, Matches::All, None, scope);
        }
        for name in &entry.hidden.rules {
            self.reference(name, scope);
        }
        self.expr(&entry.condition, scope);
        self.depth -= 1;
    }

    fn reference(&mut self, name: &str, scope: Scope) {
        match self.evaluation.plan.find(scope.rule, name) {
            Some(rule) => self.rule(rule),
            None => self.wants.whole = true,
        }
    }

    fn range(&mut self, range: Range<u64>) {
        self.wants.ranges.add(range.start..range.end.min(self.size));
    }

    fn expr(&mut self, expr: &Expr, scope: Scope) {
        if self.stays_false(expr, scope) {
            return;
        }
        match expr {
            Expr::Bool(_) | Expr::Int(_) | Expr::Text | Expr::Filesize => {}
            // What is not shown is among what is hidden.
            Expr::Opaque => {}
            Expr::Pattern(index, anchor) => {
                self.anchored(*index, anchor, scope);
            }
            Expr::LoopPattern(anchor) => match scope.looped {
                Some(index) => self.anchored(index, anchor, scope),
                None => self.wants.whole = true,
            },
            Expr::Count(index) | Expr::Detail { pattern: index, .. } => {
                match index.or(scope.looped) {
                    Some(index) => self.pattern(index, Matches::All, None, scope),
                    None => self.wants.whole = true,
                }
            }
            Expr::Read(read, at) => {
                self.expr(at, scope);
                match self.evaluation.value(at, scope) {
                    Value::Undefined => {}
                    Value::Int(at, end) if at == end => {
                        if let Ok(at) = u64::try_from(at) {
                            self.range(at..at.saturating_add(read.bytes as u64));
                        }
                    }
                    _ => self.wants.whole = true,
                }
            }
            Expr::Module { module, .. } | Expr::Call { module } => {
                self.wants.modules |= !self.evaluation.is_foreign(module);
            }
            // The literal is not YARA-X's, which asks the module: see `Hidden::literals`.
            Expr::Needing(_, inner) => self.expr(inner, scope),
            Expr::Rule(name) => self.reference(name, scope),
            Expr::Not(inner) | Expr::Defined(inner) => self.expr(inner, scope),
            Expr::TextTest(left, right) | Expr::Compare(_, left, right) => {
                self.expr(left, scope);
                self.expr(right, scope);
            }
            Expr::And(all) | Expr::Or(all) | Expr::Arithmetic(_, all) => {
                all.iter().for_each(|part| self.expr(part, scope));
            }
            Expr::OfPatterns(quantifier, patterns, anchor) => {
                self.quantifier(quantifier, scope);
                for index in patterns {
                    self.anchored(*index, anchor, scope);
                }
            }
            Expr::OfExpressions(quantifier, items) => {
                self.quantifier(quantifier, scope);
                items.iter().for_each(|item| self.expr(item, scope));
            }
            Expr::ForOf(quantifier, patterns, body) => {
                self.quantifier(quantifier, scope);
                for index in patterns {
                    let looped = Some(*index);
                    // What is hidden in the body may be about the pattern, too.
                    self.pattern(*index, Matches::All, None, scope);
                    self.expr(body, Scope { looped, ..scope });
                }
            }
            Expr::ForIn(quantifier, body) => {
                self.quantifier(quantifier, scope);
                self.expr(body, scope);
            }
            Expr::Probe(index, direct) => {
                let known = self.evaluation.value(direct, scope) != Value::Unknown;
                if !known && (self.evaluation.probe)(*index).is_none() {
                    self.wants.probes.push(*index);
                }
            }
        }
    }

    fn quantifier(&mut self, quantifier: &Quantifier, scope: Scope) {
        if let Quantifier::AtLeast(wanted) = quantifier {
            self.expr(wanted, scope);
        }
    }

    fn anchored(&mut self, index: usize, anchor: &Anchor, scope: Scope) {
        match anchor {
            Anchor::None => self.pattern(index, Matches::Some, None, scope),
            Anchor::At(at) => {
                self.expr(at, scope);
                match self.evaluation.value(at, scope) {
                    Value::Undefined => {}
                    Value::Int(at, end) => {
                        self.pattern(index, Matches::All, Some((at, end)), scope);
                    }
                    _ => self.pattern(index, Matches::All, None, scope),
                }
            }
            Anchor::In(lower, upper) => {
                self.expr(lower, scope);
                self.expr(upper, scope);
                let bounds = (
                    self.evaluation.value(lower, scope),
                    self.evaluation.value(upper, scope),
                );
                match bounds {
                    (Value::Undefined, _) | (_, Value::Undefined) => {}
                    (Value::Int(lower, _), Value::Int(_, upper)) => {
                        self.pattern(index, Matches::All, Some((lower, upper)), scope);
                    }
                    _ => self.pattern(index, Matches::All, None, scope),
                }
            }
        }
    }

    /// Wants the places where a pattern can match; `starts`: only where a match that starts
    /// between these two counts.
    fn pattern(
        &mut self,
        index: usize,
        matches: Matches,
        starts: Option<(i64, i64)>,
        scope: Scope,
    ) {
        let plan = self.evaluation.plan;
        let pattern = plan.rule(scope.rule).first_pattern + index;
        if (self.evaluation.presence)(pattern) == Presence::Absent {
            return;
        }
        let Some(sought) = plan.sought(pattern, self.hits) else {
            return self.within(plan.longest(pattern), starts);
        };
        let mut places = Places::default();
        for (part, literal) in sought.parts.iter().zip(sought.ids) {
            let offsets = self.hits.of(*literal);
            places.more |= offsets.len() > HITS_MAX;
            for offset in offsets {
                self.place(part, *offset, sought.exact, starts, &mut places);
            }
        }
        match (matches, sought.exact, places.sure) {
            // One match is as good as all of them.
            (Matches::Some, Exact::Yes | Exact::Fullword, Some(sure)) => self.range(sure),
            _ if places.more || places.endless => self.within(plan.longest(pattern), starts),
            _ => self.wants.ranges.extend(&places.ranges),
        }
    }

    /// Notes where a match around an occurrence of its literal can be.
    fn place(
        &self,
        part: &Part,
        offset: u64,
        exact: Exact,
        starts: Option<(i64, i64)>,
        places: &mut Places,
    ) {
        let (Some(before), Some(after)) = (part.before, part.after) else {
            places.endless = true;
            return;
        };
        let first = offset.saturating_sub(before);
        if let Some((lower, upper)) = starts {
            let (first, last) = (i64::try_from(first), i64::try_from(offset));
            let (Ok(first), Ok(last)) = (first, last) else {
                return;
            };
            if last < lower || first > upper {
                return;
            }
        }
        let end = offset
            .saturating_add(part.bytes.len() as u64)
            .saturating_add(after);
        let range = first.saturating_sub(MARGIN)..end.saturating_add(MARGIN).min(self.size);
        match exact {
            Exact::No => {}
            Exact::Yes => {
                places.sure.get_or_insert_with(|| range.clone());
            }
            Exact::Fullword => match is_full_word(offset, part, self.evaluation.bytes) {
                Some(true) => {
                    places.sure.get_or_insert_with(|| range.clone());
                }
                Some(false) => return,
                None => {}
            },
        }
        places.ranges.add(range);
    }

    /// Wants all places where a match of at most so many bytes that counts can be.
    fn within(&mut self, longest: Option<u64>, starts: Option<(i64, i64)>) {
        let (Some(longest), Some((lower, upper))) = (longest, starts) else {
            self.wants.whole = true;
            return;
        };
        let Ok(upper) = u64::try_from(upper) else {
            return;
        };
        let lower = u64::try_from(lower).unwrap_or(0);
        let end = upper.saturating_add(longest).saturating_add(MARGIN);
        self.range(lower.saturating_sub(MARGIN)..end);
    }

    /// It is false, and no matter which matches are missing it stays so.
    fn stays_false(&self, expr: &Expr, scope: Scope) -> bool {
        match expr {
            Expr::And(all) => all.iter().any(|part| self.stays_false(part, scope)),
            Expr::Or(any) => any.iter().all(|part| self.stays_false(part, scope)),
            Expr::Needing(_, inner) => self.stays_false(inner, scope),
            _ => only_grows(expr) && self.evaluation.truth(expr, scope) == Truth::False,
        }
    }
}

#[derive(Default)]
struct Places {
    ranges: Ranges,
    /// One that is a match for certain.
    sure: Option<Range<u64>>,
    /// There are occurrences of which nothing is known.
    more: bool,
    /// A match may reach any distance.
    endless: bool,
}

/// With more matches of patterns, it can become true but not false. (What is opaque counts, since
/// nothing is ever concluded from it.)
fn only_grows(expr: &Expr) -> bool {
    match expr {
        Expr::Pattern(_, anchor) | Expr::LoopPattern(anchor) => is_fixed_anchor(anchor),
        Expr::And(all) | Expr::Or(all) => all.iter().all(only_grows),
        Expr::OfPatterns(quantifier, _, anchor) => {
            is_growing(quantifier) && is_fixed_anchor(anchor)
        }
        Expr::OfExpressions(quantifier, items) => {
            is_growing(quantifier) && items.iter().all(only_grows)
        }
        Expr::ForOf(quantifier, _, body) | Expr::ForIn(quantifier, body) => {
            is_growing(quantifier) && only_grows(body)
        }
        Expr::Compare(Comparison::Gt | Comparison::Ge, left, right) if is_fixed(right) => {
            matches!(**left, Expr::Count(_)) || is_fixed(left)
        }
        other => is_fixed(other),
    }
}

fn is_growing(quantifier: &Quantifier) -> bool {
    match quantifier {
        Quantifier::None => false,
        Quantifier::All | Quantifier::Any | Quantifier::Percentage => true,
        Quantifier::AtLeast(wanted) => is_fixed(wanted),
    }
}

fn is_fixed_anchor(anchor: &Anchor) -> bool {
    match anchor {
        Anchor::None => true,
        Anchor::At(at) => is_fixed(at),
        Anchor::In(lower, upper) => is_fixed(lower) && is_fixed(upper),
    }
}

/// It has nothing to do with patterns.
fn is_fixed(expr: &Expr) -> bool {
    match expr {
        Expr::Bool(_) | Expr::Int(_) | Expr::Text | Expr::Filesize | Expr::Opaque => true,
        // Known only where the module has nothing to say, whatever else is in it.
        Expr::Module { .. } | Expr::Call { .. } | Expr::Probe(..) => true,
        Expr::Read(_, inner) | Expr::Not(inner) | Expr::Defined(inner) => is_fixed(inner),
        Expr::And(all) | Expr::Or(all) | Expr::Arithmetic(_, all) => all.iter().all(is_fixed),
        Expr::TextTest(left, right) | Expr::Compare(_, left, right) => {
            is_fixed(left) && is_fixed(right)
        }
        Expr::OfExpressions(quantifier, items) => {
            let wanted = match quantifier {
                Quantifier::AtLeast(wanted) => is_fixed(wanted),
                _ => true,
            };
            wanted && items.iter().all(is_fixed)
        }
        Expr::Pattern(..)
        | Expr::LoopPattern(_)
        | Expr::Count(_)
        | Expr::Detail { .. }
        | Expr::Needing(..)
        | Expr::Rule(_)
        | Expr::OfPatterns(..)
        | Expr::ForOf(..)
        | Expr::ForIn(..) => false,
    }
}
