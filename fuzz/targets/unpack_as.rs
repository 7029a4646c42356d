//! Every unpacker on any bytes: the first byte picks the format, so that none needs its magic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unpack::Format;

#[path = "../unpacking.rs"]
mod unpacking;

fuzz_target!(|input: (u8, &[u8])| {
    let (pick, bytes) = input;
    let format = Format::ALL[usize::from(pick) % Format::ALL.len()];
    unpacking::check(|limits, budget, visit| unpack::walk_as(format, bytes, limits, budget, visit));
});
