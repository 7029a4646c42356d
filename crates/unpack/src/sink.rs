//! The capped reader: the only way from a decoder to memory.

use std::io::{self, Read};

use crate::budget::Budget;
use crate::limits::{Limits, RATIO_FREE_BYTES};
use crate::summary::{IncompleteKind, Problem};

/// Bytes asked from a decoder at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Takes the output of one member and stops at the first limit. What was taken until then stays.
#[derive(Debug)]
pub(crate) struct Sink<'b> {
    bytes: Vec<u8>,
    problem: Option<Problem>,
    entry_bytes_max: u64,
    total_bytes_left: u64,
    total_bytes_max: u64,
    ratio_max: u64,
    packed_bytes: u64,
    budget: &'b Budget<'b>,
}

/// One unpacked member: its bytes, and what kept it from being whole.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) bytes: Vec<u8>,
    pub(crate) problem: Option<Problem>,
}

impl<'b> Sink<'b> {
    /// A sink for a member whose packed form has `packed_bytes`, when `total_bytes` are already
    /// unpacked.
    pub(crate) fn new(
        limits: &Limits,
        total_bytes: u64,
        packed_bytes: u64,
        budget: &'b Budget<'b>,
    ) -> Self {
        Self {
            bytes: Vec::new(),
            problem: None,
            entry_bytes_max: limits.entry_bytes_max,
            total_bytes_left: limits.total_bytes_max.saturating_sub(total_bytes),
            total_bytes_max: limits.total_bytes_max,
            ratio_max: limits.ratio_max.into(),
            packed_bytes: packed_bytes.max(1),
            budget,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn budget(&self) -> &'b Budget<'b> {
        self.budget
    }

    pub(crate) fn entry_bytes_max(&self) -> u64 {
        self.entry_bytes_max
    }

    /// Keeps the first problem.
    pub(crate) fn note(&mut self, problem: Problem) {
        self.problem.get_or_insert(problem);
    }

    pub(crate) fn finish(self) -> Unpacked {
        Unpacked {
            bytes: self.bytes,
            problem: self.problem,
        }
    }

    /// Takes all that `reader` gives. `what` names it in problems. False: a limit, an error or
    /// the budget ended it, and nothing more should be given.
    pub(crate) fn fill(&mut self, what: &str, reader: &mut dyn Read) -> bool {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let got = match reader.read(&mut chunk) {
                Ok(0) => return true,
                Ok(got) => chunk.get(..got).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.note(Problem::of_io(what, &error));
                    return false;
                }
            };
            if self.budget.spend(got.len() as u64) || !self.take(got) {
                return false;
            }
        }
    }

    /// Takes what the limits allow of `got`. False: a limit is hit.
    fn take(&mut self, got: &[u8]) -> bool {
        let room = self
            .entry_bytes_max
            .min(self.total_bytes_left)
            .saturating_sub(self.len());
        let fits = usize::try_from(room).map_or(got.len(), |room| room.min(got.len()));
        if self.bytes.try_reserve(fits).is_err() {
            self.note(Problem::unsupported("no memory for the member"));
            return false;
        }
        self.bytes.extend_from_slice(&got[..fits]);
        if fits < got.len() {
            self.note(self.size_problem());
            return false;
        }
        let ratio_bytes = self.packed_bytes.saturating_mul(self.ratio_max);
        if self.len() > RATIO_FREE_BYTES && self.len() > ratio_bytes {
            let (packed, max) = (self.packed_bytes, self.ratio_max);
            self.note(Problem::new(
                IncompleteKind::Ratio,
                format!("{packed} packed bytes expand by more than {max} times"),
            ));
            return false;
        }
        true
    }

    fn size_problem(&self) -> Problem {
        if self.total_bytes_left < self.entry_bytes_max {
            let max = self.total_bytes_max;
            Problem::new(
                IncompleteKind::TotalBytes,
                format!("the members have more than {max} bytes together"),
            )
        } else {
            let max = self.entry_bytes_max;
            Problem::new(
                IncompleteKind::EntryBytes,
                format!("the member has more than {max} bytes"),
            )
        }
    }
}
