//! BLAKE3's tree over groups of 64 KiB: the digest of a file from the chaining values of its groups.

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use crate::manifest::ChunkId;

/// Bytes of a group.
pub const GROUP_BYTES: u32 = 64 * 1024;
/// Bytes of a chaining value.
pub(crate) const CV_BYTES: usize = 32;

/// Of the group at `offset`, a multiple of [`GROUP_BYTES`]; of no bytes: none that any file has.
pub(crate) fn chaining_value(offset: u64, bytes: &[u8]) -> ChainingValue {
    let fits = bytes.len() <= GROUP_BYTES as usize && offset.is_multiple_of(GROUP_BYTES.into());
    if bytes.is_empty() || !fits {
        return [0; CV_BYTES];
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset).update(bytes);
    hasher.finalize_non_root()
}

pub(crate) fn id_of(value: &ChainingValue) -> ChunkId {
    ChunkId::first_of(value)
}

/// The digest of a file of `size` bytes whose groups have these values. `None`: another number of
/// groups, or so few bytes that there is no tree.
pub(crate) fn digest(size: u64, values: &[ChainingValue]) -> Option<[u8; 32]> {
    let is_count = values.len() as u64 == size.div_ceil(GROUP_BYTES.into());
    if size <= GROUP_BYTES.into() || !is_count {
        return None;
    }
    let (left, right, left_bytes) = halves(size, values)?;
    let left = subtree(left_bytes, left)?;
    let right = subtree(size - left_bytes, right)?;
    Some(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
}

/// As deep as the logarithm of the number of groups.
fn subtree(size: u64, values: &[ChainingValue]) -> Option<ChainingValue> {
    if let [value] = values {
        return Some(*value);
    }
    let (left, right, left_bytes) = halves(size, values)?;
    let left = subtree(left_bytes, left)?;
    let right = subtree(size - left_bytes, right)?;
    Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
}

type Halves<'a> = (&'a [ChainingValue], &'a [ChainingValue], u64);

fn halves(size: u64, values: &[ChainingValue]) -> Option<Halves<'_>> {
    let left_bytes = left_subtree_len(size);
    let at = usize::try_from(left_bytes / u64::from(GROUP_BYTES)).ok()?;
    let (left, right) = values.split_at_checked(at)?;
    Some((left, right, left_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_make_the_digest_of_the_whole() {
        let group = GROUP_BYTES as usize;
        for size in [
            group + 1,
            2 * group,
            2 * group + 1,
            3 * group,
            5 * group + 777,
            8 * group,
            9 * group - 1,
        ] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let values: Vec<_> = (0u64..)
                .step_by(group)
                .zip(bytes.chunks(group))
                .map(|(offset, bytes)| chaining_value(offset, bytes))
                .collect();
            let expected = *blake3::hash(&bytes).as_bytes();
            assert_eq!(digest(size as u64, &values), Some(expected), "{size}");
            assert_eq!(digest(size as u64, &values[1..]), None);
        }
        assert_eq!(digest(10, &[[0; 32]]), None);
    }
}
