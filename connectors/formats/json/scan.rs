//! Several bytes at a time: where a string's plain text ends, and what a run of digits is worth.
//!
//! Strings and numbers are most of a record. x86-64 always has 16-byte vectors (SSE2); elsewhere the same is done in 64-bit
//! words (Mycroft's test for a zero byte). A test compares the two.

/// Bytes looked at together.
pub(super) const CHUNK: usize = 16;

/// One bit per byte of a chunk, the lowest for the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    /// Quotes, backslashes and control characters. Exact up to the lowest; above it there may be more than there are.
    pub special: u32,
    /// Bytes of characters that are not ASCII.
    pub high: u32,
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn classify(chunk: &[u8; CHUNK]) -> Bits {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8};
    let word = u128::from_le_bytes(*chunk);
    // SAFETY: these need SSE2 and nothing else, and every x86-64 processor has it.
    unsafe {
        let bytes = _mm_set_epi64x((word >> 64) as i64, word as i64);
        let quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x22));
        let backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x5C));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1F)), bytes);
        let special = _mm_or_si128(_mm_or_si128(quote, backslash), control);
        Bits { special: _mm_movemask_epi8(special) as u32, high: _mm_movemask_epi8(bytes) as u32 }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use portable_classify as classify;

#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
#[inline(always)]
pub(super) fn portable_classify(chunk: &[u8; CHUNK]) -> Bits {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    // Gathers the eight high bits in one byte.
    let gather = |highs: u64| ((highs >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32;
    let half = |at: usize| {
        let word = u64::from_le_bytes(chunk[at..at + 8].try_into().expect("eight bytes"));
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let special = zero_bytes(word ^ (ONES * 0x22)) | zero_bytes(word ^ (ONES * 0x5C)) | control;
        (gather(special), gather(word & HIGHS))
    };
    let ((low, low_high), (high, high_high)) = (half(0), half(8));
    Bits { special: low | high << 8, high: low_high | high_high << 8 }
}

/// The bits of a chunk's bytes from `from` on, which counts less than [`CHUNK`].
#[inline(always)]
pub(super) fn classify_from(chunk: &[u8; CHUNK], from: usize) -> Bits {
    // Shifted down, with plain bytes behind them.
    let word = u128::from_le_bytes(*chunk) >> (from * 8);
    let plain = u128::from_le_bytes([b' '; CHUNK]);
    classify(&(word | (plain & !(u128::MAX >> (from * 8)))).to_le_bytes())
}

/// How many of eight bytes are digits from the first on, and their value.
#[inline(always)]
pub(super) fn leading_digits(bytes: &[u8; 8]) -> (usize, u64) {
    let digits = u64::from_le_bytes(*bytes) ^ 0x3030_3030_3030_3030;
    let others = (digits.wrapping_add(0x7676_7676_7676_7676) | digits) & 0x8080_8080_8080_8080;
    let count = others.trailing_zeros() as usize / 8;
    if count == 0 {
        return (0, 0);
    }
    // Zeros in front, then pairs, then fours, then eight.
    let digits = digits << ((8 - count) * 8);
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let low = (pairs & 0x0000_00FF_0000_00FF).wrapping_mul(0x000F_4240_0000_0064);
    let high = ((pairs >> 16) & 0x0000_00FF_0000_00FF).wrapping_mul(0x0000_2710_0000_0001);
    (count, low.wrapping_add(high) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_ways_find_the_same_first_special_byte(chunk in proptest::array::uniform16(prop_oneof![any::<u8>(), 0x1eu8..0x24, 0x5au8..0x5e, 0x7eu8..0x82])) {
            let special = |byte: &u8| *byte < 0x20 || matches!(byte, b'"' | b'\\');
            let first = chunk.iter().position(special).unwrap_or(32) as u32;
            let (fast, portable) = (classify(&chunk), portable_classify(&chunk));
            prop_assert_eq!(fast.special.trailing_zeros(), first);
            prop_assert_eq!(portable.special.trailing_zeros(), first);
            prop_assert_eq!(fast.high, portable.high);
            prop_assert_eq!(fast.high, (0..16).filter(|at| chunk[*at] >= 0x80).map(|at| 1 << at).sum::<u32>());
        }

        #[test]
        fn leading_digits_are_counted_and_read(text in "[0-9]{0,8}", rest in proptest::array::uniform8(any::<u8>())) {
            let mut bytes = rest;
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            let expected: String = bytes.iter().take_while(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)).collect();
            prop_assert_eq!(leading_digits(&bytes), (expected.len(), expected.parse().unwrap_or(0)));
        }
    }
}
