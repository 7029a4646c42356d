//! Which content of which only a part is known may be a container.

use std::ops::Range;

use crate::Format;
use crate::formats::{compressed, cpio, iso, mime, pdf, tar, zip};

/// Bytes at the start of content by which most containers are told.
pub const HEAD_BYTES: usize = 512;

/// Bytes that some containers have elsewhere than at their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The end record of a ZIP.
    ZipEnd,
    /// The header of a PDF.
    Pdf,
    /// The magic of a volume descriptor of ISO 9660.
    Iso,
}

impl Mark {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::ZipEnd, Self::Pdf, Self::Iso];

    /// The bytes to look for.
    #[must_use]
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Self::ZipEnd => zip::END,
            Self::Pdf => pdf::HEADER,
            Self::Iso => iso::MAGIC,
        }
    }
}

/// Content of which a part is known.
pub trait Glimpse {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// The `len` bytes at `at`, fewer where the content ends; `None`: not all of them are known.
    fn get(&self, at: u64, len: usize) -> Option<&[u8]>;

    /// Places in this range at which a mark starts, by who has looked through all of the content.
    /// `None`: not all of them are known.
    fn places(&self, mark: Mark, within: Range<u64>) -> Option<Vec<u64>>;
}

/// Whether content may be a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guess {
    /// It is none: [`Format::detect`] says so of the whole.
    No,
    /// It may be one.
    Maybe,
    /// These bytes tell, or tell what to look at next. Some are not known.
    Needs(Vec<Range<u64>>),
}

impl Guess {
    pub(crate) fn of(is_container: bool) -> Self {
        match is_container {
            true => Self::Maybe,
            false => Self::No,
        }
    }

    pub(crate) fn need(at: u64, len: usize) -> Self {
        let range = at..at.saturating_add(len as u64);
        Self::Needs(std::iter::once(range).collect())
    }

    /// Of content that may be a container for any of these reasons.
    pub(crate) fn any(guesses: impl IntoIterator<Item = Self>) -> Self {
        let mut needs = Vec::new();
        for guess in guesses {
            match guess {
                Self::Maybe => return Self::Maybe,
                Self::Needs(ranges) => needs.extend(ranges),
                Self::No => {}
            }
        }
        match needs.is_empty() {
            true => Self::No,
            false => Self::Needs(needs),
        }
    }
}

impl Format {
    /// Whether content may be a container, by what is known of it. Wants [`HEAD_BYTES`] of its
    /// start, and of ordinary content little more.
    pub fn guess(glimpse: &dyn Glimpse) -> Guess {
        match Self::guess_unclamped(glimpse) {
            Guess::Needs(mut ranges) => {
                for range in &mut ranges {
                    range.end = range.end.min(glimpse.size());
                }
                Guess::Needs(ranges)
            }
            guess => guess,
        }
    }

    fn guess_unclamped(glimpse: &dyn Glimpse) -> Guess {
        let Some(head) = glimpse.get(0, HEAD_BYTES) else {
            return Guess::need(0, HEAD_BYTES);
        };
        let by_head = Self::by_magic(head).is_some()
            || compressed::starts_with_skippable(head)
            || cpio::starts_like_cpio(head)
            || tar::is_tar(head);
        if by_head {
            return Guess::Maybe;
        }
        let elsewhere: [fn(&dyn Glimpse) -> Guess; 4] =
            [iso::guess, pdf::guess, mime::guess, zip::guess_appended];
        Guess::any(elsewhere.into_iter().map(|guess| guess(glimpse)))
    }
}

/// Content of which all is known.
pub(crate) struct Whole<'a>(pub(crate) &'a [u8]);

impl Glimpse for Whole<'_> {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(at).map_or(self.0.len(), |at| at.min(self.0.len()));
        let to = from.saturating_add(len).min(self.0.len());
        self.0.get(from..to)
    }

    fn places(&self, mark: Mark, within: Range<u64>) -> Option<Vec<u64>> {
        let found = memchr::memmem::find_iter(self.0, mark.bytes()).map(|at| at as u64);
        Some(found.filter(|at| within.contains(at)).collect())
    }
}
