//! Values of expressions as far as they are known, and what is done with them.

use crate::expr::{Comparison, Operator, Read};

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truth {
    True,
    False,
    Unknown,
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
    pub(crate) fn truth(self) -> Truth {
        match self {
            Self::Bool(true) => Truth::True,
            Self::Int(low, high) if low > 0 || high < 0 => Truth::True,
            Self::Bool(false) | Self::Undefined | Self::Falsy | Self::Int(0, 0) => Truth::False,
            Self::Int(..) | Self::Text | Self::Unknown => Truth::Unknown,
        }
    }

    /// Of `defined`.
    pub(crate) fn is_defined(self) -> Self {
        match self {
            Self::Int(..) | Self::Bool(_) | Self::Text => Self::Bool(true),
            Self::Undefined => Self::Bool(false),
            Self::Falsy | Self::Unknown => Self::Unknown,
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

/// Of intervals only sums are known, such as of counts: what has no upper bound still has none.
pub(crate) fn combine(operator: Operator, a: (i64, i64), b: (i64, i64)) -> Option<(i64, i64)> {
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

pub(crate) fn compare(comparison: Comparison, left: Value, right: Value) -> Value {
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
pub(crate) fn text_test(left: Value, right: Value) -> Value {
    match (left, right) {
        (Value::Undefined, _) | (_, Value::Undefined) => Value::Undefined,
        (Value::Falsy, Value::Text) => Value::Falsy,
        _ => Value::Unknown,
    }
}

pub(crate) fn number(bytes: &[u8], read: Read) -> i64 {
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
