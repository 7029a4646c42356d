//! 7z, through the crate `sevenz-rust2`: block by block, so that a damaged block costs only
//! itself, and on this thread only.

use sevenz_rust2::{Archive, BlockDecoder, Error, Password};

use super::sevenz_header::header_bytes;
use crate::summary::Problem;
use crate::walker::{Halt, Stop, Walker};

/// Memory of one file's record in the archive's table, at most; a header of `n` bytes can
/// announce up to `n` files.
const TABLE_BYTES_PER_HEADER_BYTE: u64 = 128;

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    // Half of the memory for this archive, the other half for those inside it.
    walker.with_half_window(|walker| {
        let window_bytes = walker.window_bytes();
        let password = Password::empty();
        let mut source = walker.source(bytes);
        // The crate has one limit for the header and for what decodes it. A short header may
        // have a large dictionary; a long one, or one of unknown length, may not.
        let table_bytes = window_bytes / TABLE_BYTES_PER_HEADER_BYTE;
        let short = header_bytes(bytes).is_some_and(|len| len <= table_bytes);
        let read_kb = if short { window_bytes } else { table_bytes } >> 10;
        let archive = Archive::read_with_memory_limit(&mut source, &password, kb(read_kb))
            .map_err(|error| problem(&error))?;
        for block in 0..archive.blocks.len() {
            walker.step()?;
            let decoder = BlockDecoder::new_with_memory_limit(
                1,
                kb(window_bytes >> 10),
                block,
                &archive,
                &password,
                &mut source,
            );
            open_block(walker, bytes, decoder)?;
        }
        for file in &archive.files {
            if !file.has_stream() && !file.is_directory() {
                walker.stored(file.name().as_bytes(), b"")?;
            }
        }
        Ok(())
    })
}

fn kb(kb: u64) -> usize {
    usize::try_from(kb).unwrap_or(usize::MAX)
}

fn open_block<R: std::io::Read + std::io::Seek>(
    walker: &mut Walker<'_>,
    bytes: &[u8],
    decoder: BlockDecoder<'_, R>,
) -> Result<(), Stop> {
    let mut stop = None;
    // A file's share of its block is unknown: as packed size the whole archive's is taken.
    let outcome = decoder.for_each_entries(&mut |file, reader| {
        if !file.has_stream() {
            return Ok(true);
        }
        let mut sink = walker.sink(bytes.len());
        let whole = sink.fill("7z", reader);
        match walker.unpacked(file.name().as_bytes(), sink.finish()) {
            // What follows in the block could only be reached by decoding the rest.
            Ok(()) => Ok(whole),
            Err(stopped) => {
                stop = Some(stopped);
                Ok(false)
            }
        }
    });
    match (stop, outcome) {
        (Some(stop), _) => Err(stop),
        (None, Err(error)) => {
            walker.step()?;
            walker.note(problem(&error));
            Ok(())
        }
        (None, Ok(_)) => Ok(()),
    }
}

fn problem(error: &Error) -> Problem {
    match error {
        Error::PasswordRequired | Error::MaybeBadPassword(_) => {
            Problem::encrypted("7z: a password is needed")
        }
        Error::UnsupportedVersion { .. }
        | Error::ExternalUnsupported
        | Error::UnsupportedCompressionMethod(_)
        | Error::MaxMemLimited { .. }
        | Error::Unsupported(_) => Problem::unsupported(format!("7z: {error}")),
        Error::Io(error, _) => Problem::of_io("7z", error),
        _ => Problem::malformed(format!("7z: {error}")),
    }
}
