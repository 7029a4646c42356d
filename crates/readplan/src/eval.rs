//! Conditions in three values: true, false, unknown.

use std::cell::{Cell, RefCell};

use rustc_hash::FxHashMap;

use crate::class::Kind;
use crate::compile::{Plan, RuleId};
use crate::expr::{Anchor, Comparison, Expr, ModuleItem, Operator, Quantifier, Read};
use crate::known::Bytes;
use crate::value::{Truth, Value, combine, compare, number, text_test};

/// Rules that refer to rules that refer to rules.
const DEPTH_MAX: u32 = 16;

/// What is known of a pattern in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    /// It may match, at most so often (`None`: no bound).
    Maybe(Option<u32>),
    /// It matches, between once and so often.
    Present(Option<u32>),
}

/// One file, as seen by one evaluation.
pub(crate) struct Evaluation<'a> {
    pub(crate) plan: &'a Plan,
    /// The least and the largest size that the file may have, in bytes.
    pub(crate) sizes: (u64, u64),
    /// What the file is by its first bytes, if that is known.
    pub(crate) kind: Option<Kind>,
    pub(crate) bytes: &'a dyn Bytes,
    /// By index of the plan's patterns.
    pub(crate) presence: &'a dyn Fn(usize) -> Presence,
    /// What YARA-X said of a probe: true, or false or undefined.
    pub(crate) probe: &'a dyn Fn(usize) -> Option<bool>,
    /// Fields of the PE module by their names; `None`: not told, `Some(None)`: undefined.
    pub(crate) number: &'a dyn Fn(&str) -> Option<Option<i64>>,
    pub(crate) references: References,
}

/// What came of rules that others refer to: each is evaluated once, or rules that name two
/// others each would take time without end.
#[derive(Default)]
pub(crate) struct References {
    values: RefCell<FxHashMap<RuleId, Truth>>,
    /// How many are under way.
    depth: Cell<u32>,
}

/// The rule whose condition is evaluated, and the pattern of the loop around.
#[derive(Clone, Copy)]
pub(crate) struct Scope {
    pub(crate) rule: RuleId,
    pub(crate) looped: Option<usize>,
}

impl Evaluation<'_> {
    pub(crate) fn rule(&self, rule: RuleId) -> Truth {
        let scope = Scope { rule, looped: None };
        self.truth(&self.plan.rule(rule).condition, scope)
    }

    pub(crate) fn truth(&self, expr: &Expr, scope: Scope) -> Truth {
        self.value(expr, scope).truth()
    }

    pub(crate) fn value(&self, expr: &Expr, scope: Scope) -> Value {
        match expr {
            Expr::Bool(value) => Value::Bool(*value),
            Expr::Int(value) => Value::Int(*value, *value),
            Expr::Text => Value::Text,
            Expr::TextTest(left, right) => {
                text_test(self.value(left, scope), self.value(right, scope))
            }
            Expr::Filesize => {
                let number = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
                Value::Int(number(self.sizes.0), number(self.sizes.1))
            }
            Expr::Pattern(index, anchor) => anchor.value(self.matched(*index, anchor, scope)),
            Expr::LoopPattern(anchor) => match scope.looped {
                Some(index) => anchor.value(self.matched(index, anchor, scope)),
                None => Value::Unknown,
            },
            Expr::Count(index) => self.count(index.or(scope.looped), scope),
            Expr::Detail { pattern, absent } => match pattern.or(scope.looped) {
                Some(index) if self.is_absent(index, scope) => *absent,
                _ => Value::Unknown,
            },
            Expr::Read(read, at) => self.read(*read, self.value(at, scope)),
            Expr::Module { module, path, kind } => self.of_module(module, path, *kind),
            Expr::Call { module, .. } => self.module(module, ModuleItem::Field),
            Expr::Needing(index, _) if self.is_absent(*index, scope) => Value::Falsy,
            Expr::Needing(_, inner) => self.value(inner, scope),
            Expr::Rule(name) => self.reference(name, scope),
            Expr::Not(inner) => self.negated(inner, scope),
            Expr::And(all) => self.and(all, scope).into(),
            Expr::Or(any) => self.or(any, scope).into(),
            Expr::Defined(inner) => self.value(inner, scope).is_defined(),
            Expr::Arithmetic(operator, operands) => self.arithmetic(*operator, operands, scope),
            Expr::Compare(comparison, left, right) => {
                self.compared(*comparison, left, right, scope)
            }
            Expr::OfPatterns(quantifier, patterns, anchor) => {
                self.of_patterns(quantifier, patterns, anchor, scope)
            }
            Expr::OfExpressions(quantifier, items) => {
                let truths = items.iter().map(|item| self.truth(item, scope));
                self.quantified(quantifier, truths, scope).into()
            }
            Expr::ForOf(quantifier, patterns, body) => {
                let truths = patterns.iter().map(|index| {
                    let looped = Some(*index);
                    self.truth(body, Scope { looped, ..scope })
                });
                self.quantified(quantifier, truths, scope).into()
            }
            Expr::ForIn(quantifier, body) => self.for_in(quantifier, body, scope),
            Expr::Probe(index, direct) => self.probed(*index, self.value(direct, scope)),
            Expr::Opaque => Value::Unknown,
        }
    }

    fn is_absent(&self, index: usize, scope: Scope) -> bool {
        self.presence_of(index, scope) == Presence::Absent
    }

    /// What YARA-X said where nothing else decides.
    fn probed(&self, probe: usize, direct: Value) -> Value {
        match direct {
            Value::Unknown | Value::Int(..) => match (self.probe)(probe) {
                Some(true) => Value::Bool(true),
                Some(false) => Value::Falsy,
                None => Value::Unknown,
            },
            known => known,
        }
    }

    fn of_patterns(
        &self,
        quantifier: &Quantifier,
        patterns: &[usize],
        anchor: &Anchor,
        scope: Scope,
    ) -> Value {
        let truths = patterns.iter();
        let truths = truths.map(|index| self.matched(*index, anchor, scope));
        match (
            self.quantified(quantifier, truths, scope),
            anchor.is_defined(),
        ) {
            // Where the anchor is undefined, all of it is.
            (Truth::True, false) => Value::Unknown,
            (truth, _) => anchor.value(truth),
        }
    }

    fn compared(&self, comparison: Comparison, left: &Expr, right: &Expr, scope: Scope) -> Value {
        let (a, b) = (self.value(left, scope), self.value(right, scope));
        match compare(comparison, a, b) {
            Value::Unknown if comparison == Comparison::Eq => self.compare_head(left, right, scope),
            value => value,
        }
    }

    /// `uint16(0) == 0x5a4d` where only the kind of file is known.
    fn compare_head(&self, left: &Expr, right: &Expr, scope: Scope) -> Value {
        let (Some(kind), Expr::Read(read, at)) = (self.kind, left) else {
            return Value::Unknown;
        };
        let (at, value) = (self.value(at, scope), self.value(right, scope));
        let (Value::Int(at, at_end), Value::Int(value, value_end)) = (at, value) else {
            return Value::Unknown;
        };
        let denied = at == at_end
            && value == value_end
            && u64::try_from(at).is_ok_and(|at| kind.denies_number(at, *read, value));
        match denied {
            true => Value::Falsy,
            false => Value::Unknown,
        }
    }

    fn presence_of(&self, index: usize, scope: Scope) -> Presence {
        let first = self.plan.rule(scope.rule).first_pattern;
        (self.presence)(first + index)
    }

    /// What another rule's result is. A rule that holds may still be kept from matching by a
    /// global rule.
    fn reference(&self, name: &str, scope: Scope) -> Value {
        let Some(rule) = self.plan.find(scope.rule, name) else {
            return Value::Unknown;
        };
        let known = self.references.values.borrow().get(&rule).copied();
        let truth = match known {
            Some(truth) => truth,
            None if self.references.depth.get() >= DEPTH_MAX => Truth::Unknown,
            None => {
                let depth = self.references.depth.get();
                self.references.depth.set(depth + 1);
                let truth = self.rule(rule);
                self.references.depth.set(depth);
                self.references.values.borrow_mut().insert(rule, truth);
                truth
            }
        };
        match truth {
            Truth::False => Value::Bool(false),
            Truth::True if !self.plan.has_globals(rule) => Value::Bool(true),
            Truth::True | Truth::Unknown => Value::Unknown,
        }
    }

    fn negated(&self, inner: &Expr, scope: Scope) -> Value {
        match self.value(inner, scope) {
            // `not undefined` is left to YARA-X.
            Value::Undefined | Value::Falsy => Value::Unknown,
            value => match value.truth() {
                Truth::True => Value::Bool(false),
                Truth::False => Value::Bool(true),
                Truth::Unknown => Value::Unknown,
            },
        }
    }

    fn and(&self, all: &[Expr], scope: Scope) -> Truth {
        let mut truth = Truth::True;
        for expr in all {
            match self.truth(expr, scope) {
                Truth::False => return Truth::False,
                Truth::Unknown => truth = Truth::Unknown,
                Truth::True => {}
            }
        }
        truth
    }

    fn or(&self, any: &[Expr], scope: Scope) -> Truth {
        let mut truth = Truth::False;
        for expr in any {
            match self.truth(expr, scope) {
                Truth::True => return Truth::True,
                Truth::Unknown => truth = Truth::Unknown,
                Truth::False => {}
            }
        }
        truth
    }

    /// Whether a pattern matches, there where it is asked for.
    pub(crate) fn matched(&self, index: usize, anchor: &Anchor, scope: Scope) -> Truth {
        // A look at one place before a search.
        if let Anchor::At(at) = anchor
            && let Value::Int(at, end) = self.value(at, scope)
            && at == end
            && self.matched_at(index, at, scope) == Truth::False
        {
            return Truth::False;
        }
        let presence = self.presence_of(index, scope);
        if presence == Presence::Absent {
            return Truth::False;
        }
        match anchor {
            Anchor::None => match presence {
                Presence::Present(_) => Truth::True,
                Presence::Absent | Presence::Maybe(_) => Truth::Unknown,
            },
            Anchor::At(at) => match self.value(at, scope) {
                Value::Undefined => Truth::False,
                Value::Int(at, end) if at == end => self.matched_at(index, at, scope),
                _ => Truth::Unknown,
            },
            Anchor::In(lower, upper) => {
                let (lower, upper) = (self.value(lower, scope), self.value(upper, scope));
                match (lower, upper) {
                    (Value::Undefined, _) | (_, Value::Undefined) => Truth::False,
                    (Value::Int(lower, _), Value::Int(_, upper)) if upper < lower.max(0) => {
                        Truth::False
                    }
                    (Value::Int(lower, _), _) if self.is_beyond(lower) => Truth::False,
                    _ => Truth::Unknown,
                }
            }
        }
    }

    fn matched_at(&self, index: usize, at: i64, scope: Scope) -> Truth {
        let Ok(offset) = u64::try_from(at) else {
            return Truth::False;
        };
        if self.is_beyond(at) {
            return Truth::False;
        }
        let first = self.plan.rule(scope.rule).first_pattern;
        let Some(fixed) = self.plan.fixed(first + index) else {
            return Truth::Unknown;
        };
        match self.bytes.get(offset, fixed.len()) {
            Some(found) if found != fixed => Truth::False,
            None if self.kind.is_some_and(|kind| kind.denies(offset, fixed)) => Truth::False,
            _ => Truth::Unknown,
        }
    }

    /// No byte is at `offset` or behind.
    fn is_beyond(&self, offset: i64) -> bool {
        let offset = u64::try_from(offset).unwrap_or(0);
        offset >= self.sizes.1
    }

    fn count(&self, index: Option<usize>, scope: Scope) -> Value {
        let Some(index) = index else {
            return Value::Unknown;
        };
        let most = |most: Option<u32>| most.map_or(i64::MAX, i64::from);
        match self.presence_of(index, scope) {
            Presence::Absent => Value::Int(0, 0),
            Presence::Maybe(bound) => Value::Int(0, most(bound)),
            Presence::Present(bound) => Value::Int(1, most(bound)),
        }
    }

    fn read(&self, read: Read, at: Value) -> Value {
        let at = match at {
            Value::Undefined => return Value::Undefined,
            Value::Int(at, end) if at == end => at,
            _ => return Value::Unknown,
        };
        let Ok(offset) = u64::try_from(at) else {
            return Value::Undefined;
        };
        if offset.saturating_add(read.bytes as u64) > self.sizes.1 {
            return Value::Undefined;
        }
        match self.bytes.get(offset, read.bytes) {
            Some(bytes) if bytes.len() == read.bytes => {
                let value = number(bytes, read);
                Value::Int(value, value)
            }
            _ => Value::Unknown,
        }
    }

    fn of_module(&self, module: &str, path: &str, kind: ModuleItem) -> Value {
        if kind == ModuleItem::Signatures && self.is_unsigned() {
            return Value::Falsy;
        }
        match self.module(module, kind) {
            Value::Unknown if module == "pe" => self.number(path),
            value => value,
        }
    }

    fn module(&self, module: &str, kind: ModuleItem) -> Value {
        match kind {
            ModuleItem::Constant => Value::Unknown,
            _ if self.is_foreign(module) => Value::Falsy,
            ModuleItem::Field | ModuleItem::Flag | ModuleItem::Signatures => Value::Unknown,
        }
    }

    /// A field of the PE module.
    fn number(&self, path: &str) -> Value {
        match (self.number)(path) {
            Some(Some(number)) => Value::Int(number, number),
            Some(None) => Value::Undefined,
            None => Value::Unknown,
        }
    }

    fn is_unsigned(&self) -> bool {
        self.kind == Some(Kind::Unsigned)
    }

    /// The file is surely not of the format that the module reads.
    pub(crate) fn is_foreign(&self, module: &str) -> bool {
        self.kind.is_some_and(|kind| kind.is_foreign_to(module))
    }

    fn arithmetic(&self, operator: Operator, operands: &[Expr], scope: Scope) -> Value {
        let mut result: Option<(i64, i64)> = None;
        let mut unknown = false;
        for operand in operands {
            match self.value(operand, scope) {
                Value::Undefined => return Value::Undefined,
                Value::Int(low, high) => {
                    let next = match result {
                        None => Some((low, high)),
                        Some(result) => combine(operator, result, (low, high)),
                    };
                    unknown |= next.is_none();
                    result = next.or(result);
                }
                _ => unknown = true,
            }
        }
        match result {
            Some((low, high)) if !unknown => Value::Int(low, high),
            _ => Value::Unknown,
        }
    }

    /// Of so many truths, none of which is found out without need.
    fn quantified(
        &self,
        quantifier: &Quantifier,
        truths: impl ExactSizeIterator<Item = Truth>,
        scope: Scope,
    ) -> Truth {
        let all = truths.len();
        match quantifier {
            Quantifier::Any => at_least(1, truths),
            Quantifier::None | Quantifier::All if all == 0 => Truth::Unknown,
            Quantifier::All => at_least(all, truths),
            Quantifier::None => match at_least(1, truths) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                Truth::Unknown => Truth::Unknown,
            },
            Quantifier::AtLeast(wanted) => match self.value(wanted, scope) {
                Value::Int(wanted, end) if wanted == end && wanted > 0 => {
                    at_least(usize::try_from(wanted).unwrap_or(usize::MAX), truths)
                }
                _ => Truth::Unknown,
            },
            Quantifier::Percentage => Truth::Unknown,
        }
    }

    /// A loop over values none of which makes the body true.
    fn for_in(&self, quantifier: &Quantifier, body: &Expr, scope: Scope) -> Value {
        let wants_one = match quantifier {
            Quantifier::Any => true,
            Quantifier::AtLeast(wanted) => {
                matches!(self.value(wanted, scope), Value::Int(low, _) if low > 0)
            }
            Quantifier::None | Quantifier::All | Quantifier::Percentage => false,
        };
        match self.truth(body, scope) {
            Truth::False if wants_one => Value::Falsy,
            _ => Value::Unknown,
        }
    }
}

/// Whether so many hold.
fn at_least(wanted: usize, mut truths: impl ExactSizeIterator<Item = Truth>) -> Truth {
    let (mut yes, mut unknown) = (0, 0);
    while yes < wanted {
        if yes + unknown + truths.len() < wanted {
            return Truth::False;
        }
        match truths.next() {
            Some(Truth::True) => yes += 1,
            Some(Truth::Unknown) => unknown += 1,
            Some(Truth::False) => {}
            None => return Truth::Unknown,
        }
    }
    Truth::True
}
