//! Encodings of bytes as text: of mail (base64, quoted-printable, uuencode) and of PDF (hex,
//! ASCII85, run length). Lenient as their readers are: what does not belong is skipped.

use std::io::{self, Read};

/// Input taken at once; run length can make 64 times as much of it.
const CHUNK_BYTES: usize = 8 << 10;

/// A decoder that is pushed its input.
pub(crate) trait Decode {
    /// Appends what `input` decodes to. False: the end mark was there.
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool;

    /// The input is over: appends what was held back.
    fn finish(&mut self, output: &mut Vec<u8>);
}

/// Runs a [`Decode`] over a reader.
pub(crate) struct Stage<R, D> {
    input: R,
    decode: D,
    ready: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl<R: Read, D: Decode> Stage<R, D> {
    pub(crate) fn new(input: R, decode: D) -> Self {
        Self {
            input,
            decode,
            ready: Vec::new(),
            taken: 0,
            ended: false,
        }
    }

    fn refill(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK_BYTES];
        self.ready.clear();
        self.taken = 0;
        let len = self.input.read(&mut chunk)?;
        let more = len > 0 && self.decode.push(&chunk[..len], &mut self.ready);
        if !more {
            self.decode.finish(&mut self.ready);
            self.ended = true;
        }
        Ok(())
    }
}

impl<R: Read, D: Decode> Read for Stage<R, D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready.len() {
            if self.ended {
                return Ok(0);
            }
            self.refill()?;
        }
        let rest = &self.ready[self.taken..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.taken += len;
        Ok(len)
    }
}

/// Base64. Padding ends a group only: several encoded parts in a row decode one after the other.
#[derive(Debug, Default)]
pub(crate) struct Base64 {
    bits: u32,
    digits: u8,
}

impl Decode for Base64 {
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &byte in input {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                b'=' => {
                    self.finish(output);
                    continue;
                }
                _ => continue,
            };
            self.bits = self.bits << 6 | u32::from(digit);
            self.digits += 1;
            if self.digits == 4 {
                output.extend_from_slice(&self.bits.to_be_bytes()[1..]);
                (self.bits, self.digits) = (0, 0);
            }
        }
        true
    }

    fn finish(&mut self, output: &mut Vec<u8>) {
        if self.digits >= 2 {
            let bytes = (self.bits << (6 * (4 - self.digits))).to_be_bytes();
            output.extend_from_slice(&bytes[1..usize::from(self.digits)]);
        }
        (self.bits, self.digits) = (0, 0);
    }
}

/// Quoted-printable.
#[derive(Debug, Default)]
pub(crate) struct QuotedPrintable {
    /// A `=` and what followed it so far.
    held: Vec<u8>,
}

impl Decode for QuotedPrintable {
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &byte in input {
            if self.held.is_empty() {
                if byte == b'=' {
                    self.held.push(byte);
                } else {
                    output.push(byte);
                }
                continue;
            }
            self.held.push(byte);
            match *self.held.as_slice() {
                // A soft line break; a lone CR waits for its LF.
                [_, b'\n'] | [_, b'\r', b'\n'] => self.held.clear(),
                [_, b'\r'] => {}
                [_, high] if high.is_ascii_hexdigit() => {}
                [_, high, low] if low.is_ascii_hexdigit() && high != b'\r' => {
                    output.push(hex(high) << 4 | hex(low));
                    self.held.clear();
                }
                _ => output.append(&mut self.held),
            }
        }
        true
    }

    fn finish(&mut self, output: &mut Vec<u8>) {
        output.append(&mut self.held);
    }
}

/// The value of a hexadecimal digit; 0 for anything else.
fn hex(digit: u8) -> u8 {
    (digit as char)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
        .unwrap_or(0)
}

/// A line of uuencoded text is at most this long; what is longer is cut.
const UU_LINE_BYTES_MAX: usize = 128;

/// The lines between `begin` and `end` of a uuencoded file.
#[derive(Debug, Default)]
pub(crate) struct Uuencode {
    line: Vec<u8>,
}

impl Decode for Uuencode {
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &byte in input {
            match byte {
                b'\n' => self.finish(output),
                b'\r' => {}
                _ if self.line.len() < UU_LINE_BYTES_MAX => self.line.push(byte),
                _ => {}
            }
        }
        true
    }

    fn finish(&mut self, output: &mut Vec<u8>) {
        let value = |byte: u8| byte.wrapping_sub(b' ') & 0x3f;
        let Some((&first, digits)) = self.line.split_first() else {
            return;
        };
        let start = output.len();
        for group in digits.chunks(4) {
            let digit = |at: usize| u32::from(group.get(at).map_or(0, |&b| value(b)));
            let bits = digit(0) << 18 | digit(1) << 12 | digit(2) << 6 | digit(3);
            output.extend_from_slice(&bits.to_be_bytes()[1..]);
        }
        output.truncate(output.len().min(start + usize::from(value(first))));
        self.line.clear();
    }
}

/// PDF's ASCIIHexDecode: ends at `>`.
#[derive(Debug, Default)]
pub(crate) struct AsciiHex {
    high: Option<u8>,
}

impl Decode for AsciiHex {
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &byte in input {
            if byte == b'>' {
                return false;
            }
            if !byte.is_ascii_hexdigit() {
                continue;
            }
            match self.high.take() {
                Some(high) => output.push(high << 4 | hex(byte)),
                None => self.high = Some(hex(byte)),
            }
        }
        true
    }

    fn finish(&mut self, output: &mut Vec<u8>) {
        output.extend(self.high.take().map(|high| high << 4));
    }
}

/// PDF's ASCII85Decode: ends at `~`.
#[derive(Debug, Default)]
pub(crate) struct Ascii85 {
    value: u32,
    digits: u8,
}

impl Decode for Ascii85 {
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &byte in input {
            match byte {
                b'~' => return false,
                b'z' if self.digits == 0 => output.extend_from_slice(&[0; 4]),
                b'!'..=b'u' => {
                    let digit = u32::from(byte - b'!');
                    self.value = self.value.wrapping_mul(85).wrapping_add(digit);
                    self.digits += 1;
                    if self.digits == 5 {
                        output.extend_from_slice(&self.value.to_be_bytes());
                        (self.value, self.digits) = (0, 0);
                    }
                }
                _ => {}
            }
        }
        true
    }

    fn finish(&mut self, output: &mut Vec<u8>) {
        if self.digits >= 2 {
            // Missing digits count as the highest one.
            let value = (self.digits..5).fold(self.value, |value, _| {
                value.wrapping_mul(85).wrapping_add(84)
            });
            let len = usize::from(self.digits) - 1;
            output.extend_from_slice(&value.to_be_bytes()[..len]);
        }
        (self.value, self.digits) = (0, 0);
    }
}

/// PDF's RunLengthDecode: ends at 128.
#[derive(Debug, Default)]
pub(crate) enum RunLength {
    /// A length byte comes.
    #[default]
    Length,
    /// So many bytes are to be copied.
    Copy(u8),
    /// The next byte is to be repeated so often.
    Repeat(usize),
}

impl Decode for RunLength {
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &byte in input {
            *self = match *self {
                Self::Length => match byte {
                    0..=127 => Self::Copy(byte + 1),
                    128 => return false,
                    129.. => Self::Repeat(257 - usize::from(byte)),
                },
                Self::Copy(left) => {
                    output.push(byte);
                    if left > 1 {
                        Self::Copy(left - 1)
                    } else {
                        Self::Length
                    }
                }
                Self::Repeat(times) => {
                    output.resize(output.len() + times, byte);
                    Self::Length
                }
            };
        }
        true
    }

    fn finish(&mut self, _output: &mut Vec<u8>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(decode: impl Decode, input: &[u8], expected: &[u8]) {
        let mut output = Vec::new();
        let mut stage = Stage::new(input, decode);
        stage.read_to_end(&mut output).expect("slices do not fail");
        assert_eq!(
            output,
            expected,
            "of {:?}",
            input.escape_ascii().to_string()
        );
    }

    #[test]
    fn base64_is_lenient() {
        check(Base64::default(), b"TWFu", b"Man");
        check(Base64::default(), b"TW E=\r\nTWE", b"MaMa");
        check(Base64::default(), b"TQ==TWFu", b"MMan");
        check(Base64::default(), b"!!", b"");
        check(Base64::default(), b"T", b"");
    }

    #[test]
    fn quoted_printable_keeps_what_is_not_encoded() {
        check(QuotedPrintable::default(), b"a=3Db=\r\nc=\nd", b"a=bcd");
        check(QuotedPrintable::default(), b"a=ZZ=", b"a=ZZ=");
        check(QuotedPrintable::default(), b"=4", b"=4");
    }

    #[test]
    fn uuencode() {
        check(Uuencode::default(), b"#0V%T\r\n\n`\n#0V%T", b"CatCat");
    }

    #[test]
    fn pdf_filters() {
        check(AsciiHex::default(), b"4 1\n42 5>43", b"ABP");
        check(Ascii85::default(), b"87cURD]i,\"Ebo80~>x", b"Hello World!");
        check(Ascii85::default(), b"z87cUR", b"\0\0\0\0Hell");
        check(RunLength::default(), b"\x02abc\xfex\x80y", b"abcxxx");
    }
}
