//! Whether content of which a part is known may be a container: what is said to be none is none
//! when it is seen whole, and the questions on the way are few.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/unpack/tests/it/glimpses.rs"]
mod glimpses;

/// A range may start as far behind the last one as its first byte says, in these bytes.
const STEP_BYTES: usize = 64;

fuzz_target!(|input: ([(u8, u8); 3], &[u8])| {
    let (ranges, content) = input;
    let mut from = 0;
    let known = ranges.map(|(skipped, len)| {
        let start = from + STEP_BYTES * usize::from(skipped);
        from = start + STEP_BYTES * usize::from(len);
        start..from
    });
    glimpses::settle(content, &known);
});
