//! A file is removed, no copy kept.

use std::path::{Path, PathBuf};

use model::{Digest, ItemId};

use crate::intent::{Doing, Intent};
use crate::item;
use crate::original::{Original, OriginalError};
use crate::place::{Place, PlaceError};
use crate::removal::aside_name;
use crate::{IoError, LockError, Refusal, Vault};

/// A file was not deleted, and nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Its path leads nowhere safe.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It is not what the order is about.
    #[error(transparent)]
    Original(#[from] OriginalError),
    /// It lies in the quarantine: discard the item instead.
    #[error("{0:?} lies in the quarantine itself")]
    InsideVault(PathBuf),
    /// Another process works with the quarantine.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl DeleteError {
    /// How to answer the order.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Place(error) => error.refusal(),
            Self::Original(error) => error.refusal(),
            Self::InsideVault(_) => Refusal::Conflict,
            Self::Lock(_) | Self::Io(_) => Refusal::Failed,
        }
    }
}

impl Vault {
    /// Deletes the file at `path`, whose content must have the digest `ordered`.
    ///
    /// # Errors
    /// Says why nothing was done. A crash instead leaves what the next [`Vault::open`] finishes.
    pub fn delete(&self, path: &Path, ordered: Digest) -> Result<(), DeleteError> {
        let _lock = self.lock()?;
        let place = Place::resolve(path)?;
        if self.is_own_directory(&place)? {
            return Err(DeleteError::InsideVault(path.to_owned()));
        }
        let original = Original::open(&place, place.name())?;
        original.expect(ordered, original.digest()?)?;
        original.expect_untouched()?;
        let id = ItemId(item::random().map_err(|e| IoError::new("make an id for", path, e))?);
        self.write_intent(id, &Intent::new(Doing::Delete, path, ordered))?;
        let removed = self.remove(&place, &original, id, ordered);
        // An original that could not be given its name back is left to the intent.
        if matches!(place.stat_sibling(&aside_name(id)), Ok(None)) {
            self.finish_intent(id);
        }
        Ok(removed?)
    }
}
