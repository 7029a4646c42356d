//! Header blocks of mail: field names, and the few values that decide how a body is read.

use super::mime::Encoding;

/// Bytes of a header block that are looked at; the rest of it is skipped.
const HEADER_BYTES_MAX: usize = 256 << 10;

/// Longest boundary believed; 70 by RFC 2046, but mailers read longer ones.
const BOUNDARY_BYTES_MAX: usize = 1024;

/// What a part's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) encoding: Encoding,
    /// Of a `multipart/…`.
    pub(super) boundary: Option<Vec<u8>>,
    pub(super) filename: Option<Vec<u8>>,
}

/// Parses a header block (without the empty line).
pub(super) fn parse(block: &[u8]) -> Header {
    let block = &block[..block.len().min(HEADER_BYTES_MAX)];
    let mut header = Header {
        encoding: Encoding::None,
        boundary: None,
        filename: None,
    };
    let mut type_name = None;
    for (name, value) in fields(block) {
        if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
            header.encoding = encoding(&value);
        } else if name.eq_ignore_ascii_case(b"content-type") {
            let multipart = value
                .trim_ascii_start()
                .get(..10)
                .is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"));
            header.boundary = parameter(&value, b"boundary")
                .filter(|b| multipart && !b.is_empty() && b.len() <= BOUNDARY_BYTES_MAX);
            type_name = parameter(&value, b"name");
        } else if name.eq_ignore_ascii_case(b"content-disposition") {
            header.filename = parameter(&value, b"filename");
        }
    }
    header.filename = header
        .filename
        .or(type_name)
        .filter(|name| !name.is_empty());
    header
}

/// Names and unfolded values.
pub(super) fn fields(block: &[u8]) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
    let mut lines = block.split(|&b| b == b'\n').map(without_cr).peekable();
    std::iter::from_fn(move || {
        loop {
            let line = lines.next()?;
            let Some((name, first)) = name_and_value(line) else {
                continue;
            };
            let mut value = first.to_vec();
            while let Some(more) = lines.next_if(|line| matches!(line, [b' ' | b'\t', ..])) {
                value.extend_from_slice(more);
            }
            return Some((name, value));
        }
    })
}

/// `Name: value`, the name of printable characters without blanks.
pub(super) fn name_and_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&b| b == b':')?;
    let name = line[..colon].trim_ascii_end();
    (!name.is_empty() && may_be_name(name)).then_some((name, &line[colon + 1..]))
}

/// Whether a colon may follow that makes a field of it.
pub(super) fn may_be_name(start: &[u8]) -> bool {
    let name = start.trim_ascii_end();
    name.len() <= 128 && name.iter().all(u8::is_ascii_graphic)
}

pub(super) fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn encoding(value: &[u8]) -> Encoding {
    let value = value.trim_ascii().to_ascii_lowercase();
    match value.as_slice() {
        b"base64" => Encoding::Base64,
        b"quoted-printable" => Encoding::QuotedPrintable,
        b"x-uuencode" | b"uuencode" | b"x-uue" => Encoding::Uuencode,
        _ => Encoding::None,
    }
}

/// `; name=value`, quoted or not; `name*=` and `name*0=` (RFC 2231) count as `name=`, their
/// percent signs left as they are.
fn parameter(value: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    let mut found: Option<Vec<u8>> = None;
    let mut rest = after_semicolon(value)?;
    loop {
        let equals = rest.iter().position(|&b| b == b'=' || b == b';');
        let Some(equals) = equals.filter(|&at| rest[at] == b'=') else {
            rest = match after_semicolon(rest) {
                Some(rest) => rest,
                None => return found,
            };
            continue;
        };
        let name = rest[..equals].trim_ascii();
        let name = name.split(|&b| b == b'*').next().unwrap_or(name);
        let (text, after) = parameter_value(rest[equals + 1..].trim_ascii_start());
        if name.eq_ignore_ascii_case(wanted) {
            // Continuations (`name*1=`) are appended.
            found.get_or_insert_default().extend_from_slice(&text);
        }
        rest = match after_semicolon(after) {
            Some(rest) => rest,
            None => return found,
        };
    }
}

fn after_semicolon(bytes: &[u8]) -> Option<&[u8]> {
    let at = bytes.iter().position(|&b| b == b';')?;
    Some(&bytes[at + 1..])
}

/// A parameter's value, and what follows it.
fn parameter_value(bytes: &[u8]) -> (Vec<u8>, &[u8]) {
    let Some(quoted) = bytes.strip_prefix(b"\"") else {
        let end = bytes
            .iter()
            .position(|&b| b == b';' || b.is_ascii_whitespace())
            .unwrap_or(bytes.len());
        return (bytes[..end].to_vec(), &bytes[end..]);
    };
    let mut text = Vec::new();
    let mut at = 0;
    while let Some(&byte) = quoted.get(at) {
        match byte {
            b'"' => return (text, &quoted[at + 1..]),
            b'\\' => at += 1,
            _ => {}
        }
        text.extend(quoted.get(at));
        at += 1;
    }
    (text, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(block: &[u8], boundary: Option<&[u8]>, filename: Option<&[u8]>, encoding: Encoding) {
        let expected = Header {
            encoding,
            boundary: boundary.map(<[u8]>::to_vec),
            filename: filename.map(<[u8]>::to_vec),
        };
        assert_eq!(parse(block), expected, "of {}", block.escape_ascii());
    }

    #[test]
    fn values_that_matter() {
        check(
            b"Content-Type: multipart/mixed;\r\n boundary=\"a b\\\"c\"\r\n",
            Some(b"a b\"c"),
            None,
            Encoding::None,
        );
        check(
            b"CONTENT-TYPE: application/x; name=n.exe\nContent-transfer-encoding:  BASE64 \n",
            None,
            Some(b"n.exe"),
            Encoding::Base64,
        );
        check(
            b"Content-Disposition: attachment; x; filename*0=\"a.\"; filename*1=exe; y=z",
            None,
            Some(b"a.exe"),
            Encoding::None,
        );
        check(
            b"Content-Type: text/plain; boundary=x",
            None,
            None,
            Encoding::None,
        );
        check(b"no colon\n: empty\n", None, None, Encoding::None);
    }
}
