//! Looks in a table of grams, sixteen or eight at a time.

use crate::grams::{PLACES_MAX, Way};

/// The quickest way that the processor has.
#[cfg(target_arch = "x86_64")]
pub(crate) fn best() -> Way {
    if std::arch::is_x86_feature_detected!("avx512f") {
        Way::Wide
    } else if std::arch::is_x86_feature_detected!("avx2") {
        Way::Half
    } else {
        Way::Plain
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn best() -> Way {
    Way::Plain
}

/// Looks at up to `spans` times 64 positions of `data`, every fourth, which has four bytes more than
/// those, in a table of `1 << bits` words. Returns how many spans there was room for, and how many
/// places were found.
#[cfg(target_arch = "x86_64")]
pub(crate) fn look_up(
    way: Way,
    words: &[u32],
    bits: u32,
    data: &[u8],
    spans: usize,
    places: &mut [u32; PLACES_MAX],
) -> (usize, usize) {
    assert!(spans == 0 || data.len() >= crate::grams::SPAN * spans + 4);
    assert!(words.len() == 1 << bits, "every index is that of a word");
    let has = best();
    // SAFETY: the processor has the instructions, and the data and the words are as many as are
    // promised.
    unsafe {
        match way {
            Way::Wide if has == Way::Wide => wide::look(words, bits, data, spans, places),
            Way::Half if has != Way::Plain => half::look(words, bits, data, spans, places),
            Way::Wide | Way::Half | Way::Plain => unreachable!("not a way of this processor"),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn look_up(
    _: Way,
    _: &[u32],
    _: u32,
    _: &[u8],
    _: usize,
    _: &mut [u32; PLACES_MAX],
) -> (usize, usize) {
    unreachable!("there are no vectors");
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m128i, __m512i, _mm_cvtsi32_si128, _mm512_add_epi32, _mm512_and_si512,
        _mm512_i32gather_epi32, _mm512_loadu_si512, _mm512_maskz_compress_epi32,
        _mm512_mullo_epi32, _mm512_or_si512, _mm512_rolv_epi32, _mm512_set1_epi32,
        _mm512_setr_epi32, _mm512_srl_epi32, _mm512_srli_epi32, _mm512_storeu_si512,
        _mm512_testn_epi32_mask, _mm512_xor_si512,
    };

    use crate::grams::{BEHIND_FACTOR, FIRST_FACTOR, FOLD, PLACES_MAX, SHIFTS, SPAN, WORD_FACTOR};

    /// # Safety
    /// `data` has `256 * spans + 4` bytes, and there are `1 << bits` words.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn look(
        words: &[u32],
        bits: u32,
        data: &[u8],
        spans: usize,
        places: &mut [u32; PLACES_MAX],
    ) -> (usize, usize) {
        let shift = _mm_cvtsi32_si128(32 - bits as i32);
        let mut at = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
        let mut count = 0;
        for number in 0..spans {
            if count + 64 > PLACES_MAX {
                return (number, count);
            }
            for part in 0..4 {
                let from = data.as_ptr().wrapping_add(SPAN * number + 64 * part);
                // SAFETY: each reads 64 bytes, the last one up to 4 behind the span.
                let (first, behind) = unsafe {
                    (
                        _mm512_loadu_si512(from.cast()),
                        _mm512_loadu_si512(from.wrapping_add(4).cast()),
                    )
                };
                // SAFETY: there are as many words as is promised.
                let found = unsafe { sixteen(words, shift, first, behind) };
                let some = _mm512_maskz_compress_epi32(found, at);
                // SAFETY: there is room for 64 at the start of a span, of which at most 16 were
                // taken by each part before.
                unsafe { _mm512_storeu_si512(places.as_mut_ptr().add(count).cast(), some) };
                count += found.count_ones() as usize;
                at = _mm512_add_epi32(at, _mm512_set1_epi32(64));
            }
        }
        (spans, count)
    }

    /// Sixteen looks: the first four bytes of each and the four behind them.
    ///
    /// # Safety
    /// Shifted right by `shift` each number is the index of a word.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sixteen(words: &[u32], shift: __m128i, first: __m512i, behind: __m512i) -> u16 {
        let all = |value: u32| _mm512_set1_epi32(value.cast_signed());
        let fold = all(FOLD as u32);
        let (first, behind) = (_mm512_or_si512(first, fold), _mm512_or_si512(behind, fold));
        let index = _mm512_srl_epi32(_mm512_mullo_epi32(first, all(WORD_FACTOR)), shift);
        // SAFETY: as above.
        let word = unsafe { _mm512_i32gather_epi32::<4>(index, words.as_ptr().cast()) };
        let missing = _mm512_xor_si512(word, all(u32::MAX));
        let four = _mm512_mullo_epi32(first, all(FIRST_FACTOR));
        let with = |behind| _mm512_add_epi32(four, _mm512_mullo_epi32(behind, all(BEHIND_FACTOR)));
        let six = with(_mm512_and_si512(behind, all(0xffff)));
        let eight = with(behind);
        is_there(missing, four) | is_there(missing, six) | is_there(missing, eight)
    }

    /// Where no bit is missing.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn is_there(missing: __m512i, spread: __m512i) -> u16 {
        // Rotations take the lowest five bits.
        let bit = |number| _mm512_rolv_epi32(_mm512_set1_epi32(1), number);
        let bits = [
            bit(_mm512_srli_epi32::<{ SHIFTS[0] }>(spread)),
            bit(_mm512_srli_epi32::<{ SHIFTS[1] }>(spread)),
            bit(_mm512_srli_epi32::<{ SHIFTS[2] }>(spread)),
        ];
        let mask = _mm512_or_si512(_mm512_or_si512(bits[0], bits[1]), bits[2]);
        _mm512_testn_epi32_mask(missing, mask)
    }
}

#[cfg(target_arch = "x86_64")]
mod half {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_cvtsi32_si128, _mm256_add_epi32, _mm256_and_si256,
        _mm256_andnot_si256, _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_i32gather_epi32,
        _mm256_loadu_si256, _mm256_movemask_ps, _mm256_mullo_epi32, _mm256_or_si256,
        _mm256_set1_epi32, _mm256_setzero_si256, _mm256_sllv_epi32, _mm256_srl_epi32,
        _mm256_srli_epi32,
    };

    use crate::grams::{
        BEHIND_FACTOR, FIRST_FACTOR, FOLD, PLACES_MAX, SHIFTS, SPAN, STRIDE, WORD_FACTOR,
    };

    /// # Safety
    /// `data` has `256 * spans + 4` bytes, and there are `1 << bits` words.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn look(
        words: &[u32],
        bits: u32,
        data: &[u8],
        spans: usize,
        places: &mut [u32; PLACES_MAX],
    ) -> (usize, usize) {
        let shift = _mm_cvtsi32_si128(32 - bits as i32);
        let mut count = 0;
        for number in 0..spans {
            if count + 64 > PLACES_MAX {
                return (number, count);
            }
            for at in (SPAN * number..SPAN * (number + 1)).step_by(8 * STRIDE) {
                let from = data.as_ptr().wrapping_add(at);
                // SAFETY: each reads 32 bytes, the last one up to 4 behind the span.
                let (first, behind) = unsafe {
                    (
                        _mm256_loadu_si256(from.cast()),
                        _mm256_loadu_si256(from.wrapping_add(4).cast()),
                    )
                };
                // SAFETY: there are as many words as is promised.
                let found = unsafe { eight(words, shift, first, behind) };
                if found == 0 {
                    continue;
                }
                for look in 0..8 {
                    places[count] = (at + STRIDE * look) as u32;
                    count += usize::from(found >> look & 1);
                }
            }
        }
        (spans, count)
    }

    /// Eight looks: the first four bytes of each and the four behind them.
    ///
    /// # Safety
    /// Shifted right by `shift` each number is the index of a word.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eight(words: &[u32], shift: __m128i, first: __m256i, behind: __m256i) -> u8 {
        let all = |value: u32| _mm256_set1_epi32(value.cast_signed());
        let fold = all(FOLD as u32);
        let (first, behind) = (_mm256_or_si256(first, fold), _mm256_or_si256(behind, fold));
        let index = _mm256_srl_epi32(_mm256_mullo_epi32(first, all(WORD_FACTOR)), shift);
        // SAFETY: as above.
        let word = unsafe { _mm256_i32gather_epi32::<4>(words.as_ptr().cast(), index) };
        let four = _mm256_mullo_epi32(first, all(FIRST_FACTOR));
        let with = |behind| _mm256_add_epi32(four, _mm256_mullo_epi32(behind, all(BEHIND_FACTOR)));
        let six = with(_mm256_and_si256(behind, all(0xffff)));
        let any = _mm256_or_si256(
            _mm256_or_si256(is_there(word, four), is_there(word, six)),
            is_there(word, with(behind)),
        );
        _mm256_movemask_ps(_mm256_castsi256_ps(any)) as u8
    }

    /// All bits of those of which none is missing in the word.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn is_there(word: __m256i, spread: __m256i) -> __m256i {
        let five = _mm256_set1_epi32(31);
        let bit = |number| _mm256_sllv_epi32(_mm256_set1_epi32(1), _mm256_and_si256(number, five));
        let bits = [
            bit(_mm256_srli_epi32::<{ SHIFTS[0] as i32 }>(spread)),
            bit(_mm256_srli_epi32::<{ SHIFTS[1] as i32 }>(spread)),
            bit(_mm256_srli_epi32::<{ SHIFTS[2] as i32 }>(spread)),
        ];
        let mask = _mm256_or_si256(_mm256_or_si256(bits[0], bits[1]), bits[2]);
        _mm256_cmpeq_epi32(_mm256_andnot_si256(word, mask), _mm256_setzero_si256())
    }
}
