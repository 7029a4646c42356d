//! An item becomes a file again.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use model::{Digest, ItemId};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::intent::{Doing, Intent};
use crate::item::{ItemReader, SEGMENT_BYTES};
use crate::original::same_file;
use crate::place::{Place, PlaceError};
use crate::vault::item_name;
use crate::{DamagedItem, IoError, LockError, Refusal, Vault};

/// A hole is worth a seek from this many zero bytes on: a block of most file systems.
const HOLE_BYTES: usize = 4096;

/// An item was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The file.
    pub path: PathBuf,
    /// Its content.
    pub digest: Digest,
    /// Names of extended attributes that its file system has no place for.
    pub attributes_lost: Vec<Vec<u8>>,
}

/// An item was not restored; item and target are as they were.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no such item.
    #[error("there is no item {0} in the quarantine")]
    NoSuchItem(ItemId),
    /// The item cannot be read (any more).
    #[error("item {id} cannot be restored")]
    Item {
        /// The item.
        id: ItemId,
        /// What is wrong with it.
        #[source]
        source: DamagedItem,
    },
    /// The target's path leads nowhere safe.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Something is there already; a restore never replaces anything.
    #[error("{0:?} exists already")]
    Exists(PathBuf),
    /// The target lies in the quarantine.
    #[error("{0:?} lies in the quarantine itself")]
    InsideVault(PathBuf),
    /// Another process works with the quarantine.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl RestoreError {
    /// How to answer the order.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NoSuchItem(_) => Refusal::Missing,
            Self::Exists(_) | Self::InsideVault(_) => Refusal::Conflict,
            Self::Place(error) => error.refusal(),
            Self::Item { .. } | Self::Lock(_) | Self::Io(_) => Refusal::Failed,
        }
    }
}

/// The name a file bears before it gets its own.
pub(crate) fn temporary_name(id: ItemId) -> OsString {
    format!(".lazaret-restored-{id}").into()
}

impl Vault {
    /// Puts an item back where it came from, or at `target`, and drops the item.
    ///
    /// Nothing is ever replaced. The file appears under its name at once and whole, with owner,
    /// mode, times and extended attributes.
    ///
    /// # Errors
    /// Says why nothing was done. A crash instead leaves what the next [`Vault::open`] finishes.
    pub fn restore(&self, id: ItemId, target: Option<&Path>) -> Result<Restored, RestoreError> {
        let _lock = self.lock()?;
        // An unfinished operation on this item comes first.
        self.recover_one(id);
        let damaged = |source| RestoreError::Item { id, source };
        let file = self.items.open_file(&item_name(id))?;
        let file = file.ok_or(RestoreError::NoSuchItem(id))?;
        let item = ItemReader::open(file, id).map_err(damaged)?;
        let path = target.unwrap_or(&item.info.path).to_owned();
        let place = Place::resolve(&path)?;
        if self.is_own_directory(&place)? {
            return Err(RestoreError::InsideVault(path));
        }
        if place.stat()?.is_some() {
            return Err(RestoreError::Exists(path));
        }
        let digest = item.info.digest;
        self.write_intent(id, &Intent::new(Doing::Restore, &path, digest))?;
        let restored = self.restore_step_by_step(&place, item);
        // Finishes after success and takes back after failure; the intent knows which.
        self.recover_one(id);
        Ok(Restored {
            path,
            digest,
            attributes_lost: restored?,
        })
    }

    /// Ends with the file in place and the item still there.
    fn restore_step_by_step(
        &self,
        place: &Place,
        item: ItemReader,
    ) -> Result<Vec<Vec<u8>>, RestoreError> {
        let id = item.info.id;
        let temporary = temporary_name(id);
        let path = place.sibling_path(&temporary);
        let metadata = item.info.metadata.clone();
        self.step("create the restored file", &path)?;
        let file = create(place, &temporary)?;
        self.unseal(item, &file, &path)?;
        self.step("put the metadata back", &path)?;
        let attributes_lost = metadata.apply(&file, &path)?;
        self.step("sync the restored file", &path)?;
        file.sync_all()
            .map_err(|error| IoError::new("sync", &path, error))?;
        self.step("give the restored file its name", &place.path)?;
        let (parent, name) = (&place.parent, place.name());
        match rustix::fs::linkat(parent, &temporary, parent, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(RestoreError::Exists(place.path.clone())),
            Err(error) => return Err(IoError::new("link", &place.path, error).into()),
        }
        Ok(attributes_lost)
    }

    /// Writes the item's content, all of it proved by its digest.
    fn unseal(&self, mut item: ItemReader, file: &File, path: &Path) -> Result<(), RestoreError> {
        let id = item.info.id;
        let damaged = |source| RestoreError::Item { id, source };
        let failed = |error| IoError::new("write", path, error);
        let sparse = item.info.metadata.sparse;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = Vec::with_capacity(SEGMENT_BYTES + 64);
        while let Some(content) = item.segment(&mut buffer).map_err(damaged)? {
            self.step("write restored bytes", path)?;
            hasher.update(content);
            if sparse {
                write_with_holes(file, content).map_err(failed)?;
            } else {
                (&*file).write_all(content).map_err(failed)?;
            }
        }
        file.set_len(item.info.size).map_err(failed)?;
        if Digest(*hasher.finalize().as_bytes()) != item.info.digest {
            return Err(damaged(DamagedItem::Digest));
        }
        Ok(())
    }

    /// Carries a restore to its end: forward if the file has its name, back if not.
    pub(crate) fn recover_restore(&self, place: &Place, id: ItemId) -> Result<bool, IoError> {
        let temporary = temporary_name(id);
        let named = place.stat()?;
        let Some(written) = place.stat_sibling(&temporary)? else {
            return Ok(false);
        };
        let in_place = named.is_some_and(|named| same_file(&named, &written));
        if in_place {
            self.step("sync the restored file's directory", &place.path)?;
            place.sync()?;
            self.step("drop the restored item", &place.path)?;
            self.items.remove(&item_name(id))?;
        }
        self.step("unlink the temporary name", &place.path)?;
        place.unlink(&temporary)?;
        place.sync()?;
        Ok(in_place)
    }
}

/// For root alone until owner and mode are put back.
fn create(place: &Place, name: &std::ffi::OsStr) -> Result<File, IoError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&place.parent, name, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|error| IoError::new("create", &place.sibling_path(name), error))
}

/// Leaves out blocks of zeros; the caller sets the file's length.
fn write_with_holes(mut file: &File, content: &[u8]) -> std::io::Result<()> {
    for block in content.chunks(HOLE_BYTES) {
        if block.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(block.len() as i64))?;
        } else {
            file.write_all(block)?;
        }
    }
    Ok(())
}
