//! XDR (RFC 4506), as much of it as libvirt's protocol needs.

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} expected, and something else came")]
pub(crate) struct XdrError(pub(crate) &'static str);

/// Writes values.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn i32(self, value: i32) -> Self {
        self.u32(value.cast_unsigned())
    }

    /// Bytes of a length that both sides know; it must be a multiple of four.
    pub(crate) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        let mut this = self.u32(bytes.len() as u32);
        this.0.extend(bytes);
        this.0.resize(this.0.len().next_multiple_of(4), 0);
        this
    }

    pub(crate) fn string(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// An array of XDR's `char`, each of which takes four bytes.
    pub(crate) fn chars(self, text: &str) -> Self {
        let count = self.u32(text.len() as u32);
        let each = |writer: Self, byte| writer.i32(i32::from(byte_as_char(byte)));
        text.bytes().fold(count, each)
    }

    pub(crate) fn optional_string(self, text: Option<&str>) -> Self {
        match text {
            None => self.u32(0),
            Some(text) => self.u32(1).string(text),
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads values of another machine: nothing is believed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, XdrError> {
        let (word, rest) = self.0.split_first_chunk().ok_or(XdrError("a number"))?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*word))
    }

    pub(crate) fn i32(&mut self) -> Result<i32, XdrError> {
        Ok(self.u32()?.cast_signed())
    }

    pub(crate) fn uuid(&mut self) -> Result<[u8; 16], XdrError> {
        let (uuid, rest) = self.0.split_first_chunk().ok_or(XdrError("a uuid"))?;
        self.0 = rest;
        Ok(*uuid)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], XdrError> {
        let len = self.u32()? as usize;
        let padded = len.checked_next_multiple_of(4);
        let padded = padded.filter(|padded| *padded <= self.0.len());
        let (whole, rest) = self.0.split_at(padded.ok_or(XdrError("bytes"))?);
        self.0 = rest;
        Ok(&whole[..len])
    }

    pub(crate) fn string(&mut self) -> Result<&'a str, XdrError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| XdrError("text"))
    }

    /// An array of XDR's `char`.
    pub(crate) fn chars(&mut self) -> Result<String, XdrError> {
        let count = self.u32()?;
        // The low byte, whatever the sign.
        let bytes = (0..count).map(|_| Ok(self.u32()? as u8));
        let bytes = bytes.collect::<Result<Vec<u8>, XdrError>>()?;
        String::from_utf8(bytes).map_err(|_| XdrError("text"))
    }

    pub(crate) fn optional_string(&mut self) -> Result<Option<&'a str>, XdrError> {
        match self.u32()? {
            0 => Ok(None),
            _ => self.string().map(Some),
        }
    }
}

/// C's `char` has a sign.
fn byte_as_char(byte: u8) -> i8 {
    byte.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes = Writer::default()
            .u32(7)
            .i32(-1)
            .fixed(&[9; 16])
            .string("abcde")
            .optional_string(None)
            .optional_string(Some("x"))
            .chars("é")
            .into_bytes();
        assert_eq!(bytes.len() % 4, 0);
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u32(), Ok(7));
        assert_eq!(reader.i32(), Ok(-1));
        assert_eq!(reader.uuid(), Ok([9; 16]));
        assert_eq!(reader.string(), Ok("abcde"));
        assert_eq!(reader.optional_string(), Ok(None));
        assert_eq!(reader.optional_string(), Ok(Some("x")));
        assert_eq!(reader.chars(), Ok("é".to_owned()));
        assert_eq!(reader.u32(), Err(XdrError("a number")));
    }

    #[test]
    fn lengths_are_not_believed() {
        for bytes in [&[0xff; 4][..], &[0, 0, 0, 9, 1, 2, 3, 4], &[0, 0]] {
            Reader::new(bytes).bytes().expect_err("refused");
            Reader::new(bytes).chars().expect_err("refused");
        }
    }
}
