//! Content that nobody can change any more.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::spec::{Content, INLINE_MAX_BYTES};

/// These bytes in a memory file, of this name to people, that nobody can change.
pub(crate) fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

impl Content {
    /// The cheapest form: inline up to [`INLINE_MAX_BYTES`], sealed above.
    ///
    /// # Errors
    /// Those of [`Content::seal`].
    pub fn from_bytes(bytes: Bytes) -> io::Result<Self> {
        if bytes.len() <= INLINE_MAX_BYTES {
            return Ok(Self::Inline(bytes));
        }
        Self::seal(&bytes)
    }

    /// Copies the bytes into a sealed memfd: its size and bytes can never change, so a worker can
    /// map it without fear of SIGBUS and nobody can swap what was judged.
    ///
    /// # Errors
    /// Out of memory or descriptors.
    pub fn seal(bytes: &[u8]) -> io::Result<Self> {
        Ok(Self::Sealed {
            fd: Arc::new(sealed("lazaret-content", bytes)?),
            size: bytes.len() as u64,
        })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Sealed { size, .. } => *size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_content_cannot_be_changed() {
        let Content::Sealed { fd, size } = Content::seal(b"abc").expect("memfd") else {
            panic!("seal made inline content");
        };
        assert_eq!(size, 3);
        assert!(rustix::io::pwrite(&*fd, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&*fd, 0).is_err());
        assert!(rustix::fs::ftruncate(&*fd, 10).is_err());
    }

    #[test]
    fn small_content_travels_inline() {
        let small = Content::from_bytes(Bytes::from(vec![0; INLINE_MAX_BYTES]));
        assert!(matches!(small, Ok(Content::Inline(_))));
        let large = Content::from_bytes(Bytes::from(vec![0; INLINE_MAX_BYTES + 1]));
        assert!(matches!(large, Ok(Content::Sealed { .. })));
    }
}
