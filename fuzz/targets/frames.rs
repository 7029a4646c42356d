//! The framing, fed in pieces of any size: whole frames come out as they went in, and what is too
//! long is refused before it is held.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use proto::{FRAME_MAX_BYTES, HEADER_BYTES, split};

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let mut buffer = BytesMut::new();
    let mut taken = 0;
    for chunk in bytes.chunks(usize::from(piece).max(1)) {
        buffer.extend_from_slice(chunk);
        loop {
            match split(&mut buffer) {
                Ok(Some(body)) => {
                    assert!(body.len() <= FRAME_MAX_BYTES);
                    let start = taken + HEADER_BYTES;
                    assert_eq!(body[..], bytes[start..start + body.len()]);
                    taken = start + body.len();
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert_eq!(buffer[..], bytes[taken..]);
});
