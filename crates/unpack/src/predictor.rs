//! PDF predictors: undo the differences that a writer stored in place of the bytes.

use crate::text_codecs::Decode;

/// Longest row; more would be no picture and no table.
const ROW_BYTES_MAX: usize = 1 << 20;

/// Shape of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Predictor {
    kind: Kind,
    row_bytes: usize,
    pixel_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Each byte is the difference to the pixel on the left.
    Tiff,
    /// Each row starts with the number of its own PNG filter.
    Png,
}

impl Predictor {
    /// By the numbers of a `DecodeParms` dictionary. `Err`: a predictor that cannot be undone;
    /// `Ok(None)`: there is nothing to undo.
    pub(crate) fn new(
        predictor: usize,
        columns: usize,
        colors: usize,
        bits: usize,
    ) -> Result<Option<Self>, String> {
        let kind = match predictor {
            0 | 1 => return Ok(None),
            2 if bits == 8 => Kind::Tiff,
            10..=15 => Kind::Png,
            other => return Err(format!("predictor {other} of {bits} bits")),
        };
        let pixel_bits = colors.checked_mul(bits).filter(|bits| *bits > 0);
        let row_bits = pixel_bits.and_then(|bits| bits.checked_mul(columns));
        match (pixel_bits, row_bits.map(|bits| bits.div_ceil(8))) {
            (Some(pixel_bits), Some(row_bytes @ 1..=ROW_BYTES_MAX)) => Ok(Some(Self {
                kind,
                row_bytes,
                pixel_bytes: pixel_bits.div_ceil(8),
            })),
            _ => Err(format!("a predictor with {columns} columns")),
        }
    }
}

/// Undoes a predictor row by row.
#[derive(Debug)]
pub(crate) struct Rows {
    predictor: Predictor,
    /// PNG filter of the row at hand, once read.
    filter: Option<u8>,
    above: Vec<u8>,
    row: Vec<u8>,
}

impl Rows {
    pub(crate) fn new(predictor: Predictor) -> Self {
        Self {
            predictor,
            filter: None,
            above: vec![0; predictor.row_bytes],
            row: Vec::with_capacity(predictor.row_bytes),
        }
    }

    fn restored(&self, filter: u8, stored: u8) -> u8 {
        let (x, pixel) = (self.row.len(), self.predictor.pixel_bytes);
        let at = |row: &[u8], x: Option<usize>| x.and_then(|x| row.get(x)).copied().unwrap_or(0);
        let left = at(&self.row, x.checked_sub(pixel));
        let up = at(&self.above, Some(x));
        let guess = match filter {
            1 => left,
            2 => up,
            3 => ((u16::from(left) + u16::from(up)) / 2) as u8,
            4 => paeth(left, up, at(&self.above, x.checked_sub(pixel))),
            _ => 0,
        };
        stored.wrapping_add(guess)
    }
}

fn paeth(left: u8, up: u8, up_left: u8) -> u8 {
    let guess = i16::from(left) + i16::from(up) - i16::from(up_left);
    let distance = |value: u8| (guess - i16::from(value)).abs();
    if distance(left) <= distance(up) && distance(left) <= distance(up_left) {
        left
    } else if distance(up) <= distance(up_left) {
        up
    } else {
        up_left
    }
}

impl Decode for Rows {
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &byte in input {
            let filter = match (self.predictor.kind, self.filter) {
                (Kind::Tiff, _) => 1,
                (Kind::Png, Some(filter)) => filter,
                (Kind::Png, None) => {
                    self.filter = Some(byte);
                    continue;
                }
            };
            let restored = self.restored(filter, byte);
            self.row.push(restored);
            if self.row.len() == self.predictor.row_bytes {
                output.extend_from_slice(&self.row);
                std::mem::swap(&mut self.above, &mut self.row);
                self.row.clear();
                self.filter = None;
            }
        }
        true
    }

    fn finish(&mut self, output: &mut Vec<u8>) {
        output.append(&mut self.row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_restored() {
        let check = |predictor, stored: &[u8], expected: &[u8]| {
            let shape = Predictor::new(predictor, 3, 1, 8).expect("known");
            let mut rows = Rows::new(shape.expect("something to undo"));
            let mut output = Vec::new();
            rows.push(stored, &mut output);
            rows.finish(&mut output);
            assert_eq!(output, expected, "predictor {predictor} of {stored:?}");
        };
        check(2, &[1, 1, 1, 5, 255, 0], &[1, 2, 3, 5, 4, 4]);
        check(12, &[0, 1, 2, 3, 2, 1, 1, 1], &[1, 2, 3, 2, 3, 4]);
        check(15, &[1, 1, 1, 1, 3, 1, 1], &[1, 2, 3, 1, 2]);
        check(15, &[0, 10, 20, 30, 4, 1, 1, 1], &[10, 20, 30, 11, 21, 31]);
    }

    #[test]
    fn shapes_that_make_no_sense() {
        assert_eq!(Predictor::new(1, 0, 0, 0), Ok(None));
        assert!(Predictor::new(2, 1, 1, 16).is_err());
        assert!(Predictor::new(12, 0, 1, 8).is_err());
        assert!(Predictor::new(12, usize::MAX, 2, 8).is_err());
    }
}
