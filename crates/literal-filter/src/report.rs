//! Where literals occur in one file, within bounds, and as bytes for the wire.
//!
//! For each literal that occurs, by rising id: the difference to the id before (varint), twice
//! the number of offsets, plus 1 where there are more than these (varint), and the offsets, each
//! as the difference to the one before (varint).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::FilterError;
use crate::wire::put_varint;

/// Offsets kept of one literal; beyond these only that there are more.
pub const OFFSETS_MAX: usize = 64;
/// Offsets of all literals together.
pub const REPORT_HITS_MAX: usize = 1 << 14;
/// Bytes of a report as it travels.
pub const REPORT_BYTES_MAX: usize = 64 << 10;

/// Occurrences of a filter's literals in one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    literals: BTreeMap<u32, Offsets>,
    hits: usize,
}

/// Occurrences of one literal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Offsets {
    /// At most [`OFFSETS_MAX`], the lowest ones, rising.
    list: Vec<u64>,
    more: bool,
}

impl Report {
    /// Notes an occurrence; they may come in any order. `Break`: there are too many for a report.
    pub fn add(&mut self, literal: u32, offset: u64) -> ControlFlow<()> {
        let Offsets { list, more } = self.literals.entry(literal).or_default();
        let at = list.partition_point(|known| *known < offset);
        if list.len() >= OFFSETS_MAX {
            *more = true;
            // The lowest are kept, whatever the order: one file has one report.
            if at < list.len() {
                list.pop();
                list.insert(at, offset);
            }
            return ControlFlow::Continue(());
        }
        list.insert(at, offset);
        self.hits += 1;
        if self.hits > REPORT_HITS_MAX {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Occurrences kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hits
    }

    /// No literal occurs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.literals.is_empty()
    }

    /// For each literal that occurs, by rising id, its offsets, and whether there are more.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u64], bool)> {
        let literals = self.literals.iter();
        literals.map(|(id, offsets)| (*id, offsets.list.as_slice(), offsets.more))
    }

    /// The report as it travels; `None`: it would be larger than [`REPORT_BYTES_MAX`].
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        if self.hits > REPORT_HITS_MAX {
            return None;
        }
        let mut out = Vec::new();
        let mut last = 0;
        for (id, offsets) in &self.literals {
            put_varint(&mut out, u64::from(id - last));
            last = *id;
            put_varint(
                &mut out,
                2 * offsets.list.len() as u64 + u64::from(offsets.more),
            );
            let mut before = 0;
            for offset in &offsets.list {
                put_varint(&mut out, offset - before);
                before = *offset;
            }
            if out.len() > REPORT_BYTES_MAX {
                return None;
            }
        }
        Some(out)
    }

    /// Reads what an agent sent of a file of `size` bytes, with a filter of so many literals.
    ///
    /// # Errors
    /// What is wrong and where: nothing but what [`Self::to_bytes`] gives is taken.
    pub fn from_bytes(bytes: &[u8], literals: usize, size: u64) -> Result<Self, FilterError> {
        let bad = |field, at, value| FilterError::Field {
            what: WHAT,
            field,
            at,
            value,
        };
        if bytes.len() > REPORT_BYTES_MAX {
            return Err(bad("number of bytes", 0, bytes.len() as u64));
        }
        let mut at = 0;
        let mut report = Self::default();
        let mut next = 0u64;
        while at < bytes.len() {
            let start = at;
            let id = next.saturating_add(varint(bytes, &mut at)?);
            if id >= literals as u64 || report.literals.contains_key(&(id as u32)) {
                return Err(bad("literal", start, id));
            }
            next = id;
            let start = at;
            let count = varint(bytes, &mut at)?;
            let (count, more) = (count / 2, count % 2 == 1);
            if count == 0 || count > OFFSETS_MAX as u64 {
                return Err(bad("number of offsets", start, count));
            }
            let mut offsets = Offsets {
                list: Vec::new(),
                more,
            };
            let mut before = 0u64;
            for number in 0..count {
                let start = at;
                let step = varint(bytes, &mut at)?;
                before = before.saturating_add(step);
                if before >= size || step == 0 && number > 0 {
                    return Err(bad("offset", start, before));
                }
                offsets.list.push(before);
            }
            report.hits += offsets.list.len();
            if report.hits > REPORT_HITS_MAX {
                return Err(bad("number of hits", start, report.hits as u64));
            }
            report.literals.insert(id as u32, offsets);
        }
        Ok(report)
    }
}

const WHAT: &str = "filter report";

/// A number in its shortest form.
fn varint(bytes: &[u8], at: &mut usize) -> Result<u64, FilterError> {
    let start = *at;
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let Some(byte) = bytes.get(*at) else {
            return Err(FilterError::Truncated {
                what: WHAT,
                inside: "a number",
                at: start,
            });
        };
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            if *byte == 0 && shift > 0 {
                break;
            }
            return Ok(value);
        }
    }
    Err(FilterError::Field {
        what: WHAT,
        field: "number",
        at: start,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read() {
        let mut report = Report::default();
        for (literal, offset) in [(5, 900), (0, 0), (5, 3), (70_000, 1 << 40)] {
            assert!(report.add(literal, offset).is_continue());
        }
        for offset in 0..100 {
            assert!(report.add(6, offset * 10).is_continue());
        }
        let bytes = report.to_bytes().unwrap();
        let read = Report::from_bytes(&bytes, 70_001, 1 << 41).unwrap();
        let list: Vec<_> = read
            .iter()
            .map(|(id, o, more)| (id, o.len(), more))
            .collect();
        let expected = [
            (0, 1, false),
            (5, 2, false),
            (6, OFFSETS_MAX, true),
            (70_000, 1, false),
        ];
        assert_eq!(list, expected);
        assert_eq!(read.to_bytes().unwrap(), bytes);
        // Every prefix but those between two literals is refused, and none is read beyond.
        let whole = |end: usize| Report::from_bytes(&bytes[..end], 70_001, 1 << 41).is_ok();
        assert_eq!((0..bytes.len()).filter(|end| whole(*end)).count(), 4);
        assert!(
            Report::from_bytes(&bytes, 70_000, 1 << 41).is_err(),
            "no such literal"
        );
        assert!(
            Report::from_bytes(&bytes, 70_001, 1 << 40).is_err(),
            "beyond the end"
        );
    }

    #[test]
    fn one_file_has_one_report() {
        let (mut rising, mut falling) = (Report::default(), Report::default());
        for offset in 0..200 {
            let _ = rising.add(3, offset);
            let _ = falling.add(3, 199 - offset);
        }
        assert_eq!(rising, falling);
        let kept: Vec<u64> = (0..OFFSETS_MAX as u64).collect();
        assert_eq!(rising.iter().next(), Some((3, &kept[..], true)));
    }

    #[test]
    fn giants_are_refused() {
        let mut report = Report::default();
        let mut broke = false;
        for hit in 0..=REPORT_HITS_MAX as u32 {
            broke |= report.add(hit, u64::from(hit)).is_break();
        }
        assert!(broke && report.to_bytes().is_none());
        for bytes in [
            vec![0; REPORT_BYTES_MAX + 1],
            // No offsets, too many, the same twice, a number that is not in its shortest form.
            vec![0, 0],
            vec![0, 130, 1, 5],
            vec![0, 4, 5, 0],
            vec![0, 2, 0x85, 0],
            vec![0xff; 12],
            // The same literal twice.
            vec![3, 2, 5, 0, 2, 5],
        ] {
            assert!(Report::from_bytes(&bytes, 10, 100).is_err(), "{bytes:?}");
        }
    }
}
