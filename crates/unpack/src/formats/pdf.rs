//! PDF streams with their filters undone, object streams among them. The file is read front to
//! back by its `stream` keywords, not by its cross-reference table: that table may loop or lie,
//! and viewers rebuild it when it does.

use memchr::memmem;

use super::pdf_dict::{self, Value};
use super::zip;
use crate::codecs::{self, Filter};
use crate::fields;
use crate::guess::{Glimpse, Guess, Mark};
use crate::predictor::Predictor;
use crate::summary::Problem;
use crate::walker::{Halt, Stop, Walker};

/// The header may follow this many other bytes.
const HEADER_WITHIN_BYTES: usize = 1024;

/// A stream's dictionary starts at most this far before its keyword.
const DICT_BYTES_MAX: usize = 64 << 10;

/// Filters of one stream.
const FILTERS_MAX: usize = 8;

pub(crate) const HEADER: &[u8] = b"%PDF-";

pub(crate) fn is_pdf(bytes: &[u8]) -> bool {
    memmem::find(fields::prefix(bytes, 0, HEADER_WITHIN_BYTES), HEADER).is_some()
}

/// The same of content of which a part is known.
pub(crate) fn guess(glimpse: &dyn Glimpse) -> Guess {
    if let Some(start) = glimpse.get(0, HEADER_WITHIN_BYTES) {
        return Guess::of(is_pdf(start));
    }
    let within = 0..(HEADER_WITHIN_BYTES - HEADER.len() + 1) as u64;
    match glimpse.places(Mark::Pdf, within) {
        Some(places) => Guess::of(!places.is_empty()),
        None => Guess::need(0, HEADER_WITHIN_BYTES),
    }
}

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    if is_encrypted(bytes) {
        walker.note(Problem::encrypted("pdf: an encrypted document"));
    }
    let keyword = memmem::Finder::new(b"stream");
    let (mut at, mut streams) = (0, 0_usize);
    while let Some(found) = keyword.find(&bytes[at..]) {
        walker.step()?;
        let word_at = at + found;
        let Some(data_at) = data_start(bytes, at, word_at) else {
            at = word_at + b"stream".len();
            continue;
        };
        streams += 1;
        at = open_stream(walker, bytes, at, word_at, data_at)?;
    }
    let claims = bytes.starts_with(b"%PDF-") || streams > 0;
    if claims && memmem::rfind(bytes, b"%%EOF").is_none() {
        walker.note(Problem::malformed("pdf: cut, no end mark"));
    }
    if zip::has_appended_zip(bytes) {
        return zip::open(walker, bytes);
    }
    Ok(())
}

/// `/Encrypt` with a value, as a trailer has it.
fn is_encrypted(bytes: &[u8]) -> bool {
    const KEY: &[u8] = b"/Encrypt";
    memmem::find_iter(bytes, KEY).any(|at| {
        let value = fields::prefix(bytes, at + KEY.len(), 16).trim_ascii_start();
        matches!(value, [b'0'..=b'9', ..] | [b'<', b'<', ..])
    })
}

/// Where the data of the keyword at `word_at` starts; `None` if it starts no stream. What lies
/// before `floor` belongs to earlier streams.
fn data_start(bytes: &[u8], floor: usize, word_at: usize) -> Option<usize> {
    let before = bytes.get(floor..word_at)?.trim_ascii_end();
    if !before.ends_with(b">>") {
        return None;
    }
    let after = word_at + b"stream".len();
    let blanks = fields::prefix(bytes, after, 16)
        .iter()
        .take_while(|&&b| b == b' ')
        .count();
    match fields::prefix(bytes, after + blanks, 2) {
        b"\r\n" => Some(after + blanks + 2),
        [b'\r' | b'\n', ..] => Some(after + blanks + 1),
        _ => None,
    }
}

/// Gives one stream; returns where it ends.
fn open_stream(
    walker: &mut Walker<'_>,
    bytes: &[u8],
    floor: usize,
    word_at: usize,
    data_at: usize,
) -> Result<usize, Stop> {
    let region = &bytes[floor.max(word_at.saturating_sub(DICT_BYTES_MAX))..word_at];
    let (name, dict) = object(region);
    let length = dict
        .as_ref()
        .and_then(|d| d.lookup(&[b"Length"]))
        .and_then(Value::as_size);
    let (data, whole) = data(bytes, data_at, length);
    let end = data_at + data.len();
    let mut sink = walker.sink(data.len());
    let filters = match dict.as_ref().map(filters) {
        Some(Ok(filters)) => filters,
        Some(Err(problem)) => {
            sink.note(problem);
            guessed_filters(data)
        }
        None => {
            sink.note(Problem::malformed("pdf: a stream without dictionary"));
            guessed_filters(data)
        }
    };
    if !whole {
        sink.note(Problem::malformed("pdf: a stream is cut"));
    }
    if filters.is_empty() {
        walker.member(&name, data, sink.finish().problem)?;
        return Ok(end);
    }
    codecs::filtered(&mut sink, data, &filters);
    walker.unpacked(&name, sink.finish())?;
    Ok(end)
}

/// The name and dictionary of the object whose stream follows `region`.
fn object(region: &[u8]) -> (Vec<u8>, Option<Value>) {
    let found = memmem::rfind_iter(region, b"obj").find_map(|at| {
        let number = object_number(&region[..at])?;
        let dict = pdf_dict::first(&region[at + b"obj".len()..])?;
        Some((number, dict))
    });
    match found {
        Some((number, dict)) => {
            let name = [b"object ", number].concat();
            (name, Some(dict))
        }
        None => (b"stream".to_vec(), None),
    }
}

/// `12 0` before `obj`.
fn object_number(before: &[u8]) -> Option<&[u8]> {
    let text = before.trim_ascii_end();
    let digits = |text: &[u8]| text.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let generation = digits(text);
    let rest = text[..text.len() - generation].trim_ascii_end();
    let number = digits(rest);
    let known = generation > 0 && number > 0 && rest.len() < text.len() - generation;
    known.then(|| &text[rest.len() - number..])
}

/// The data at `at`, by its length if `endstream` follows there, else up to `endstream`; and
/// whether there is one.
fn data(bytes: &[u8], at: usize, length: Option<usize>) -> (&[u8], bool) {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some((data, after)) = length.and_then(|length| rest.split_at_checked(length)) {
        let near = fields::prefix(after, 0, 16).trim_ascii_start();
        if near.starts_with(b"endstream") {
            return (data, true);
        }
    }
    match memmem::find(rest, b"endstream") {
        // With a line end that may belong to the data or not; filters do not mind.
        Some(end) => (&rest[..end], true),
        None => (rest, false),
    }
}

/// Deflate where it looks like that: for streams whose filters are not known.
fn guessed_filters(data: &[u8]) -> Vec<Filter> {
    let zlib =
        fields::u16_be(data, 0).is_some_and(|header| header >> 8 & 0x0f == 8 && header % 31 == 0);
    if zlib {
        vec![Filter::Flate]
    } else {
        Vec::new()
    }
}

/// The filters of a stream, first to last. Filters of pictures end the chain: what they would
/// decode to is pixels.
fn filters(dict: &Value) -> Result<Vec<Filter>, Problem> {
    // `F` is the short form; in a stream it may also name a file, as a string.
    let short = || dict.lookup(&[b"F"]);
    let names = list(dict.lookup(&[b"Filter"]).or_else(short));
    let parms = list(dict.lookup(&[b"DecodeParms", b"DP"]));
    if names.len() > FILTERS_MAX {
        return Err(Problem::unsupported(format!(
            "pdf: {} filters",
            names.len()
        )));
    }
    let mut filters = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let Value::Name(name) = name else {
            return Err(Problem::unsupported("pdf: a filter by reference"));
        };
        let parms = parms.get(index).unwrap_or(&Value::Other);
        let number = |key: &[u8]| parms.lookup(&[key]).and_then(Value::as_size);
        match name.as_slice() {
            b"FlateDecode" | b"Fl" => filters.push(Filter::Flate),
            b"LZWDecode" | b"LZW" => filters.push(Filter::Lzw {
                early_change: number(b"EarlyChange") != Some(0),
            }),
            b"ASCIIHexDecode" | b"AHx" => filters.push(Filter::AsciiHex),
            b"ASCII85Decode" | b"A85" => filters.push(Filter::Ascii85),
            b"RunLengthDecode" | b"RL" => filters.push(Filter::RunLength),
            b"DCTDecode" | b"DCT" | b"JPXDecode" | b"CCITTFaxDecode" | b"CCF" | b"JBIG2Decode" => {
                break;
            }
            b"Crypt" => return Err(Problem::encrypted("pdf: an encrypted stream")),
            other => {
                let other = other.escape_ascii();
                return Err(Problem::unsupported(format!("pdf: filter {other}")));
            }
        }
        if *parms == Value::Reference {
            return Err(Problem::unsupported("pdf: filter parameters by reference"));
        }
        let predictor = Predictor::new(
            number(b"Predictor").unwrap_or(1),
            number(b"Columns").unwrap_or(1),
            number(b"Colors").unwrap_or(1),
            number(b"BitsPerComponent").unwrap_or(8),
        );
        let predictor = predictor.map_err(|what| Problem::unsupported(format!("pdf: {what}")))?;
        filters.extend(predictor.map(Filter::Predictor));
    }
    Ok(filters)
}

/// An array's values, or the one value; none for a value that is not there.
fn list(value: Option<&Value>) -> &[Value] {
    match value {
        None | Some(Value::Other) => &[],
        Some(Value::Array(values)) => values,
        Some(one) => std::slice::from_ref(one),
    }
}
