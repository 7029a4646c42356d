//! Classes of files, by their first bytes and their size: most rules are shut for a whole class.

use crate::expr::Read;
use crate::known::Bytes;

/// What a file is by its first bytes, as far as rules ask most often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A program for Windows or DOS, perhaps signed.
    Windows,
    /// The same, surely without signatures.
    Unsigned,
    Elf,
    /// None of these.
    Other,
}

const KINDS: [Kind; 4] = [Kind::Windows, Kind::Unsigned, Kind::Elf, Kind::Other];
const WINDOWS: &[u8] = b"MZ";
const ELF: &[u8] = b"\x7fELF";

/// Where classes of sizes end, in bytes: bounds that rules often have. Files that are larger than
/// all of them are a class, too.
const SIZE_ENDS: [u64; 6] = [20 << 10, 100 << 10, 500 << 10, 1 << 20, 5 << 20, u64::MAX];

impl Kind {
    /// `None`: the first bytes are not known.
    pub(crate) fn of(bytes: &dyn Bytes) -> Option<Self> {
        let starts = |magic: &[u8]| Some(bytes.get(0, magic.len())? == magic);
        Some(match (starts(WINDOWS)?, starts(ELF)?) {
            (true, _) if has_no_signatures(bytes) == Some(true) => Self::Unsigned,
            (true, _) => Self::Windows,
            (_, true) => Self::Elf,
            _ => Self::Other,
        })
    }

    /// No file of this kind has these bytes at this offset.
    pub(crate) fn denies(self, offset: u64, bytes: &[u8]) -> bool {
        let differs = |magic: &[u8]| {
            let there = magic
                .iter()
                .skip(usize::try_from(offset).unwrap_or(usize::MAX));
            there.zip(bytes).any(|(wanted, byte)| wanted != byte)
        };
        match self {
            Self::Windows | Self::Unsigned => differs(WINDOWS),
            Self::Elf => differs(ELF),
            Self::Other => offset == 0 && (bytes.starts_with(WINDOWS) || bytes.starts_with(ELF)),
        }
    }

    /// Reading the number there gives another value, or none.
    pub(crate) fn denies_number(self, offset: u64, read: Read, value: i64) -> bool {
        let all = value.to_le_bytes();
        let Some(bytes) = all.get(..read.bytes) else {
            return false;
        };
        match read.big_endian {
            true => self.denies(offset, &bytes.iter().rev().copied().collect::<Vec<_>>()),
            false => self.denies(offset, bytes),
        }
    }

    /// What the module says of files of this kind is that they are not of its format.
    pub(crate) fn is_foreign_to(self, module: &str) -> bool {
        match module {
            // The .NET module reads portable executables, too.
            "pe" | "dotnet" => !matches!(self, Self::Windows | Self::Unsigned),
            "elf" => self != Self::Elf,
            _ => false,
        }
    }
}

/// Whether the security directory of a portable executable is too small for a signature, or is not
/// there: read as YARA-X's module reads it. `None`: not known.
fn has_no_signatures(bytes: &dyn Bytes) -> Option<bool> {
    // `Some(None)`: the file ends before.
    let number = |offset: u64, len: usize| -> Option<Option<u64>> {
        let found = bytes.get(offset, len)?;
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Some((found.len() == len).then(|| found.iter().rev().fold(0, fold)))
    };
    let Some(header) = number(0x3c, 4)? else {
        return Some(true);
    };
    let optional = header + 24;
    let Some(magic) = number(optional, 2)? else {
        return Some(true);
    };
    let directories = optional + if magic == 0x20b { 112 } else { 96 };
    let Some(size) = number(directories + 4 * 8 + 4, 4)? else {
        return Some(true);
    };
    Some(size < SIGNATURE_MIN)
}

/// Bytes of the header of a signature.
const SIGNATURE_MIN: u64 = 8;

/// Kind and rough size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) kind: Kind,
    /// Index into [`SIZE_ENDS`].
    size: usize,
}

impl Class {
    /// How many filters there are: some classes share one.
    pub(crate) const FILTERS: usize = 9;

    /// The filter that is good for files of this class.
    pub(crate) fn filter(self) -> usize {
        let kind = match self.kind {
            Kind::Windows | Kind::Unsigned => 0,
            Kind::Elf => 1,
            Kind::Other => 2,
        };
        let size = match self.size {
            0..=2 => 0,
            3..=4 => 1,
            _ => 2,
        };
        kind * 3 + size
    }

    /// In the order of [`Class::index`].
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let sizes = 0..SIZE_ENDS.len();
        KINDS
            .into_iter()
            .flat_map(move |kind| sizes.clone().map(move |size| Self { kind, size }))
    }

    pub(crate) fn index(self) -> usize {
        self.kind as usize * SIZE_ENDS.len() + self.size
    }

    /// `None`: the first bytes are not known.
    pub(crate) fn of(size: u64, bytes: &dyn Bytes) -> Option<Self> {
        Some(Self {
            kind: Kind::of(bytes)?,
            size: SIZE_ENDS
                .iter()
                .filter(|end| **end <= size)
                .count()
                .min(SIZE_ENDS.len() - 1),
        })
    }

    /// The least and the largest size in bytes.
    pub(crate) fn sizes(self) -> (u64, u64) {
        let least = self.size.checked_sub(1).map_or(0, |below| SIZE_ENDS[below]);
        let most = match SIZE_ENDS[self.size] {
            u64::MAX => u64::MAX,
            end => end - 1,
        };
        (least, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_of_one_class() {
        for (number, class) in Class::all().enumerate() {
            assert_eq!(class.index(), number);
            let (least, most) = class.sizes();
            let head: &[u8] = match class.kind {
                Kind::Windows => SIGNED,
                Kind::Unsigned => b"MZ\x90\0",
                Kind::Elf => b"\x7fELF",
                Kind::Other => b"",
            };
            for size in [least, most] {
                assert_eq!(Class::of(size, &head), Some(class));
            }
        }
        assert!(Class::all().all(|class| class.filter() < Class::FILTERS));
        assert_eq!(Class::all().count(), KINDS.len() * SIZE_ENDS.len());
    }

    /// The header at 4, the size of the security directory at 0xa0.
    const SIGNED: &[u8] = &{
        let mut bytes = [0; 0x100];
        (bytes[0], bytes[1], bytes[0x3c], bytes[0xa0]) = (b'M', b'Z', 4, 8);
        bytes
    };

    #[test]
    fn signatures_are_seen_in_the_header() {
        let check = |bytes: &[u8], kind| assert_eq!(Kind::of(&bytes), Some(kind));
        check(SIGNED, Kind::Windows);
        check(&SIGNED[..0xa3], Kind::Unsigned);
        let mut small = SIGNED.to_vec();
        small[0xa0] = 7;
        check(&small, Kind::Unsigned);
        let mut wide = SIGNED.to_vec();
        // The optional header of 64 bits is 16 bytes longer.
        (wide[0x1c], wide[0x1d]) = (0x0b, 0x02);
        check(&wide, Kind::Unsigned);
        wide[0xb1] = 1;
        check(&wide, Kind::Windows);
        let head = crate::known::Head {
            bytes: &SIGNED[..0x80],
            size: 0x100,
        };
        assert_eq!(Kind::of(&head), Some(Kind::Windows));
    }

    #[test]
    fn kinds_deny_what_they_are_not() {
        let check = |kind: Kind, offset: u64, bytes: &[u8], denied: bool| {
            assert_eq!(
                kind.denies(offset, bytes),
                denied,
                "{kind:?} {offset} {bytes:?}"
            );
        };
        check(Kind::Windows, 0, b"MZ", false);
        check(Kind::Windows, 0, b"MZ\x90", false);
        check(Kind::Windows, 0, b"M", false);
        check(Kind::Windows, 1, b"M", true);
        check(Kind::Windows, 2, b"ZM", false);
        check(Kind::Windows, 0, b"\x7fELF", true);
        check(Kind::Elf, 1, b"EL", false);
        check(Kind::Elf, 1, b"EF", true);
        check(Kind::Other, 0, b"MZ", true);
        check(Kind::Other, 0, b"M", false);
        check(Kind::Other, 1, b"Z", false);
        check(Kind::Other, 0, b"\x7fELF\x02", true);
        let read = |bytes, big_endian| Read {
            bytes,
            signed: false,
            big_endian,
        };
        assert!(!Kind::Windows.denies_number(0, read(2, false), 0x5a4d));
        assert!(Kind::Windows.denies_number(0, read(2, true), 0x5a4d));
        assert!(Kind::Other.denies_number(0, read(4, true), 0x7f45_4c46));
        assert!(!Kind::Other.denies_number(0, read(4, false), 0x7f45_4c46));
    }
}
