//! Whatever a TPM answers and a guest shows as certificates: an error at worst, and within bounds.
#![no_main]

use std::io;
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use tpm::{CERTIFICATE_MAX_BYTES, INTERMEDIATES_MAX_BYTES, Tpm, Transport, verify};

/// Answers one after the other: a length, and what comes behind a header that is good.
struct Answers<'a>(&'a [u8]);

impl Transport for Answers<'_> {
    fn exchange(&mut self, _: &[u8]) -> io::Result<Vec<u8>> {
        let Some(([tag, length], rest)) = self.0.split_first_chunk() else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let (body, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        self.0 = rest;
        let size = u32::try_from(body.len() + 10).unwrap_or(0).to_be_bytes();
        Ok([&[0x80, *tag], &size[..], &[0; 4], body].concat())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut tpm = Tpm::new(Answers(bytes));
    if let Ok(shown) = tpm.show() {
        assert!(shown.certificate.len() <= CERTIFICATE_MAX_BYTES);
        assert!(shown.intermediates.len() <= INTERMEDIATES_MAX_BYTES);
        let _ = tpm.open(&shown.certificate);
    }
    assert!(verify(bytes, bytes, &[bytes], now).is_err());
});
