//! The list of a file's chunks, and how it travels.
//!
//! Groups: 32 bytes each, the chaining value. Pages: 8 bytes each, the name. Content and members:
//! 2 bytes, little endian, the length less one, and the name. Sizes of fixed chunks and of the last
//! one follow from the size of the file.

use blake3::hazmat::ChainingValue;

use crate::groups::{self, CV_BYTES};
use crate::kind::Kind;

/// Bytes of the longest chunk.
pub const CHUNK_BYTES_MAX: u32 = 64 * 1024;
/// Bytes of the shortest chunk that is not the last.
pub const CHUNK_BYTES_MIN: u32 = 1024;
/// Bytes of the longest list: it must fit a frame.
pub const MANIFEST_BYTES_MAX: usize = 896 * 1024;

/// Bytes of a name, and of a length before it.
const ID_BYTES: usize = 8;
const LEN_BYTES: usize = 2;

/// A chunk's name: the first 64 bits of a BLAKE3 hash. Who makes two chunks of one name by force
/// makes files that do not come out right, and are then sent whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkId(pub [u8; ID_BYTES]);

impl ChunkId {
    pub(crate) fn first_of(hash: &[u8; 32]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *hash;
        Self([a, b, c, d, e, f, g, h])
    }
}

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes: 1 to [`CHUNK_BYTES_MAX`].
    pub len: u32,
    /// Its name.
    pub id: ChunkId,
}

impl Chunk {
    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len.into())
    }
}

/// All chunks of a file, which they cover without gap or overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    kind: Kind,
    size: u64,
    chunks: Vec<Chunk>,
    /// Of groups only.
    values: Vec<ChainingValue>,
}

/// A list that no honest agent makes of a file of that size and digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than any.
    #[error("a manifest of {0} bytes; at most {MANIFEST_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Not a whole number of entries.
    #[error("a manifest whose last entry is cut")]
    Cut,
    /// The chunks end elsewhere than the file.
    #[error("chunks of {chunks} bytes in all for {size} bytes")]
    Sum {
        /// Bytes of the file.
        size: u64,
        /// Bytes of the chunks.
        chunks: u64,
    },
    /// Below [`CHUNK_BYTES_MIN`] and not the last.
    #[error("a chunk of {0} bytes that is not the last")]
    Short(u32),
    /// The values do not make the digest.
    #[error("the groups do not make the digest")]
    Digest,
}

impl Manifest {
    pub(crate) fn new(
        kind: Kind,
        size: u64,
        chunks: Vec<Chunk>,
        values: Vec<ChainingValue>,
    ) -> Self {
        Self {
            kind,
            size,
            chunks,
            values,
        }
    }

    /// How the file was cut.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The chunks in their order.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The chunk that begins at `offset`.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<&Chunk> {
        let found = self.chunks.binary_search_by_key(&offset, |it| it.offset);
        self.chunks.get(found.ok()?)
    }

    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.kind == Kind::Groups {
            return self.values.concat();
        }
        let has_len = self.kind.fixed_bytes().is_none();
        let mut bytes = Vec::with_capacity(self.chunks.len() * (LEN_BYTES + ID_BYTES));
        for chunk in &self.chunks {
            if has_len {
                let less_one = u16::try_from(chunk.len.saturating_sub(1)).unwrap_or(u16::MAX);
                bytes.extend_from_slice(&less_one.to_le_bytes());
            }
            bytes.extend_from_slice(&chunk.id.0);
        }
        bytes
    }

    /// Reads what a guest sent as the list of a file of `size` bytes with that `digest`.
    ///
    /// # Errors
    /// [`ManifestError`]. Only groups prove that they are the file's; of others nothing is known
    /// but that they cover it.
    pub fn decode(
        kind: Kind,
        size: u64,
        digest: &[u8; 32],
        bytes: &[u8],
    ) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let list = match kind.fixed_bytes() {
            Some(fixed) if kind == Kind::Groups => read_groups(size, fixed, bytes)?,
            Some(fixed) => read_pages(size, fixed, bytes)?,
            None => read_cut(size, bytes)?,
        };
        let list = Self { kind, ..list };
        if kind == Kind::Groups && groups::digest(size, &list.values) != Some(*digest) {
            return Err(ManifestError::Digest);
        }
        Ok(list)
    }
}

fn read_groups(size: u64, fixed: u32, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let (values, rest) = bytes.as_chunks::<CV_BYTES>();
    if !rest.is_empty() {
        return Err(ManifestError::Cut);
    }
    let ids = values.iter().map(groups::id_of);
    let chunks = spread(size, fixed, ids)?;
    Ok(Manifest::new(Kind::Groups, size, chunks, values.to_vec()))
}

fn read_pages(size: u64, fixed: u32, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let (ids, rest) = bytes.as_chunks::<ID_BYTES>();
    if !rest.is_empty() {
        return Err(ManifestError::Cut);
    }
    let chunks = spread(size, fixed, ids.iter().map(|id| ChunkId(*id)))?;
    Ok(Manifest::new(Kind::Pages, size, chunks, Vec::new()))
}

/// Names for chunks of `fixed` bytes, the last one shorter.
fn spread(
    size: u64,
    fixed: u32,
    ids: impl ExactSizeIterator<Item = ChunkId>,
) -> Result<Vec<Chunk>, ManifestError> {
    let expected = size.div_ceil(fixed.into());
    if ids.len() as u64 != expected {
        let chunks = (ids.len() as u64).saturating_mul(fixed.into());
        return Err(ManifestError::Sum { size, chunks });
    }
    let offsets = (0u64..).step_by(fixed as usize);
    Ok(offsets
        .zip(ids)
        .map(|(offset, id)| {
            let len = (size - offset).min(fixed.into()) as u32;
            Chunk { offset, len, id }
        })
        .collect())
}

fn read_cut(size: u64, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let (entries, rest) = bytes.as_chunks::<{ LEN_BYTES + ID_BYTES }>();
    if !rest.is_empty() {
        return Err(ManifestError::Cut);
    }
    let mut chunks = Vec::with_capacity(entries.len());
    let mut offset = 0;
    for [l0, l1, id @ ..] in entries {
        let len = u32::from(u16::from_le_bytes([*l0, *l1])) + 1;
        let id = ChunkId(*id);
        let chunk = Chunk { offset, len, id };
        offset = chunk.end();
        if len < CHUNK_BYTES_MIN && offset != size {
            return Err(ManifestError::Short(len));
        }
        chunks.push(chunk);
    }
    if offset != size {
        return Err(ManifestError::Sum {
            size,
            chunks: offset,
        });
    }
    Ok(Manifest::new(Kind::Content, size, chunks, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(kind: Kind, size: u64, bytes: &[u8], expected: ManifestError) {
        let read = Manifest::decode(kind, size, &[7; 32], bytes);
        assert_eq!(read, Err(expected));
    }

    fn entry(len: u32) -> Vec<u8> {
        let less_one = u16::try_from(len - 1).unwrap().to_le_bytes();
        [&less_one[..], &[1; 8]].concat()
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        use ManifestError::{Cut, Digest, Short, Sum, TooLong};
        let (long, at_most) = (MANIFEST_BYTES_MAX + 1, MANIFEST_BYTES_MAX);
        refused(Kind::Content, 9, &vec![0; long], TooLong(long));
        refused(Kind::Content, 9, &entry(9)[1..], Cut);
        refused(Kind::Pages, 9, &[0; 7], Cut);
        refused(Kind::Groups, 9, &[0; 31], Cut);
        let sum = |size, chunks| Sum { size, chunks };
        refused(Kind::Content, 2001, &entry(2000), sum(2001, 2000));
        refused(Kind::Content, 1999, &entry(2000), sum(1999, 2000));
        refused(Kind::Content, 9, &[], sum(9, 0));
        refused(Kind::Pages, 4097, &[0; 8], sum(4097, 4096));
        refused(Kind::Pages, u64::MAX, &[0; 16], sum(u64::MAX, 8192));
        refused(Kind::Content, 9, &entry(8), Short(8));
        // As many entries as there is room for, of one byte each: none is read beyond the first.
        let many = [0].repeat(at_most / 10 * 10);
        refused(Kind::Members, 80_000, &many, Short(1));
        refused(Kind::Groups, 70_000, &[7; 64], Digest);
        refused(Kind::Groups, 9, &[7; 32], Digest);
    }

    #[test]
    fn the_last_chunk_may_be_short() {
        let bytes = [entry(2000), entry(1)].concat();
        let list = Manifest::decode(Kind::Members, 2001, &[0; 32], &bytes).unwrap();
        assert_eq!(list.kind(), Kind::Members);
        assert_eq!(list.at(2000).unwrap().len, 1);
        assert_eq!(list.at(1999), None);
        assert_eq!(list.encode(), bytes);
    }
}
