//! A list in memory, for those who make lists.

use std::path::Path;

use crate::{Digest, Error, PublicKey, SigningKey, format, read_text, store};

/// A list that can be changed, merged and written. Its digests are sorted and unique, and none
/// is both listed and revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// What the list is called: 1 to 64 bytes. Roll-back is judged among lists of one name.
    pub name: String,
    /// Rises with every list of this name.
    pub serial: u64,
    /// When it was made, in seconds of Unix time.
    pub created: u64,
    listed: Vec<Digest>,
    revoked: Vec<Digest>,
}

/// What two lists do not have in common; see [`List::diff`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Listed only in the new one.
    pub added: Vec<Digest>,
    /// Listed only in the old one.
    pub removed: Vec<Digest>,
    /// Revoked only in the new one.
    pub revoked: Vec<Digest>,
    /// Revoked only in the old one.
    pub restored: Vec<Digest>,
}

impl List {
    /// A list of `listed` without what is in `revoked`, in any order.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn new(
        name: &str,
        serial: u64,
        created: u64,
        mut listed: Vec<Digest>,
        mut revoked: Vec<Digest>,
    ) -> Result<Self, Error> {
        format::check_name(name)?;
        revoked.sort_unstable();
        revoked.dedup();
        listed.sort_unstable();
        listed.dedup();
        listed.retain(|digest| revoked.binary_search(digest).is_err());
        Ok(Self {
            name: name.to_owned(),
            serial,
            created,
            listed,
            revoked,
        })
    }

    /// The digests that are listed, rising.
    #[must_use]
    pub fn listed(&self) -> &[Digest] {
        &self.listed
    }

    /// The digests that no list may allow any more, rising.
    #[must_use]
    pub fn revoked(&self) -> &[Digest] {
        &self.revoked
    }

    /// Everything that one of `lists` lists and none revokes; all their revocations stay.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn merge(name: &str, serial: u64, created: u64, lists: &[Self]) -> Result<Self, Error> {
        let listed = lists
            .iter()
            .flat_map(|list| list.listed.iter().copied())
            .collect();
        let revoked = lists
            .iter()
            .flat_map(|list| list.revoked.iter().copied())
            .collect();
        Self::new(name, serial, created, listed, revoked)
    }

    /// Takes `digests` from the list and keeps them from coming back by a merge.
    pub fn revoke(&mut self, digests: &[Digest]) {
        self.revoked.extend_from_slice(digests);
        self.revoked.sort_unstable();
        self.revoked.dedup();
        self.listed
            .retain(|digest| self.revoked.binary_search(digest).is_err());
    }

    /// What changed from `self` to `new`.
    #[must_use]
    pub fn diff(&self, new: &Self) -> Difference {
        Difference {
            added: without(&new.listed, &self.listed),
            removed: without(&self.listed, &new.listed),
            revoked: without(&new.revoked, &self.revoked),
            restored: without(&self.revoked, &new.revoked),
        }
    }

    /// The bytes of the list's file, signed when there is a key.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn to_bytes(&self, key: Option<&SigningKey>) -> Result<Vec<u8>, Error> {
        format::encode(self, key)
    }

    /// [`List::open`] of a list that must be signed by one of `trusted`.
    ///
    /// # Errors
    /// As there, and that the signature is missing, bad or of another key.
    pub fn open_trusted(path: &Path, trusted: &[PublicKey]) -> Result<Self, Error> {
        let bytes = read_text(path)?;
        let (list, _) = Self::from_bytes(&bytes)?;
        format::check_signature(&bytes, trusted)?;
        Ok(list)
    }

    /// Reads a list's bytes: everything is checked but the signature. Returns who says to have
    /// signed it, if anyone.
    ///
    /// # Errors
    /// What is wrong with the bytes, and where.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, Option<PublicKey>), Error> {
        let header = format::check(bytes)?;
        let (listed, revoked) = format::digests(bytes).split_at(header.listed);
        let list = Self::new(
            &header.name,
            header.serial,
            header.created,
            listed.to_vec(),
            revoked.to_vec(),
        )?;
        let signer = format::signer(bytes);
        Ok((list, (signer.0 != [0; 32]).then_some(signer)))
    }

    /// [`List::from_bytes`] of a file.
    ///
    /// # Errors
    /// As there, and [`Error::Io`].
    pub fn open(path: &Path) -> Result<(Self, Option<PublicKey>), Error> {
        Self::from_bytes(&read_text(path)?)
    }

    /// Writes the list beside `path` and moves it there: a crash leaves the old or the new.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn write(&self, path: &Path, key: Option<&SigningKey>) -> Result<(), Error> {
        store::replace(path, &self.to_bytes(key)?)
    }
}

fn without(these: &[Digest], those: &[Digest]) -> Vec<Digest> {
    these
        .iter()
        .filter(|digest| those.binary_search(digest).is_err())
        .copied()
        .collect()
}
