//! A file becomes an item.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use model::{Detection, Digest, ItemId};

use crate::intent::{Doing, Intent};
use crate::item::{self, ItemInfo, ItemWriter};
use crate::original::{Original, OriginalError};
use crate::place::{Place, PlaceError};
use crate::removal::aside_name;
use crate::vault::item_name;
use crate::{IoError, LockError, Metadata, MetadataError, Refusal, Timestamp, Vault};

/// A file was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The item it became.
    pub id: ItemId,
    /// Bytes of its content.
    pub size: u64,
    /// Other names of the same file that are still there, with the same content.
    pub links_left: u64,
}

/// A file was not taken, and nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Its path leads nowhere safe.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It is not what the order is about.
    #[error(transparent)]
    Original(#[from] OriginalError),
    /// It has too much metadata, or some that cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// It lies in the quarantine.
    #[error("{0:?} lies in the quarantine itself")]
    InsideVault(PathBuf),
    /// The quarantine is full. Nothing is dropped to make room.
    #[error("the quarantine is full: {limit} is {max}, {path:?} would make it {needed}")]
    Full {
        /// The file.
        path: PathBuf,
        /// The name of the limit.
        limit: &'static str,
        /// Its value.
        max: u64,
        /// The value with this file.
        needed: u64,
    },
    /// The file system that holds the quarantine would have too little space left.
    #[error("no room for {path:?}: {needed} bytes are needed, {available} are free")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// With what must stay free.
        needed: u64,
        /// What is free.
        available: u64,
    },
    /// Another process works with the quarantine.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl TakeError {
    /// How to answer the order.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Place(error) => error.refusal(),
            Self::Original(error) => error.refusal(),
            Self::InsideVault(_) => Refusal::Conflict,
            _ => Refusal::Failed,
        }
    }
}

impl PlaceError {
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Missing(_) => Refusal::Missing,
            Self::Symlink(_) | Self::NotDirectory(_) => Refusal::Conflict,
            Self::NotAbsolute(_) | Self::NoName(_) | Self::Io(_) => Refusal::Failed,
        }
    }
}

impl OriginalError {
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Missing(_) => Refusal::Missing,
            Self::NotRegular(_) => Refusal::Conflict,
            Self::OtherContent { .. } | Self::ChangedMeanwhile(_) => Refusal::Changed,
            Self::Io(_) => Refusal::Failed,
        }
    }
}

impl Vault {
    /// Moves the file at `path`, whose content must have the digest `ordered`, into the vault.
    ///
    /// Blocks while the file is read twice and written once.
    ///
    /// # Errors
    /// Says why nothing was done. A crash instead leaves what the next [`Vault::open`] finishes.
    pub fn take(
        &self,
        path: &Path,
        ordered: Digest,
        detections: &[Detection],
        now: SystemTime,
    ) -> Result<Taken, TakeError> {
        let _lock = self.lock()?;
        let place = Place::resolve(path)?;
        if self.is_own_directory(&place)? {
            return Err(TakeError::InsideVault(path.to_owned()));
        }
        let original = Original::open(&place, place.name())?;
        self.check_room(path, original.size())?;
        let info = ItemInfo {
            id: ItemId(item::random().map_err(|e| IoError::new("make an id for", path, e))?),
            path: path.to_owned(),
            digest: ordered,
            size: original.size(),
            taken: timestamp(now),
            detections: detections.to_vec(),
            detections_omitted: 0,
            metadata: Metadata::capture(&original.file, path)?,
        };
        let taken = self.take_step_by_step(&place, &original, &info);
        if taken.is_err() {
            self.undo_take(&place, info.id);
        }
        taken?;
        Ok(Taken {
            id: info.id,
            size: info.size,
            links_left: info.metadata.links.saturating_sub(1),
        })
    }

    fn take_step_by_step(
        &self,
        place: &Place,
        original: &Original,
        info: &ItemInfo,
    ) -> Result<(), TakeError> {
        let id = info.id;
        self.write_intent(id, &Intent::new(Doing::Take, &place.path, info.digest))?;
        self.seal(original, info)?;
        original.expect_untouched()?;
        self.commit_item(id)?;
        self.remove(place, original, id, info.digest)?;
        self.finish_intent(id);
        Ok(())
    }

    /// Writes the item's file into `incoming`, all of it and durably.
    fn seal(&self, original: &Original, info: &ItemInfo) -> Result<(), TakeError> {
        let name = item_name(info.id);
        let path = self.incoming.path(&name);
        let failed = |error| TakeError::Io(IoError::new("write", &path, error));
        self.step("create the item", &path)?;
        let file = self.incoming.create(&name)?;
        self.step("write the item's header", &path)?;
        let mut writer = ItemWriter::start(&file, info).map_err(failed)?;
        let found = original.read(|content, last| {
            self.step("write a segment", &path)?;
            writer.segment(content, last).map_err(failed)
        })?;
        original.expect(info.digest, found)?;
        self.step("sync the item", &path)?;
        file.sync_all().map_err(failed)
    }

    /// Takes back what a failed take has done. Whatever cannot be taken back is left to the
    /// intent, which then stays: most of all an original that could not be given its name back.
    fn undo_take(&self, place: &Place, id: ItemId) {
        let aside = place.stat_sibling(&aside_name(id));
        if !matches!(aside, Ok(None)) {
            return;
        }
        let name = item_name(id);
        let dropped = self
            .incoming
            .remove(&name)
            .and_then(|()| self.items.remove(&name));
        if dropped.is_ok() {
            self.finish_intent(id);
        }
    }
}

fn timestamp(now: SystemTime) -> Timestamp {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        s: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        ns: since.subsec_nanos(),
    }
}
