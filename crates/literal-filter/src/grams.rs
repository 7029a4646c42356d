//! Which grams of a literal stand for it: the rarest, by a static model.

/// Makes letters of either case equal, and some other bytes too: it may only be used to say no.
pub(crate) const FOLD: u32 = 0x2020_2020;

/// Up to 4 bytes of `data` from `at` on, little-endian, with zeros behind the end.
pub(crate) fn gram_at(data: &[u8], at: usize) -> u32 {
    let rest = data.get(at..).unwrap_or(&[]);
    match rest.first_chunk::<4>() {
        Some(bytes) => u32::from_le_bytes(*bytes),
        None => rest
            .iter()
            .rev()
            .fold(0, |gram, byte| gram << 8 | u32::from(*byte)),
    }
}

/// How rare a byte is in files, in about half bits: larger is rarer.
fn byte_rarity(byte: u8) -> u32 {
    match byte {
        0 => 3,
        b' ' | 0xff => 8,
        b'e' | b't' | b'a' | b'i' | b'n' | b'o' | b'r' | b's' => 9,
        b'a'..=b'z' | b'A'..=b'Z' => 12,
        b'0'..=b'9' | b'_' | b'.' | b'/' | b'-' | b'\n' => 11,
        1..=16 | 0x90 | 0xcc | 0x8b | 0x89 | 0x83 | 0xe8 => 10,
        _ => 15,
    }
}

/// How rare a gram is: larger is rarer.
pub(crate) fn rarity(gram: &[u8]) -> u32 {
    let mut sum = 0;
    for (i, byte) in gram.iter().enumerate() {
        let own = byte_rarity(*byte);
        sum += match i.checked_sub(1).map(|i| gram[i]) {
            Some(before) if before == *byte => 2,
            Some(before) if before.is_ascii_lowercase() && byte.is_ascii_lowercase() => own - 3,
            _ => own,
        };
    }
    sum
}
