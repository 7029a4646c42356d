//! Which grams of a literal stand for it: the rarest, by a static model.

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
fn byte_rarity(byte: u8) -> i32 {
    match byte {
        0 => 0,
        0xff => 4,
        b' ' => 7,
        b'e' | b't' | b'a' | b'i' | b'n' | b'o' | b'r' | b's' => 9,
        b'a'..=b'z' => 11,
        b'A'..=b'Z' => 13,
        b'0'..=b'9' | b'_' | b'.' | b'/' | b'-' | b'\n' => 11,
        1..=16 | 0x20..=0x2f | 0x90 | 0xcc | 0x8b | 0x89 | 0x83 | 0xe8 => 10,
        _ => 15,
    }
}

/// How rare a gram is: larger is rarer.
pub(crate) fn rarity(gram: &[u8]) -> i32 {
    let mut sum = 0;
    for (i, byte) in gram.iter().enumerate() {
        let own = byte_rarity(*byte);
        sum += match i.checked_sub(1).map(|i| gram[i]) {
            // What fills gaps and underlines.
            Some(before) if before == *byte => 0,
            Some(before) if before.is_ascii_lowercase() && byte.is_ascii_lowercase() => own - 4,
            _ => own,
        };
    }
    sum
}

/// The gram in every spelling that ASCII letters in either case give it.
pub(crate) fn spellings(gram: u32) -> Vec<u32> {
    let mut all = vec![gram];
    for shift in [0, 8, 16, 24] {
        if (gram >> shift & 0xff).to_le_bytes()[0].is_ascii_alphabetic() {
            let other = 0x20 << shift;
            all.extend(all.clone().iter().map(|gram| gram ^ other));
        }
    }
    all
}
