//! Carrying interrupted operations to their end.

use std::fs::File;

use model::{Digest, ItemId};

use crate::intent::Doing;
use crate::item::{ItemReader, SEGMENT_BYTES};
use crate::original::{Original, OriginalError};
use crate::place::{Place, PlaceError};
use crate::removal::aside_name;
use crate::vault::item_name;
use crate::{DamagedItem, IoError, OpenError, Vault};

/// What was found unfinished.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Operations that were carried to their end.
    pub finished: Vec<ItemId>,
    /// Operations that were taken back, or had nothing left to do.
    pub ended: Vec<ItemId>,
    /// Operations that must wait for the next open, with the reason for people.
    pub waiting: Vec<(ItemId, String)>,
    /// Half-written files that were dropped.
    pub dropped: u64,
}

/// How far an operation can be carried.
enum Carried {
    /// To its end, just now.
    Finished,
    /// There was nothing left to do, or it was taken back.
    Ended,
}

/// An operation that cannot be carried to its end now.
#[derive(Debug, thiserror::Error)]
enum Waiting {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Original(#[from] OriginalError),
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("its intent cannot be read: {0}")]
    Intent(String),
    #[error("its item is damaged ({0}), so the original is left alone")]
    Item(DamagedItem),
}

impl Vault {
    /// Called with the lock held, so nothing in here is another process's work under way.
    pub(crate) fn recover(&self) -> Result<Recovery, OpenError> {
        let mut recovery = Recovery::default();
        for name in self.incoming.names()? {
            self.step("drop a half-written file", &self.incoming.path(&name))?;
            self.incoming.remove(&name)?;
            recovery.dropped += 1;
        }
        for id in self.intents.ids()? {
            match self.recover_intent(id) {
                Ok(Some(Carried::Finished)) => recovery.finished.push(id),
                Ok(Some(Carried::Ended)) => recovery.ended.push(id),
                Ok(None) => {}
                Err(why) => recovery.waiting.push((id, chain(&why))),
            }
        }
        Ok(recovery)
    }

    /// Carries what is unfinished for one item as far as it goes; what must wait keeps its intent.
    pub(crate) fn recover_one(&self, id: ItemId) {
        let _waits_for_the_next_open = self.recover_intent(id);
    }

    /// `None`: there is no intent.
    fn recover_intent(&self, id: ItemId) -> Result<Option<Carried>, Waiting> {
        let Some(intent) = self.read_intent(id)? else {
            return Ok(None);
        };
        let intent = intent.map_err(Waiting::Intent)?;
        let item = self.items.open_file(&item_name(id))?;
        let place = match Place::resolve(&intent.path) {
            // Its directory is gone, and there is nothing here that belongs there.
            Err(PlaceError::Missing(_)) if item.is_none() => {
                self.finish_intent(id);
                return Ok(Some(Carried::Ended));
            }
            place => place?,
        };
        let finished = match intent.doing {
            Doing::Take => self.recover_take(&place, item, id, intent.digest)?,
            Doing::Delete => self.finish_removal(&place, id, intent.digest)?,
            Doing::Restore => self.recover_restore(&place, id)?,
            Doing::Unspecified => false,
        };
        self.finish_intent(id);
        Ok(Some(if finished {
            Carried::Finished
        } else {
            Carried::Ended
        }))
    }

    /// Forward where there is an item, back where there is none.
    fn recover_take(
        &self,
        place: &Place,
        item: Option<File>,
        id: ItemId,
        digest: Digest,
    ) -> Result<bool, Waiting> {
        let Some(item) = item else {
            self.put_back(place, id)?;
            return Ok(false);
        };
        // The original is about to go: the copy has to be proved, not believed.
        if let Err(damage) = prove(item, id, digest) {
            self.put_back(place, id)?;
            return Err(Waiting::Item(damage));
        }
        self.finish_removal(place, id, digest)
    }

    /// Removes the file if it still has the content that the order was about. True where it did.
    fn finish_removal(&self, place: &Place, id: ItemId, digest: Digest) -> Result<bool, Waiting> {
        let aside = aside_name(id);
        if place.stat_sibling(&aside)?.is_some() {
            return self.finish_aside(place, id, digest);
        }
        let original = match Original::open(place, place.name()) {
            Ok(original) => original,
            Err(OriginalError::Missing(_) | OriginalError::NotRegular(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if original.digest()? != digest {
            return Ok(false);
        }
        match self.remove(place, &original, id, digest) {
            Ok(()) => Ok(true),
            Err(OriginalError::ChangedMeanwhile(_) | OriginalError::OtherContent { .. }) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The file had lost its name already.
    fn finish_aside(&self, place: &Place, id: ItemId, digest: Digest) -> Result<bool, Waiting> {
        let aside = aside_name(id);
        let found = Original::open(place, &aside).and_then(|original| original.digest());
        if found.is_ok_and(|found| found == digest) {
            self.step("unlink the original", &place.path)?;
            place.unlink(&aside)?;
            place.sync()?;
            return Ok(true);
        }
        self.put_back(place, id)?;
        Ok(false)
    }
}

/// Reads a whole item; fails unless its content has that digest.
fn prove(file: File, id: ItemId, digest: Digest) -> Result<(), DamagedItem> {
    let mut item = ItemReader::open(file, id)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::with_capacity(SEGMENT_BYTES + 64);
    while let Some(content) = item.segment(&mut buffer)? {
        hasher.update(content);
    }
    if Digest(*hasher.finalize().as_bytes()) != digest {
        return Err(DamagedItem::Digest);
    }
    Ok(())
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
