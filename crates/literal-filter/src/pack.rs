//! What an agent looks for, as one: the literals of a filter and needles, whose ids follow theirs.
//!
//! `LZLP`, a version byte, the number of heads (varint), each with its bytes (varint, then they), the
//! bytes that the filter has (varint), the filter, the needles.

use crate::wire::{Reader, put_varint};
use crate::{Filter, FilterError, Needles};

const MAGIC: [u8; 5] = *b"LZLP\x02";
const WHAT: &str = "filter pack";
/// Heads of a pack at most.
const HEADS_MAX: usize = 64;
/// Bytes of each.
pub const HEAD_BYTES_MAX: usize = 64;

/// Literals and needles. Immutable; share it with an `Arc`.
#[derive(Debug)]
pub struct Pack {
    id: [u8; 16],
    heads: Vec<Vec<u8>>,
    filter: Filter,
    needles: Needles,
}

impl Pack {
    /// The pack of these for storage and transport: the same give the same bytes.
    #[must_use]
    pub fn write(filter: &Filter, needles: &Needles) -> Vec<u8> {
        Self::write_with_heads(&[], filter, needles)
    }

    /// The same, and what content begins with that is to be sent whole, whatever is found in it: at
    /// most 64 heads of at most 64 bytes, of which those beyond and empty ones are left out.
    #[must_use]
    pub fn write_with_heads(heads: &[&[u8]], filter: &Filter, needles: &Needles) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let lengths = 1..=HEAD_BYTES_MAX;
        let heads = heads.iter().filter(|head| lengths.contains(&head.len()));
        let heads: Vec<_> = heads.take(HEADS_MAX).collect();
        put_varint(&mut out, heads.len() as u64);
        for head in heads {
            put_varint(&mut out, head.len() as u64);
            out.extend_from_slice(head);
        }
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
        let heads = read_heads(&mut reader)?;
        let heads = heads.into_iter().map(<[u8]>::to_vec).collect();
        let len = reader.varint("filter length")?;
        let filter = Filter::from_bytes(reader.take(len as usize, "the filter")?)?;
        let needles = Needles::from_bytes(bytes.get(reader.at..).unwrap_or_default())?;
        Ok(Self {
            id: Self::id_of(bytes),
            heads,
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

    /// Whether content that begins so is to be sent whole, whatever is found in it.
    #[must_use]
    pub fn wants_whole(&self, head: &[u8]) -> bool {
        self.heads.iter().any(|it| head.starts_with(it))
    }

    /// The same of the pack that these bytes are, without reading more than its heads. False of what
    /// is none.
    #[must_use]
    pub fn bytes_want_whole(pack: &[u8], head: &[u8]) -> bool {
        let mut reader = Reader {
            what: WHAT,
            bytes: pack,
            at: 0,
        };
        read_heads(&mut reader).is_ok_and(|heads| heads.iter().any(|it| head.starts_with(it)))
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

/// The magic, and the heads behind it.
fn read_heads<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, FilterError> {
    reader.magic(MAGIC)?;
    let at = reader.at;
    let count = reader.varint("number of heads")? as usize;
    if count > HEADS_MAX {
        return Err(reader.bad("number of heads", at, count as u64));
    }
    let head = |_| {
        let at = reader.at;
        let len = reader.varint("head length")? as usize;
        if !(1..=HEAD_BYTES_MAX).contains(&len) {
            return Err(reader.bad("head length", at, len as u64));
        }
        reader.take(len, "a head")
    };
    (0..count).map(head).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Literal, Needle, NeedleToken};

    fn pack() -> Vec<u8> {
        pack_with(&[b"PK\x03\x04", b"", &[7; 65], b"gz"])
    }

    fn pack_with(heads: &[&[u8]]) -> Vec<u8> {
        let literal = Literal {
            bytes: b"literal".to_vec(),
            nocase: true,
        };
        let byte = |value| NeedleToken::Byte { value, mask: 0xff };
        let needle = Needle::new(vec![byte(1), byte(2), byte(3)], 0).expect("short");
        let filter = Filter::build(&[literal]).expect("one");
        let needles = Needles::build(vec![needle]).expect("one");
        Pack::write_with_heads(heads, &filter, &needles)
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = pack();
        let read = Pack::read(&bytes).expect("read");
        assert_eq!(read.len(), 2);
        assert_eq!(read.id(), Pack::id_of(&bytes));
        let heads: [&[u8]; 2] = [b"PK\x03\x04", b"gz"];
        let again = Pack::write_with_heads(&heads, read.filter(), read.needles());
        assert_eq!(again, bytes);
        for end in 0..bytes.len() {
            assert!(Pack::read(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Pack::read(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn heads_tell_what_is_wanted_whole() {
        let bytes = pack();
        let read = Pack::read(&bytes).expect("read");
        for (head, is_wanted) in [
            (&b"PK\x03\x04..."[..], true),
            (b"gz", true),
            (b"PK\x03", false),
            (b"", false),
            (&[7; 100], false),
        ] {
            assert_eq!(read.wants_whole(head), is_wanted, "{head:?}");
            assert_eq!(Pack::bytes_want_whole(&bytes, head), is_wanted, "{head:?}");
        }
        assert!(!Pack::bytes_want_whole(b"LZLP\x01", b"gz"));
        assert!(!Pack::bytes_want_whole(&bytes[..9], b"PK\x03\x04"));
        let many = vec![&b"x"[..]; 100];
        assert!(Pack::read(&pack_with(&many)).is_ok());
        for bad in [
            &b"LZLP\x02\x41"[..],
            b"LZLP\x02\x01\x00",
            b"LZLP\x02\x01\x41",
        ] {
            assert!(
                matches!(Pack::read(bad), Err(FilterError::Field { .. })),
                "{bad:?}"
            );
        }
    }
}
