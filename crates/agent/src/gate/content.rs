//! The content of a file that is held by its descriptor: who it is, and how it is read.
//!
//! Only the descriptor is ever read, never the path: another file may bear that name by now.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use agent_core::{ContextHash, FileKey, FileNode};
use bytes::Bytes;
use chunks::Manifest;
use fanotify::FileIdentity;
use literal_filter::Pack;
use model::{AccessClass, Digest, UnscannedReason};
use proto::v1;
use rustix::io::ReadWriteFlags;

use super::look::{Lease, Look, Medium, is_settled};
use super::trace::Stages;
use crate::transfer::{self, ReadAt, Reporter, Stopped};

/// A held file.
pub(crate) struct Content {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) class: AccessClass,
    /// The opener; 0: none, or one that cannot be seen.
    pub(crate) pid: i32,
    /// Its identity when it came.
    pub(crate) key: FileKey,
    pub(crate) context_hash: ContextHash,
    /// Owner and mode when it came.
    owner: (u32, u32),
    /// What its file system is good for.
    pub(crate) medium: Medium,
    /// When it came to each stage.
    pub(crate) stages: Stages,
    /// In use since before it could be judged: the verdict comes after the fact.
    pub(crate) before_us: bool,
    path: OnceLock<Vec<u8>>,
    /// The state that was hashed under a lease; later ones are other content.
    hashed: Mutex<Option<FileIdentity>>,
    /// Bytes hashed.
    hashed_size: AtomicU64,
    hashed_digest: Mutex<Option<Digest>>,
    /// The chunks of what was hashed, once the appliance has asked for them or for a report.
    manifest: Mutex<Option<Arc<Manifest>>>,
    /// They are those of a report.
    is_reported: AtomicBool,
}

/// What hashing gives.
pub(crate) struct Hashed {
    pub(crate) key: FileKey,
    pub(crate) digest: Digest,
    pub(crate) writer_free: bool,
    pub(crate) along: Along,
}

/// What goes along with the question about a content.
#[derive(Debug, Default)]
pub(crate) struct Along {
    /// The content itself.
    pub(crate) bytes: Option<Bytes>,
    /// What the filter found in it.
    pub(crate) report: Option<v1::FilterReport>,
}

/// What hashing is to bring besides the digest.
#[derive(Default)]
pub(crate) struct Wanted {
    /// The bytes themselves, of content of at most so many.
    pub(crate) ride_along_max: u64,
    /// Larger content is not hashed, bytes.
    pub(crate) size_max: u64,
    /// What this filter finds, in content of at least so many bytes.
    pub(crate) report: Option<(u64, Arc<Pack>)>,
    /// Content that would have to be waited for is not read.
    pub(crate) in_memory_only: bool,
}

impl Wanted {
    /// What is looked for in content of `size` bytes while it is hashed. In more it takes longer
    /// than to ask first whether anybody wants to know.
    fn report_of(&self, size: u64) -> Option<&Pack> {
        let (least, pack) = self.report.as_ref()?;
        (*least..=REPORT_ALONG_MAX_BYTES)
            .contains(&size)
            .then_some(pack)
    }
}

impl Content {
    pub(crate) fn new(
        file: Arc<OwnedFd>,
        identity: &FileIdentity,
        class: AccessClass,
        pid: i32,
    ) -> Self {
        Self {
            file,
            class,
            pid,
            key: key_of(identity),
            context_hash: ContextHash::NONE,
            owner: (identity.uid, identity.mode),
            medium: Medium::default(),
            stages: Stages::default(),
            before_us: false,
            path: OnceLock::new(),
            hashed: Mutex::new(None),
            hashed_size: AtomicU64::new(0),
            hashed_digest: Mutex::new(None),
            manifest: Mutex::new(None),
            is_reported: AtomicBool::new(false),
        }
    }

    /// Says what the path is, where the caller knows it.
    pub(crate) fn with_path(self, path: Vec<u8>) -> Self {
        Self {
            path: OnceLock::from(path),
            ..self
        }
    }

    /// Says that somebody wants to know, without waiting for it.
    pub(crate) fn on_demand(self, is_context_sensitive: bool) -> Self {
        let context_hash = if is_context_sensitive {
            self.hash_context()
        } else {
            ContextHash::NONE
        };
        Self {
            class: AccessClass::OnDemand,
            context_hash,
            ..self
        }
    }

    /// Says that it is in use already.
    pub(crate) fn before_us(self) -> Self {
        Self {
            before_us: true,
            ..self
        }
    }

    /// The path as the kernel prints it now, for people, rules that read names, and the ledger.
    /// Empty where it has none.
    pub(crate) fn path(&self) -> &[u8] {
        self.path
            .get_or_init(|| fanotify::path_of(&self.file).unwrap_or_default())
    }

    /// What rules may read besides the content.
    pub(crate) fn context(&self) -> v1::FileContext {
        let (uid, mode) = self.owner;
        v1::FileContext {
            path: self.path().to_vec(),
            uid,
            mode,
            pid: u32::try_from(self.pid).unwrap_or(0),
        }
    }

    /// A digest of [`Self::context`] without the process: equal for equal judgement.
    pub(crate) fn hash_context(&self) -> ContextHash {
        let context = self.context();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&context.uid.to_le_bytes());
        hasher.update(&context.mode.to_le_bytes());
        hasher.update(&context.path);
        let mut hash = [0; 16];
        hasher.finalize_xof().fill(&mut hash);
        ContextHash(hash)
    }

    /// How many bytes were hashed last: a file that grows is sent no further.
    pub(crate) fn hashed_size(&self) -> u64 {
        self.hashed_size.load(Ordering::Relaxed)
    }

    /// What was hashed, and the identity that it belongs to; `None` where that is not certain.
    pub(crate) fn judged(&self) -> Option<(Digest, FileKey)> {
        let identity = (*lock(&self.hashed))?;
        Some(((*lock(&self.hashed_digest))?, key_of(&identity)))
    }

    /// Lists what was hashed by its chunks. `None`: it is to be sent instead.
    ///
    /// # Errors
    /// [`Stopped::Failed`]: it cannot be read, or has changed.
    pub(crate) fn list(&self) -> Result<Option<Arc<Manifest>>, Stopped> {
        let digest = *lock(&self.hashed_digest);
        let digest = digest.ok_or(Stopped::Failed(UnscannedReason::Changed))?;
        let listed = transfer::list(self, self.hashed_size(), digest)?.map(Arc::new);
        (*lock(&self.manifest)).clone_from(&listed);
        self.is_reported.store(false, Ordering::Relaxed);
        Ok(listed)
    }

    /// Says what a filter finds in what was hashed, as long as `is_wanted`. From then on ranges are
    /// sent only of that very content. `None`: there is more than a report can tell.
    ///
    /// # Errors
    /// [`Stopped::Failed`]: it cannot be read, or has changed; [`Stopped::NotWanted`].
    pub(crate) fn report(
        &self,
        pack: &Pack,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<v1::FilterReport>, Stopped> {
        let digest = *lock(&self.hashed_digest);
        let digest = digest.ok_or(Stopped::Failed(UnscannedReason::Changed))?;
        let found = transfer::report(self, (self.hashed_size(), digest), pack, is_wanted)?;
        let (report, groups) = found.unzip();
        if let Some(groups) = groups {
            *lock(&self.manifest) = Some(Arc::new(groups));
            self.is_reported.store(true, Ordering::Relaxed);
        }
        Ok(report)
    }

    /// Whether the last thing that was said of what was hashed is a report.
    pub(crate) fn is_reported(&self) -> bool {
        self.is_reported.load(Ordering::Relaxed)
    }

    /// The chunks of what was hashed, where they were listed.
    pub(crate) fn listed(&self) -> Option<Arc<Manifest>> {
        lock(&self.manifest).clone()
    }

    /// True if the file is certainly no longer what was hashed. Where a writer held it nothing is
    /// certain: then the bytes that were read count for whoever waits, and nothing is remembered.
    pub(crate) fn has_changed(&self) -> bool {
        let hashed = *lock(&self.hashed);
        let now = FileIdentity::of(self.file.as_fd());
        hashed.is_some_and(|before| now.ok() != Some(before))
    }

    /// Hashes the content under a read lease, so that no writer can come between first and last
    /// byte unseen. A writer that comes is let in at once, and then the digest counts only if
    /// nothing has changed in the end, and is not remembered. Brings what is `wanted` with it. `look`:
    /// it was looked at just now.
    ///
    /// # Errors
    /// Why there is no digest: the file is too large, changed meanwhile, or cannot be read.
    pub(crate) fn hash(
        &self,
        wanted: &Wanted,
        buffer: &mut Vec<u8>,
        look: Option<Look>,
    ) -> Result<Hashed, UnscannedReason> {
        let size_max = wanted.size_max;
        let failed = |_: io::Error| UnscannedReason::ReadFailed;
        let Look {
            mut lease,
            held_by_writer,
            identity: before,
        } = match look {
            Some(look) => look,
            None => Look::at(&self.file).map_err(failed)?,
        };
        if before.size > size_max {
            return Err(UnscannedReason::TooLarge);
        }
        let read = self.read_and_hash(before.size, wanted, buffer, &mut lease);
        let (digest, size, along, groups) = read.map_err(failed)?;
        if size > size_max {
            return Err(UnscannedReason::TooLarge);
        }
        let after = FileIdentity::of(self.file.as_fd()).map_err(failed)?;
        let same = before == after && size == after.size;
        let alone = lease.as_ref().is_some_and(Lease::is_intact);
        if !same && !held_by_writer {
            return Err(UnscannedReason::Changed);
        }
        *lock(&self.hashed) = alone.then_some(after);
        self.hashed_size.store(size, Ordering::Relaxed);
        *lock(&self.hashed_digest) = Some(digest);
        self.is_reported.store(groups.is_some(), Ordering::Relaxed);
        *lock(&self.manifest) = groups.map(Arc::new);
        let key = FileKey {
            size,
            ..key_of(&after)
        };
        Ok(Hashed {
            key,
            digest,
            writer_free: alone && self.may_be_remembered(&after),
            along,
        })
    }

    fn may_be_remembered(&self, identity: &FileIdentity) -> bool {
        let Medium {
            cacheable,
            fine_stamps,
            ..
        } = self.medium;
        cacheable && (fine_stamps || is_settled(identity))
    }

    /// Reads at most one byte more than `size`, so that a file that grows is noticed.
    fn read_whole(&self, size: u64) -> io::Result<Bytes> {
        let room = usize::try_from(size).unwrap_or(usize::MAX);
        let mut bytes = vec![0; room.saturating_add(1)];
        let mut len = 0;
        while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match self.read_at(rest, len as u64)? {
                0 => break,
                read => len += read,
            }
        }
        bytes.truncate(len);
        Ok(bytes.into())
    }

    /// Reads a file that had `size` bytes when it was looked at: its digest, how many bytes it has
    /// now, what goes along, and the groups of what was reported on.
    fn read_and_hash(
        &self,
        size: u64,
        wanted: &Wanted,
        buffer: &mut Vec<u8>,
        lease: &mut Option<Lease>,
    ) -> io::Result<(Digest, u64, Along, Option<Manifest>)> {
        if size <= wanted.ride_along_max {
            let bytes = self.read_whole(size)?;
            let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
            let along = Along {
                bytes: Some(bytes),
                report: None,
            };
            return Ok((digest, size, along, None));
        }
        let pack = wanted.report_of(size);
        if let Some(mut reporter) = pack.and_then(|pack| Reporter::new(pack, size)) {
            let size = self.stream(size, wanted, buffer, lease, |it| reporter.push(it))?;
            let (digest, found) = reporter.finish();
            let (report, groups) = found.unzip();
            let along = Along {
                bytes: None,
                report,
            };
            return Ok((digest, size, along, groups));
        }
        let mut hasher = blake3::Hasher::new();
        let take = |bytes: &[u8]| {
            hasher.update(bytes);
        };
        let size = self.stream(size, wanted, buffer, lease, take)?;
        let digest = Digest(*hasher.finalize().as_bytes());
        Ok((digest, size, Along::default(), None))
    }

    /// Reads it in pieces, and no further than one piece beyond the largest that is `wanted`; how many
    /// bytes it has. Under a lease these are the `expected` ones: whoever makes it longer ends that.
    fn stream(
        &self,
        expected: u64,
        wanted: &Wanted,
        buffer: &mut Vec<u8>,
        lease: &mut Option<Lease>,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<u64> {
        buffer.resize(READ_BYTES, 0);
        let mut size = 0;
        while size <= wanted.size_max {
            let read = if wanted.in_memory_only {
                self.read_in_memory(buffer, size)?
            } else {
                self.read_at(buffer, size)?
            };
            if read == 0 {
                break;
            }
            take(buffer.get(..read).unwrap_or_default());
            size += read as u64;
            if lease.is_some() && size == expected {
                break;
            }
            // A writer waits in its open for the lease to end: not for a large file's whole length.
            lease.take_if(|lease| !lease.is_intact());
        }
        Ok(size)
    }

    /// # Errors
    /// As `preadv2`: `EAGAIN` where it would wait, `EOPNOTSUPP` where the file system cannot tell.
    fn read_in_memory(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = || {
            let buffers = &mut [io::IoSliceMut::new(buffer)];
            rustix::io::preadv2(&self.file, buffers, offset, ReadWriteFlags::NOWAIT)
        };
        Ok(rustix::io::retry_on_intr(read)?)
    }

    /// # Errors
    /// As `pread`.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = || rustix::io::pread(&self.file, &mut *buffer, offset);
        Ok(rustix::io::retry_on_intr(read)?)
    }
}

/// As no panic leaves one half-done, none closes it for good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReadAt for Content {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Content::read_at(self, buffer, offset)
    }
}

/// Content of at most so many bytes is looked through while it is hashed.
const REPORT_ALONG_MAX_BYTES: u64 = 1 << 20;
/// Bytes read at a time.
const READ_BYTES: usize = 128 * 1024;

pub(crate) fn key_of(identity: &FileIdentity) -> FileKey {
    FileKey {
        node: FileNode {
            fs: identity.dev,
            ino: identity.ino,
        },
        generation: u64::from(identity.generation),
        size: identity.size,
        mtime_ns: identity.mtime_ns,
        ctime_ns: identity.ctime_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanotify::lease::ReadLease;
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    use std::io::Write;

    fn content(file: std::fs::File) -> Content {
        let fd: OwnedFd = file.into();
        let identity = FileIdentity::of(fd.as_fd()).unwrap();
        Content {
            medium: Medium {
                cacheable: true,
                fine_stamps: true,
                stands: false,
            },
            ..Content::new(Arc::new(fd), &identity, AccessClass::Open, 1)
        }
    }

    fn hash(content: &Content, ride_along_max: u64) -> Result<Hashed, UnscannedReason> {
        let wanted = Wanted {
            ride_along_max,
            size_max: 1 << 20,
            ..Wanted::default()
        };
        content.hash(&wanted, &mut Vec::new(), None)
    }

    #[test]
    fn small_ones_ride_along_and_large_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes = vec![7; 300_000];
        std::fs::write(&path, &bytes).unwrap();
        for ride_along_max in [0, 299_999, 300_000, 400_000] {
            let content = content(std::fs::File::open(&path).unwrap());
            let hashed = hash(&content, ride_along_max).ok().unwrap();
            assert_eq!(hashed.digest, Digest::of(&bytes));
            assert_eq!(hashed.key.size, 300_000);
            assert!(hashed.writer_free);
            assert_eq!(hashed.along.bytes.is_some(), ride_along_max >= 300_000);
        }
    }

    #[test]
    fn a_writer_makes_it_count_once_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut writer = std::fs::File::create(&path).unwrap();
        writer.write_all(b"half").unwrap();
        let content = content(std::fs::File::open(&path).unwrap());
        assert!(!hash(&content, 100).ok().unwrap().writer_free);
        assert!(!content.has_changed(), "nothing is certain");
    }

    #[test]
    fn a_writer_that_comes_is_let_in_before_a_large_file_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 2 * READ_BYTES]).unwrap();
        let content = content(std::fs::File::open(&path).unwrap());
        let mut lease = Some(ReadLease::try_take(Arc::clone(&content.file)).unwrap());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let open = || rustix::fs::open(&path, flags, Mode::empty());
        assert_eq!(open().err(), Some(Errno::AGAIN), "asks for the lease");
        let everything = Wanted {
            size_max: u64::MAX,
            ..Wanted::default()
        };
        let size = 2 * READ_BYTES as u64;
        content
            .stream(size, &everything, &mut Vec::new(), &mut lease, |_| {})
            .unwrap();
        assert!(lease.is_none());
        assert!(open().is_ok());
    }

    #[test]
    fn what_changes_after_the_hashing_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"one").unwrap();
        let content = content(std::fs::File::open(&path).unwrap());
        hash(&content, 100).ok().unwrap();
        assert!(!content.has_changed());
        std::fs::write(&path, b"other").unwrap();
        assert!(content.has_changed());
    }

    #[test]
    fn a_list_is_of_what_was_hashed_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![1; 300_000]).unwrap();
        let content = content(std::fs::File::open(&path).unwrap());
        hash(&content, 100).ok().unwrap();
        let first = content.list().unwrap().unwrap();
        assert_eq!(content.listed(), Some(first.clone()));
        std::fs::write(&path, vec![2; 400_000]).unwrap();
        let changed = Stopped::Failed(UnscannedReason::Changed);
        assert_eq!(content.list(), Err(changed));
        hash(&content, 100).ok().unwrap();
        assert_eq!(content.listed(), None);
        let second = content.list().unwrap().unwrap();
        assert_eq!((first.size(), second.size()), (300_000, 400_000));
    }

    #[test]
    fn what_would_be_waited_for_is_left_to_those_who_may_wait() {
        let mount = testbed::LoopMount::new(testbed::FileSystem::Ext4, 32 << 20).unwrap();
        let path = mount.path().join("f");
        std::fs::write(&path, vec![7; 20_000]).unwrap();
        let content = content(std::fs::File::open(&path).unwrap());
        let wanted = Wanted {
            size_max: 1 << 20,
            in_memory_only: true,
            ..Wanted::default()
        };
        let hashed = content.hash(&wanted, &mut Vec::new(), None);
        let hashed = hashed.ok().unwrap();
        assert_eq!(hashed.digest, Digest::of(&[7; 20_000]));
        rustix::fs::fsync(&content.file).unwrap();
        rustix::fs::fadvise(&content.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let failed = content.hash(&wanted, &mut Vec::new(), None).err();
        assert_eq!(failed, Some(UnscannedReason::ReadFailed));
        assert!(hash(&content, 0).is_ok());
    }

    #[test]
    fn too_large_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let refused = hash(&content(file), 100).err();
        assert_eq!(refused, Some(UnscannedReason::TooLarge));
    }

    #[test]
    fn the_context_is_path_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        let open = || content(std::fs::File::open(&path).unwrap());
        let first = open();
        assert!(first.path().ends_with(b"/f"));
        assert_eq!(first.hash_context(), open().hash_context());
        let other = dir.path().join("g");
        std::fs::hard_link(&path, &other).unwrap();
        let renamed = content(std::fs::File::open(&other).unwrap());
        assert_ne!(first.hash_context(), renamed.hash_context());
    }
}
