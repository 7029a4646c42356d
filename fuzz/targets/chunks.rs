//! What a guest sends in place of content: lists of chunks and compressed pieces. What is read
//! covers its file and comes back the same; a piece becomes what it says or nothing; any bytes are
//! cut so that they can be put together again.
#![no_main]

use chunks::{Kind, Lister, Manifest, PLAIN_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u32, &[u8])| {
    let (kind, size, bytes) = input;
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    if let Ok(manifest) = Manifest::decode(kind, size.into(), &[0; 32], bytes) {
        let end = manifest.chunks().iter().fold(0, |at, chunk| {
            assert!(chunk.offset == at && chunk.len > 0);
            chunk.end()
        });
        assert_eq!(end, u64::from(size));
        assert_eq!(manifest.encode(), bytes);
    }
    let plain_len = size as usize % (PLAIN_BYTES_MAX + 2);
    if let Ok(plain) = chunks::decompress(bytes, plain_len) {
        assert_eq!(plain.len(), plain_len);
    }
    let mut lister = Lister::new(kind);
    lister.update(bytes);
    let (manifest, digest) = lister.finish();
    assert_eq!(manifest.size(), bytes.len() as u64);
    if manifest.chunks().len() > 1 {
        let read = Manifest::decode(kind, manifest.size(), &digest, &manifest.encode());
        assert_eq!(read, Ok(manifest));
    }
});
