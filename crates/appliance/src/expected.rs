//! Ranges that were asked for, as they come.

use chunks::Range;

use crate::assembly::AssemblyError;

/// Ranges in order, and how far they have come.
#[derive(Debug)]
pub(crate) struct Expected {
    ranges: Vec<Range>,
    /// Ranges that are complete, and bytes of the next one.
    filled: (usize, u64),
    received: u64,
}

impl Expected {
    pub(crate) fn new(ranges: Vec<Range>) -> Self {
        Self {
            ranges,
            filled: (0, 0),
            received: 0,
        }
    }

    pub(crate) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Bytes of all ranges.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len).sum()
    }

    /// Bytes taken so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes `len` bytes at `offset`: where the last ones ended, or where the next range begins.
    pub(crate) fn take(&mut self, offset: u64, len: u64) -> Result<(), AssemblyError> {
        let (index, within) = self.filled;
        let Some(range) = self.ranges.get(index) else {
            let announced = self.bytes();
            return Err(AssemblyError::Excess { announced });
        };
        let expected = range.offset + within;
        if offset != expected {
            let got = offset;
            return Err(AssemblyError::OutOfOrder { expected, got });
        }
        if len > range.len - within {
            let announced = range.len;
            return Err(AssemblyError::Excess { announced });
        }
        self.received += len;
        self.filled = if within + len == range.len {
            (index + 1, 0)
        } else {
            (index, within + len)
        };
        Ok(())
    }

    /// Nothing is missing.
    pub(crate) fn finish(&self) -> Result<(), AssemblyError> {
        if self.filled.0 < self.ranges.len() {
            return Err(AssemblyError::Short {
                received: self.received,
                announced: self.bytes(),
            });
        }
        Ok(())
    }
}
