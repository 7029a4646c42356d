//! A file's content: hashed, then sent where it is asked for.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use chunks::Manifest;
use literal_filter::Pack;
use model::{AccessClass, Digest};
use proto::v1;

use crate::transfer::{self, ReadAt, Reported, Stopped};

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// An open file as the walk met it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) size: u64,
    pub(crate) uid: u32,
    pub(crate) mode: u32,
}

/// A file with its digest, ready to be asked about.
pub(crate) struct Candidate<'a> {
    opened: &'a Opened,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// The whole content, where it rides along.
    content: Option<Bytes>,
    /// By which it can be reported on, where it does not.
    filter: Option<Arc<Pack>>,
}

impl<'a> Candidate<'a> {
    /// Reads the file to its end, which may have moved since it was opened. `pause` is called
    /// between pieces, with the number of bytes just read.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn read(
        opened: &'a Opened,
        ride_along_max: usize,
        mut pause: impl FnMut(u64),
    ) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut content = Some(Vec::new());
        let mut size = 0;
        loop {
            let len = match opened.file.read_at(&mut buffer, size) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = buffer.get(..len).unwrap_or_default();
            hasher.update(bytes);
            size += len as u64;
            content = content.filter(|content| content.len() + len <= ride_along_max);
            if let Some(content) = &mut content {
                content.extend_from_slice(bytes);
            }
            pause(len as u64);
        }
        Ok(Self {
            opened,
            digest: Digest(*hasher.finalize().as_bytes()),
            size,
            content: content.map(Bytes::from),
            filter: None,
        })
    }

    /// Says by which filter it can be reported on.
    pub(crate) fn with_filter(self, filter: Option<Arc<Pack>>) -> Self {
        Self {
            filter: filter.filter(|_| self.content.is_none()),
            ..self
        }
    }

    /// The question; `compress`: content that rides along may be compressed.
    pub(crate) fn to_check(&self, compress: bool) -> v1::Check {
        let compressed = self
            .content
            .as_ref()
            .filter(|_| compress)
            .and_then(|content| chunks::compress(content));
        v1::Check {
            blake3: self.digest.0.to_vec(),
            size: self.size,
            class: v1::AccessClass::from(AccessClass::OnDemand) as i32,
            deadline_ms: 0,
            context: Some(v1::FileContext {
                path: self.opened.path.as_os_str().as_bytes().to_vec(),
                uid: self.opened.uid,
                mode: self.opened.mode,
                pid: 0,
            }),
            content_compressed: compressed.is_some(),
            filter: self
                .filter
                .as_ref()
                .map_or_else(Vec::new, |pack| pack.id().to_vec()),
            content: compressed.map(Bytes::from).or_else(|| self.content.clone()),
            // Nobody waits: only what is asked for is looked for.
            report: None,
        }
    }

    /// Its chunks; `None`: it is to be sent instead.
    ///
    /// # Errors
    /// [`Stopped::Failed`]: it cannot be read, or has changed.
    pub(crate) fn list(&self) -> Result<Option<Manifest>, Stopped> {
        transfer::list(self, self.size, self.digest)
    }

    /// What the filter finds in it, as long as `is_wanted`, and its groups; `None`: it cannot be
    /// reported on.
    ///
    /// # Errors
    /// [`Stopped::Failed`]: it cannot be read, or has changed; [`Stopped::NotWanted`].
    pub(crate) fn report(&self, is_wanted: impl Fn() -> bool) -> Result<Option<Reported>, Stopped> {
        let Some(pack) = &self.filter else {
            return Ok(None);
        };
        transfer::report(self, (self.size, self.digest), pack, is_wanted)
    }
}

impl ReadAt for Candidate<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.opened.file.read_at(buffer, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(content: &[u8]) -> (tempfile::TempDir, Opened) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, content).unwrap();
        let opened = Opened {
            file: File::open(&path).unwrap(),
            size: content.len() as u64,
            path,
            uid: 0,
            mode: 0o644,
        };
        (dir, opened)
    }

    #[test]
    fn rides_along_up_to_the_limit() {
        for (len, limit, rides) in [(10, 10, true), (11, 10, false), (0, 0, true)] {
            let content = vec![7; len];
            let (_dir, opened) = opened(&content);
            let file = Candidate::read(&opened, limit, |_| {}).unwrap();
            assert_eq!(file.digest, Digest::of(&content));
            let sent = file.to_check(false).content;
            assert_eq!(sent.is_some(), rides);
            assert!(sent.is_none_or(|sent| sent == content));
        }
    }

    #[test]
    fn what_rides_along_is_compressed_where_that_pays() {
        let content = b"again and again, ".repeat(100);
        let (_dir, opened) = opened(&content);
        let file = Candidate::read(&opened, 10_000, |_| {}).unwrap();
        let plain = file.to_check(false);
        assert!(!plain.content_compressed);
        let check = file.to_check(true);
        assert!(check.content_compressed);
        let small = check.content.unwrap();
        assert_eq!(chunks::decompress(&small, content.len()).unwrap(), content);
    }
}
