//! OLE compound files, through the crate `cfb`: every stream, and the files embedded in
//! `Ole10Native` and PowerPoint streams.

use std::os::unix::ffi::OsStrExt;

use cfb::CompoundFile;

use crate::codecs;
use crate::fields;
use crate::summary::Problem;
use crate::walker::{Halt, Stop, Walker};

/// Records of a PowerPoint stream: header bytes, and the types that matter here.
const RECORD_BYTES: usize = 8;
const RECORD_OLE_OBJECT: u16 = 0x1011;

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let mut file = CompoundFile::open(walker.source(bytes)).map_err(|e| problem(&e))?;
    let streams: Vec<_> = file
        .walk()
        .filter(|entry| entry.is_stream())
        .map(|entry| (entry.path().to_path_buf(), entry.len()))
        .collect();
    if streams
        .iter()
        .any(|(path, _)| path.ends_with("EncryptedPackage"))
    {
        walker.note(Problem::encrypted("ole: an encrypted document"));
    }
    for (path, len) in streams {
        walker.step()?;
        let name = path.as_os_str().as_bytes();
        let name = name.strip_prefix(b"/").unwrap_or(name);
        let mut stream = match file.open_stream(&path) {
            Ok(stream) => stream,
            Err(error) => {
                walker.note_member(name, problem(&error));
                continue;
            }
        };
        let packed = usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len()));
        let mut sink = walker.sink(packed);
        if sink.fill("ole", &mut stream) && sink.len() < len {
            sink.note(Problem::malformed("ole: the stream is cut"));
        }
        let unpacked = sink.finish();
        open_embedded(walker, name, &unpacked.bytes)?;
        walker.unpacked(name, unpacked)?;
    }
    Ok(())
}

fn problem(error: &std::io::Error) -> Problem {
    Problem::of_io("ole", error)
}

/// Files that a stream holds in a wrapping of its own; named as the stream, then the file.
fn open_embedded(walker: &mut Walker<'_>, name: &[u8], stream: &[u8]) -> Result<(), Stop> {
    let base = name.rsplit(|&b| b == b'/').next().unwrap_or(name);
    if base == b"\x01Ole10Native" {
        if let Some((file, data)) = native_object(stream) {
            let name = [name, b"/", file].concat();
            walker.stored(&name, data)?;
        }
    } else if base == b"PowerPoint Document" {
        open_powerpoint(walker, name, stream)?;
    }
    Ok(())
}

/// The file in an `Ole10Native` stream: length, flags, label, file name, two words, command
/// (length and text), then length and data.
fn native_object(stream: &[u8]) -> Option<(&[u8], &[u8])> {
    let label = fields::until_nul(stream.get(6..)?);
    let file_at = 6 + label.len() + 1;
    let file = fields::until_nul(stream.get(file_at..)?);
    let command_at = file_at + file.len() + 1 + 8;
    let command_len = fields::u32_le(stream, command_at.checked_sub(4)?)? as usize;
    let data_at = command_at.checked_add(command_len)?;
    let data_len = fields::u32_le(stream, data_at)? as usize;
    let data = fields::prefix(stream, data_at.checked_add(4)?, data_len);
    (!data.is_empty()).then_some((if file.is_empty() { label } else { file }, data))
}

/// Embedded OLE objects of a presentation: top-level records, whole or zlib-compressed behind
/// their size.
fn open_powerpoint(walker: &mut Walker<'_>, name: &[u8], stream: &[u8]) -> Result<(), Stop> {
    let (mut at, mut count) = (0_usize, 0_u32);
    while let (Some(options), Some(kind), Some(len)) = (
        fields::u16_le(stream, at),
        fields::u16_le(stream, at + 2),
        fields::u32_le(stream, at + 4),
    ) {
        walker.step()?;
        let body = fields::prefix(stream, at + RECORD_BYTES, len as usize);
        if kind == RECORD_OLE_OBJECT {
            count += 1;
            let name = [name, format!("/object {count}").as_bytes()].concat();
            let compressed = options >> 4 == 1;
            if compressed {
                let mut sink = walker.sink(body.len());
                codecs::zlib(&mut sink, body.get(4..).unwrap_or_default());
                walker.unpacked(&name, sink.finish())?;
            } else {
                walker.stored(&name, body)?;
            }
        }
        at = at.saturating_add(RECORD_BYTES).saturating_add(len as usize);
    }
    Ok(())
}
