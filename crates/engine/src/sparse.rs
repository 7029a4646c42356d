//! Content of which only some ranges are known.
//!
//! The host lays it out in a memory file: first the pages of which every byte is known, each at
//! its offset and *holes* between them, then, packed, what is left of the known ranges. For what
//! reads everything, such as the search for patterns, a worker makes a copy with all that is known
//! and zeros elsewhere, which take no memory as long as nobody reads them. For parsers it maps the
//! first part: the kernel makes a page of a hole that is read, and the file then has it, so the
//! worker learns exactly which pages its parsers have read that are not known.
//!
//! Most reports are decided by little more than the head. That little is *packed* into the job's own
//! packet, which costs no file; a worker whose parsers want to see it asks for the layout.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use model::Ranges;
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek};
use rustix::io::Errno;

use bytes::Bytes;

use crate::host::{Content, INLINE_MAX_BYTES};
use crate::sys::{Mapping, Zeros};

/// What the kernel maps at once, at least.
pub const PAGE_BYTES: u64 = 4096;
/// The largest content of which a part is judged: a worker's address space has it twice.
pub const CONTENT_MAX_BYTES: u64 = 1 << 30;
/// Bytes copied at a time.
const COPY_BYTES: u64 = 64 << 10;
/// Zeros that are kept for the next content, bytes: to map and unmap them costs as much as to judge
/// most content.
const SPARE_BYTES: usize = 1 << 20;
/// They are kept where at most so many have to be made zeros again.
const CLEARED_MAX_BYTES: u64 = 64 << 10;

thread_local! {
    /// Nothing but zeros.
    static SPARE: Cell<Option<Zeros>> = const { Cell::new(None) };
}

/// Reads bytes of a file at an offset.
pub type ReadAt<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>;

/// Lays out `known` of a file of `size` bytes, which `read` reads, for a job with the same.
///
/// # Errors
/// Out of memory or descriptors; those of `read`.
pub fn lay_out(size: u64, known: &Ranges, read: ReadAt<'_>) -> io::Result<Content> {
    let file = File::from(memfd_create(
        "lazaret-sparse",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    let layout = Layout::new(size, known);
    file.set_len(layout.end)?;
    let mut buffer = Vec::new();
    for (from, to) in layout.parts() {
        let mut done = 0;
        while done < from.end - from.start {
            let len = COPY_BYTES.min(from.end - from.start - done);
            buffer.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
            read(from.start + done, &mut buffer)?;
            file.write_all_at(&buffer, to + done)?;
            done += len;
        }
    }
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(Content::Sealed {
        fd: Arc::new(file.into()),
        size,
    })
}

/// Packs `known` of a file, which `read` reads, where it is small; lays it out where it is not.
///
/// # Errors
/// As [`lay_out`].
pub fn pack(size: u64, known: &Ranges, read: ReadAt<'_>) -> io::Result<Content> {
    if known.bytes() > INLINE_MAX_BYTES as u64 {
        return lay_out(size, known, read);
    }
    let mut packed = Vec::new();
    for range in known.iter() {
        let from = packed.len();
        let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        packed.resize(from + len, 0);
        read(range.start, packed.get_mut(from..).unwrap_or_default())?;
    }
    Ok(Content::Inline(packed.into()))
}

/// Lays out what was packed.
///
/// # Errors
/// As [`lay_out`].
pub(crate) fn unpack(size: u64, known: &Ranges, packed: &Bytes) -> io::Result<Content> {
    let mut read = |offset: u64, buffer: &mut [u8]| {
        let mut at = 0;
        let within = known.iter().find_map(|range| {
            let here = at;
            at += range.end - range.start;
            range.contains(&offset).then(|| here + offset - range.start)
        });
        let from = within.and_then(|at| usize::try_from(at).ok());
        let piece = from.and_then(|from| packed.get(from..from + buffer.len()));
        buffer.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    lay_out(size, known, &mut read)
}

/// Where what is.
struct Layout {
    /// Pages with nothing unknown, at their offsets.
    pages: Ranges,
    /// The rest of what is known.
    edges: Vec<Range<u64>>,
    /// Where the first edge is in the file.
    edges_at: u64,
    end: u64,
}

impl Layout {
    fn new(size: u64, known: &Ranges) -> Self {
        let (mut pages, mut edges) = (Ranges::new(), Vec::new());
        for range in known.iter() {
            let range = range.start.min(size)..range.end.min(size);
            let first = range.start.next_multiple_of(PAGE_BYTES);
            // Behind the last byte there is nothing to know.
            let last = match range.end == size {
                true => size,
                false => range.end / PAGE_BYTES * PAGE_BYTES,
            };
            if first < last {
                pages.add(first..last);
                edges.extend([range.start..first, last..range.end]);
            } else {
                edges.push(range);
            }
        }
        edges.retain(|edge| !edge.is_empty());
        let edges_at = size.next_multiple_of(PAGE_BYTES);
        let packed: u64 = edges.iter().map(|edge| edge.end - edge.start).sum();
        Self {
            pages,
            edges,
            edges_at,
            end: edges_at + packed,
        }
    }

    /// Ranges of the content, and where they are in the file.
    fn parts(&self) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        let pages = self.pages.iter().map(|range| (range.clone(), range.start));
        let mut at = self.edges_at;
        let edges = self.edges.iter().map(move |edge| {
            let here = at;
            at += edge.end - edge.start;
            (edge.clone(), here)
        });
        pages.chain(edges)
    }
}

/// Content that was laid out, in a worker.
pub struct SparseView {
    /// `None`: it came packed.
    file: Option<File>,
    /// A parser would have seen it.
    wants_layout: Cell<bool>,
    /// Made when a parser first asks for it: most content is decided before.
    mapping: OnceCell<Mapping>,
    layout: Layout,
    size: usize,
    known: Ranges,
    /// At least `size` of them.
    bytes: Option<Zeros>,
}

impl SparseView {
    /// Reads what [`lay_out`] made of the same size and ranges.
    ///
    /// # Errors
    /// For people: the file is too short, or larger than [`CONTENT_MAX_BYTES`] or than the memory.
    pub fn open(fd: OwnedFd, size: u64, known: Ranges) -> Result<Self, String> {
        let mut view = Self::empty(size, known)?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| format!("content: {e}"))?;
        if u64::try_from(stat.st_size) != Ok(view.layout.end) {
            let (has, wanted) = (stat.st_size, view.layout.end);
            return Err(format!("sparse content has {has} of {wanted} bytes"));
        }
        let file = File::from(fd);
        let bytes = room(&mut view.bytes, view.size);
        for (from, to) in view.layout.parts() {
            let read = file.read_exact_at(part(bytes, from)?, to);
            read.map_err(|error| format!("content: {error}"))?;
        }
        view.file = Some(file);
        Ok(view)
    }

    /// Takes what [`pack`] packed of the same size and ranges.
    ///
    /// # Errors
    /// For people: it has another length, or is larger than [`CONTENT_MAX_BYTES`] or than the memory.
    pub fn of_packed(packed: &[u8], size: u64, known: Ranges) -> Result<Self, String> {
        let mut view = Self::empty(size, known)?;
        if packed.len() as u64 != view.known.bytes() {
            let (has, wanted) = (packed.len(), view.known.bytes());
            return Err(format!("packed content has {has} of {wanted} bytes"));
        }
        let bytes = room(&mut view.bytes, view.size);
        let mut rest = packed;
        for range in view.known.iter() {
            let target = part(bytes, range.clone())?;
            let (piece, after) = rest.split_at_checked(target.len()).unwrap_or_default();
            target.copy_from_slice(piece);
            rest = after;
        }
        Ok(view)
    }

    /// Zeros.
    fn empty(size: u64, known: Ranges) -> Result<Self, String> {
        if size > CONTENT_MAX_BYTES {
            return Err(format!("{size} bytes are too many to be judged in part"));
        }
        let layout = Layout::new(size, &known);
        let length = |bytes: u64| usize::try_from(bytes).map_err(|e| e.to_string());
        let size = length(size)?;
        let zeros =
            |len| Zeros::new(len).map_err(|error| format!("no memory for {size} bytes: {error}"));
        let bytes = match size {
            0 => None,
            1..=SPARE_BYTES => Some(SPARE.take().map_or_else(|| zeros(SPARE_BYTES), Ok)?),
            _ => Some(zeros(size)?),
        };
        Ok(Self {
            file: None,
            wants_layout: Cell::new(false),
            mapping: OnceCell::new(),
            layout,
            size,
            known,
            bytes,
        })
    }

    /// As many bytes as the file has: what is known, and zeros.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let bytes = self.bytes.as_deref().unwrap_or_default();
        bytes.get(..self.size).unwrap_or_default()
    }

    /// What is known.
    #[must_use]
    pub fn known(&self) -> &Ranges {
        &self.known
    }

    /// As many bytes as the file has: whole known pages, and zeros. [`Self::touched`] tells what
    /// has been read of it.
    ///
    /// # Errors
    /// For people: there is no room for it, or it came packed. Then it is [wanted](Self::wants_layout).
    pub fn guarded(&self) -> Result<&[u8], String> {
        if self.size == 0 {
            return Ok(&[]);
        }
        let Some(file) = &self.file else {
            self.wants_layout.set(true);
            return Err("the content is not laid out".to_owned());
        };
        let mapping = match self.mapping.get() {
            Some(mapping) => mapping,
            None => {
                let mapping = Mapping::new(file.as_fd(), self.size).map_err(|error| {
                    format!("cannot map {} bytes of content: {error}", self.size)
                })?;
                self.mapping.get_or_init(|| mapping)
            }
        };
        Ok(mapping)
    }

    /// A parser would have seen it, but it came packed: nothing is decided.
    #[must_use]
    pub fn wants_layout(&self) -> bool {
        self.wants_layout.get()
    }

    /// Pages read through [`Self::guarded`] so far that are not known.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn touched(&self) -> io::Result<Ranges> {
        let mut there = Ranges::new();
        let Some(file) = &self.file else {
            return Ok(there);
        };
        let mut at = 0;
        while at < self.layout.edges_at {
            let data = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data,
                // No more of it.
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            let hole = seek(file, SeekFrom::Hole(data))?;
            there.add(data..hole.min(self.size as u64));
            at = hole.max(data + 1);
        }
        Ok(there.without(&self.layout.pages))
    }
}

impl Drop for SparseView {
    /// Nothing but what is known was ever written.
    fn drop(&mut self) {
        let is_spare =
            |zeros: &Zeros| zeros.len() == SPARE_BYTES && self.known.bytes() <= CLEARED_MAX_BYTES;
        let Some(mut zeros) = self.bytes.take().filter(is_spare) else {
            return;
        };
        let mut clear = |range| part(&mut zeros, range).map(|bytes| bytes.fill(0));
        if self.known.iter().all(|range| clear(range).is_ok()) {
            SPARE.set(Some(zeros));
        }
    }
}

/// Where content of this size goes: there may be more zeros.
fn room(zeros: &mut Option<Zeros>, size: usize) -> &mut [u8] {
    let bytes = zeros.as_deref_mut().unwrap_or_default();
    bytes.get_mut(..size).unwrap_or_default()
}

/// Where this range of the content goes.
fn part(bytes: &mut [u8], range: Range<u64>) -> Result<&mut [u8], String> {
    let start = usize::try_from(range.start).ok();
    let end = usize::try_from(range.end).ok();
    let range = start.zip(end).map(|(start, end)| start..end);
    let target = range.and_then(|range| bytes.get_mut(range));
    target.ok_or_else(|| "sparse content is not as announced".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::ftruncate;

    fn view(content: &[u8], known: &Ranges) -> SparseView {
        let mut read = |offset: u64, buffer: &mut [u8]| {
            let from = usize::try_from(offset).expect("small");
            buffer.copy_from_slice(&content[from..from + buffer.len()]);
            Ok(())
        };
        let size = content.len() as u64;
        let Content::Sealed { fd, .. } = lay_out(size, known, &mut read).expect("laid out") else {
            panic!("inline");
        };
        let fd = fd.try_clone().expect("a descriptor");
        SparseView::open(fd, size, known.clone()).expect("opened")
    }

    #[test]
    fn what_is_known_is_there_and_what_is_read_is_told() {
        let content: Vec<u8> = (0..50_001u32).map(|i| (i % 251) as u8 | 1).collect();
        let known: Ranges = [0..10, 100..9000, 20_000..20_001, 48_000..50_001]
            .into_iter()
            .collect();
        let view = view(&content, &known);
        for (at, byte) in view.bytes().iter().enumerate() {
            let expected = match known.contains(&(at as u64..at as u64 + 1)) {
                true => content[at],
                false => 0,
            };
            assert_eq!(*byte, expected, "{at}");
        }
        assert!(view.touched().expect("told").is_empty(), "nothing was read");
        let guarded = view.guarded().expect("mapped");
        assert_eq!(guarded.len(), content.len());
        // Known pages tell nothing new; the end of the file counts as a page.
        assert_eq!(
            (guarded[5000], guarded[50_000]),
            (content[5000], content[50_000])
        );
        assert!(view.touched().expect("told").is_empty());
        // Pages of which a part is known, or nothing.
        assert_eq!((guarded[5], guarded[30_000]), (0, 0));
        let expected: Ranges = [0..4096, 28_672..32_768].into_iter().collect();
        assert_eq!(view.touched().expect("told"), expected);
    }

    #[test]
    fn what_is_packed_is_known_as_well_and_laid_out_where_parsers_ask() {
        let content: Vec<u8> = (0..50_001u32).map(|i| (i % 251) as u8 | 1).collect();
        let known: Ranges = [0..10, 100..9000, 48_000..50_001].into_iter().collect();
        let size = content.len() as u64;
        let mut read = |offset: u64, buffer: &mut [u8]| {
            let from = usize::try_from(offset).expect("small");
            buffer.copy_from_slice(&content[from..from + buffer.len()]);
            Ok(())
        };
        let Content::Inline(packed) = pack(size, &known, &mut read).expect("packed") else {
            panic!("laid out");
        };
        let whole = Ranges::of(0..size);
        let more = pack(size * 2, &Ranges::of(0..size * 2), &mut |_, _| Ok(())).expect("laid out");
        assert!(matches!(more, Content::Sealed { .. }));
        assert!(SparseView::of_packed(&packed, size, whole).is_err());
        let view = SparseView::of_packed(&packed, size, known.clone()).expect("taken");
        assert!(view.touched().expect("told").is_empty() && !view.wants_layout());
        assert!(view.guarded().is_err() && view.wants_layout());
        let laid_out = unpack(size, &known, &packed).expect("laid out");
        let Content::Sealed { fd, .. } = laid_out else {
            panic!("inline");
        };
        let fd = fd.try_clone().expect("a descriptor");
        let opened = SparseView::open(fd, size, known).expect("opened");
        assert_eq!(opened.bytes(), view.bytes());
        assert_eq!(opened.bytes()[48_000..], content[48_000..]);
        assert!(opened.guarded().is_ok());
    }

    #[test]
    fn nothing_of_a_content_is_left_for_the_next() {
        let whole = |size: u64| Ranges::of(0..size);
        let mut was_kept = false;
        for (size, known) in [
            (50_001, whole(50_001)),
            (SPARE_BYTES as u64, whole(300_000)),
            (100, whole(100)),
            (
                2 * SPARE_BYTES as u64,
                [0..10, 1_500_000..1_500_010].into_iter().collect(),
            ),
        ] {
            let packed = vec![7; usize::try_from(known.bytes()).expect("small")];
            let view = SparseView::of_packed(&packed, size, known).expect("taken");
            let address = view.bytes().as_ptr();
            drop(view);
            // Refused when some of it is there already.
            let beyond = [0..4, 99..101].into_iter().collect();
            assert!(SparseView::of_packed(&[7; 6], 100, beyond).is_err());
            let next = SparseView::of_packed(&[], 1 << 20, Ranges::new()).expect("taken");
            assert!(next.bytes().iter().all(|byte| *byte == 0));
            was_kept |= next.bytes().as_ptr() == address;
        }
        assert!(was_kept);
    }

    #[test]
    fn nothing_known_and_nothing_there() {
        let view = view(&[], &Ranges::new());
        assert!(view.bytes().is_empty());
        assert!(view.guarded().is_ok_and(<[u8]>::is_empty));
        assert!(view.touched().expect("told").is_empty());
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let fd = memfd_create("x", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, 100).expect("resized");
        let opened = SparseView::open(fd.try_clone().expect("a descriptor"), 100, Ranges::new());
        assert!(opened.is_err());
        let opened = SparseView::open(fd, CONTENT_MAX_BYTES + 1, Ranges::new());
        assert!(opened.is_err_and(|error| error.contains("too many")));
    }
}
