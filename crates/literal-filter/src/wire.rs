//! The serialised form: the literals alone, since tables are rebuilt faster than they are sent.
//!
//! `LZLF`, a version byte, the number of literals (varint); then for each literal its length in
//! bytes (1 byte), flags (1 byte: 1 = ignores case, 2 = wide) and its bytes. A wide literal
//! (every second byte is 0) is sent without its zeros.

use crate::FilterError;
use crate::filter::{Filter, LITERAL_MIN, LITERALS_MAX, Pool};

const MAGIC: [u8; 5] = *b"LZLF\x01";
const NOCASE: u8 = 1;
const WIDE: u8 = 2;

impl Filter {
    /// The filter for storage and transport: the same literals give the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, self.len() as u64);
        for (literal, nocase) in self.pool().iter() {
            put_literal(&mut out, literal, nocase);
        }
        out
    }

    /// Reads [`Filter::to_bytes`]. Memory is bounded by [`crate::LITERALS_MAX`] and
    /// [`crate::POOL_MAX`], whatever the bytes say.
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn from_bytes(bytes: &[u8]) -> Result<Filter, FilterError> {
        let mut reader = Reader {
            what: "literal filter",
            bytes,
            at: 0,
        };
        reader.magic(MAGIC)?;
        let count = reader.count()?;
        let mut pool = Pool::default();
        for _ in 0..count {
            reader.literal(&mut pool)?;
        }
        reader.end()?;
        Ok(Filter::from_pool(pool))
    }
}

/// Bits 0 to 6 first; the high bit says that more follows.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_literal(out: &mut Vec<u8>, literal: &[u8], nocase: bool) {
    let wide = literal.len().is_multiple_of(2) && literal.chunks(2).all(|pair| pair[1] == 0);
    out.push(literal.len() as u8);
    out.push(if nocase { NOCASE } else { 0 } | if wide { WIDE } else { 0 });
    if wide {
        out.extend(literal.iter().step_by(2));
    } else {
        out.extend_from_slice(literal);
    }
}

/// Reads foreign bytes: nothing is believed.
pub(crate) struct Reader<'a> {
    /// For errors.
    pub(crate) what: &'static str,
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn take(
        &mut self,
        len: usize,
        inside: &'static str,
    ) -> Result<&'a [u8], FilterError> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..len) else {
            return Err(FilterError::Truncated {
                what: self.what,
                inside,
                at: self.at,
            });
        };
        self.at += len;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self, inside: &'static str) -> Result<u8, FilterError> {
        Ok(self.take(1, inside)?[0])
    }

    pub(crate) fn bad(&self, field: &'static str, at: usize, value: u64) -> FilterError {
        FilterError::Field {
            what: self.what,
            field,
            at,
            value,
        }
    }

    pub(crate) fn magic(&mut self, magic: [u8; 5]) -> Result<(), FilterError> {
        if !self.bytes.starts_with(&magic) {
            return Err(FilterError::Magic {
                what: self.what,
                version: magic[4],
            });
        }
        self.at += magic.len();
        Ok(())
    }

    /// A number below 2^28, in its shortest form: one value has one encoding.
    pub(crate) fn varint(&mut self, field: &'static str) -> Result<u32, FilterError> {
        let start = self.at;
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte(field)?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.bad(field, start, u64::from(value)));
                }
                return Ok(value);
            }
        }
        Err(self.bad(field, start, u64::from(value)))
    }

    /// A number of literals.
    pub(crate) fn count(&mut self) -> Result<u32, FilterError> {
        let count = self.varint("number of literals")?;
        if count as usize > LITERALS_MAX {
            return Err(FilterError::TooMany {
                count: u64::from(count),
            });
        }
        Ok(count)
    }

    pub(crate) fn literal(&mut self, pool: &mut Pool) -> Result<(), FilterError> {
        let at = self.at;
        let len = self.byte("a literal's length")?;
        if usize::from(len) < LITERAL_MIN {
            return Err(self.bad("literal length", at, u64::from(len)));
        }
        let flags = self.byte("a literal's flags")?;
        let wide = flags & WIDE != 0;
        if flags & !(NOCASE | WIDE) != 0 || wide && len % 2 != 0 {
            return Err(self.bad("literal flags", at + 1, u64::from(flags)));
        }
        let nocase = flags & NOCASE != 0;
        if !wide {
            let literal = self.take(usize::from(len), "a literal")?;
            // One literal has one encoding.
            if len % 2 == 0 && literal.chunks(2).all(|pair| pair[1] == 0) {
                return Err(self.bad("literal flags", at + 1, u64::from(flags)));
            }
            return pool.push(literal, nocase);
        }
        let narrow = self.take(usize::from(len / 2), "a wide literal")?;
        let literal: Vec<u8> = narrow.iter().flat_map(|byte| [*byte, 0]).collect();
        pool.push(&literal, nocase)
    }

    pub(crate) fn end(&self) -> Result<(), FilterError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            extra => Err(FilterError::Trailing {
                what: self.what,
                at: self.at,
                extra,
            }),
        }
    }
}
