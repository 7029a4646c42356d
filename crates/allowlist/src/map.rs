//! Lists in force: loaded once, looked up often.

use std::path::Path;

use crate::{Digest, Error, PublicKey, format, store};

/// Entries in a bucket of the prefix index, about: few enough that the search ends within two
/// cache lines, many enough that the index stays below 2 % of the list.
const BUCKET: usize = 8;

/// A verified list in memory. The file may be changed or deleted behind it: a guest's file is
/// never mapped.
#[derive(Debug)]
pub struct Map {
    header: format::Header,
    bytes: Vec<u8>,
    fingerprint: Digest,
    index: Index,
}

impl Map {
    /// Reads and checks a list: format, order, counts, length, signature by one of `trusted`,
    /// and against the one `in_force`, whose name it must bear and whose serial it must pass.
    /// The very same list again is accepted. A file of more than `bytes_max` is not read.
    ///
    /// # Errors
    /// What is wrong; the one in force is untouched.
    pub fn open(
        path: &Path,
        trusted: &[PublicKey],
        bytes_max: u64,
        in_force: Option<&Self>,
    ) -> Result<Self, Error> {
        Self::new(store::read(path, bytes_max)?, trusted, in_force)
    }

    /// [`Map::open`] of bytes.
    ///
    /// # Errors
    /// As there.
    pub fn new(
        bytes: Vec<u8>,
        trusted: &[PublicKey],
        in_force: Option<&Self>,
    ) -> Result<Self, Error> {
        let header = format::check(&bytes)?;
        format::check_signature(&bytes, trusted)?;
        if let Some(old) = in_force {
            succeeds(&header, &bytes, old)?;
        }
        let index = Index::new(&format::digests(&bytes)[..header.listed]);
        Ok(Self {
            header,
            fingerprint: blake3::hash(&bytes).into(),
            bytes,
            index,
        })
    }

    /// The list's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.header.name
    }

    /// The list's serial.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.header.serial
    }

    /// When it was made, in seconds of Unix time.
    #[must_use]
    pub fn created(&self) -> u64 {
        self.header.created
    }

    /// How many digests are listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.header.listed
    }

    /// Whether no digest is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.header.listed == 0
    }

    /// How many digests are revoked.
    #[must_use]
    pub fn revoked_len(&self) -> usize {
        format::digests(&self.bytes).len() - self.header.listed
    }

    /// Bytes of memory that the list and its index take.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        self.bytes.len() + size_of_val(self.index.starts.as_slice())
    }

    /// The BLAKE3 of the list's file: tells lists of one serial apart.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// The list's file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the list lists `digest` and does not revoke it.
    #[must_use]
    pub fn lists(&self, digest: &Digest) -> bool {
        let listed = &format::digests(&self.bytes)[..self.header.listed];
        listed[self.index.bucket(digest)]
            .binary_search(digest)
            .is_ok()
            && !self.revokes(digest)
    }

    /// Whether the list revokes `digest`.
    #[must_use]
    pub fn revokes(&self, digest: &Digest) -> bool {
        format::digests(&self.bytes)[self.header.listed..]
            .binary_search(digest)
            .is_ok()
    }
}

fn succeeds(new: &format::Header, bytes: &[u8], old: &Map) -> Result<(), Error> {
    if new.name != old.header.name {
        return Err(Error::Renamed {
            found: new.name.clone(),
            in_force: old.header.name.clone(),
        });
    }
    if new.serial > old.header.serial || bytes == old.bytes {
        return Ok(());
    }
    Err(Error::RollBack {
        name: new.name.clone(),
        found: new.serial,
        in_force: old.header.serial,
    })
}

/// Several lists in force at once: what one lists, another may revoke.
#[derive(Debug, Default)]
pub struct Set {
    maps: Vec<std::sync::Arc<Map>>,
}

impl Set {
    /// All of `maps`.
    #[must_use]
    pub fn new(maps: Vec<std::sync::Arc<Map>>) -> Self {
        Self { maps }
    }

    /// Whether a list lists `digest` and none revokes it.
    #[must_use]
    pub fn lists(&self, digest: &Digest) -> bool {
        self.maps.iter().any(|map| map.lists(digest))
            && !self.maps.iter().any(|map| map.revokes(digest))
    }

    /// How many digests are listed, those of several lists counted in each.
    #[must_use]
    pub fn len(&self) -> usize {
        self.maps.iter().map(|map| map.len()).sum()
    }

    /// Whether no digest is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the entries of each prefix begin.
#[derive(Debug)]
struct Index {
    shift: u32,
    starts: Vec<u32>,
}

impl Index {
    fn new(listed: &[Digest]) -> Self {
        let bits = (listed.len() / BUCKET).max(1).ilog2().clamp(1, 24);
        let shift = u32::BITS - bits;
        let mut starts = vec![0_u32; (1 << bits) + 1];
        for digest in listed {
            starts[(prefix(digest) >> shift) as usize + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        Self { shift, starts }
    }

    fn bucket(&self, digest: &Digest) -> std::ops::Range<usize> {
        let at = (prefix(digest) >> self.shift) as usize;
        self.starts[at] as usize..self.starts[at + 1] as usize
    }
}

fn prefix(digest: &Digest) -> u32 {
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}
