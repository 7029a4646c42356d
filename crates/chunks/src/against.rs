//! One zstd frame that says how something differs from what the other side has: that is the
//! frame's dictionary. Without any the frame stands alone.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, get_frame_content_size};

/// Made once for many who fetch it, so time matters less than bytes.
const LEVEL: i32 = 12;
/// Windows that zstd takes, as powers of two.
const WINDOW_LOG_MIN: u32 = 10;
const WINDOW_LOG_MAX: u32 = 27;

/// A frame that does not become what was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AgainstError {
    /// It does not say how many bytes it becomes, or is no frame.
    #[error("no zstd frame that says what size it becomes")]
    NoSize,
    /// More than was allowed.
    #[error("a frame that says it becomes {size} bytes; at most {max} are allowed")]
    TooLarge {
        /// What it says.
        size: u64,
        /// What was allowed.
        max: usize,
    },
    /// It is damaged, was made against other bytes, or becomes more or less than it says.
    #[error("a frame that does not become the {0} bytes that it says")]
    Broken(usize),
}

/// Makes `bytes` small for somebody who has `base`, which may be empty. Every byte of `base` is within
/// reach from every byte of `bytes`, as long as both together have at most 128 MiB.
///
/// A frame is never empty; what is empty says that zstd found no memory.
#[must_use]
pub fn compress_against(base: &[u8], bytes: &[u8]) -> Vec<u8> {
    frame(base, bytes).unwrap_or_default()
}

fn frame(base: &[u8], bytes: &[u8]) -> Option<Vec<u8>> {
    let reach = base.len().saturating_add(bytes.len()).next_power_of_two();
    let window_log = reach.trailing_zeros().clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX);
    let mut zstd = Compressor::with_dictionary(LEVEL, base).ok()?;
    for parameter in [
        CParameter::WindowLog(window_log),
        // Finds what lies far apart, and goes on with it for long.
        CParameter::EnableLongDistanceMatching(true),
    ] {
        zstd.set_parameter(parameter).ok()?;
    }
    zstd.compress(bytes).ok()
}

/// Undoes [`compress_against`]. Never writes more than `size_max` bytes, whatever the frame says.
///
/// # Errors
/// [`AgainstError`]; the frame is then worth nothing. That what came out is what went in is for the
/// caller to check: a frame is no proof.
pub fn decompress_against(
    base: &[u8],
    frame: &[u8],
    size_max: usize,
) -> Result<Vec<u8>, AgainstError> {
    let size = get_frame_content_size(frame).ok().flatten();
    let said = size.ok_or(AgainstError::NoSize)?;
    let size = usize::try_from(said).ok().filter(|size| *size <= size_max);
    let size = size.ok_or(AgainstError::TooLarge {
        size: said,
        max: size_max,
    })?;
    let mut plain = vec![0; size];
    let written = Decompressor::with_dictionary(base)
        .and_then(|mut zstd| zstd.decompress_to_buffer(frame, plain.as_mut_slice()));
    match written {
        Ok(written) if written == size => Ok(plain),
        _ => Err(AgainstError::Broken(size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Literals as in a pack: a length, flags and bytes that nothing predicts.
    fn literals(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
        let mut all = b"LZLP\x01".to_vec();
        for number in numbers {
            let mut random = [0; 40];
            let mut hasher = blake3::Hasher::new();
            hasher.update(&number.to_le_bytes());
            hasher.finalize_xof().fill(&mut random);
            let len = 12 + usize::from(random[0] % 28);
            all.extend([len as u8, random[1] % 2]);
            all.extend_from_slice(&random[2..len]);
        }
        all
    }

    #[test]
    fn a_few_changed_literals_are_a_few_kilobytes() {
        const COUNT: u64 = 54_000;
        let old = literals(0..COUNT);
        assert!((1_200_000..1_600_000).contains(&old.len()), "{}", old.len());
        // Removed, inserted and put elsewhere, all over the pack.
        let gone = |number: &u64| number % 5000 != 77;
        let new: Vec<u64> = (0..COUNT).filter(gone).collect();
        let (first, last) = new.split_at(COUNT as usize / 3);
        let numbers = last.iter().copied().chain(1_000_000..1_000_020);
        let new = literals(numbers.chain(first.iter().copied()));
        let frame = compress_against(&old, &new);
        assert!(frame.len() < 3000, "{} bytes", frame.len());
        assert_eq!(decompress_against(&old, &frame, new.len()).unwrap(), new);
        let same = compress_against(&old, &old);
        assert!(same.len() < 200, "{} bytes", same.len());
        let alone = compress_against(b"", &new);
        assert_eq!(decompress_against(b"", &alone, new.len()).unwrap(), new);
    }

    #[test]
    fn nothing_but_what_went_in_comes_out() {
        let (old, new) = (literals(0..500), literals(20..510));
        let (frame, size) = (compress_against(&old, &new), new.len());
        let unpack = |base: &[u8], frame: &[u8], max| decompress_against(base, frame, max);
        let max = size - 1;
        let too_large = AgainstError::TooLarge {
            size: size as u64,
            max,
        };
        assert_eq!(unpack(&old, &frame, max), Err(too_large));
        for end in 0..frame.len() {
            assert!(unpack(&old, &frame[..end], size).is_err(), "{end}");
        }
        let other = literals(1000..1500);
        assert!(
            unpack(&other, &frame, size).is_err_and(|e| e == AgainstError::Broken(size))
                || unpack(&other, &frame, size).is_ok_and(|plain| plain != new)
        );
        assert!(unpack(b"", &frame, size).is_err());
        assert_eq!(unpack(&old, b"no frame", size), Err(AgainstError::NoSize));
        let bomb = compress_against(b"", &vec![0; 10 << 20]);
        assert!(bomb.len() < 2000);
        assert!(unpack(b"", &bomb, 8 << 20).is_err());
        assert!(unpack(b"", &frame.repeat(2), size).is_err());
        assert_eq!(unpack(b"", &compress_against(b"", b""), 0), Ok(Vec::new()));
    }
}
