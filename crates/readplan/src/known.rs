//! What is known of one file.

use std::cell::{Cell, Ref, RefCell};

use literal_filter::Report;
use model::Ranges;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::bits::Bits;
use crate::eval::Presence;
use crate::look::{Look, Side};

/// Occurrences kept of one literal; beyond these only that there are more.
pub const HITS_MAX: usize = literal_filter::OFFSETS_MAX;

/// Bytes of a file, as far as they are known.
pub trait Bytes {
    /// The `len` bytes at `offset`, fewer where the file ends; `None`: not all of them are known.
    fn get(&self, offset: u64, len: usize) -> Option<&[u8]>;
}

/// A whole file.
impl Bytes for &[u8] {
    fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let to = from.saturating_add(len).min(self.len());
        <[u8]>::get(self, from..to)
    }
}

/// The first bytes of a file.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// The file's size.
    pub size: u64,
}

impl Bytes for Head<'_> {
    fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let end = offset.saturating_add(len as u64).min(self.size);
        let from = offset.min(end);
        let (from, to) = (usize::try_from(from).ok()?, usize::try_from(end).ok()?);
        self.bytes.get(from..to)
    }
}

/// A file of which some ranges are known; what `bytes` has elsewhere says nothing.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// As many bytes as the file has.
    pub bytes: &'a [u8],
    /// Which of them are the file's.
    pub known: &'a Ranges,
}

impl Bytes for View<'_> {
    fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let size = self.bytes.len() as u64;
        let end = offset.saturating_add(len as u64).min(size);
        let range = offset.min(end)..end;
        if !self.known.contains(&range) {
            return None;
        }
        let (from, to) = (
            usize::try_from(range.start).ok()?,
            usize::try_from(range.end).ok()?,
        );
        self.bytes.get(from..to)
    }
}

/// Where literals occur.
#[derive(Debug, Default, Clone)]
pub struct Hits {
    by_literal: FxHashMap<u32, Vec<u64>>,
    /// Who looked, and so what for.
    side: Side,
    /// Patterns of which something occurs, where that was asked since the last occurrence.
    touched: RefCell<Bits>,
    is_touched_told: Cell<bool>,
    /// By pattern: what a close look at the content found.
    looked: RefCell<FxHashMap<usize, Presence>>,
    /// Patterns of which a pass over the content met a part.
    met: RefCell<FxHashSet<usize>>,
    /// What the PE module told: fields by their names, `None`: undefined.
    numbers: RefCell<FxHashMap<&'static str, Option<i64>>>,
    /// The close look has begun.
    glanced: Cell<bool>,
}

impl Hits {
    /// Adds an occurrence of `literal` at `offset`. False: there were [`HITS_MAX`] already, it is
    /// not kept.
    pub fn add(&mut self, literal: u32, offset: u64) -> bool {
        self.is_touched_told.set(false);
        let offsets = self.by_literal.entry(literal).or_default();
        let kept = offsets.len() <= HITS_MAX;
        if kept {
            offsets.push(offset);
        }
        kept
    }

    /// What an agent reported.
    pub fn of_report(report: &Report) -> Self {
        let mut hits = Self {
            side: Side::Agent,
            ..Self::default()
        };
        for (literal, offsets, more) in report.iter() {
            let mut offsets = offsets.to_vec();
            // One more than are kept: there are others.
            offsets.extend(more.then(|| offsets.last().copied().unwrap_or(0)));
            hits.by_literal.insert(literal, offsets);
        }
        hits
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.by_literal.clear();
        self.is_touched_told.set(false);
        self.looked.get_mut().clear();
        self.met.get_mut().clear();
        self.numbers.get_mut().clear();
        self.glanced.set(false);
    }

    /// The patterns of a plan of `patterns` of which something occurs that `look` looked for.
    pub(crate) fn touched(&self, look: &Look, patterns: usize) -> Ref<'_, Bits> {
        if !self.is_touched_told.replace(true) {
            let mut touched = self.touched.borrow_mut();
            touched.reset(patterns);
            for literal in self.literals() {
                for user in look.users(literal) {
                    touched.insert(*user as usize);
                }
            }
        }
        self.touched.borrow()
    }

    /// Notes what YARA-X's PE module says of a field of this file; `None`: it is undefined.
    pub fn tell_number(&self, field: &'static str, value: Option<i64>) {
        self.numbers.borrow_mut().insert(field, value);
    }

    pub(crate) fn number(&self, field: &str) -> Option<Option<i64>> {
        self.numbers.borrow().get(field).copied()
    }

    /// Notes that the close look begins; whether it had already.
    pub(crate) fn glance(&self) -> bool {
        self.glanced.replace(true)
    }

    pub(crate) fn looked(&self, pattern: usize) -> Option<Presence> {
        self.looked.borrow().get(&pattern).copied()
    }

    /// Notes what a pass over the content says of a pattern.
    pub(crate) fn note_glance(&self, pattern: usize, presence: Presence) {
        match presence {
            // A look at the place may tell more.
            Presence::Maybe(_) => drop(self.met.borrow_mut().insert(pattern)),
            Presence::Absent | Presence::Present(_) => self.note_look(pattern, presence),
        }
    }

    pub(crate) fn is_met(&self, pattern: usize) -> bool {
        self.met.borrow().contains(&pattern)
    }

    pub(crate) fn note_look(&self, pattern: usize, presence: Presence) {
        self.looked.borrow_mut().insert(pattern, presence);
    }

    /// Occurrences of `literal`; more than [`HITS_MAX`]: there may be others.
    pub fn of(&self, literal: u32) -> &[u64] {
        self.by_literal.get(&literal).map_or(&[], Vec::as_slice)
    }

    /// Literals that occur.
    pub fn literals(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_literal.keys().copied()
    }

    /// Occurrences kept.
    pub fn len(&self) -> usize {
        self.by_literal.values().map(Vec::len).sum()
    }

    /// No literal occurs.
    pub fn is_empty(&self) -> bool {
        self.by_literal.is_empty()
    }
}
