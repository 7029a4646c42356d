//! ZIP, through the crate `zip`: its iterating reader goes through the central directory and
//! keeps entries of equal names. Where there is no directory (a cut archive), the local headers
//! are followed instead.

use ::zip::ZipReadOptions;
use ::zip::read::{Config, OwnedZipFileEntry, ZipFileEntry, read_zipfile_from_stream_with_options};
use ::zip::result::ZipError;
use ::zip::unstable::read::ZipIterable;
use memchr::memmem;

use crate::fields;
use crate::guess::{Glimpse, Guess, Mark, Whole};
use crate::summary::Problem;
use crate::walker::{Halt, Walker};

const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
pub(crate) const END: &[u8] = b"PK\x05\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const LOCATOR_64_BYTES: u64 = 20;

/// The end record and the longest comment behind it.
const TAIL_BYTES: usize = 22 + u16::MAX as usize;

/// Bytes of a local header before the name.
const LOCAL_BYTES: usize = 30;

/// A local header, an empty archive's end record, or the mark of a split archive and a header.
pub(crate) fn is_zip(bytes: &[u8]) -> bool {
    let split_mark = bytes.starts_with(b"PK\x07\x08") || bytes.starts_with(b"PK00");
    bytes.starts_with(LOCAL)
        || bytes.starts_with(END) && bytes.len() >= 22
        || split_mark && fields::slice(bytes, 4, 4) == Some(LOCAL)
}

/// An end record near the end whose directory lies right before it: an executable (or picture…)
/// with an archive behind it. Chance does not make that up, so no more is asked.
pub(crate) fn has_appended_zip(bytes: &[u8]) -> bool {
    let tail_at = bytes.len().saturating_sub(TAIL_BYTES);
    memmem::rfind_iter(&bytes[tail_at..], END)
        .any(|at| end_record(&Whole(bytes), (tail_at + at) as u64) == Guess::Maybe)
}

/// The same of content of which a part is known.
pub(crate) fn guess_appended(glimpse: &dyn Glimpse) -> Guess {
    let size = glimpse.size();
    let tail = size.saturating_sub(TAIL_BYTES as u64)..size;
    match glimpse.places(Mark::ZipEnd, tail) {
        Some(places) => Guess::any(places.into_iter().map(|at| end_record(glimpse, at))),
        None => Guess::Maybe,
    }
}

/// Whether there is an end record at `at`, where its magic is, and a directory right before it.
fn end_record(glimpse: &dyn Glimpse, at: u64) -> Guess {
    let (size_at, fields_bytes) = (at.saturating_add(12), 8);
    let Some(record) = glimpse.get(size_at, fields_bytes) else {
        return Guess::need(size_at, fields_bytes);
    };
    let (Some(size), Some(offset)) = (fields::u32_le(record, 0), fields::u32_le(record, 4)) else {
        return Guess::No;
    };
    let (place, magic) = match size == u32::MAX || offset == u32::MAX {
        true => (at.checked_sub(LOCATOR_64_BYTES), LOCATOR_64),
        false => {
            let directory = at.checked_sub(u64::from(size));
            let fits = |directory: &u64| u64::from(offset) <= *directory;
            (directory.filter(fits), CENTRAL)
        }
    };
    let Some(place) = place else {
        return Guess::No;
    };
    match glimpse.get(place, magic.len()) {
        Some(found) if found == magic => Guess::Maybe,
        Some(_) => Guess::No,
        None => Guess::need(place, magic.len()),
    }
}

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let source = walker.source(bytes);
    let mut archive = match ZipIterable::try_new(source, Config::default()) {
        Ok(archive) => archive,
        Err(error) => {
            walker.step()?;
            walker.note(problem(&error));
            return salvage(walker, bytes);
        }
    };
    let entries = archive.files().map_err(|error| problem(&error))?;
    for entry in entries {
        walker.step()?;
        open_entry(walker, bytes, entry.map_err(|error| problem(&error))?)?;
    }
    Ok(())
}

fn open_entry(walker: &mut Walker<'_>, bytes: &[u8], entry: ZipFileEntry<'_>) -> Result<(), Halt> {
    if entry.is_dir() && entry.compressed_size() == 0 {
        return Ok(());
    }
    let name = entry.name_raw().to_vec();
    if entry.encrypted() {
        walker.note_member(&name, Problem::encrypted("zip: an encrypted member"));
        return Ok(());
    }
    let mismatch = local_mismatch(bytes, &entry);
    let packed = entry.compressed_size().min(bytes.len() as u64);
    let entry = OwnedZipFileEntry::from(entry);
    let mut source = walker.source(bytes);
    let unpacked = {
        // Borrowed, so that dropping the file does not read what is left of it.
        let file = entry
            .as_ref()
            .with_reader(&mut source, ZipReadOptions::default());
        file.map(|mut file| {
            let mut sink = walker.sink(usize::try_from(packed).unwrap_or(usize::MAX));
            sink.fill("zip", &mut file);
            if let Some(mismatch) = mismatch {
                sink.note(mismatch);
            }
            sink.finish()
        })
    };
    match unpacked {
        Ok(unpacked) => walker.unpacked(&name, unpacked)?,
        Err(error) => {
            walker.step()?;
            walker.note_member(&name, problem(&error));
        }
    }
    Ok(())
}

/// A local header that tells another way of reading the data than the directory does: other
/// programs may unpack something else than what is shown here.
fn local_mismatch(bytes: &[u8], entry: &ZipFileEntry<'_>) -> Option<Problem> {
    let local = usize::try_from(entry.header_start()).ok()?;
    let central = usize::try_from(entry.central_header_start()).ok()?;
    let local_method = fields::u16_le(bytes, local.checked_add(8)?)?;
    let central_method = fields::u16_le(bytes, central.checked_add(10)?)?;
    let encrypted = fields::u16_le(bytes, local.checked_add(6)?)? & 1 != 0;
    (encrypted || local_method != central_method)
        .then(|| Problem::malformed("zip: local header and directory differ"))
}

/// Follows the local headers of an archive whose directory is missing or damaged.
fn salvage(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let local = memmem::Finder::new(LOCAL);
    let mut from = 0;
    while let Some(found) = local.find(bytes.get(from..).unwrap_or_default()) {
        walker.step()?;
        let at = from + found;
        let (name, end) = local_extent(bytes, at);
        salvage_entry(walker, name, &bytes[at..end])?;
        from = end.max(at + LOCAL.len());
    }
    Ok(())
}

/// The name in the local header at `at`, and where its data ends: by its size if it has one, else
/// where the next header starts.
fn local_extent(bytes: &[u8], at: usize) -> (&[u8], usize) {
    let size = fields::u32_le(bytes, at + 18).unwrap_or(0) as usize;
    let name_len = fields::u16_le(bytes, at + 26).unwrap_or(0);
    let extra_len = fields::u16_le(bytes, at + 28).unwrap_or(0);
    let name = fields::prefix(bytes, at + LOCAL_BYTES, name_len.into());
    let data_at = at + LOCAL_BYTES + usize::from(name_len) + usize::from(extra_len);
    let rest = bytes.get(data_at..).unwrap_or_default();
    let len = if size > 0 {
        size.min(rest.len())
    } else {
        let next = |magic| memmem::find(rest, magic).unwrap_or(rest.len());
        next(LOCAL).min(next(CENTRAL))
    };
    (name, data_at.saturating_add(len).min(bytes.len()))
}

fn salvage_entry(walker: &mut Walker<'_>, name: &[u8], bytes: &[u8]) -> Result<(), Halt> {
    if name.ends_with(b"/") {
        return Ok(());
    }
    // With a data descriptor the header has no sizes; the decoder finds its end.
    let descriptor = fields::u16_le(bytes, 6).is_some_and(|flags| flags & 8 != 0);
    let mut options = ZipReadOptions::default();
    if descriptor {
        options = options
            .override_compressed_size(bytes.len() as u64)
            .ignore_crc32(true);
    }
    let mut source = walker.source(bytes);
    let unpacked = match read_zipfile_from_stream_with_options(&mut source, options) {
        Ok(Some(mut file)) => {
            let mut sink = walker.sink(bytes.len());
            sink.fill("zip", &mut file);
            sink.finish()
        }
        Ok(None) => return Ok(()),
        Err(error) => {
            walker.note_member(name, problem(&error));
            return Ok(());
        }
    };
    Ok(walker.unpacked(name, unpacked)?)
}

fn problem(error: &ZipError) -> Problem {
    match error {
        ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED) | ZipError::InvalidPassword => {
            Problem::encrypted("zip: a password is needed")
        }
        ZipError::UnsupportedArchive(what) => Problem::unsupported(format!("zip: {what}")),
        ZipError::CompressionMethodNotSupported(method) => {
            Problem::unsupported(format!("zip: compression method {method}"))
        }
        ZipError::Io(error) => Problem::of_io("zip", error),
        other => Problem::malformed(format!("zip: {other}")),
    }
}
