use std::ops::ControlFlow;

use crate::FilterError;
use crate::table::{Scan, Table};

/// The shortest literal, in bytes.
pub const LITERAL_MIN: usize = 5;
/// The longest literal, in bytes.
pub const LITERAL_MAX: usize = 255;
/// How many literals a filter may have.
pub const LITERALS_MAX: usize = 1 << 18;
/// How many literals a filter may have that are shorter than [`WHOLE_MIN`] bytes: they take more of
/// its tables.
pub const SHORT_MAX: usize = 1 << 13;
/// From this length on, in bytes, a literal has a whole gram for every place of a look in it.
pub const WHOLE_MIN: usize = 7;
/// How many bytes all literals of a filter may have together.
pub const POOL_MAX: usize = 16 << 20;

/// A string of bytes to look for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Literal {
    /// [`LITERAL_MIN`] to [`LITERAL_MAX`] bytes.
    pub bytes: Vec<u8>,
    /// ASCII letters match in either case.
    pub nocase: bool,
}

/// All literals, without tables: what a filter is apart from speed.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) bytes: Vec<u8>,
    /// For each literal where it starts in `bytes`, and whether case counts.
    pub(crate) spans: Vec<Span>,
    /// How many of them are short.
    short: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) len: u8,
    pub(crate) nocase: bool,
}

impl Pool {
    pub(crate) fn push(&mut self, bytes: &[u8], nocase: bool) -> Result<(), FilterError> {
        let id = self.spans.len();
        if id >= LITERALS_MAX {
            return Err(FilterError::TooMany {
                count: id as u64 + 1,
            });
        }
        let id = id as u32;
        let len = match u8::try_from(bytes.len()) {
            Ok(len) if bytes.len() >= LITERAL_MIN => len,
            _ => {
                return Err(FilterError::Length {
                    id,
                    len: bytes.len(),
                });
            }
        };
        if self.bytes.len() + bytes.len() > POOL_MAX {
            return Err(FilterError::TooLarge { id });
        }
        self.short += usize::from(bytes.len() < WHOLE_MIN);
        if self.short > SHORT_MAX {
            return Err(FilterError::TooManyShort {
                count: self.short as u64,
            });
        }
        self.spans.push(Span {
            start: self.bytes.len() as u32,
            len,
            nocase,
        });
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn get(&self, id: u32) -> Option<(&[u8], bool)> {
        let span = self.spans.get(id as usize)?;
        let start = span.start as usize;
        Some((
            self.bytes.get(start..start + usize::from(span.len))?,
            span.nocase,
        ))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], bool)> {
        (0..self.spans.len() as u32).filter_map(|id| self.get(id))
    }
}

/// Finds the occurrences of a fixed set of literals. Immutable; share it with an `Arc`.
#[derive(Debug, Default)]
pub struct Filter {
    pool: Pool,
    table: Table,
    /// The length of the longest literal, 0 without any.
    longest: usize,
}

impl Filter {
    /// Builds the tables. A literal's id is its index; equal literals are reported each.
    ///
    /// # Errors
    /// A literal's length is outside of [`LITERAL_MIN`]`..=`[`LITERAL_MAX`], or there are more
    /// than [`LITERALS_MAX`] literals, [`SHORT_MAX`] short ones or [`POOL_MAX`] bytes.
    pub fn build(literals: &[Literal]) -> Result<Filter, FilterError> {
        let mut pool = Pool::default();
        for literal in literals {
            pool.push(&literal.bytes, literal.nocase)?;
        }
        Ok(Filter::from_pool(pool))
    }

    pub(crate) fn from_pool(pool: Pool) -> Filter {
        let table = Table::build(&pool);
        let longest = pool
            .spans
            .iter()
            .map(|span| usize::from(span.len))
            .max()
            .unwrap_or(0);
        Filter {
            pool,
            table,
            longest,
        }
    }

    /// How many literals there are.
    pub fn len(&self) -> usize {
        self.pool.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pool.spans.is_empty()
    }

    /// A literal's bytes and whether its case is ignored; `None` for an id that is not in use.
    pub fn literal(&self, id: u32) -> Option<(&[u8], bool)> {
        self.pool.get(id)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Reports every occurrence of every literal exactly once, as the literal's id and the offset
    /// of its first byte. Offsets rise only roughly: hits within the length of a literal may come
    /// in any order.
    ///
    /// Returns `Break` as soon as `on_hit` does.
    pub fn scan(
        &self,
        data: &[u8],
        on_hit: &mut dyn FnMut(u32, usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.table.scan(&mut Scan {
            data,
            pool: &self.pool.bytes,
            on_hit,
        })
    }

    /// What identifies the filter: BLAKE3 of [`Filter::to_bytes`].
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }
}
