//! The vault's directories, its lock, its limits, and what is in it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::ItemId;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::intent::{INTENT_BYTES_MAX, Intent};
use crate::item::{ItemReader, room_needed};
use crate::original::same_file;
use crate::place::Place;
use crate::{AllSteps, DamagedItem, IoError, ItemInfo, Recovery, Steps, TakeError};

/// How large a vault may grow. When it is full it refuses; nothing is ever dropped by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all items together.
    pub bytes_max: u64,
    /// Number of items.
    pub items_max: u64,
    /// Bytes that stay free on the vault's file system.
    pub free_bytes_min: u64,
    /// How long an operation waits for another process that uses the vault.
    pub lock_wait_max: Duration,
}

impl Default for Limits {
    /// 4 GiB, 10,000 items, 64 MiB stay free, a minute.
    fn default() -> Self {
        Self {
            bytes_max: 4 << 30,
            items_max: 10_000,
            free_bytes_min: 64 << 20,
            lock_wait_max: Duration::from_secs(60),
        }
    }
}

/// What a vault holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Items, damaged ones too.
    pub items: u64,
    /// Bytes of their files.
    pub bytes: u64,
}

/// A vault cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else could tamper with it.
    #[error("{path:?} belongs to user {uid}, not to this one ({own})")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Who we are.
        own: u32,
    },
    /// Another process works with it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Another process keeps the vault locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It did not finish within `lock_wait_max`.
    #[error("{path:?} is in use by another process, for more than {waited_s} s")]
    Busy {
        /// The lock's file.
        path: PathBuf,
        /// The limit.
        waited_s: u64,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// The items cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ListError(#[from] IoError);

/// An item was not discarded.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// There is no such item.
    #[error("there is no item {0} in the quarantine")]
    NoSuchItem(ItemId),
    /// Another process works with the vault.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// One entry of a list.
#[derive(Debug)]
pub enum Listed {
    /// An item whose header is intact.
    Item(Box<ItemInfo>),
    /// An item that cannot be read; it can be discarded.
    Damaged {
        /// The item.
        id: ItemId,
        /// What is wrong.
        why: DamagedItem,
    },
}

/// A guest's quarantine. Safe to share between threads, and between processes.
pub struct Vault {
    root: Directory,
    pub(crate) items: Directory,
    pub(crate) incoming: Directory,
    pub(crate) intents: Directory,
    limits: Limits,
    steps: Box<dyn Steps>,
    recovery: Recovery,
}

/// Held for the length of one operation; dropping it unlocks.
pub(crate) struct Lock {
    file: OwnedFd,
}

impl Drop for Lock {
    /// A child that is between fork and exec holds the file open a moment longer, and with it a
    /// lock that is not given back.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

impl Vault {
    /// Opens the vault at `dir`, making it where it does not exist, and carries unfinished
    /// operations to their end; [`recovery`](Self::recovery) tells which.
    ///
    /// # Errors
    /// Says what keeps the directory from being used.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, OpenError> {
        Self::open_stepwise(dir, limits, Box::new(AllSteps))
    }

    /// [`open`](Self::open), with somebody told about every step of every operation.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_stepwise(
        dir: &Path,
        limits: Limits,
        steps: Box<dyn Steps>,
    ) -> Result<Self, OpenError> {
        let root = Directory::open(dir)?;
        let mut vault = Self {
            items: Directory::open(&dir.join("items"))?,
            incoming: Directory::open(&dir.join("incoming"))?,
            intents: Directory::open(&dir.join("intents"))?,
            root,
            limits,
            steps,
            recovery: Recovery::default(),
        };
        let lock = vault.lock()?;
        vault.recovery = vault.recover()?;
        drop(lock);
        Ok(vault)
    }

    /// What opening the vault found unfinished.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Every item, in the order of their ids.
    ///
    /// # Errors
    /// Only where the directory itself cannot be read: damaged items are listed as damaged.
    pub fn list(&self) -> Result<Vec<Listed>, ListError> {
        let mut listed = Vec::new();
        for id in self.items.ids()? {
            let why = match self.items.open_file(&item_name(id)) {
                Ok(Some(file)) => match ItemReader::open(file, id) {
                    Ok(item) => {
                        listed.push(Listed::Item(Box::new(item.info)));
                        continue;
                    }
                    Err(why) => why,
                },
                // Dropped by another process since the directory was read.
                Ok(None) => continue,
                Err(error) => DamagedItem::Read(error.source),
            };
            listed.push(Listed::Damaged { id, why });
        }
        Ok(listed)
    }

    /// Deletes an item for good, damaged or not.
    ///
    /// # Errors
    /// Says why it is still there.
    pub fn discard(&self, id: ItemId) -> Result<(), DiscardError> {
        let _lock = self.lock()?;
        self.recover_one(id);
        let name = item_name(id);
        if self.items.open_file(&name)?.is_none() {
            return Err(DiscardError::NoSuchItem(id));
        }
        self.step("discard the item", &self.items.path(&name))?;
        Ok(self.items.remove(&name)?)
    }

    /// What the vault holds now; [`Limits`] says what it may hold.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn usage(&self) -> Result<Usage, ListError> {
        let mut usage = Usage::default();
        for id in self.items.ids()? {
            usage.items += 1;
            usage.bytes += self.items.len(&item_name(id))?;
        }
        Ok(usage)
    }

    pub(crate) fn check_room(&self, path: &Path, size: u64) -> Result<(), TakeError> {
        let usage = self.usage().map_err(|ListError(error)| error)?;
        let room = room_needed(size);
        let full = |limit, max, needed| {
            let path = path.to_owned();
            Err(TakeError::Full {
                path,
                limit,
                max,
                needed,
            })
        };
        let limits = &self.limits;
        if usage.items >= limits.items_max {
            return full("items_max", limits.items_max, usage.items + 1);
        }
        let bytes = usage.bytes.saturating_add(room);
        if bytes > limits.bytes_max {
            return full("bytes_max", limits.bytes_max, bytes);
        }
        let file_system = rustix::fs::fstatvfs(&self.items.fd)
            .map_err(|error| IoError::new("ask for the free space of", &self.items.path, error))?;
        let available = file_system.f_bavail.saturating_mul(file_system.f_frsize);
        let needed = room.saturating_add(limits.free_bytes_min);
        if needed > available {
            let path = path.to_owned();
            return Err(TakeError::NoSpace {
                path,
                needed,
                available,
            });
        }
        Ok(())
    }

    /// True for a file directly in the vault.
    pub(crate) fn is_own_directory(&self, place: &Place) -> Result<bool, IoError> {
        let stat = |fd: &OwnedFd, path: &Path| {
            rustix::fs::fstat(fd).map_err(|error| IoError::new("look at", path, error))
        };
        let parent = stat(&place.parent, &place.path)?;
        for own in [&self.root, &self.items, &self.incoming, &self.intents] {
            if same_file(&parent, &stat(&own.fd, &own.path)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits for its turn. Each call has its own open file, so threads exclude each other too.
    pub(crate) fn lock(&self) -> Result<Lock, LockError> {
        let path = self.root.path("lock".as_ref());
        let failed = |error: Errno| IoError::new("lock", &path, error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.root.fd, "lock", flags, mode).map_err(failed)?;
        let asked = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { file }),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(failed(error).into()),
            }
            if asked.elapsed() >= self.limits.lock_wait_max {
                let waited_s = self.limits.lock_wait_max.as_secs();
                return Err(LockError::Busy { path, waited_s });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn step(&self, step: &'static str, path: &Path) -> Result<(), IoError> {
        let taken = self.steps.next(step);
        taken.map_err(|error| IoError::new(step, path, error))
    }

    /// The point of no return of a take: the item is complete and durable, and now an item.
    pub(crate) fn commit_item(&self, id: ItemId) -> Result<(), IoError> {
        let name = item_name(id);
        self.step("commit the item", &self.items.path(&name))?;
        self.incoming.move_to(&self.items, &name, &name)
    }

    /// Writes down what is about to be done, replacing what was written for that item before.
    pub(crate) fn write_intent(&self, id: ItemId, intent: &Intent) -> Result<(), IoError> {
        let name = item_name(id);
        let temporary: OsString = format!("{id}.intent").into();
        let path = self.incoming.path(&temporary);
        self.step("write the intent", &path)?;
        let mut file = self.incoming.create(&temporary)?;
        let written = file
            .write_all(&intent.encode())
            .and_then(|()| file.sync_all())
            .map_err(|error| IoError::new("write", &path, error))
            .and_then(|()| self.step("commit the intent", &path))
            .and_then(|()| self.incoming.move_to(&self.intents, &temporary, &name));
        if written.is_err() {
            // What cannot be removed now is removed on the next open.
            let _left_over = self.incoming.remove(&temporary);
        }
        written
    }

    /// `None`: there is none. The inner error says for people why it cannot be read.
    pub(crate) fn read_intent(
        &self,
        id: ItemId,
    ) -> Result<Option<Result<Intent, String>>, IoError> {
        let name = item_name(id);
        let Some(file) = self.intents.open_file(&name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(INTENT_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| IoError::new("read", &self.intents.path(&name), error))?;
        Ok(Some(Intent::decode(&bytes).map_err(str::to_owned)))
    }

    /// The operation is over. Where the intent cannot be dropped, the next open finds nothing left
    /// to do and drops it.
    pub(crate) fn finish_intent(&self, id: ItemId) {
        let name = item_name(id);
        let _left_over = self
            .step("drop the intent", &self.intents.path(&name))
            .and_then(|()| self.intents.remove(&name));
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault")
            .field("path", &self.root.path)
            .finish_non_exhaustive()
    }
}

/// The name of an item's files: its id in hexadecimal.
pub(crate) fn item_name(id: ItemId) -> OsString {
    id.to_string().into()
}

/// One of the vault's directories, held open.
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory, making it where it does not exist; for this user alone.
    fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |what, error: io::Error| IoError::new(what, path, error);
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make the directory", error).into());
            }
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| failed("open the directory", error.into()))?;
        let file = File::from(fd);
        let metadata = file.metadata().map_err(|error| failed("look at", error))?;
        let own = rustix::process::geteuid().as_raw();
        if metadata.uid() != own {
            return Err(OpenError::Owner {
                path: path.to_owned(),
                uid: metadata.uid(),
                own,
            });
        }
        if metadata.mode() & 0o077 != 0 {
            rustix::fs::fchmod(&file, Mode::RWXU)
                .map_err(|error| failed("close to others", error.into()))?;
        }
        Ok(Self {
            fd: file.into(),
            path: path.to_owned(),
        })
    }

    pub(crate) fn path(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// A new file for this user alone.
    pub(crate) fn create(&self, name: &OsStr) -> Result<File, IoError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|error| IoError::new("create", &self.path(name), error))
    }

    /// `None`: there is no such file.
    pub(crate) fn open_file(&self, name: &OsStr) -> Result<Option<File>, IoError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(IoError::new("open", &self.path(name), error)),
        }
    }

    /// Durable when it returns. No error where there is no such file.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<(), IoError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => self.sync(),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(IoError::new("remove", &self.path(name), error)),
        }
    }

    /// Durable when it returns.
    fn move_to(&self, to: &Self, name: &OsStr, new_name: &OsStr) -> Result<(), IoError> {
        rustix::fs::renameat(&self.fd, name, &to.fd, new_name)
            .map_err(|error| IoError::new("rename", &self.path(name), error))?;
        to.sync()
    }

    fn sync(&self) -> Result<(), IoError> {
        rustix::fs::fsync(&self.fd).map_err(|error| IoError::new("sync", &self.path, error))
    }

    fn len(&self, name: &OsStr) -> Result<u64, IoError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(u64::try_from(stat.st_size).unwrap_or(0)),
            Err(Errno::NOENT) => Ok(0),
            Err(error) => Err(IoError::new("look at", &self.path(name), error)),
        }
    }

    /// Every name in it, in order.
    pub(crate) fn names(&self) -> Result<Vec<OsString>, IoError> {
        let failed = |error: Errno| IoError::new("list", &self.path, error);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The ids among the names, in order; other names are not ours.
    pub(crate) fn ids(&self) -> Result<Vec<ItemId>, IoError> {
        let id = |name: &OsString| ItemId::from_hex(name.to_str()?);
        Ok(self.names()?.iter().filter_map(id).collect())
    }
}
