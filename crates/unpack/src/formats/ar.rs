//! Unix archives (and so deb packages): 60-byte headers, names short, GNU (`/123`) or BSD
//! (`#1/len`).

use crate::fields;
use crate::summary::Problem;
use crate::walker::{Halt, Walker};

const MAGIC_BYTES: usize = 8;
const HEADER_BYTES: usize = 60;

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let mut at = MAGIC_BYTES;
    let mut long_names: &[u8] = &[];
    while at < bytes.len() {
        let header = fields::slice(bytes, at, HEADER_BYTES)
            .ok_or_else(|| Problem::malformed("ar: cut in a header"))?;
        let len = fields::ascii_number(&header[48..58], 10)
            .and_then(|len| usize::try_from(len).ok())
            .filter(|_| header.ends_with(b"`\n"))
            .ok_or_else(|| Problem::malformed(format!("ar: no header at {at}")))?;
        let start = at + HEADER_BYTES;
        let content = fields::prefix(bytes, start, len);
        let short = header[..16].trim_ascii_end();
        let (name, data) = named(short, content, long_names);
        if short == b"//" {
            long_names = content;
        }
        let cut = content.len() < len;
        walker.member(
            name,
            data,
            cut.then(|| Problem::malformed("ar: the member is cut")),
        )?;
        // Members start at even offsets; the end of a cut one ends the loop.
        at = start.saturating_add(len).saturating_add(len % 2);
    }
    Ok(())
}

/// The member's name and content, by the way its header gives the name.
fn named<'a>(short: &'a [u8], content: &'a [u8], long_names: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    let number =
        |digits| fields::ascii_number(digits, 10).and_then(|number| usize::try_from(number).ok());
    let bsd = short.strip_prefix(b"#1/").and_then(number);
    if let Some((name, data)) = bsd.and_then(|len| content.split_at_checked(len)) {
        return (fields::until_nul(name), data);
    }
    let long = short
        .strip_prefix(b"/")
        .and_then(number)
        .and_then(|at| long_names.get(at..))
        .and_then(|names| names.split(|&b| b == b'\n').next());
    match long {
        Some(name) => (name.strip_suffix(b"/").unwrap_or(name), content),
        None if short.len() > 1 && short != b"//" => {
            (short.strip_suffix(b"/").unwrap_or(short), content)
        }
        None => (short, content),
    }
}
