//! Data made smaller for the wire, one zstd frame for each piece: no state is kept between pieces,
//! and what a piece becomes is known before it is read.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

/// Bytes that one piece may become.
pub const PLAIN_BYTES_MAX: usize = 512 * 1024;

/// Fewer bytes are not worth it.
const PLAIN_BYTES_MIN: usize = 512;
/// For what somebody waits for, and for what is long.
const LEVEL_FAST: i32 = 1;
const LEVEL: i32 = 3;

/// A piece that is not what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// More than any piece becomes, or nothing.
    #[error("a piece that says it becomes {0} bytes; 1 to {PLAIN_BYTES_MAX} are allowed")]
    Announced(usize),
    /// It is damaged, becomes more than it says, or less.
    #[error("a piece that does not become the {0} bytes that it says")]
    Broken(usize),
}

/// Makes pieces smaller; keeps its memory from one to the next.
pub struct PieceCompressor {
    zstd: Option<Compressor<'static>>,
}

impl Default for PieceCompressor {
    fn default() -> Self {
        Self {
            zstd: Compressor::new(LEVEL).ok(),
        }
    }
}

impl PieceCompressor {
    /// The piece made smaller; `None` where that does not pay: by less than an eighth.
    pub fn compress(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        compress_with(self.zstd.as_mut()?, plain)
    }
}

/// The same in a hurry, for a piece alone.
#[must_use]
pub fn compress(plain: &[u8]) -> Option<Vec<u8>> {
    thread_local! {
        static ZSTD: RefCell<Option<Compressor<'static>>> =
            RefCell::new(Compressor::new(LEVEL_FAST).ok());
    }
    ZSTD.with_borrow_mut(|zstd| compress_with(zstd.as_mut()?, plain))
}

fn compress_with(zstd: &mut Compressor<'_>, plain: &[u8]) -> Option<Vec<u8>> {
    if !(PLAIN_BYTES_MIN..=PLAIN_BYTES_MAX).contains(&plain.len()) {
        return None;
    }
    let small = zstd.compress(plain).ok()?;
    (small.len() <= plain.len() / 8 * 7).then_some(small)
}

/// Undoes [`compress`]. Writes `plain_len` bytes and no more, whatever the piece says inside: zstd is
/// given so much room, uses it as its window, and works in proportion to the length of `small`.
///
/// # Errors
/// [`DecompressError`]; the piece is then worth nothing.
pub fn decompress(small: &[u8], plain_len: usize) -> Result<Vec<u8>, DecompressError> {
    thread_local! {
        static ZSTD: RefCell<Option<Decompressor<'static>>> =
            RefCell::new(Decompressor::new().ok());
    }
    if !(1..=PLAIN_BYTES_MAX).contains(&plain_len) {
        return Err(DecompressError::Announced(plain_len));
    }
    let broken = DecompressError::Broken(plain_len);
    let mut plain = vec![0; plain_len];
    let written = ZSTD.with_borrow_mut(|zstd| {
        let zstd = zstd.as_mut()?;
        zstd.decompress_to_buffer(small, plain.as_mut_slice()).ok()
    });
    match written {
        Some(written) if written == plain_len => Ok(plain),
        _ => Err(broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pays_is_compressed_and_comes_back() {
        let plain = b"the same again and again; ".repeat(1000);
        let small = compress(&plain).unwrap();
        assert!(small.len() < 200);
        assert_eq!(decompress(&small, plain.len()).unwrap(), plain);
        let slower = PieceCompressor::default().compress(&plain).unwrap();
        assert_eq!(decompress(&slower, plain.len()).unwrap(), plain);
        let mut random = vec![0; 10_000];
        blake3::Hasher::new().finalize_xof().fill(&mut random);
        assert_eq!(compress(&random), None);
        assert_eq!(compress(&plain[..100]), None);
    }

    #[track_caller]
    fn refused(small: &[u8], plain_len: usize, expected: DecompressError) {
        assert_eq!(decompress(small, plain_len), Err(expected));
    }

    #[test]
    fn a_piece_never_becomes_more_than_it_says() {
        let plain = vec![0; PLAIN_BYTES_MAX];
        let bomb = compress(&plain).unwrap();
        assert!(bomb.len() < 100);
        refused(
            &bomb,
            PLAIN_BYTES_MAX - 1,
            DecompressError::Broken(PLAIN_BYTES_MAX - 1),
        );
        refused(&bomb, 1, DecompressError::Broken(1));
        let twice = bomb.repeat(2);
        refused(
            &twice,
            PLAIN_BYTES_MAX,
            DecompressError::Broken(PLAIN_BYTES_MAX),
        );
        refused(&bomb, 0, DecompressError::Announced(0));
        let more = PLAIN_BYTES_MAX + 1;
        refused(&bomb, more, DecompressError::Announced(more));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let plain = b"some text that repeats, some text that repeats".repeat(40);
        let small = compress(&plain).unwrap();
        let len = plain.len();
        for cut in 0..small.len() {
            refused(&small[..cut], len, DecompressError::Broken(len));
        }
        refused(b"not zstd at all", len, DecompressError::Broken(len));
        refused(&small, len + 1, DecompressError::Broken(len + 1));
    }
}
