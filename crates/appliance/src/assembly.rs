//! Content is put together here, piece by piece, and proved: nothing leaves an [`Assembly`] that
//! does not have the announced size and digest.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chunks::DecompressError;
use engine::host::Content;
use model::{Digest, Outcome, Sha256, UnscannedReason, Verdict};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use sha2::Digest as _;

/// Content up to this size is handed to an engine inside the message, not as a descriptor.
pub(crate) const INLINE_MAX_BYTES: u64 = engine::host::INLINE_MAX_BYTES as u64;

/// Bytes read at a time to be hashed.
const READ_BYTES: usize = 256 * 1024;

/// Whole content with its announced digest.
#[derive(Debug)]
pub(crate) struct Proved {
    pub(crate) content: Content,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

/// Content that cannot be judged, because it did not come as announced or found no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssemblyError {
    #[error("data at offset {got}, expected at {expected}")]
    OutOfOrder { expected: u64, got: u64 },
    #[error("more than the announced {announced} bytes")]
    Excess { announced: u64 },
    #[error("{received} of {announced} bytes arrived")]
    Short { received: u64, announced: u64 },
    #[error("the bytes do not have the announced digest")]
    Changed,
    #[error("the spool cannot hold it: {0}")]
    Spool(io::Error),
    #[error("no memory can hold it: {0}")]
    Memory(io::Error),
    #[error(transparent)]
    Compressed(#[from] DecompressError),
}

impl AssemblyError {
    pub(crate) fn reason(&self) -> UnscannedReason {
        match self {
            Self::OutOfOrder { .. }
            | Self::Excess { .. }
            | Self::Short { .. }
            | Self::Compressed(_) => UnscannedReason::Truncated,
            Self::Changed => UnscannedReason::Changed,
            Self::Spool(_) => UnscannedReason::NoSpace,
            Self::Memory(_) => UnscannedReason::Overloaded,
        }
    }
}

/// The folder of unlinked files: whatever happens to the process, nothing stays behind in it.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    dir: PathBuf,
}

impl Spool {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// A nameless file with its blocks reserved, so that a full disk shows before any byte is
    /// asked of the guest.
    pub(crate) fn create(&self, size: u64) -> io::Result<File> {
        let file = self.create_sparse()?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(size).map(|()| file),
            Err(error) => Err(error.into()),
        }
    }

    /// A nameless file without any block.
    pub(crate) fn create_sparse(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.dir, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }
}

/// Content on its way in.
#[derive(Debug)]
pub(crate) struct Assembly {
    announced: u64,
    received: u64,
    blake3: blake3::Hasher,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Inline(BytesMut),
    Memory(File),
    Spool(File),
}

impl Assembly {
    /// Makes place for `announced` bytes: in the heap up to [`INLINE_MAX_BYTES`], in anonymous
    /// memory up to `memory_max_bytes`, else in the spool.
    pub(crate) fn begin(
        announced: u64,
        memory_max_bytes: u64,
        spool: &Spool,
    ) -> Result<Self, AssemblyError> {
        let sink = if announced <= INLINE_MAX_BYTES {
            Sink::Inline(BytesMut::new())
        } else if announced <= memory_max_bytes {
            Sink::Memory(memory_file().map_err(AssemblyError::Memory)?)
        } else {
            Sink::Spool(spool.create(announced).map_err(AssemblyError::Spool)?)
        };
        Ok(Self {
            announced,
            received: 0,
            blake3: blake3::Hasher::new(),
            sink,
        })
    }

    /// Bytes taken so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next piece. May block on the disk.
    pub(crate) fn absorb(&mut self, offset: u64, bytes: &[u8]) -> Result<(), AssemblyError> {
        if offset != self.received {
            return Err(AssemblyError::OutOfOrder {
                expected: self.received,
                got: offset,
            });
        }
        let len = bytes.len() as u64;
        if len > self.announced - self.received {
            return Err(AssemblyError::Excess {
                announced: self.announced,
            });
        }
        match &mut self.sink {
            Sink::Inline(buffer) => buffer.extend_from_slice(bytes),
            Sink::Memory(file) => file.write_all(bytes).map_err(AssemblyError::Memory)?,
            Sink::Spool(file) => file.write_all(bytes).map_err(AssemblyError::Spool)?,
        }
        self.blake3.update(bytes);
        self.received += len;
        Ok(())
    }

    /// Checks size and digest and seals the content: nobody can write to it any more.
    pub(crate) fn finish(self, claimed: Digest) -> Result<Proved, AssemblyError> {
        if self.received != self.announced {
            return Err(AssemblyError::Short {
                received: self.received,
                announced: self.announced,
            });
        }
        let digest = Digest(*self.blake3.finalize().as_bytes());
        if digest != claimed {
            return Err(AssemblyError::Changed);
        }
        let size = self.announced;
        let content = match self.sink {
            Sink::Inline(buffer) => Content::Inline(buffer.freeze()),
            Sink::Memory(file) => sealed(file.into(), size).map_err(AssemblyError::Memory)?,
            Sink::Spool(file) => read_only(&file, size).map_err(AssemblyError::Spool)?,
        };
        Ok(Proved {
            content,
            size,
            digest,
        })
    }
}

/// Checks content that came in one piece.
pub(crate) fn prove_whole(
    bytes: Bytes,
    announced: u64,
    claimed: Digest,
) -> Result<Proved, AssemblyError> {
    let size = bytes.len() as u64;
    if size < announced {
        return Err(AssemblyError::Short {
            received: size,
            announced,
        });
    }
    if size > announced {
        return Err(AssemblyError::Excess { announced });
    }
    if Digest::of(&bytes) != claimed {
        return Err(AssemblyError::Changed);
    }
    if size <= INLINE_MAX_BYTES {
        return Ok(Proved {
            content: Content::Inline(bytes),
            size,
            digest: claimed,
        });
    }
    let mut file = memory_file().map_err(AssemblyError::Memory)?;
    file.write_all(&bytes).map_err(AssemblyError::Memory)?;
    Ok(Proved {
        content: sealed(file.into(), size).map_err(AssemblyError::Memory)?,
        size,
        digest: claimed,
    })
}

/// Adds SHA-256, the name that people and feeds know, to what is malicious. Nobody asks for that
/// of clean content, and it would cost more than twice what proving it does.
pub(crate) async fn with_sha256(verdict: Verdict, content: &Content) -> Verdict {
    if !matches!(verdict.outcome, Outcome::Malicious { .. }) {
        return verdict;
    }
    let content = content.clone();
    let hashed = tokio::task::spawn_blocking(move || sha256_of(&content)).await;
    let sha256 = match hashed.map_err(io::Error::other).flatten() {
        Ok(sha256) => Some(sha256),
        Err(error) => {
            tracing::warn!(%error, "malicious content without its SHA-256");
            None
        }
    };
    Verdict { sha256, ..verdict }
}

/// Blocks on the disk.
pub(crate) fn sha256_of(content: &Content) -> io::Result<Sha256> {
    let mut sha256 = sha2::Sha256::new();
    match content {
        Content::Inline(bytes) => sha256.update(bytes),
        Content::Sealed { fd, size } => each_piece(fd, *size, |bytes| sha256.update(bytes))?,
    }
    Ok(Sha256(sha256.finalize().into()))
}

/// Hands on a file of `size` bytes, piece by piece. Blocks on the disk.
pub(crate) fn each_piece(
    file: impl AsFd,
    size: u64,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    while offset < size {
        let wanted = (size - offset).min(READ_BYTES as u64) as usize;
        let room = buffer.get_mut(..wanted).unwrap_or_default();
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut *room, offset))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        take(buffer.get(..read).unwrap_or_default());
        offset += read as u64;
    }
    Ok(())
}

pub(crate) fn memory_file() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(rustix::fs::memfd_create("lazaret-content", flags)?.into())
}

pub(crate) fn sealed(fd: OwnedFd, size: u64) -> io::Result<Content> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals)?;
    Ok(Content::Sealed {
        fd: Arc::new(fd),
        size,
    })
}

/// The same nameless file, through a descriptor that cannot write; the one that can is dropped.
pub(crate) fn read_only(file: &File, size: u64) -> io::Result<Content> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(Content::Sealed {
        fd: Arc::new(fd),
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().to_owned());
        (dir, spool)
    }

    fn bytes_of(content: &Content) -> Vec<u8> {
        match content {
            Content::Inline(bytes) => bytes.to_vec(),
            Content::Sealed { fd, size } => {
                let file = File::from(fd.try_clone().unwrap());
                let mut bytes = vec![0; usize::try_from(*size).unwrap()];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            }
        }
    }

    /// Three sizes, so that each sink is used: 64 KiB and less, up to 100,000 bytes, more.
    #[test]
    fn every_sink_gives_back_what_came() {
        let (dir, spool) = spool();
        for size in [0usize, 1, 65_536, 65_537, 100_000, 100_001, 300_000] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let mut assembly = Assembly::begin(size as u64, 100_000, &spool).unwrap();
            let mut offset = 0;
            for piece in bytes.chunks(50_000) {
                assembly.absorb(offset, piece).unwrap();
                offset += piece.len() as u64;
            }
            let proved = assembly.finish(Digest::of(&bytes)).unwrap();
            assert_eq!(bytes_of(&proved.content), bytes);
            let expected = Sha256(sha2::Sha256::digest(&bytes).into());
            assert_eq!(sha256_of(&proved.content).unwrap(), expected);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn sealed_content_cannot_be_written() {
        let (_dir, spool) = spool();
        for memory_max in [0, 200_000] {
            let bytes = vec![7u8; 150_000];
            let mut assembly = Assembly::begin(150_000, memory_max, &spool).unwrap();
            assembly.absorb(0, &bytes).unwrap();
            let proved = assembly.finish(Digest::of(&bytes)).unwrap();
            let Content::Sealed { fd, .. } = &proved.content else {
                panic!("inline");
            };
            let file = File::from(fd.try_clone().unwrap());
            assert!(file.write_at(b"x", 0).is_err());
            assert!(file.set_len(1).is_err());
        }
    }

    #[track_caller]
    fn check(announced: u64, pieces: &[(u64, &[u8])], claimed: &[u8], expected: UnscannedReason) {
        let (_dir, spool) = spool();
        let mut assembly = Assembly::begin(announced, 1 << 20, &spool).unwrap();
        let absorbed = pieces
            .iter()
            .try_for_each(|(offset, bytes)| assembly.absorb(*offset, bytes));
        let error = absorbed
            .and_then(|()| assembly.finish(Digest::of(claimed)).map(drop))
            .unwrap_err();
        assert_eq!(error.reason(), expected, "{error}");
    }

    #[test]
    fn what_does_not_come_as_announced_is_unscanned() {
        use UnscannedReason::{Changed, Truncated};
        check(4, &[(0, b"ab")], b"abcd", Truncated);
        check(4, &[(0, b"abcde")], b"abcd", Truncated);
        check(4, &[(0, b"ab"), (1, b"bcd")], b"abcd", Truncated);
        check(4, &[(0, b"ab"), (3, b"d")], b"abcd", Truncated);
        check(4, &[(0, b"ab"), (0, b"ab")], b"abcd", Truncated);
        check(4, &[(0, b"abcx")], b"abcd", Changed);
        check(4, &[(u64::MAX, b"x")], b"x", Truncated);
    }

    #[test]
    fn one_piece_is_proved_too() {
        let whole = |bytes: &'static [u8], size, claimed: &[u8]| {
            prove_whole(Bytes::from_static(bytes), size, Digest::of(claimed))
        };
        assert!(whole(b"abc", 3, b"abc").is_ok());
        let reason = |r: Result<Proved, AssemblyError>| r.map(drop).unwrap_err().reason();
        assert_eq!(reason(whole(b"abc", 3, b"abd")), UnscannedReason::Changed);
        assert_eq!(reason(whole(b"abc", 4, b"abc")), UnscannedReason::Truncated);
        assert_eq!(reason(whole(b"abc", 2, b"abc")), UnscannedReason::Truncated);
    }

    #[test]
    fn a_spool_that_is_gone_is_no_space() {
        let spool = Spool::new("/nonexistent/spool".into());
        let error = Assembly::begin(1 << 20, 0, &spool).unwrap_err();
        assert_eq!(error.reason(), UnscannedReason::NoSpace);
    }
}
