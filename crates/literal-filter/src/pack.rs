//! What an agent looks for, as one: the literals of a filter and needles, whose ids follow theirs.
//!
//! `LZLP`, a version byte, the bytes that the filter has (varint), the filter, the needles.

use crate::wire::{Reader, put_varint};
use crate::{Filter, FilterError, Needles};

const MAGIC: [u8; 5] = *b"LZLP\x01";
const WHAT: &str = "filter pack";

/// Literals and needles. Immutable; share it with an `Arc`.
#[derive(Debug)]
pub struct Pack {
    id: [u8; 16],
    filter: Filter,
    needles: Needles,
}

impl Pack {
    /// The pack of these for storage and transport: the same give the same bytes.
    #[must_use]
    pub fn write(filter: &Filter, needles: &Needles) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let filter = filter.to_bytes();
        put_varint(&mut out, filter.len() as u64);
        out.extend_from_slice(&filter);
        out.extend_from_slice(&needles.to_bytes());
        out
    }

    /// Reads [`Pack::write`].
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn read(bytes: &[u8]) -> Result<Self, FilterError> {
        let mut reader = Reader {
            what: WHAT,
            bytes,
            at: 0,
        };
        reader.magic(MAGIC)?;
        let len = reader.varint("filter length")?;
        let filter = Filter::from_bytes(reader.take(len as usize, "the filter")?)?;
        let needles = Needles::from_bytes(bytes.get(reader.at..).unwrap_or_default())?;
        Ok(Self {
            id: Self::id_of(bytes),
            filter,
            needles,
        })
    }

    /// What identifies a pack of these bytes: the first of their BLAKE3.
    #[must_use]
    pub fn id_of(bytes: &[u8]) -> [u8; 16] {
        let mut id = [0; 16];
        blake3::Hasher::new()
            .update(bytes)
            .finalize_xof()
            .fill(&mut id);
        id
    }

    /// What identifies it.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// How many ids it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filter.len() + self.needles.len()
    }

    /// Whether it looks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its literals.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Its needles; their ids follow those of the literals.
    #[must_use]
    pub fn needles(&self) -> &Needles {
        &self.needles
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Literal, Needle, NeedleToken};

    fn pack() -> Vec<u8> {
        let literal = Literal {
            bytes: b"literal".to_vec(),
            nocase: true,
        };
        let byte = |value| NeedleToken::Byte { value, mask: 0xff };
        let needle = Needle::new(vec![byte(1), byte(2), byte(3)], 0).expect("short");
        let filter = Filter::build(&[literal]).expect("one");
        let needles = Needles::build(vec![needle]).expect("one");
        Pack::write(&filter, &needles)
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = pack();
        let read = Pack::read(&bytes).expect("read");
        assert_eq!(read.len(), 2);
        assert_eq!(read.id(), Pack::id_of(&bytes));
        assert_eq!(Pack::write(read.filter(), read.needles()), bytes);
        for end in 0..bytes.len() {
            assert!(Pack::read(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Pack::read(&[&bytes[..], b"x"].concat()).is_err());
    }
}
