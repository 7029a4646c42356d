//! Files made from the rules: what a rule looks for, at the head, at the tail, across boundaries
//! of 64 KiB, in a container; whole, with a part missing, and with a byte changed.

use readplan::Plan;

/// Where the parts are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    Tail,
    Boundary,
    Container,
}

const PLACES: [Place; 4] = [Place::Head, Place::Tail, Place::Boundary, Place::Container];
/// Variants of each rule's file.
const VARIANTS: usize = 3;
/// What boundaries are multiples of.
const BLOCK: usize = 64 << 10;
/// Bytes of a made file, about.
const FILE_MAX: usize = 1 << 20;

/// The made files of a rule set, each with a name.
pub(crate) struct Plants<'p> {
    plan: &'p Plan,
    /// Rule and variant of the next one.
    next: usize,
}

impl<'p> Plants<'p> {
    pub(crate) fn new(plan: &'p Plan) -> Self {
        Self { plan, next: 0 }
    }
}

impl Iterator for Plants<'_> {
    type Item = (String, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        let (rule, variant) = (self.next / VARIANTS, self.next % VARIANTS);
        if rule >= self.plan.len() {
            return None;
        }
        self.next += 1;
        let mut random = Random(self.next as u64);
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut total = 0;
        for sample in self.plan.samples(rule) {
            total += sample.len();
            if total <= FILE_MAX {
                parts.push(sample.to_vec());
            }
        }
        let chosen = random.below(parts.len());
        match (variant, parts.get_mut(chosen)) {
            (1, Some(_)) => drop(parts.remove(chosen)),
            (2, Some(part)) if !part.is_empty() => {
                let at = random.below(part.len());
                part[at] ^= 1 << random.below(8);
            }
            _ => {}
        }
        let place = PLACES[random.below(PLACES.len())];
        let head = head(self.plan.text(rule));
        let name = format!("/plants/{}-{variant}-{place:?}", self.plan.name(rule).1);
        Some((name, file(&head, &parts, place, &mut random)))
    }
}

/// The first bytes that a rule of this text asks for, by the usual ways of asking.
fn head(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    let asks = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let mut head = if asks(&["0x5a4d", "0x4d5a"]) {
        b"MZ".to_vec()
    } else if asks(&["0x464c457f", "0x7f454c46", "0x457f"]) {
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec()
    } else if asks(&["0xcfd0", "0xd0cf"]) {
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec()
    } else if asks(&["0x4b50", "0x504b"]) {
        b"PK\x03\x04".to_vec()
    } else if asks(&["0x5025", "0x2550", "0x46445025"]) {
        b"%PDF-1.4".to_vec()
    } else if asks(&["0xd8ff", "0xffd8"]) {
        b"\xff\xd8\xff\xe0".to_vec()
    } else if asks(&["<?php", "0x3f3c"]) {
        b"<?php ".to_vec()
    } else {
        Vec::new()
    };
    if head.starts_with(b"MZ") {
        // Enough of a header that the offset of the next one is read.
        head.resize(0x3c, 0);
        head.extend_from_slice(b"\x80\0\0\0");
        head.resize(0x80, 0);
        head.extend_from_slice(b"PE\0\0\x4c\x01\0\0");
    }
    head
}

fn file(head: &[u8], parts: &[Vec<u8>], place: Place, random: &mut Random) -> Vec<u8> {
    let gap = |bytes: &mut Vec<u8>, random: &mut Random| {
        let length = random.below(40);
        bytes.extend((0..length).map(|_| b" \n\0;"[random.below(4)]));
    };
    let mut bytes = head.to_vec();
    if place == Place::Tail {
        let length = 1000 + random.below(3000);
        bytes.extend((0..length).map(|_| random.below(256) as u8));
    }
    for part in parts {
        gap(&mut bytes, random);
        if place == Place::Boundary && bytes.len() < FILE_MAX {
            let end = (bytes.len() + part.len()).next_multiple_of(BLOCK);
            bytes.resize(
                end - random.below(part.len() + 1).min(end - bytes.len()),
                b'.',
            );
        }
        bytes.extend_from_slice(part);
    }
    match place {
        Place::Head | Place::Boundary => gap(&mut bytes, random),
        Place::Tail => {}
        Place::Container => bytes = stored(&bytes),
    }
    bytes
}

/// A ZIP member that is stored, not compressed: the engine meets it once as raw bytes.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut zip = b"PK\x03\x04\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let size = (bytes.len() as u32).to_le_bytes();
    zip.extend_from_slice(&size);
    zip.extend_from_slice(&size);
    zip.extend_from_slice(b"\x01\0\0\0a");
    zip.extend_from_slice(bytes);
    zip
}

/// The same numbers in each run: SplitMix64.
struct Random(u64);

impl Random {
    /// Below `bound`; 0 where that is 0.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let value = z ^ (z >> 31);
        usize::try_from(value % (bound.max(1) as u64)).unwrap_or(0)
    }
}
