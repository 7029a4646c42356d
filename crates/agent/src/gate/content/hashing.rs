//! How content is read: its digest, and what is found on the way.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agent_core::FileKey;
use bytes::Bytes;
use chunks::Manifest;
use fanotify::FileIdentity;
use literal_filter::Pack;
use model::{Digest, UnscannedReason};
use proto::v1;
use rustix::io::ReadWriteFlags;

use super::{Content, key_of, lock};
use crate::gate::look::{Lease, Look, Medium, is_settled};
use crate::transfer::{self, Reported, Reporter};

/// Content of at most so many bytes is looked through while it is hashed.
const REPORT_ALONG_MAX_BYTES: u64 = 1 << 20;
/// Bytes read at a time.
const READ_BYTES: usize = 128 * 1024;

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
        let after = before.again(self.file.as_fd()).map_err(failed)?;
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
        if let Some(pack) = wanted.report_of(size)
            && let Some(read) = self.read_and_report(size, wanted, buffer, lease, pack)?
        {
            let (size, digest, reported) = read;
            let (report, groups) = reported.unzip();
            let along = Along {
                bytes: None,
                report,
            };
            return Ok((digest, size, along, groups.flatten()));
        }
        let mut hasher = blake3::Hasher::new();
        let take = |bytes: &[u8]| {
            hasher.update(bytes);
        };
        let size = self.stream(size, wanted, buffer, lease, take)?;
        let digest = Digest(*hasher.finalize().as_bytes());
        Ok((digest, size, Along::default(), None))
    }

    /// The same for content that is reported on: how many bytes it has, its digest, and the report.
    /// `None`: it has more groups than a list, and was not read.
    fn read_and_report(
        &self,
        expected: u64,
        wanted: &Wanted,
        buffer: &mut Vec<u8>,
        lease: &mut Option<Lease>,
        pack: &Pack,
    ) -> io::Result<Option<(u64, Digest, Option<Reported>)>> {
        if let Some(whole) = self.read_at_once(expected, wanted, buffer, lease.is_some())? {
            let (digest, reported) = transfer::report_whole(pack, whole);
            return Ok(Some((whole.len() as u64, digest, reported)));
        }
        let Some(mut reporter) = Reporter::new(pack, expected) else {
            return Ok(None);
        };
        let size = self.stream(expected, wanted, buffer, lease, |it| reporter.push(it))?;
        let (digest, reported) = reporter.finish();
        Ok(Some((size, digest, reported)))
    }

    /// A file that fits into the buffer, as it is now. `None`: it does not.
    fn read_at_once<'b>(
        &self,
        expected: u64,
        wanted: &Wanted,
        buffer: &'b mut Vec<u8>,
        is_leased: bool,
    ) -> io::Result<Option<&'b [u8]>> {
        if expected >= READ_BYTES as u64 {
            return Ok(None);
        }
        buffer.resize(READ_BYTES, 0);
        let mut len = 0;
        while let Some(room) = buffer.get_mut(len..).filter(|room| !room.is_empty()) {
            let read = self.read_piece(wanted, room, len as u64)?;
            len += read;
            if read == 0 || (is_leased && len as u64 == expected) {
                return Ok(buffer.get(..len));
            }
        }
        // It has grown.
        Ok(None)
    }

    fn read_piece(&self, wanted: &Wanted, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if wanted.in_memory_only {
            self.read_in_memory(buffer, offset)
        } else {
            self.read_at(buffer, offset)
        }
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
            let read = self.read_piece(wanted, buffer, size)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::content::tests::content;
    use crate::transfer::{Stopped, tests::pack};
    use fanotify::lease::ReadLease;
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    use std::io::Write;

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
        for report in [None, Some((1, Arc::new(pack())))] {
            let wanted = Wanted {
                size_max: 1 << 20,
                report,
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
    }

    #[test]
    fn too_large_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let refused = hash(&content(file), 100).err();
        assert_eq!(refused, Some(UnscannedReason::TooLarge));
    }

    #[test]
    fn of_what_is_wanted_whole_only_the_head_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let wanted = Wanted {
            size_max: 1 << 30,
            report: Some((1, Arc::new(pack()))),
            ..Wanted::default()
        };
        for size in [100, READ_BYTES - 1, 3 * READ_BYTES] {
            let mut bytes = b"PACKED".to_vec();
            bytes.resize(size, b'.');
            bytes[size - 5..].copy_from_slice(b"EVIL!");
            std::fs::write(&path, &bytes).unwrap();
            let content = content(std::fs::File::open(&path).unwrap());
            let hashed = content.hash(&wanted, &mut Vec::new(), None).ok().unwrap();
            assert_eq!(hashed.digest, Digest::of(&bytes));
            let report = hashed.along.report.unwrap();
            assert_eq!(
                (&report.head[..], &report.report[..]),
                (&bytes[..64], &b""[..])
            );
            assert!(content.listed().is_none() && !content.is_reported());
        }
    }

    #[test]
    fn content_of_any_size_is_reported_on_as_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let pack = Arc::new(pack());
        let wanted = Wanted {
            size_max: 1 << 30,
            report: Some((1, Arc::clone(&pack))),
            ..Wanted::default()
        };
        for size in [5, 4096, 65_537, READ_BYTES - 1, READ_BYTES, 3 * READ_BYTES] {
            let mut bytes = vec![b'.'; size];
            bytes[size - 5..].copy_from_slice(b"EVIL!");
            std::fs::write(&path, &bytes).unwrap();
            let content = content(std::fs::File::open(&path).unwrap());
            let (digest, reported) = transfer::report_whole(&pack, &bytes);
            let hashed = content.hash(&wanted, &mut Vec::new(), None).ok().unwrap();
            assert_eq!((hashed.digest, hashed.key.size), (digest, size as u64));
            assert_eq!(hashed.along.report, reported.map(|(report, _)| report));
            // Since it was looked at it has become longer, and then longer than the buffer.
            for more in [1, READ_BYTES] {
                bytes.resize(size + more, b'!');
                std::fs::write(&path, &bytes).unwrap();
                let read = content.read_and_hash(size as u64, &wanted, &mut Vec::new(), &mut None);
                let (digest, read, along, _) = read.unwrap();
                assert_eq!((digest, read), (Digest::of(&bytes), bytes.len() as u64));
                assert!(along.report.is_some());
            }
        }
    }
}
