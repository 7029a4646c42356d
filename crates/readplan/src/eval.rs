//! Conditions in three values: true, false, unknown.

use std::cell::Cell;

use crate::class::Kind;
use crate::compile::{Plan, RuleId};
use crate::expr::{Anchor, Comparison, Expr, ModuleItem, Operator, Quantifier, Read};
use crate::known::Bytes;

/// Rules that refer to rules that refer to rules.
const DEPTH_MAX: u32 = 16;

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truth {
    True,
    False,
    Unknown,
}

/// What is known of a pattern in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    /// It may match, at most so often (`None`: no bound).
    Maybe(Option<u32>),
    /// It matches, between once and so often.
    Present(Option<u32>),
}

/// The value of an expression, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// Between these two, both included.
    Int(i64, i64),
    Bool(bool),
    /// Some string that is not empty.
    Text,
    Undefined,
    /// Not true and not a number other than zero.
    Falsy,
    Unknown,
}

impl Value {
    fn truth(self) -> Truth {
        match self {
            Self::Bool(true) => Truth::True,
            Self::Int(low, high) if low > 0 || high < 0 => Truth::True,
            Self::Bool(false) | Self::Undefined | Self::Falsy | Self::Int(0, 0) => Truth::False,
            Self::Int(..) | Self::Text | Self::Unknown => Truth::Unknown,
        }
    }
}

impl From<Truth> for Value {
    fn from(truth: Truth) -> Self {
        match truth {
            Truth::True => Self::Bool(true),
            Truth::False => Self::Bool(false),
            Truth::Unknown => Self::Unknown,
        }
    }
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
    pub(crate) depth: Cell<u32>,
}

/// The rule whose condition is evaluated, and the pattern of the loop around.
#[derive(Clone, Copy)]
pub(crate) struct Scope {
    pub(crate) rule: RuleId,
    pub(crate) looped: Option<usize>,
}

impl Evaluation<'_> {
    pub(crate) fn rule(&self, rule: RuleId) -> Truth {
        if self.depth.get() >= DEPTH_MAX {
            return Truth::Unknown;
        }
        self.depth.set(self.depth.get() + 1);
        let scope = Scope { rule, looped: None };
        let truth = self.truth(&self.plan.rule(rule).condition, scope);
        self.depth.set(self.depth.get() - 1);
        truth
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
                Some(index) if self.presence_of(index, scope) == Presence::Absent => *absent,
                _ => Value::Unknown,
            },
            Expr::Read(read, at) => self.read(*read, self.value(at, scope)),
            Expr::Module { kind, .. } if *kind == ModuleItem::Signatures && self.is_unsigned() => {
                Value::Falsy
            }
            Expr::Module { module, path, kind } => match self.module(module, *kind) {
                Value::Unknown if module == "pe" => self.number(path),
                value => value,
            },
            Expr::Call { module, .. } => self.module(module, ModuleItem::Field),
            Expr::Needing(index, _) if self.presence_of(*index, scope) == Presence::Absent => {
                Value::Falsy
            }
            Expr::Needing(_, inner) => self.value(inner, scope),
            Expr::Rule(name) => match self.plan.find(scope.rule, name) {
                Some(rule) => self.reference(rule),
                None => Value::Unknown,
            },
            Expr::Not(inner) => self.negated(inner, scope),
            Expr::And(all) => self.and(all, scope).into(),
            Expr::Or(any) => self.or(any, scope).into(),
            Expr::Defined(inner) => match self.value(inner, scope) {
                Value::Int(..) | Value::Bool(_) | Value::Text => Value::Bool(true),
                Value::Undefined => Value::Bool(false),
                Value::Falsy | Value::Unknown => Value::Unknown,
            },
            Expr::Arithmetic(operator, operands) => self.arithmetic(*operator, operands, scope),
            Expr::Compare(comparison, left, right) => {
                match compare(
                    *comparison,
                    self.value(left, scope),
                    self.value(right, scope),
                ) {
                    Value::Unknown if *comparison == Comparison::Eq => {
                        self.compare_head(left, right, scope)
                    }
                    value => value,
                }
            }
            Expr::OfPatterns(quantifier, patterns, anchor) => {
                let truths = patterns
                    .iter()
                    .map(|index| self.matched(*index, anchor, scope));
                match (
                    self.quantified(quantifier, truths, scope),
                    anchor.is_defined(),
                ) {
                    // Where the anchor is undefined, all of it is.
                    (Truth::True, false) => Value::Unknown,
                    (truth, _) => anchor.value(truth),
                }
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
            Expr::Probe(index, direct) => match self.value(direct, scope) {
                Value::Unknown | Value::Int(..) => match (self.probe)(*index) {
                    Some(true) => Value::Bool(true),
                    Some(false) => Value::Falsy,
                    None => Value::Unknown,
                },
                known => known,
            },
            Expr::Opaque => Value::Unknown,
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
    fn reference(&self, rule: RuleId) -> Value {
        match self.rule(rule) {
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

/// Of intervals only sums are known, such as of counts: what has no upper bound still has none.
fn combine(operator: Operator, a: (i64, i64), b: (i64, i64)) -> Option<(i64, i64)> {
    if a.0 == a.1 && b.0 == b.1 {
        let exact = apply(operator, a.0, b.0)?;
        return Some((exact, exact));
    }
    let is_count = a.0 >= 0 && b.0 >= 0;
    (operator == Operator::Add && is_count)
        .then(|| Some((a.0.checked_add(b.0)?, a.1.saturating_add(b.1))))?
}

/// `None`: it overflows, which is left to YARA-X.
fn apply(operator: Operator, a: i64, b: i64) -> Option<i64> {
    match operator {
        Operator::Add => a.checked_add(b),
        Operator::Sub => a.checked_sub(b),
        Operator::Mul => a.checked_mul(b),
        Operator::And => Some(a & b),
        Operator::Or => Some(a | b),
        Operator::Xor => Some(a ^ b),
        // What loses bits is left to YARA-X.
        Operator::Shl => {
            let bits = u32::try_from(b).ok().filter(|bits| *bits < 63)?;
            let shifted = a.checked_shl(bits)?;
            (a >= 0 && shifted >> bits == a).then_some(shifted)
        }
        Operator::Shr => {
            let bits = u32::try_from(b).ok().filter(|bits| *bits < 63)?;
            (a >= 0).then_some(a >> bits)
        }
    }
}

fn compare(comparison: Comparison, left: Value, right: Value) -> Value {
    let (a, b, c, d) = match (left, right) {
        (Value::Undefined, _) | (_, Value::Undefined) => return Value::Undefined,
        (Value::Int(a, b), Value::Int(c, d)) => (a, b, c, d),
        // Undefined, false, zero or empty: equal to no string that is not.
        (Value::Falsy, Value::Text) | (Value::Text, Value::Falsy)
            if comparison == Comparison::Eq =>
        {
            return Value::Falsy;
        }
        // Undefined, or the same as with zero.
        (Value::Falsy, right @ Value::Int(..)) => return falsy(compare(comparison, ZERO, right)),
        (left @ Value::Int(..), Value::Falsy) => return falsy(compare(comparison, left, ZERO)),
        _ => return Value::Unknown,
    };
    let decide = |always: bool, never: bool| match (always, never) {
        (true, _) => Value::Bool(true),
        (_, true) => Value::Bool(false),
        _ => Value::Unknown,
    };
    let apart = b < c || d < a;
    let same = a == b && c == d && a == c;
    match comparison {
        Comparison::Eq => decide(same, apart),
        Comparison::Ne => decide(apart, same),
        Comparison::Lt => decide(b < c, a >= d),
        Comparison::Le => decide(b <= c, a > d),
        Comparison::Gt => decide(a > d, b <= c),
        Comparison::Ge => decide(a >= d, b < c),
    }
}

const ZERO: Value = Value::Int(0, 0);

/// The value, or undefined.
fn falsy(value: Value) -> Value {
    match value {
        Value::Bool(false) => Value::Falsy,
        _ => Value::Unknown,
    }
}

/// `left contains right` and its kin.
fn text_test(left: Value, right: Value) -> Value {
    match (left, right) {
        (Value::Undefined, _) | (_, Value::Undefined) => Value::Undefined,
        (Value::Falsy, Value::Text) => Value::Falsy,
        _ => Value::Unknown,
    }
}

fn number(bytes: &[u8], read: Read) -> i64 {
    let fold = |value: i64, byte: &u8| value << 8 | i64::from(*byte);
    let value = match read.big_endian {
        true => bytes.iter().fold(0, fold),
        false => bytes.iter().rev().fold(0, fold),
    };
    let bits = 8 * read.bytes;
    match read.signed && value >> (bits - 1) & 1 == 1 {
        true => value - (1 << bits),
        false => value,
    }
}
