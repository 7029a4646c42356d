//! Writes the seeds of the fuzz targets `unpack_detected`, `unpack_as` and `unpack_guess`: one small
//! container of each kind, as the tests make them. `cargo run --release -p unpack --example fuzz_seeds --
//! fuzz/seeds`.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use unpack::Format;

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/fixtures.rs"]
mod fixtures;
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/handmade.rs"]
mod handmade;
#[path = "../tests/it/samples.rs"]
mod samples;

/// Length of the file inside each seed.
const CONTENT_BYTES: usize = 300;
/// Of three ranges in steps of 64 bytes the first is known: a head as agents send it.
const HEAD_KNOWN: [u8; 6] = [0, 8, 0, 0, 0, 0];

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: fuzz_seeds FOLDER");
        return ExitCode::FAILURE;
    };
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &std::path::Path) -> io::Result<()> {
    let detected = folder.join("unpack_detected");
    let with_format = folder.join("unpack_as");
    let in_part = folder.join("unpack_guess");
    for folder in [&detected, &with_format, &in_part] {
        fs::create_dir_all(folder)?;
    }
    for sample in samples::samples(CONTENT_BYTES) {
        // An ISO image starts with 32 KiB of nothing: too long for a seed.
        if sample.format == Format::Iso {
            continue;
        }
        fs::write(detected.join(sample.name), &sample.bytes)?;
        fs::write(
            in_part.join(sample.name),
            [&HEAD_KNOWN, sample.bytes.as_slice()].concat(),
        )?;
        let pick = Format::ALL
            .iter()
            .position(|format| *format == sample.format);
        let pick = u8::try_from(pick.unwrap_or_default()).unwrap_or_default();
        fs::write(
            with_format.join(sample.name),
            [&[pick], sample.bytes.as_slice()].concat(),
        )?;
    }
    Ok(())
}
