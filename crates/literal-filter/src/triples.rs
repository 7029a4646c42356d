//! Divides many grams of three bytes into few triples of sets of bytes, so that few places of a file
//! have bytes of all sets of a triple though they have none of the grams.

use std::sync::LazyLock;

use byte_sets::{Sets, WIDTH};

use crate::grams::{NUMBERS, number, share_of_byte, share_of_pair};

/// Triples of sets.
const TRIPLES: usize = 8;
/// Beyond these grams are put together by their order alone until so many triples are left.
const JOINED_MAX: usize = 192;

/// The bytes that each of three in a row may be.
pub(crate) type Gram = [Vec<u8>; WIDTH];

/// How much thought is given to what goes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// For many scans.
    Lasting,
    /// For one.
    Once,
}

/// The grams' bytes in sets, and the share of a file's positions at which some triple is to be
/// expected.
pub(crate) fn divide(mut all: Vec<Gram>, effort: Effort) -> (Sets, f64) {
    all.sort();
    let parts = match effort {
        Effort::Lasting => JOINED_MAX,
        Effort::Once => TRIPLES,
    };
    let parts = all.chunks(all.len().div_ceil(parts).max(1));
    let mut triples: Vec<Triple> = parts.map(Triple::of).collect();
    join(&mut triples);
    let mut sets: Sets = [[0; 256]; WIDTH];
    for (number, triple) in triples.iter().enumerate() {
        for (set, bytes) in sets.iter_mut().zip(&triple.bytes) {
            bytes
                .iter()
                .for_each(|byte| set[usize::from(*byte)] |= 1 << number);
        }
    }
    (sets, triples.iter().map(|triple| triple.share).sum())
}

/// Puts those together that raise the share least, until there are [`TRIPLES`].
fn join(triples: &mut Vec<Triple>) {
    // For each of them what joining it with each one before it costs.
    let mut costs: Vec<Vec<f64>> = Vec::new();
    if triples.len() > TRIPLES {
        let rows = triples.iter().enumerate();
        costs = rows
            .map(|(row, a)| triples[..row].iter().map(|b| a.cost_of(b)).collect())
            .collect();
    }
    while triples.len() > TRIPLES {
        let all = costs.iter().enumerate().flat_map(|(row, costs)| {
            let of_row = costs.iter().enumerate();
            of_row.map(move |(column, cost)| (*cost, row, column))
        });
        let Some((_, row, column)) = all.min_by(|a, b| a.0.total_cmp(&b.0)) else {
            return;
        };
        // The last one takes the place of the one that goes.
        let gone = triples.swap_remove(row);
        let moved = costs.pop().unwrap_or_default();
        for (below, cost) in costs.iter_mut().zip(&moved).skip(row + 1) {
            below[row] = *cost;
        }
        if let Some(costs) = costs.get_mut(row) {
            *costs = moved[..row].to_vec();
        }
        triples[column].add(&gone);
        for other in 0..triples.len() {
            let cost = triples[column].cost_of(&triples[other]);
            match other.cmp(&column) {
                std::cmp::Ordering::Less => costs[column][other] = cost,
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => costs[other][column] = cost,
            }
        }
    }
}

/// Three sets of bytes.
#[derive(Debug, Clone)]
struct Triple {
    bytes: Gram,
    /// The same as numbers of folded bytes.
    numbers: [u128; WIDTH],
    /// Of positions that have bytes of all three sets.
    share: f64,
}

impl Triple {
    fn of(grams: &[Gram]) -> Self {
        let bytes = std::array::from_fn(|at| {
            let mut all: Vec<u8> = grams.iter().flat_map(|gram| gram[at].clone()).collect();
            all.sort_unstable();
            all.dedup();
            all
        });
        let numbers = std::array::from_fn(|at: usize| {
            let all: &Vec<u8> = &bytes[at];
            all.iter().fold(0, |set, byte| set | 1 << number(*byte))
        });
        Self {
            bytes,
            numbers,
            share: share(&numbers),
        }
    }

    /// By how much the share of both rises where they become one.
    fn cost_of(&self, other: &Self) -> f64 {
        share(&self.numbers_with(other)) - self.share - other.share
    }

    fn numbers_with(&self, other: &Self) -> [u128; WIDTH] {
        std::array::from_fn(|at| self.numbers[at] | other.numbers[at])
    }

    fn add(&mut self, other: &Self) {
        self.numbers = self.numbers_with(other);
        self.share = share(&self.numbers);
        for (bytes, more) in self.bytes.iter_mut().zip(&other.bytes) {
            bytes.extend(more);
            bytes.sort_unstable();
            bytes.dedup();
        }
    }
}

/// For each folded byte the share of positions that have it, and for each two such bytes that of
/// positions that have them.
struct Shares {
    bytes: [f64; NUMBERS],
    pairs: Vec<[f64; NUMBERS]>,
}

static SHARES: LazyLock<Shares> = LazyLock::new(|| Shares {
    bytes: std::array::from_fn(share_of_byte),
    pairs: (0..NUMBERS)
        .map(|first| std::array::from_fn(|second| share_of_pair(first, second)))
        .collect(),
});

/// Of positions with bytes of these sets in a row, each byte depending on the one before it.
fn share(numbers: &[u128; WIDTH]) -> f64 {
    let shares = &*SHARES;
    let [first, middle, last] = *numbers;
    let through = |middle: usize| {
        let before: f64 = members(first).map(|b| shares.pairs[b][middle]).sum();
        let behind: f64 = match last {
            u128::MAX => shares.bytes[middle],
            _ => members(last).map(|b| shares.pairs[middle][b]).sum(),
        };
        before * behind / shares.bytes[middle]
    };
    members(middle).map(through).sum()
}

fn members(set: u128) -> impl Iterator<Item = usize> {
    let mut left = set;
    std::iter::from_fn(move || {
        let next = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (next < NUMBERS).then_some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grams(all: &[&[u8; WIDTH]]) -> Vec<Gram> {
        all.iter().map(|gram| gram.map(|byte| vec![byte])).collect()
    }

    #[test]
    fn every_gram_is_in_a_triple() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for count in [0, 1, 7, 8, 9, 40, 300] {
            for effort in [Effort::Lasting, Effort::Once] {
                let all: Vec<Gram> = (0..count)
                    .map(|_| std::array::from_fn(|_| vec![random(), random()]))
                    .collect();
                let (sets, share) = divide(all.clone(), effort);
                assert!((0.0..=8.5).contains(&share), "{share}");
                for gram in all {
                    let together = gram.iter().zip(&sets).fold(0xff, |found, (bytes, set)| {
                        let both = bytes.iter().map(|byte| set[usize::from(*byte)]);
                        found & both.fold(0xff, |all, one| all & one)
                    });
                    assert!(together != 0, "{gram:?}");
                }
            }
        }
    }

    /// A gram of zeros is met so often that nothing else is put to it.
    #[test]
    fn what_is_met_often_stays_alone() {
        let list = [
            b"q#1", b"q#2", b"q#3", b"q#4", b"q#5", b"q#6", b"z!1", b"z!2", b"z!3", b"z!4",
            b"\0\0\0",
        ];
        let (sets, share) = divide(grams(&list), Effort::Lasting);
        let zeros = sets[0][0];
        assert_eq!(zeros.count_ones(), 1);
        let fellows = sets[0].iter().filter(|triples| **triples & zeros != 0);
        assert_eq!(fellows.count(), 1);
        assert!(share < 1.0);
    }
}
