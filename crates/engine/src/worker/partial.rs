//! The bytes of one job of which only a part is known.

use std::os::fd::OwnedFd;

use model::Ranges;
use proto::v1;

use crate::ranges;
use crate::sparse::SparseView;

/// The step that asks for these bytes.
#[must_use]
pub fn ask_for(ranges: &Ranges) -> v1::PartialStep {
    v1::PartialStep {
        ask: ranges::write(ranges),
        ..v1::PartialStep::default()
    }
}

/// The step that asks for the whole, for this reason.
#[must_use]
pub fn ask_for_whole(why: impl Into<String>) -> v1::PartialStep {
    v1::PartialStep {
        whole: why.into(),
        ..v1::PartialStep::default()
    }
}

/// The step that asks for what is known once more, as parsers are to see it.
#[must_use]
pub fn ask_for_layout() -> v1::PartialStep {
    v1::PartialStep {
        lay_out: true,
        ..v1::PartialStep::default()
    }
}

/// Content of which a part is known, and what an agent's filter found in all of it.
pub struct PartialInput<'a> {
    bytes: Known<'a>,
    size: u64,
    known: Ranges,
    report: &'a [u8],
}

/// How what is known came.
enum Known<'a> {
    Packed(&'a [u8]),
    LaidOut(OwnedFd),
}

impl<'a> PartialInput<'a> {
    /// Checks what the host says.
    pub(super) fn new(
        job: &'a v1::ScanJob,
        partial: &'a v1::PartialContent,
        fd: Option<OwnedFd>,
    ) -> Result<Self, String> {
        let known = ranges::read(&partial.known, job.size);
        let bytes = match (&job.content, fd) {
            (Some(packed), None) => Known::Packed(packed),
            (None, Some(fd)) => Known::LaidOut(fd),
            (None, None) => return Err("partial content did not come along".to_owned()),
            (Some(_), Some(_)) => return Err("partial content came twice".to_owned()),
        };
        Ok(Self {
            bytes,
            size: job.size,
            known: known.ok_or_else(|| "known ranges are out of order".to_owned())?,
            report: &partial.report,
        })
    }

    /// Size of the whole in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the filter that this engine offers found, as it came: hostile.
    #[must_use]
    pub fn report(&self) -> &'a [u8] {
        self.report
    }

    /// What is known.
    ///
    /// # Errors
    /// Those of [`SparseView::open`] and [`SparseView::of_packed`].
    pub fn view(self) -> Result<SparseView, String> {
        match self.bytes {
            Known::Packed(packed) => SparseView::of_packed(packed, self.size, self.known),
            Known::LaidOut(fd) => SparseView::open(fd, self.size, self.known),
        }
    }
}
