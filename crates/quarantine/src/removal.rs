//! Taking a file's name away: what quarantine, deletion and recovery have in common.

use std::ffi::OsString;

use model::{Digest, ItemId};
use rustix::io::Errno;

use crate::original::{Original, OriginalError};
use crate::place::Place;
use crate::{IoError, Vault};

/// The name a file bears between losing its own and being unlinked.
pub(crate) fn aside_name(id: ItemId) -> OsString {
    format!(".lazaret-removed-{id}").into()
}

impl Vault {
    /// Unlinks `original`, the file at `place` whose content has that digest.
    ///
    /// First it is renamed to a name nobody else uses, then compared with what was read, then
    /// unlinked: a new file that somebody saved under the old name is never hit. An error means
    /// that nothing was unlinked, and that the file has its name back unless something else bears
    /// it by now (then the aside name is still there, and the caller must keep the intent).
    pub(crate) fn remove(
        &self,
        place: &Place,
        original: &Original,
        id: ItemId,
        digest: Digest,
    ) -> Result<(), OriginalError> {
        let aside = aside_name(id);
        self.step("rename the original aside", &place.path)?;
        place
            .rename(place.name(), &aside)
            .map_err(|error| match error {
                Errno::NOENT => OriginalError::ChangedMeanwhile(place.path.clone()),
                error => IoError::new("rename", &place.path, error).into(),
            })?;
        let removed = self
            .step("compare the original", &place.path)
            .map_err(OriginalError::from)
            .and_then(|()| original.expect_still(place, &aside, digest))
            .and_then(|()| Ok(self.step("unlink the original", &place.path)?))
            .and_then(|()| Ok(place.unlink(&aside)?));
        if let Err(error) = removed {
            self.put_back(place, id)?;
            return Err(error);
        }
        // It has lost its name, and there is no way back. Where this fails, a crash of the machine
        // could bring the name back; the file is then found malicious once more.
        let _unlikely = self
            .step("sync the original's directory", &place.path)
            .and_then(|()| place.sync());
        Ok(())
    }

    /// Gives a file that was renamed aside its name back, if there is such a file.
    pub(crate) fn put_back(&self, place: &Place, id: ItemId) -> Result<(), IoError> {
        let aside = aside_name(id);
        if place.stat_sibling(&aside)?.is_none() {
            return Ok(());
        }
        self.step("give the original its name back", &place.path)?;
        place
            .rename(&aside, place.name())
            .map_err(|error| IoError::new("give back its name to", &place.path, error))?;
        place.sync()
    }
}
