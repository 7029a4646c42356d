use std::ops::ControlFlow;

use crate::Filter;

/// Scans a file that comes in pieces, in order. The hits are those of the whole file, each once.
///
/// A push costs the scan of the piece, and at most two lengths of the longest literal for what
/// lies across the border.
#[derive(Debug)]
pub struct Stream<'a> {
    filter: &'a Filter,
    /// How many bytes came before.
    seen: u64,
    /// The last of them, as many as an occurrence across the border can use.
    tail: Vec<u8>,
    stopped: bool,
}

impl<'a> Stream<'a> {
    /// A stream at the start of a file.
    pub fn new(filter: &'a Filter) -> Stream<'a> {
        Stream {
            filter,
            seen: 0,
            tail: Vec::new(),
            stopped: false,
        }
    }

    /// Reports the occurrences that end in this piece, with offsets in the file.
    ///
    /// Returns `Break` as soon as `on_hit` does, and for every piece after that.
    pub fn push(
        &mut self,
        piece: &[u8],
        on_hit: &mut dyn FnMut(u32, u64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.stopped {
            return ControlFlow::Break(());
        }
        let flow = self.scan(piece, on_hit);
        self.stopped = flow.is_break();
        self.remember(piece);
        flow
    }

    fn scan(
        &self,
        piece: &[u8],
        on_hit: &mut dyn FnMut(u32, u64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let across = self.filter.longest().saturating_sub(1);
        let before = self.tail.len();
        if before > 0 && !piece.is_empty() {
            let mut joint = self.tail.clone();
            joint.extend_from_slice(&piece[..piece.len().min(across)]);
            let origin = self.seen - before as u64;
            self.filter.scan(&joint, &mut |id, at| {
                let len = self
                    .filter
                    .literal(id)
                    .map_or(0, |(literal, _)| literal.len());
                // What ends in the tail was reported, what starts in the piece will be.
                if at < before && at + len > before {
                    on_hit(id, origin + at as u64)
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        }
        self.filter
            .scan(piece, &mut |id, at| on_hit(id, self.seen + at as u64))
    }

    fn remember(&mut self, piece: &[u8]) {
        let keep = self.filter.longest().saturating_sub(1);
        let from_piece = piece.len().min(keep);
        let drop = (self.tail.len() + from_piece).saturating_sub(keep);
        self.tail.drain(..drop);
        self.tail
            .extend_from_slice(&piece[piece.len() - from_piece..]);
        self.seen += piece.len() as u64;
    }

    /// Ends the file: returns how many bytes were pushed. All hits were reported by then.
    pub fn finish(self) -> u64 {
        self.seen
    }
}
