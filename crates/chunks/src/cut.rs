//! Where chunks end.
//!
//! `Members` looks for the four bytes with which a ZIP member or the directory begins, as `Content` looks for places
//! where a rolling hash has zeros: no length, name or offset of the archive is read, nothing
//! follows from a hit but a cut, and a signature in the midst of other data costs a short chunk.

use fastcdc::v2020::{self, Normalization};
use memchr::memmem;

use crate::kind::Kind;
use crate::manifest::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

const MEMBER: &[u8] = b"PK\x03\x04";
/// Before each entry of the directory at the end, which is another one after any change: the last
/// member need not be sent with it.
const ENTRY: &[u8] = b"PK\x01\x02";
const CONTENT_BYTES_MIN: usize = 4096;
const CONTENT_BYTES_AVERAGE: usize = 16 * 1024;
/// What a cut may depend on: the longest chunk and a signature that begins in it.
const LOOKAHEAD_BYTES: usize = CHUNK_BYTES_MAX as usize + MEMBER.len() - 1;

/// Cuts a stream of bytes, the same however it is handed over.
#[derive(Debug)]
pub(crate) struct Cutter {
    kind: Kind,
    masks: (u64, u64),
    /// Bytes behind the last cut.
    pending: Vec<u8>,
}

impl Cutter {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            masks: v2020::select_masks(CONTENT_BYTES_AVERAGE, Normalization::Level1),
            pending: Vec::new(),
        }
    }

    /// Takes bytes; each chunk that is complete goes to `take`.
    pub(crate) fn update(&mut self, bytes: &[u8], take: impl FnMut(&[u8])) {
        if let Some(fixed) = self.kind.fixed_bytes() {
            return self.update_fixed(bytes, fixed as usize, take);
        }
        self.pending.extend_from_slice(bytes);
        self.cut(LOOKAHEAD_BYTES, take);
    }

    /// Chunks of `fixed` bytes, out of `bytes` themselves where they lie in there whole. The last one
    /// is left for the end, full or not.
    fn update_fixed(&mut self, bytes: &[u8], fixed: usize, mut take: impl FnMut(&[u8])) {
        let mut rest = bytes;
        if !self.pending.is_empty() {
            let missing = fixed.saturating_sub(self.pending.len());
            let (head, after) = rest.split_at(missing.min(rest.len()));
            self.pending.extend_from_slice(head);
            if after.is_empty() {
                return;
            }
            take(&self.pending);
            self.pending.clear();
            rest = after;
        }
        while rest.len() > fixed {
            let (chunk, after) = rest.split_at(fixed);
            take(chunk);
            rest = after;
        }
        self.pending.extend_from_slice(rest);
    }

    /// There are no more bytes than these.
    pub(crate) fn finish_with(mut self, last: &[u8], take: impl FnMut(&[u8])) {
        if self.pending.is_empty() {
            self.cut_from(last, 1, take);
        } else {
            self.pending.extend_from_slice(last);
            self.cut_from(&self.pending, 1, take);
        }
    }

    fn cut(&mut self, at_least: usize, take: impl FnMut(&[u8])) {
        let cut = self.cut_from(&self.pending, at_least, take);
        self.pending.drain(..cut);
    }

    /// Cuts until fewer bytes than `at_least` are left; how many went.
    fn cut_from(&self, bytes: &[u8], at_least: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut from = 0;
        while let Some(rest) = bytes.get(from..).filter(|it| it.len() >= at_least) {
            let len = self.first(rest);
            take(rest.get(..len).unwrap_or_default());
            from += len;
        }
        from
    }

    /// Length of the first chunk of `rest`, which is not empty; never 0.
    fn first(&self, rest: &[u8]) -> usize {
        if let Some(fixed) = self.kind.fixed_bytes() {
            return rest.len().min(fixed as usize);
        }
        let by_content = self.by_content(rest);
        if self.kind != Kind::Members {
            return by_content;
        }
        let least = CHUNK_BYTES_MIN as usize;
        let reach = rest.len().min(by_content + MEMBER.len() - 1);
        let within = rest.get(least..reach).unwrap_or_default();
        let member = memmem::find(within, MEMBER);
        let first_entry = if rest.starts_with(ENTRY) {
            None
        } else {
            memmem::find(within, ENTRY)
        };
        let cut = member.into_iter().chain(first_entry).min();
        cut.map_or(by_content, |at| least + at)
    }

    fn by_content(&self, rest: &[u8]) -> usize {
        let (strict, loose) = self.masks;
        let (_, len) = v2020::cut(
            rest,
            CONTENT_BYTES_MIN,
            CONTENT_BYTES_AVERAGE,
            CHUNK_BYTES_MAX as usize,
            strict,
            loose,
            strict << 1,
            loose << 1,
        );
        len.clamp(1, rest.len())
    }
}
