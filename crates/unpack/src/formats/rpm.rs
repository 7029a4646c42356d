//! RPM: a lead, two headers, then a compressed cpio. Packages of version 6, and those with files
//! of 4 GiB, have a cpio without names and sizes: these are in the main header.

use super::rpm_header::{Files, Header};
use crate::codecs;
use crate::fields;
use crate::format::Format;
use crate::summary::Problem;
use crate::walker::{Halt, Walker};

const LEAD_BYTES: usize = 96;

/// A header of a stripped cpio: the magic, the file's number in hex, two bytes of padding.
const STRIPPED_MAGIC: &[u8] = b"07070X";
const STRIPPED_HEADER_BYTES: usize = 16;

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let cut = || Problem::malformed("rpm: cut or damaged header");
    let signature = Header::read(bytes, LEAD_BYTES).ok_or_else(cut)?;
    // The signature header is padded to 8 bytes, the main one is not.
    let main = Header::read(bytes, signature.end.next_multiple_of(8)).ok_or_else(cut)?;
    let payload = bytes.get(main.end..).unwrap_or_default();
    if payload.is_empty() {
        return Err(Problem::malformed("rpm: no payload").into());
    }
    if main.has_stripped_payload() {
        return open_stripped(walker, payload, &main.files());
    }
    let name: &[u8] = match Format::detect(payload) {
        Some(Format::Gzip) => b"payload.cpio.gz",
        Some(Format::Bzip2) => b"payload.cpio.bz2",
        Some(Format::Xz) => b"payload.cpio.xz",
        Some(Format::Zstd) => b"payload.cpio.zst",
        Some(Format::Cpio) => b"payload.cpio",
        _ => return Ok(walker.member(b"payload", payload, Some(unknown_compression()))?),
    };
    Ok(walker.stored(name, payload)?)
}

/// Among them legacy LZMA, which has no magic.
fn unknown_compression() -> Problem {
    Problem::unsupported("rpm: unknown compression of the payload")
}

/// Shows the unpacked payload, then each file in it.
fn open_stripped(walker: &mut Walker<'_>, payload: &[u8], files: &Files<'_>) -> Result<(), Halt> {
    let mut sink = walker.sink(payload.len());
    let window_bytes = walker.window_bytes();
    match Format::detect(payload) {
        Some(Format::Gzip) => codecs::gzip(&mut sink, payload),
        Some(Format::Bzip2) => codecs::bzip2(&mut sink, payload),
        Some(Format::Xz) => codecs::xz(&mut sink, payload, window_bytes),
        Some(Format::Zstd) => codecs::zstd(&mut sink, payload, window_bytes),
        // Of no file the trailer alone is left.
        format if format == Some(Format::Cpio) || payload.starts_with(STRIPPED_MAGIC) => {
            sink.fill("rpm", &mut &*payload);
        }
        _ => return Ok(walker.member(b"payload", payload, Some(unknown_compression()))?),
    }
    let unpacked = sink.finish();
    walker.member(b"payload.cpio", &unpacked.bytes, unpacked.problem)?;
    let cpio = unpacked.bytes.as_slice();
    let mut at = 0;
    while fields::slice(cpio, at, STRIPPED_MAGIC.len()) == Some(STRIPPED_MAGIC) {
        walker.step()?;
        let number = fields::slice(cpio, at + STRIPPED_MAGIC.len(), 8)
            .and_then(|digits| fields::ascii_number(digits, 16))
            .and_then(|number| usize::try_from(number).ok());
        let (name, len) = number
            .and_then(|number| files.get(number))
            .ok_or_else(|| Problem::malformed("rpm: a file that the header does not have"))?;
        let data_at = at + STRIPPED_HEADER_BYTES;
        // Links and directories have a size and no content; so has all but the last of the
        // names of one file. What follows them is a header again.
        let next = fields::prefix(cpio, data_at, STRIPPED_MAGIC.len());
        let empty = next == STRIPPED_MAGIC || next.starts_with(b"070701");
        let len = if empty { 0 } else { len };
        let data = fields::prefix(cpio, data_at, len);
        if len > 0 {
            let cut = data.len() < len;
            let problem = cut.then(|| Problem::malformed("rpm: the file is cut"));
            walker.member(&name, data, problem)?;
        }
        at = data_at.saturating_add(len).next_multiple_of(4);
    }
    // The trailer is an entry with a name.
    if !fields::prefix(cpio, at, 6).starts_with(b"070701") {
        return Err(Problem::malformed("rpm: the payload's end is missing").into());
    }
    Ok(())
}
