//! How long the header of a 7z archive is unpacked: asked before it is read, since what reads it
//! makes a table with an entry for each file that the header announces.

use crate::fields;

const SIGNATURE_HEADER_BYTES: usize = 32;

/// Property numbers of the format.
const HEADER: u8 = 0x01;
const PACK_INFO: u8 = 0x06;
const UNPACK_INFO: u8 = 0x07;
const SIZE: u8 = 0x09;
const CRC: u8 = 0x0a;
const FOLDER: u8 = 0x0b;
const UNPACK_SIZE: u8 = 0x0c;
const ENCODED_HEADER: u8 = 0x17;

/// Coders and streams of the packed header that are believed; writers use one.
const COUNT_MAX: u64 = 32;

/// The header's length in bytes; `None` where it cannot be told.
pub(super) fn header_bytes(bytes: &[u8]) -> Option<u64> {
    let offset = usize::try_from(fields::u64_le(bytes, 12)?).ok()?;
    let len = usize::try_from(fields::u64_le(bytes, 20)?).ok()?;
    let at = SIGNATURE_HEADER_BYTES.checked_add(offset)?;
    let header = fields::slice(bytes, at, len)?;
    match *header.first()? {
        HEADER => Some(len as u64),
        ENCODED_HEADER => Numbers { rest: &header[1..] }.unpacked_bytes(),
        _ => None,
    }
}

struct Numbers<'a> {
    rest: &'a [u8],
}

impl Numbers<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.byte()? == wanted).then_some(())
    }

    /// As many further bytes as the first one has leading ones; its other bits are the highest.
    fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        let more = first.leading_ones();
        let mut value = 0;
        for index in 0..more {
            value |= u64::from(self.byte()?) << (8 * index);
        }
        let high = if more < 7 {
            u64::from(first & (0x7f >> more)) << (8 * more)
        } else {
            0
        };
        Some(value | high)
    }

    fn count(&mut self) -> Option<u64> {
        self.number().filter(|count| *count <= COUNT_MAX)
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(bytes).ok()?..)?;
        Some(())
    }

    /// The largest of the sizes that the streams of an encoded header unpack to.
    fn unpacked_bytes(&mut self) -> Option<u64> {
        self.expect(PACK_INFO)?;
        self.number()?;
        let streams = self.count()?;
        self.expect(SIZE)?;
        for _ in 0..streams {
            self.number()?;
        }
        let mut property = self.byte()?;
        if property == CRC {
            self.expect(1)?;
            self.skip(4 * streams)?;
            property = self.byte()?;
        }
        if property != 0 {
            return None;
        }
        self.expect(UNPACK_INFO)?;
        self.expect(FOLDER)?;
        self.expect(1)?;
        self.expect(0)?;
        let outputs = self.folder()?;
        self.expect(UNPACK_SIZE)?;
        let mut largest = 0;
        for _ in 0..outputs {
            largest = largest.max(self.number()?);
        }
        Some(largest)
    }

    /// Skips a folder's coders; how many outputs they have.
    fn folder(&mut self) -> Option<u64> {
        let (mut inputs, mut outputs) = (0, 0);
        for _ in 0..self.count()? {
            let flags = self.byte()?;
            self.skip(u64::from(flags & 0x0f))?;
            if flags & 0x10 != 0 {
                inputs += self.count()?;
                outputs += self.count()?;
            } else {
                inputs += 1;
                outputs += 1;
            }
            if flags & 0x20 != 0 {
                let len = self.number()?;
                self.skip(len)?;
            }
        }
        let bonds = u64::checked_sub(outputs, 1)?;
        for _ in 0..2 * bonds {
            self.number()?;
        }
        let packed = u64::checked_sub(inputs, bonds)?;
        for _ in 0..if packed > 1 { packed } else { 0 } {
            self.number()?;
        }
        Some(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let check = |bytes: &[u8], expected| {
            assert_eq!(Numbers { rest: bytes }.number(), expected, "of {bytes:?}");
        };
        check(&[0x7f], Some(127));
        check(&[0x80, 0x80], Some(128));
        check(&[0xc1, 0x02, 0x03], Some(0x1_0302));
        check(
            &[0xff, 1, 0, 0, 0, 0, 0, 0, 0x80],
            Some(0x8000_0000_0000_0001),
        );
        check(&[0x80], None);
    }
}
