//! A file's content: hashed, then sent where it is asked for.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use model::{AccessClass, Digest};
use proto::{DATA_MAX_BYTES, v1};

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
        })
    }

    /// The question.
    pub(crate) fn to_check(&self) -> v1::Check {
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
            content: self.content.clone(),
        }
    }

    /// The content of those ranges (none: all of it), in pieces that fit a frame.
    pub(crate) fn pieces(&self, ranges: &[v1::ByteRange]) -> Pieces<'_> {
        let whole = [(0, self.size)];
        let asked = ranges.iter().map(|range| {
            let start = range.offset.min(self.size);
            (
                start,
                range.offset.saturating_add(range.length).min(self.size),
            )
        });
        let ranges = if ranges.is_empty() {
            whole.to_vec()
        } else {
            asked.collect()
        };
        Pieces {
            file: &self.opened.file,
            ranges: ranges.into_iter(),
            current: (0, 0),
        }
    }
}

/// Pieces of content, read as they are asked for.
pub(crate) struct Pieces<'a> {
    file: &'a File,
    ranges: std::vec::IntoIter<(u64, u64)>,
    current: (u64, u64),
}

impl Pieces<'_> {
    /// The next piece with its offset; `None` after the last. Too few bytes are an error: the
    /// file became shorter.
    pub(crate) fn next_piece(&mut self) -> Option<io::Result<(u64, Bytes)>> {
        while self.current.0 >= self.current.1 {
            self.current = self.ranges.next()?;
        }
        let (offset, end) = self.current;
        let len = (end - offset).min(DATA_MAX_BYTES as u64);
        self.current.0 += len;
        let mut piece = vec![0; len as usize];
        let read = self.file.read_exact_at(&mut piece, offset);
        Some(read.map(|()| (offset, Bytes::from(piece))))
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
            let sent = file.to_check().content;
            assert_eq!(sent.is_some(), rides);
            assert!(sent.is_none_or(|sent| sent == content));
        }
    }

    #[test]
    fn pieces_are_what_was_asked_for() {
        let content: Vec<u8> = (0..200_000_u32).map(|i| (i % 253) as u8).collect();
        let (_dir, opened) = opened(&content);
        let file = Candidate::read(&opened, 0, |_| {}).unwrap();
        let collect = |ranges: &[(u64, u64)]| {
            let range = |&(offset, length): &(u64, u64)| v1::ByteRange { offset, length };
            let ranges: Vec<_> = ranges.iter().map(range).collect();
            let mut pieces = file.pieces(&ranges);
            let mut all = Vec::new();
            while let Some(piece) = pieces.next_piece() {
                let (offset, bytes) = piece.unwrap();
                assert!(!bytes.is_empty() && bytes.len() <= DATA_MAX_BYTES);
                assert_eq!(bytes, content[offset as usize..][..bytes.len()]);
                all.extend_from_slice(&bytes);
            }
            all
        };
        assert!(collect(&[]) == content);
        assert!(collect(&[(5, 3), (100_000, 70_000)]).len() == 70_003);
        // What lies beyond the end is not there to be sent.
        assert!(collect(&[(199_999, u64::MAX), (u64::MAX, 1), (7, 0)]).len() == 1);
    }

    #[test]
    fn a_shorter_file_is_an_error() {
        let (_dir, opened) = opened(&[1; 100]);
        let file = Candidate::read(&opened, 0, |_| {}).unwrap();
        File::options()
            .write(true)
            .open(&opened.path)
            .unwrap()
            .set_len(10)
            .unwrap();
        assert!(file.pieces(&[]).next_piece().unwrap().is_err());
    }
}
