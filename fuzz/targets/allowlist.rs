//! Whatever a file of an allowlist or a header of rpm's database holds: it is read or refused.
#![no_main]

use allowlist::{Builder, List};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((list, signer)) = List::from_bytes(bytes) {
        // Nobody has signed what a fuzzer makes; without a signature it is the same again.
        if signer.is_none() {
            let again = list.to_bytes(None).expect("it was one");
            assert_eq!(List::from_bytes(&again).expect("ours"), (list, None));
        }
    }
    let mut builder = Builder::new();
    // In a root without files nothing can be listed.
    let _ = builder.rpm_header("/proc/self/fdinfo".as_ref(), bytes, &[]);
    assert!(builder.is_empty());
});
