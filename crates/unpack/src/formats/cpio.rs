//! cpio: newc and crc (hex digits), odc (octal digits), and the old binary form in both byte
//! orders. Members are slices.

use crate::fields;
use crate::summary::Problem;
use crate::walker::{Halt, Walker};

const TRAILER: &[u8] = b"TRAILER!!!";

/// Longest name that is believed; PATH_MAX.
const NAME_LEN_MAX: usize = 4096;

/// File type bits of a mode, and their values for directories and regular files.
const MODE_TYPE: u64 = 0o170_000;
const MODE_DIRECTORY: u64 = 0o040_000;

/// One header: where name and data are, where the next header is.
struct Entry<'a> {
    name: &'a [u8],
    mode: u64,
    data_at: usize,
    data_len: usize,
    next_at: usize,
}

/// Reads a number at an offset.
type ReadU16 = fn(&[u8], usize) -> Option<u16>;

/// The six digits of an ASCII magic, or a binary header that makes sense: its magic alone is two
/// bytes, which chance produces.
pub(crate) fn is_cpio(bytes: &[u8]) -> bool {
    has_ascii_magic(bytes)
        || binary_order(bytes)
            .and_then(|order| binary(bytes, 0, order))
            .is_some_and(|entry| entry.data_at <= bytes.len())
}

/// Whether it may be one, by its first bytes: the name behind a binary header is not looked at.
pub(crate) fn starts_like_cpio(head: &[u8]) -> bool {
    has_ascii_magic(head) || binary_order(head).is_some()
}

fn has_ascii_magic(bytes: &[u8]) -> bool {
    let ascii = [&b"070701"[..], b"070702", b"070707"];
    ascii.iter().any(|magic| bytes.starts_with(magic))
}

/// The byte order of a binary header of a kind of file that exists.
fn binary_order(bytes: &[u8]) -> Option<ReadU16> {
    let order: ReadU16 = match bytes {
        [0xc7, 0x71, ..] => fields::u16_le,
        [0x71, 0xc7, ..] => fields::u16_be,
        _ => return None,
    };
    let mode = order(bytes, 6)?;
    let is_known = matches!(
        u64::from(mode) & MODE_TYPE,
        MODE_DIRECTORY | 0o100_000 | 0o120_000 | 0o020_000 | 0o060_000 | 0o010_000 | 0o140_000
    );
    is_known.then_some(order)
}

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let mut at = 0;
    loop {
        walker.step()?;
        // Between archives and at the end there may be zeros.
        at += bytes[at.min(bytes.len())..]
            .iter()
            .take_while(|&&b| b == 0)
            .count();
        if at >= bytes.len() {
            return Err(Problem::malformed("cpio: cut, no trailer").into());
        }
        let entry = read(bytes, at)
            .ok_or_else(|| Problem::malformed(format!("cpio: no header at {at}")))?;
        if entry.name == TRAILER {
            return Ok(());
        }
        let data = fields::prefix(bytes, entry.data_at, entry.data_len);
        let cut = data.len() < entry.data_len;
        if entry.mode & MODE_TYPE != MODE_DIRECTORY || entry.data_len > 0 {
            walker.member(
                entry.name,
                data,
                cut.then(|| Problem::malformed("cpio: the member is cut")),
            )?;
        }
        at = entry.next_at;
    }
}

fn read(bytes: &[u8], at: usize) -> Option<Entry<'_>> {
    match fields::prefix(bytes, at, 6) {
        b"070701" | b"070702" => newc(bytes, at),
        b"070707" => odc(bytes, at),
        [0xc7, 0x71, ..] => binary(bytes, at, fields::u16_le),
        [0x71, 0xc7, ..] => binary(bytes, at, fields::u16_be),
        _ => None,
    }
}

/// Assembles an entry; `align` is what name and data are padded to, from the start of the header.
fn entry(
    bytes: &[u8],
    at: usize,
    header_len: usize,
    (name_len, data_len): (u64, u64),
    mode: u64,
    align: usize,
) -> Option<Entry<'_>> {
    let name_len = usize::try_from(name_len).ok()?;
    let data_len = usize::try_from(data_len).ok()?;
    if name_len == 0 || name_len > NAME_LEN_MAX {
        return None;
    }
    let name = fields::slice(bytes, at + header_len, name_len)?;
    let data_from_header = (header_len + name_len).next_multiple_of(align);
    let data_at = at.checked_add(data_from_header)?;
    let next_at = data_at.checked_add(data_len.checked_next_multiple_of(align)?)?;
    Some(Entry {
        name: fields::until_nul(name),
        mode,
        data_at,
        data_len,
        next_at,
    })
}

fn newc(bytes: &[u8], at: usize) -> Option<Entry<'_>> {
    let header = fields::slice(bytes, at, 110)?;
    let field = |index: usize| {
        fields::slice(header, 6 + 8 * index, 8).and_then(|f| fields::ascii_number(f, 16))
    };
    entry(bytes, at, 110, (field(11)?, field(6)?), field(1)?, 4)
}

fn odc(bytes: &[u8], at: usize) -> Option<Entry<'_>> {
    let header = fields::slice(bytes, at, 76)?;
    let field = |at: usize, len: usize| {
        fields::slice(header, at, len).and_then(|f| fields::ascii_number(f, 8))
    };
    entry(
        bytes,
        at,
        76,
        (field(59, 6)?, field(65, 11)?),
        field(18, 6)?,
        1,
    )
}

fn binary(bytes: &[u8], at: usize, order: ReadU16) -> Option<Entry<'_>> {
    let header = fields::slice(bytes, at, 26)?;
    let field = |at: usize| order(header, at).map(u64::from);
    let data_len = field(22)? << 16 | field(24)?;
    let found = entry(bytes, at, 26, (field(20)?, data_len), field(6)?, 2)?;
    // The name's last byte is its NUL.
    let last = at.checked_add(26 + usize::try_from(field(20)?).ok()?)?;
    (fields::u8(bytes, last.checked_sub(1)?) == Some(0) && !found.name.is_empty()).then_some(found)
}
