//! The bytes of one job.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proto::v1;

use crate::sys::Mapping;

/// The content of one file: in memory, or behind a descriptor that is mapped on first use.
pub struct Input<'a> {
    inline: &'a [u8],
    fd: Option<OwnedFd>,
    size: u64,
    mapping: OnceCell<Mapping>,
}

impl<'a> Input<'a> {
    /// Checks that the host sent what it says.
    pub(super) fn new(job: &'a v1::ScanJob, fd: Option<OwnedFd>) -> Result<Self, String> {
        let inline = job.content.as_deref().unwrap_or_default();
        let size = match &fd {
            None => inline.len() as u64,
            Some(fd) => {
                let stat = rustix::fs::fstat(fd).map_err(|e| format!("content: {e}"))?;
                // A file that is longer is cut to the size that was announced.
                u64::try_from(stat.st_size).unwrap_or(0).min(job.size)
            }
        };
        if size != job.size {
            return Err(format!("content has {size} of {} bytes", job.size));
        }
        Ok(Self {
            inline,
            fd,
            size,
            mapping: OnceCell::new(),
        })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All bytes.
    ///
    /// # Errors
    /// For people: the content cannot be mapped, such as for the memory limit.
    pub fn bytes(&self) -> Result<&[u8], String> {
        let Some(fd) = self.fd.as_ref().filter(|_| self.size > 0) else {
            return Ok(self.inline);
        };
        if let Some(mapping) = self.mapping.get() {
            return Ok(mapping);
        }
        let size = usize::try_from(self.size).map_err(|e| e.to_string())?;
        let mapping = Mapping::new(fd.as_fd(), size)
            .map_err(|error| format!("cannot map {size} bytes of content: {error}"))?;
        Ok(self.mapping.get_or_init(|| mapping))
    }

    /// The descriptor, for content that did not come inline.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}
