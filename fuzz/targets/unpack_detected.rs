//! Containers as they are found: by their own bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../unpacking.rs"]
mod unpacking;

fuzz_target!(|bytes: &[u8]| {
    unpacking::check(|limits, budget, visit| unpack::walk(bytes, None, limits, budget, visit));
});
