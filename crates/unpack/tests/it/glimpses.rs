//! Content of which a part is known, and the questions about the rest. The fuzz target
//! `unpack_guess` has it, too.

use std::ops::Range;

use unpack::{Format, Glimpse, Guess, Mark};

/// Places of a mark that are told; the lowest.
pub(crate) const TOLD_MAX: usize = 64;
/// Questions at most: a directory behind an end record, and three pieces of a text.
const ROUNDS_MAX: usize = 4;

/// Content, and which bytes of it are known.
struct Known<'a> {
    content: &'a [u8],
    known: Vec<bool>,
}

impl<'a> Known<'a> {
    fn new(content: &'a [u8], ranges: &[Range<usize>]) -> Self {
        let mut known = Self {
            content,
            known: vec![false; content.len()],
        };
        for range in ranges {
            known.learn(range.clone());
        }
        known
    }

    /// How many bytes are new.
    fn learn(&mut self, range: Range<usize>) -> usize {
        let len = self.known.len();
        let part = &mut self.known[range.start.min(len)..range.end.min(len)];
        let new = part.iter().filter(|known| !**known).count();
        part.fill(true);
        new
    }
}

impl Glimpse for Known<'_> {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = (at as usize).min(self.content.len());
        let to = from.saturating_add(len).min(self.content.len());
        let all = self.known[from..to].iter().all(|known| *known);
        all.then(|| &self.content[from..to])
    }

    fn places(&self, mark: Mark, within: Range<u64>) -> Option<Vec<u64>> {
        let bytes = mark.bytes();
        let windows = self.content.windows(bytes.len()).enumerate();
        let found = windows.filter(|(_, window)| *window == bytes);
        let all: Vec<u64> = found.map(|(at, _)| at as u64).collect();
        let told = &all[..all.len().min(TOLD_MAX)];
        let is_all = told.len() == all.len() || told.last() >= Some(&(within.end - 1));
        is_all.then(|| {
            told.iter()
                .copied()
                .filter(|at| within.contains(at))
                .collect()
        })
    }
}

/// Guesses until it is settled; the bytes that were asked for. Never wrong on the way.
pub(crate) fn settle(content: &[u8], ranges: &[Range<usize>]) -> (Guess, usize) {
    let mut known = Known::new(content, ranges);
    let mut asked = 0;
    for _ in 0..=ROUNDS_MAX {
        match Format::guess(&known) {
            Guess::Needs(ranges) => {
                let learn =
                    |range: Range<u64>| known.learn(range.start as usize..range.end as usize);
                let new: usize = ranges.into_iter().map(learn).sum();
                assert!(new > 0, "asked for what is known");
                asked += new;
            }
            Guess::No => {
                assert_eq!(Format::detect(content), None);
                return (Guess::No, asked);
            }
            Guess::Maybe => return (Guess::Maybe, asked),
        }
    }
    panic!("asks again and again");
}
