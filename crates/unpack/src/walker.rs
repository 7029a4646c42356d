//! The recursion: visits a member, finds out what it is, opens it.

use std::any::Any;
use std::io::Read;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::budget::{Budget, Source};
use crate::format::Format;
use crate::limits::{Limits, NAME_BYTES_MAX};
use crate::sink::{Sink, Unpacked};
use crate::summary::{End, Incomplete, IncompleteKind, Member, Problem, Summary};

/// The walk is over: a limit on the whole, the visitor or the budget ended it.
#[derive(Debug)]
pub(crate) struct Stop;

/// Why the opening of one container ended early.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The walk is over.
    Stop,
    /// This container cannot be read on; its siblings can.
    Broken(Problem),
}

impl From<Stop> for Halt {
    fn from(Stop: Stop) -> Self {
        Self::Stop
    }
}

impl From<Problem> for Halt {
    fn from(problem: Problem) -> Self {
        Self::Broken(problem)
    }
}

type Visit<'v> = dyn FnMut(&Member<'_>) -> ControlFlow<()> + 'v;

/// State of one walk.
pub(crate) struct Walker<'w> {
    limits: Limits,
    budget: &'w Budget<'w>,
    visit: &'w mut Visit<'w>,
    root_name: Option<&'w [u8]>,
    path: Vec<Vec<u8>>,
    members: u64,
    visited_bytes: u64,
    /// Bytes counted against `total_bytes_max`: those visited and those decoded to be skipped.
    total_bytes: u64,
    window_bytes_left: u64,
    incomplete: Option<Incomplete>,
    end: End,
    visitor_panic: Option<Box<dyn Any + Send>>,
}

impl<'w> Walker<'w> {
    pub(crate) fn new(
        root_name: Option<&'w [u8]>,
        limits: &Limits,
        budget: &'w Budget<'w>,
        visit: &'w mut Visit<'w>,
    ) -> Self {
        let limits = limits.clamped();
        Self {
            limits,
            budget,
            visit,
            root_name,
            path: Vec::new(),
            members: 0,
            visited_bytes: 0,
            total_bytes: 0,
            window_bytes_left: limits.window_bytes_max,
            incomplete: None,
            end: End::Done,
            visitor_panic: None,
        }
    }

    /// Walks `content` and reports. A panic of the visitor goes on from here.
    pub(crate) fn run(mut self, content: &[u8], format: Option<Format>) -> Summary {
        if let Some(format) = format.filter(|_| self.limits.depth_max > 0) {
            // The walk ends here either way; `self` knows why.
            let _ended = self.open_as(format, content);
        }
        if let Some(panic) = self.visitor_panic {
            resume_unwind(panic);
        }
        Summary {
            members: self.members,
            bytes: self.visited_bytes,
            incomplete: self.incomplete,
            end: self.end,
        }
    }

    /// Content for a third-party parser; see [`Source`].
    pub(crate) fn source<'a>(&self, bytes: &'a [u8]) -> Source<'a>
    where
        'w: 'a,
    {
        Source::new(bytes, self.budget)
    }

    /// A capped place for one member's output.
    pub(crate) fn sink(&self, packed_bytes: usize) -> Sink<'w> {
        Sink::new(
            &self.limits,
            self.total_bytes,
            packed_bytes as u64,
            self.budget,
        )
    }

    /// Members that may still be visited.
    pub(crate) fn entries_left(&self) -> u64 {
        u64::from(self.limits.entries_max).saturating_sub(self.members)
    }

    /// Memory that a decoder may ask for now.
    pub(crate) fn window_bytes(&self) -> u64 {
        self.window_bytes_left
    }

    /// Runs `inner` while half of the decoders' memory is spoken for, so that nested archives
    /// together stay below the limit.
    pub(crate) fn with_half_window<T>(&mut self, inner: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.window_bytes_left;
        self.window_bytes_left = before / 2;
        let result = inner(self);
        self.window_bytes_left = before;
        result
    }

    /// A step that visits nothing, such as a directory's header.
    pub(crate) fn step(&mut self) -> Result<(), Stop> {
        if self.budget.spend(0) {
            self.end = End::Budget;
            return Err(Stop);
        }
        Ok(())
    }

    /// Notes what kept the container at hand from being shown whole. The first one is kept.
    pub(crate) fn note(&mut self, problem: Problem) {
        if self.incomplete.is_none() && !self.budget.is_stopped() {
            self.incomplete = Some(Incomplete {
                kind: problem.kind,
                path: self.path.clone(),
                detail: problem.detail,
            });
        }
    }

    /// As [`Self::note`], for a member that is not visited because nothing of it can be read.
    pub(crate) fn note_member(&mut self, name: &[u8], problem: Problem) {
        self.path.push(cut_name(name));
        self.note(problem);
        self.path.pop();
    }

    /// The name of what is being opened, for formats whose only member has none.
    pub(crate) fn own_name(&self) -> Option<&[u8]> {
        self.path.last().map(Vec::as_slice).or(self.root_name)
    }

    /// Counts bytes that were decoded only to be skipped.
    pub(crate) fn skipped(&mut self, bytes: u64) -> Result<(), Stop> {
        self.total_bytes = self.total_bytes.saturating_add(bytes);
        if self.total_bytes > self.limits.total_bytes_max {
            return Err(self.end_total_bytes());
        }
        self.step()
    }

    /// A member that lies in its container as it is.
    pub(crate) fn stored(&mut self, name: &[u8], bytes: &[u8]) -> Result<(), Stop> {
        self.member(name, bytes, None)
    }

    /// A member that `reader` decodes from `packed_bytes` of the container.
    pub(crate) fn decoded(
        &mut self,
        name: &[u8],
        packed_bytes: usize,
        reader: &mut dyn Read,
    ) -> Result<(), Stop> {
        let mut sink = self.sink(packed_bytes);
        sink.fill("member", reader);
        self.unpacked(name, sink.finish())
    }

    /// A member that a sink took.
    pub(crate) fn unpacked(&mut self, name: &[u8], unpacked: Unpacked) -> Result<(), Stop> {
        self.member(name, &unpacked.bytes, unpacked.problem)
    }

    /// Visits a member, then opens it if it is a container itself.
    pub(crate) fn member(
        &mut self,
        name: &[u8],
        bytes: &[u8],
        problem: Option<Problem>,
    ) -> Result<(), Stop> {
        self.step()?;
        if self.entries_left() == 0 {
            let max = self.limits.entries_max;
            self.note(Problem::new(
                IncompleteKind::Entries,
                format!("more than {max} members"),
            ));
            return Err(Stop);
        }
        self.path.push(cut_name(name));
        let total_hit = problem
            .as_ref()
            .is_some_and(|problem| problem.kind == IncompleteKind::TotalBytes);
        if let Some(problem) = problem {
            self.note(problem);
        }
        let (bytes, last) = self.capped(bytes);
        let mut outcome = self.show(bytes);
        if outcome.is_ok() {
            outcome = if last || total_hit {
                Err(Stop)
            } else {
                self.open(bytes)
            };
        }
        self.path.pop();
        outcome
    }

    /// The part of a member that the limits allow, and whether it is the last of the walk.
    fn capped<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], bool) {
        let cap = |max: u64| usize::try_from(max).map_or(bytes.len(), |max| max.min(bytes.len()));
        let by_entry = cap(self.limits.entry_bytes_max);
        let by_total = cap(self.limits.total_bytes_max.saturating_sub(self.total_bytes));
        if by_entry < bytes.len() && by_entry <= by_total {
            let max = self.limits.entry_bytes_max;
            self.note(Problem::new(
                IncompleteKind::EntryBytes,
                format!("the member has more than {max} bytes"),
            ));
        }
        let last = by_total < bytes.len() && by_total < by_entry;
        if last {
            let Stop = self.end_total_bytes();
        }
        let shown = &bytes[..by_entry.min(by_total)];
        self.total_bytes += shown.len() as u64;
        (shown, last)
    }

    fn end_total_bytes(&mut self) -> Stop {
        let max = self.limits.total_bytes_max;
        self.note(Problem::new(
            IncompleteKind::TotalBytes,
            format!("the members have more than {max} bytes together"),
        ));
        Stop
    }

    /// Calls the visitor. Its panic is kept for the end of the walk, so that no parser's guard
    /// takes it for its own.
    fn show(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.members += 1;
        self.visited_bytes += bytes.len() as u64;
        let member = Member {
            path: &self.path,
            bytes,
        };
        match catch_unwind(AssertUnwindSafe(|| (self.visit)(&member))) {
            Ok(ControlFlow::Continue(())) => Ok(()),
            Ok(ControlFlow::Break(())) => {
                self.end = End::Visitor;
                Err(Stop)
            }
            Err(panic) => {
                self.visitor_panic = Some(panic);
                Err(Stop)
            }
        }
    }

    /// Opens `bytes` if they are a container and the depth allows it.
    fn open(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let Some(format) = Format::detect(bytes) else {
            return Ok(());
        };
        if self.path.len() >= self.limits.depth_max as usize {
            let max = self.limits.depth_max;
            self.note(Problem::new(
                IncompleteKind::Depth,
                format!("a {format} deeper than {max} levels"),
            ));
            return Ok(());
        }
        self.open_as(format, bytes)
    }

    /// Opens `bytes` as `format`. A parser's panic is that container's damage and no more.
    fn open_as(&mut self, format: Format, bytes: &[u8]) -> Result<(), Stop> {
        let (depth, window) = (self.path.len(), self.window_bytes_left);
        let outcome = catch_unwind(AssertUnwindSafe(|| format.open(self, bytes)));
        self.path.truncate(depth);
        self.window_bytes_left = window;
        let problem = match outcome {
            Ok(Ok(())) => return self.step(),
            Ok(Err(Halt::Stop)) => return Err(Stop),
            Ok(Err(Halt::Broken(problem))) => problem,
            Err(panic) => Problem::malformed(format!("{format}: {}", panic_text(&*panic))),
        };
        self.step()?;
        self.note(problem);
        Ok(())
    }
}

fn cut_name(name: &[u8]) -> Vec<u8> {
    name[..name.len().min(NAME_BYTES_MAX)].to_vec()
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the parser panicked: {}", text.unwrap_or("no message"))
}
