//! The crate's only unsafe code: vector instructions that the processor was asked for.
#![expect(
    unsafe_code,
    reason = "reads of vectors, and calls of code for instructions that not all processors have"
)]

mod grams;

pub(crate) use grams::{best, look_up};

use crate::Sets;

#[cfg(target_arch = "x86_64")]
pub(crate) fn is_there() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vbmi")
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn is_there() -> bool {
    false
}

/// Has an element of a slice fetched from memory while other things are done.
#[cfg(target_arch = "x86_64")]
pub(crate) fn fetch<T>(all: &[T], index: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let element = all.as_ptr().wrapping_add(index);
    // SAFETY: a hint, whatever is there.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(element.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn fetch<T>(_: &[T], _: usize) {}

/// For each word of `looks` 64 positions of `data`, which has two bytes more than those.
#[cfg(target_arch = "x86_64")]
pub(crate) fn look(sets: &Sets, data: &[u8], looks: &mut [u64]) {
    assert!(looks.is_empty() || data.len() >= 64 * looks.len() + 2);
    assert!(is_there(), "a value of `ByteSets` means that it is");
    // SAFETY: the processor has the instructions, and the data is as long as is promised.
    unsafe { x86::look(sets, data, looks) }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn look(_: &Sets, _: &[u8], _: &mut [u64]) {
    unreachable!("there is no value of `ByteSets`");
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm512_and_si512, _mm512_loadu_si512, _mm512_mask_blend_epi8, _mm512_movepi8_mask,
        _mm512_permutex2var_epi8, _mm512_test_epi8_mask,
    };

    use crate::{LOOKS, Sets};

    /// A table of 256 bytes.
    type Table = [__m512i; 4];

    /// # Safety
    /// `data` has `64 * looks.len() + 2` bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) unsafe fn look(sets: &Sets, data: &[u8], looks: &mut [u64]) {
        let [a, b, c] = [table(&sets[0]), table(&sets[1]), table(&sets[2])];
        for (number, looks) in looks.iter_mut().enumerate() {
            let at = data.as_ptr().wrapping_add(LOOKS * number);
            // SAFETY: each reads 64 bytes from at most `64 * (looks.len() - 1) + 2` on.
            let bytes = unsafe {
                [
                    _mm512_loadu_si512(at.cast()),
                    _mm512_loadu_si512(at.wrapping_add(1).cast()),
                    _mm512_loadu_si512(at.wrapping_add(2).cast()),
                ]
            };
            let first = _mm512_and_si512(look_up(a, bytes[0]), look_up(b, bytes[1]));
            *looks = _mm512_test_epi8_mask(first, look_up(c, bytes[2]));
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn table(set: &[u8; 256]) -> Table {
        let (quarters, _) = set.as_chunks::<64>();
        let load = |quarter: &[u8; 64]| {
            // SAFETY: they are 64 bytes.
            unsafe { _mm512_loadu_si512(quarter.as_ptr().cast()) }
        };
        [
            load(&quarters[0]),
            load(&quarters[1]),
            load(&quarters[2]),
            load(&quarters[3]),
        ]
    }

    /// The table's byte for each of these.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn look_up(table: Table, bytes: __m512i) -> __m512i {
        let [a, b, c, d] = table;
        let low = _mm512_permutex2var_epi8(a, bytes, b);
        let high = _mm512_permutex2var_epi8(c, bytes, d);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high)
    }
}
