//! The quarantine of a guest: a vault of sealed items.
//!
//! *Sealed* means that the content of an item can be neither executed, nor found by a scanner, nor
//! parsed by accident, and that damage is noticed. It does not mean secret: the key of an item
//! lies in the item's own file, because whoever may read the vault (root) could have read the
//! original too.
//!
//! # What survives a crash
//! Every operation writes an *intent* before it touches anything outside the vault, and
//! [`Vault::open`] carries out or takes back whatever intents it finds. At every moment the
//! content exists at its original place, or as a complete item, or at both; never nowhere, and
//! never as half an item.
//!
//! | found on open | done |
//! |---|---|
//! | a half-written item, no complete one | dropped; the original was not touched |
//! | a complete item, the original still there with the ordered content | the removal is finished |
//! | a complete item, something else at the original's place | that stays; the item stays |
//! | a deletion that was decided | finished if the file still has the ordered content |
//! | a restored file that has no name yet | dropped; the item stays |
//! | a restored file in place, its item still there | the item is dropped |
//! | an intent whose directory cannot be reached now | kept, and tried again on the next open |
//!
//! # Layout of a vault
//! `items/` complete items, `incoming/` half-written ones, `intents/` operations under way,
//! `lock` taken by each operation: several processes may use one vault. The directory belongs to
//! its user alone (0700, files 0600).
//!
//! Next to a file under way a name `.lazaret-removed-ID` or `.lazaret-restored-ID` appears for a
//! moment. A file is renamed to the former before it is unlinked, so that it is certain that what
//! is unlinked is what was copied, even if somebody saved a new file under the old name just then.

mod delete;
mod error;
mod intent;
mod item;
mod metadata;
mod original;
mod place;
mod recover;
mod removal;
mod restore;
mod steps;
mod take;
mod vault;

pub use delete::DeleteError;
pub use error::{IoError, Refusal};
pub use item::{DamagedItem, ItemInfo};
pub use metadata::{Metadata, MetadataError, Timestamp, Xattr};
pub use original::OriginalError;
pub use place::PlaceError;
pub use recover::Recovery;
pub use restore::{RestoreError, Restored};
pub use steps::{AllSteps, Steps};
pub use take::{TakeError, Taken};
pub use vault::{DiscardError, Limits, ListError, Listed, LockError, OpenError, Usage, Vault};
