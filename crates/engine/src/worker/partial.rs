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
        whole: String::new(),
    }
}

/// The step that asks for the whole, for this reason.
#[must_use]
pub fn ask_for_whole(why: impl Into<String>) -> v1::PartialStep {
    v1::PartialStep {
        ask: Vec::new(),
        whole: why.into(),
    }
}

/// Content of which a part is known, and what an agent's filter found in all of it.
pub struct PartialInput<'a> {
    fd: OwnedFd,
    size: u64,
    known: Ranges,
    report: &'a [u8],
}

impl<'a> PartialInput<'a> {
    /// Checks what the host says.
    pub(super) fn new(
        job: &v1::ScanJob,
        partial: &'a v1::PartialContent,
        fd: Option<OwnedFd>,
    ) -> Result<Self, String> {
        let known = ranges::read(&partial.known, job.size);
        Ok(Self {
            fd: fd.ok_or_else(|| "partial content came without a descriptor".to_owned())?,
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
    /// Those of [`SparseView::open`].
    pub fn view(self) -> Result<SparseView, String> {
        SparseView::open(self.fd, self.size, self.known)
    }
}
