//! A pack looking through one file that comes in pieces.

use std::ops::ControlFlow;

use crate::{Pack, Report, Stream};

/// Scans a file piece by piece, in order, in memory that does not grow with it. What it finds is
/// what a scan of the whole at once finds, wherever the pieces end.
#[derive(Debug)]
pub struct PackScan<'a> {
    pack: &'a Pack,
    literals: Stream<'a>,
    /// Bytes around the places where no needle was looked for yet: as far before them as a needle
    /// reaches, and all that came after.
    window: Vec<u8>,
    /// Where the window starts in the file.
    origin: u64,
    /// In the window: needles whose key lies before this were looked for.
    done: usize,
    report: Report,
    too_large: bool,
}

impl Pack {
    /// Looks through a whole file at once; what [`PackScan`] finds, which has more steps for needles.
    /// `None`: there is more than a report can tell.
    #[must_use]
    pub fn scan(&self, whole: &[u8]) -> Option<Report> {
        let mut report = Report::default();
        let first = self.filter().len() as u32;
        let filtered = self
            .filter()
            .scan(whole, &mut |id, at| report.add(id, at as u64));
        let needles = self.needles();
        let looked = filtered.is_continue()
            && needles
                .scan(whole, 0, whole.len(), &mut |id, at| {
                    report.add(first + id, at as u64)
                })
                .is_continue();
        looked.then_some(report)
    }
}

impl<'a> PackScan<'a> {
    /// At the start of a file.
    #[must_use]
    pub fn new(pack: &'a Pack) -> Self {
        Self {
            pack,
            literals: Stream::new(pack.filter()),
            window: Vec::new(),
            origin: 0,
            done: 0,
            report: Report::default(),
            too_large: false,
        }
    }

    /// Looks through the next piece. `Break`: there is more than a report can tell, and further
    /// pieces change nothing.
    pub fn push(&mut self, piece: &[u8]) -> ControlFlow<()> {
        let flow = self.look(piece);
        self.too_large |= flow.is_break();
        flow
    }

    fn look(&mut self, piece: &[u8]) -> ControlFlow<()> {
        if self.too_large {
            return ControlFlow::Break(());
        }
        let report = &mut self.report;
        self.literals
            .push(piece, &mut |id, at| report.add(id, at))?;
        let reach = self.pack.needles().reach();
        if reach == 0 {
            return ControlFlow::Continue(());
        }
        self.window.extend_from_slice(piece);
        // Of keys further on the needle may end in the next piece.
        let end = self.window.len().saturating_sub(reach);
        self.needles(end)?;
        let drop = self.done.saturating_sub(reach);
        self.window.drain(..drop);
        self.done -= drop;
        self.origin += drop as u64;
        ControlFlow::Continue(())
    }

    /// Looks for needles whose key starts before `end`.
    fn needles(&mut self, end: usize) -> ControlFlow<()> {
        let end = end.max(self.done);
        let first = self.pack.filter().len() as u32;
        let (origin, report) = (self.origin, &mut self.report);
        let on_hit = &mut |id: u32, at: usize| report.add(first + id, origin + at as u64);
        self.pack
            .needles()
            .scan(&self.window, self.done, end, on_hit)?;
        self.done = end;
        ControlFlow::Continue(())
    }

    /// Ends the file. `None`: there is more than a report can tell. A report may still be too long
    /// to travel: [`Report::to_bytes`] says.
    #[must_use]
    pub fn finish(mut self) -> Option<Report> {
        if self.too_large || self.needles(self.window.len()).is_break() {
            return None;
        }
        Some(self.report)
    }
}
