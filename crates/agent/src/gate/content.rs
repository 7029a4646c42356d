//! The content of a file that is held by its descriptor: who it is, and how it is read.
//!
//! Only the descriptor is ever read, never the path: another file may bear that name by now.

mod hashing;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use agent_core::{ContextHash, FileKey, FileNode};
use chunks::Manifest;
use fanotify::FileIdentity;
use literal_filter::Pack;
use model::{AccessClass, Digest, UnscannedReason};
use proto::v1;

use super::look::Medium;
use super::trace::Stages;
use crate::transfer::{self, ReadAt, Stopped};

pub(crate) use hashing::{Along, Hashed, Wanted};

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
        if let Some(groups) = groups.flatten() {
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
        hashed.is_some_and(|before| before.again(self.file.as_fd()).ok() != Some(before))
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
pub(super) mod tests {
    use super::*;

    /// Of an opener, on a file system whose verdicts may be remembered.
    pub(in crate::gate) fn content(file: std::fs::File) -> Content {
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
