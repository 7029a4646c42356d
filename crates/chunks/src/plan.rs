//! What of a file is missing.

use std::collections::HashMap;

use crate::manifest::{Chunk, ChunkId, Manifest};

/// Ranges asked for at once; where more are missing, what lies between some is sent too.
pub const RANGES_MAX: usize = 4096;

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes, never 0.
    pub len: u64,
}

impl Range {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A chunk that the file has twice: it is sent once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Where it is sent.
    pub from: u64,
    /// Where it is, too.
    pub to: u64,
    /// Its bytes.
    pub len: u32,
}

/// What must be sent, and what is to be done with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Rising, without touching each other, at most [`RANGES_MAX`]. Empty: nothing is missing.
    pub ranges: Vec<Range>,
    /// After all ranges have come.
    pub copies: Vec<Copy>,
    /// Bytes of the file that are there already.
    pub held_bytes: u64,
}

impl Plan {
    /// Bytes of all ranges.
    #[must_use]
    pub fn missing_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len).sum()
    }
}

/// Goes through a file's chunks in their order; `take` puts a chunk into its place, or says that it
/// is not there.
///
/// # Errors
/// The first of `take`.
pub fn plan<E>(
    manifest: &Manifest,
    mut take: impl FnMut(&Chunk) -> Result<bool, E>,
) -> Result<Plan, E> {
    let mut plan = Plan::default();
    let mut missing: HashMap<(ChunkId, u32), u64> = HashMap::new();
    for chunk in manifest.chunks() {
        if let Some(&from) = missing.get(&(chunk.id, chunk.len)) {
            plan.copies.push(Copy {
                from,
                to: chunk.offset,
                len: chunk.len,
            });
        } else if take(chunk)? {
            plan.held_bytes += u64::from(chunk.len);
        } else {
            missing.insert((chunk.id, chunk.len), chunk.offset);
            add(&mut plan.ranges, chunk);
        }
    }
    plan.ranges = bridged(plan.ranges);
    Ok(plan)
}

fn add(ranges: &mut Vec<Range>, chunk: &Chunk) {
    let len = u64::from(chunk.len);
    match ranges.last_mut() {
        Some(last) if last.end() == chunk.offset => last.len += len,
        _ => ranges.push(Range {
            offset: chunk.offset,
            len,
        }),
    }
}

/// Joins ranges across gaps, twice as long each time, until there are few enough.
fn bridged(mut ranges: Vec<Range>) -> Vec<Range> {
    let mut gap = 4096;
    while ranges.len() > RANGES_MAX {
        ranges.dedup_by(|next, last| {
            let joins = next.offset - last.end() <= gap;
            if joins {
                last.len = next.end() - last.offset;
            }
            joins
        });
        gap = gap.saturating_mul(2);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Lister};
    use std::convert::Infallible;

    fn list(kind: Kind, bytes: &[u8]) -> Manifest {
        let mut lister = Lister::new(kind);
        lister.update(bytes);
        lister.finish().0
    }

    #[test]
    fn a_chunk_that_comes_twice_is_sent_once() {
        let page = |n: u8| vec![n; 4096];
        let bytes = [page(1), page(2), page(1), page(3), page(2), vec![2; 9]].concat();
        let manifest = list(Kind::Pages, &bytes);
        let plan = plan(&manifest, |chunk| {
            Ok::<_, Infallible>(chunk.offset == 12_288)
        })
        .unwrap();
        let ranges = [(0, 8192), (20_480, 9)].map(|(offset, len)| Range { offset, len });
        assert_eq!(plan.ranges, ranges);
        let copies = [(0, 8192), (4096, 16_384)].map(|(from, to)| Copy {
            from,
            to,
            len: 4096,
        });
        assert_eq!(plan.copies, copies);
        assert_eq!((plan.held_bytes, plan.missing_bytes()), (4096, 8201));
    }

    #[test]
    fn there_are_never_too_many_ranges() {
        let bytes: Vec<u8> = (0..4096 * 4 * 4096u32)
            .map(|i| (i >> 12) as u8 ^ (i >> 20) as u8)
            .collect();
        let mut n = 0u32;
        let manifest = list(Kind::Pages, &bytes);
        let distinct = |chunk: &Chunk| {
            n += 1;
            Ok::<_, Infallible>(chunk.offset.is_multiple_of(8192))
        };
        let plan = plan(&manifest, distinct).unwrap();
        assert!(n > 0 && plan.ranges.len() <= RANGES_MAX);
        let mut neighbours = plan.ranges.windows(2);
        assert!(neighbours.all(|two| two[0].end() < two[1].offset));
    }
}
