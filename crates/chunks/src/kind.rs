//! The ways of cutting, and which is for which file.

use crate::groups::{self, GROUP_BYTES};
use crate::manifest::{ChunkId, MANIFEST_BYTES_MAX};

/// Bytes at the start of a file that [`Kind::of`] looks at.
pub const HEAD_BYTES: usize = 16;
/// Bytes of a page.
pub const PAGE_BYTES: u32 = 4096;

/// Files of more bytes are cut into groups: half a percent of them would be names of chunks
/// otherwise, and what is so large (images, databases) is changed in place. So is what
/// [`is_packed`]: nothing moves in it.
const GROUPS_FROM_BYTES: u64 = 64 << 20;
const ZIP_HEAD: &[u8] = b"PK\x03\x04";
const PAGED_HEAD: &[u8] = b"SQLite format 3\0";
/// gzip, xz, Zstandard, 7z.
const PACKED_HEADS: [&[u8]; 4] = [
    b"\x1f\x8b\x08",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"7z\xbc\xaf\x27\x1c",
];

/// Whether content that begins with `head` is one compressed stream: no zstd makes it smaller, and
/// what is changed before it was compressed moves nothing, but changes nearly all that follows.
#[must_use]
pub fn is_packed(head: &[u8]) -> bool {
    // bzip2: its level, and the mark of a block.
    let is_bzip2 = || head.starts_with(b"BZh") && head.get(4..10) == Some(b"1AY&SY");
    PACKED_HEADS.iter().any(|packed| head.starts_with(packed)) || is_bzip2()
}

/// A way of cutting. Both sides must cut alike, so what is said here is part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 64 KiB each, named by BLAKE3's chaining values: the list proves itself against the digest.
    /// The name of a group depends on its offset.
    Groups,
    /// Where the content says so (`FastCDC`, 16 KiB on average): finds what has moved.
    Content,
    /// The same, and before each signature of a ZIP member.
    Members,
    /// 4 KiB each: for what is changed in place, page by page.
    Pages,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Groups, Self::Content, Self::Members, Self::Pages];

    /// The way for a file of `size` bytes that begins with `head`, of which [`HEAD_BYTES`] count.
    /// A wrong guess costs bytes, never a verdict. `None`: its list would fit no frame.
    #[must_use]
    pub fn of(size: u64, head: &[u8]) -> Option<Self> {
        let groups_max = (MANIFEST_BYTES_MAX / groups::CV_BYTES) as u64;
        if size == 0 || size.div_ceil(GROUP_BYTES.into()) > groups_max {
            None
        } else if size > GROUPS_FROM_BYTES || is_packed(head) {
            Some(Self::Groups)
        } else if head.starts_with(ZIP_HEAD) {
            Some(Self::Members)
        } else if head.starts_with(PAGED_HEAD) {
            Some(Self::Pages)
        } else {
            Some(Self::Content)
        }
    }

    /// Its number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Groups => 1,
            Self::Content => 2,
            Self::Members => 3,
            Self::Pages => 4,
        }
    }

    /// The kind with that number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Bytes of each chunk but the last, where all are alike.
    pub(crate) fn fixed_bytes(self) -> Option<u32> {
        match self {
            Self::Groups => Some(GROUP_BYTES),
            Self::Pages => Some(PAGE_BYTES),
            Self::Content | Self::Members => None,
        }
    }

    /// The name of a chunk with these bytes at this offset.
    #[must_use]
    pub fn name(self, offset: u64, bytes: &[u8]) -> ChunkId {
        match self {
            Self::Groups => groups::id_of(&groups::chaining_value(offset, bytes)),
            Self::Content | Self::Members | Self::Pages => {
                ChunkId::first_of(blake3::hash(bytes).as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(size: u64, head: &[u8], expected: Option<Kind>) {
        assert_eq!(Kind::of(size, head), expected, "{size}");
    }

    #[test]
    fn size_and_first_bytes_decide() {
        check(0, b"", None);
        check(1 << 20, b"\x7fELF", Some(Kind::Content));
        check(1 << 20, b"PK\x03\x04\x14", Some(Kind::Members));
        check(1 << 20, b"PK\x05\x06", Some(Kind::Content));
        check(1 << 20, b"SQLite format 3\0\x10", Some(Kind::Pages));
        check(64 << 20, b"PK\x03\x04", Some(Kind::Members));
        check((64 << 20) + 1, b"PK\x03\x04", Some(Kind::Groups));
        check(1 << 40, b"", None);
        for packed in [&b"\x1f\x8b\x08\0"[..], b"\xfd7zXZ\0", b"BZh91AY&SY"] {
            check(1 << 20, packed, Some(Kind::Groups));
        }
        check(1 << 20, b"\x1f\x8b", Some(Kind::Content));
        check(1 << 20, b"BZh, a text", Some(Kind::Content));
    }

    #[test]
    fn numbers_come_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(Kind::from_number(0), None);
    }
}
