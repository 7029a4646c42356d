//! Ranges of a file as they travel.

use model::Ranges;
use proto::v1;

/// Ranges of a file of `size` bytes; `None`: one is empty, beyond the end or out of order.
pub(crate) fn read(list: &[v1::ByteRange], size: u64) -> Option<Ranges> {
    let mut ranges = Ranges::new();
    let mut from = 0;
    for range in list {
        let end = range.offset.checked_add(range.length)?;
        if range.length == 0 || range.offset < from || end > size {
            return None;
        }
        ranges.add(range.offset..end);
        from = end;
    }
    Some(ranges)
}

pub(crate) fn write(ranges: &Ranges) -> Vec<v1::ByteRange> {
    let write = |range: std::ops::Range<u64>| v1::ByteRange {
        offset: range.start,
        length: range.end - range.start,
    };
    ranges.iter().map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ranges: &[(u64, u64)]) -> Vec<v1::ByteRange> {
        let range = |&(offset, length): &(u64, u64)| v1::ByteRange { offset, length };
        ranges.iter().map(range).collect()
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let ranges: Ranges = [0..4, 7..10].into_iter().collect();
        assert_eq!(read(&write(&ranges), 10), Some(ranges));
        assert_eq!(read(&[], 0), Some(Ranges::new()));
        assert_eq!(read(&list(&[(0, 4), (4, 1)]), 5), Some(Ranges::of(0..5)));
        for bad in [
            list(&[(0, 4), (3, 2)]),
            list(&[(5, 1), (0, 1)]),
            list(&[(2, 0)]),
            list(&[(9, 2)]),
            list(&[(10, 1)]),
            list(&[(u64::MAX, 2)]),
        ] {
            assert_eq!(read(&bad, 10), None, "{bad:?}");
        }
    }
}
