//! Numbers that are checked where they are read.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A whole number between `MIN` and `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ranged<const MIN: u64, const MAX: u64 = { i64::MAX as u64 }>(u64);

impl<const MIN: u64, const MAX: u64> Ranged<MIN, MAX> {
    /// A value known to be in range; the nearest that is, otherwise.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        if value < MIN {
            Self(MIN)
        } else if value > MAX {
            Self(MAX)
        } else {
            Self(value)
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number, as a count of things in memory.
    #[must_use]
    pub fn count(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// The number, or the largest of 32 bits.
    #[must_use]
    pub fn u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Ranged<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<const MIN: u64, const MAX: u64>;
        impl<const MIN: u64, const MAX: u64> Visitor<'_> for Number<MIN, MAX> {
            type Value = Ranged<MIN, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if MAX == i64::MAX as u64 {
                    write!(f, "a whole number from {MIN}")
                } else {
                    write!(f, "a whole number")
                }
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
                if (MIN..=MAX).contains(&value) {
                    Ok(Ranged(value))
                } else {
                    Err(E::custom(format_args!(
                        "{value} must be between {MIN} and {MAX}"
                    )))
                }
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
                let value = u64::try_from(value)
                    .map_err(|_| E::custom(format_args!("{value} must be at least {MIN}")))?;
                self.visit_u64(value)
            }
        }
        deserializer.deserialize_u64(Number::<MIN, MAX>)
    }
}
