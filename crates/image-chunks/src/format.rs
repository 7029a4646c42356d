//! The file: a header, the chunks one after another, an index sorted by name, a trailer. All numbers
//! are little endian.
//!
//! | part | bytes |
//! |---|---|
//! | header | magic `LZCHUNKS`, version (u32), zero (u32) |
//! | chunks | as stored: zstd where that pays, as they are where it does not |
//! | index, each entry | name (8), where it is stored (u64), its bytes (u32), bytes stored (u32) |
//! | trailer | where the index begins (u64), entries (u64), BLAKE3 of the index (32), magic `LZCHUNKE` |

use std::path::Path;

use chunks::{CHUNK_BYTES_MAX, ChunkId};

use crate::Error;

pub(crate) const MAGIC: &[u8; 8] = b"LZCHUNKS";
pub(crate) const TRAILER_MAGIC: &[u8; 8] = b"LZCHUNKE";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: u64 = 16;
pub(crate) const ENTRY_BYTES: usize = 24;
pub(crate) const TRAILER_BYTES: usize = 56;

/// Chunks in one file: 64 GiB of an image, and 96 MiB of index in the appliance's memory.
pub const CHUNKS_MAX: usize = 4 << 20;

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ChunkId,
    pub(crate) len: u32,
    pub(crate) offset: u64,
    pub(crate) stored: u32,
}

impl Entry {
    /// What the index is sorted by.
    pub(crate) fn key(&self) -> ([u8; 8], u32) {
        (self.id.0, self.len)
    }

    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.id.0);
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.len.to_le_bytes());
        bytes[20..].copy_from_slice(&self.stored.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; ENTRY_BYTES]) -> Self {
        Self {
            id: ChunkId(part(bytes, 0)),
            offset: u64::from_le_bytes(part(bytes, 8)),
            len: u32::from_le_bytes(part(bytes, 16)),
            stored: u32::from_le_bytes(part(bytes, 20)),
        }
    }

    /// What is wrong with an entry of a file whose chunks end at `end`.
    pub(crate) fn fault(&self, end: u64) -> Option<&'static str> {
        if !(1..=CHUNK_BYTES_MAX).contains(&self.len) {
            return Some("a chunk of no size that chunks have");
        }
        if !(1..=self.len).contains(&self.stored) {
            return Some("stored in more bytes than it has, or in none");
        }
        let ends = self.offset.checked_add(self.stored.into());
        let is_within = self.offset >= HEADER_BYTES && ends.is_some_and(|it| it <= end);
        (!is_within).then_some("stored outside of the part that holds chunks")
    }
}

/// What the trailer says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trailer {
    pub(crate) index_at: u64,
    pub(crate) entries: u64,
    pub(crate) digest: [u8; 32],
}

impl Trailer {
    pub(crate) fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..8].copy_from_slice(&self.index_at.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.entries.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.digest);
        bytes[48..].copy_from_slice(TRAILER_MAGIC);
        bytes
    }

    /// Of a file of `file_bytes`, checked against that.
    pub(crate) fn decode(
        path: &Path,
        bytes: &[u8; TRAILER_BYTES],
        file_bytes: u64,
    ) -> Result<Self, Error> {
        let damaged = |what| Error::Damaged {
            path: path.to_owned(),
            what,
        };
        if part::<8>(bytes, 48) != *TRAILER_MAGIC {
            return Err(damaged("no trailer at its end"));
        }
        let trailer = Self {
            index_at: u64::from_le_bytes(part(bytes, 0)),
            entries: u64::from_le_bytes(part(bytes, 8)),
            digest: part(bytes, 16),
        };
        if trailer.entries > CHUNKS_MAX as u64 {
            return Err(Error::TooMany {
                path: path.to_owned(),
            });
        }
        let index = trailer.entries * ENTRY_BYTES as u64;
        let expected = trailer.index_at.checked_add(index + TRAILER_BYTES as u64);
        if trailer.index_at < HEADER_BYTES || expected != Some(file_bytes) {
            return Err(damaged("its trailer is of a file of another size"));
        }
        Ok(trailer)
    }
}

pub(crate) fn header() -> [u8; HEADER_BYTES as usize] {
    let mut bytes = [0; HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// `N` bytes from `at`, which the caller knows to be there.
pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
