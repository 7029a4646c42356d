//! Entries are sealed with a key of the fleet, so that whoever can write to the store still cannot
//! make a verdict.
//!
//! A sealed entry is: version, 4 bytes naming the key, 16 bytes of MAC, the entry. The MAC is keyed
//! BLAKE3 over all of that and the cache key, so that an entry is dead under any other key.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use scan_core::CacheKey;

use crate::entry::{Entry, VALUE_BYTES_MAX};

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const MAC_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + MAC_BYTES;

/// An entry as stores keep it. Whether it is good is known only after [`Keyring::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

/// Why a stored entry is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// Too short or too long to be one.
    #[error("it has {0} bytes")]
    Length(usize),
    /// Written by another version of this software.
    #[error("it has version {0}")]
    Version(u8),
    /// Sealed with a key that is not accepted (any more), or tampered with.
    #[error("it names a key that is not accepted")]
    UnknownKey,
    /// Tampered with or damaged.
    #[error("its MAC is wrong: it was damaged or tampered with")]
    Mac,
    /// The MAC is right and the content is not: sealed by faulty software.
    #[error("its MAC is right, but it cannot be read")]
    Content,
}

/// The key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("{}: cannot read the fleet key", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be made.
    #[error("{}: cannot make a key", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not exactly 32 bytes.
    #[error("{}: a fleet key has exactly 32 bytes", .0.display())]
    Length(PathBuf),
    /// Others than its owner may read or change it.
    #[error("{}: group or others have access to the fleet key (mode {mode:03o}); use chmod 600", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// All bytes are the same; somebody filled in a placeholder.
    #[error("{}: the fleet key is not random", .0.display())]
    NotRandom(PathBuf),
}

/// A secret that all appliances of a fleet share.
#[derive(Clone)]
pub struct FleetKey {
    id: [u8; KEY_ID_BYTES],
    mac: [u8; 32],
}

impl std::fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FleetKey({:08x})", u32::from_be_bytes(self.id))
    }
}

impl FleetKey {
    /// The key made of 32 random bytes.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        let named = blake3::derive_key("lazaret 1 fleet key id", secret);
        Self {
            id: std::array::from_fn(|at| named[at]),
            mac: blake3::derive_key("lazaret 1 fleet verdict MAC", secret),
        }
    }

    /// Reads a file of exactly 32 bytes that only its owner may access.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let read = |source| KeyError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let mode = file.metadata().map_err(read)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        let mut bytes = Vec::new();
        file.take(33).read_to_end(&mut bytes).map_err(read)?;
        let secret: [u8; 32] = bytes
            .try_into()
            .map_err(|_| KeyError::Length(path.to_owned()))?;
        if secret.iter().all(|byte| *byte == secret[0]) {
            return Err(KeyError::NotRandom(path.to_owned()));
        }
        Ok(Self::new(&secret))
    }

    /// Reads the file, or makes one with a new key where there is none.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load_or_make(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            make(path).map_err(|source| KeyError::Make {
                path: path.to_owned(),
                source,
            })?;
        }
        Self::load(path)
    }

    fn mac(&self, key: &CacheKey, payload: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.mac);
        hasher.update(&[VERSION]);
        hasher.update(&self.id);
        hasher.update(&key.to_bytes());
        hasher.update(payload);
        let mut out = [0; MAC_BYTES];
        hasher.finalize_xof().fill(&mut out);
        out
    }
}

/// A crash leaves no key or a whole one.
fn make(path: &Path) -> io::Result<()> {
    let mut secret = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let new = path.with_extension("new");
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

/// The key that signs, and another that is accepted while keys are changed. To rotate: let all
/// appliances accept the new key, then let all sign with it and accept the old, then drop the old.
#[derive(Debug, Clone)]
pub struct Keyring {
    signs: FleetKey,
    accepted: Option<FleetKey>,
}

impl Keyring {
    /// `signs` seals and is accepted; so is `accepted`.
    #[must_use]
    pub fn new(signs: FleetKey, accepted: Option<FleetKey>) -> Self {
        Self { signs, accepted }
    }

    /// Seals an entry under its key; `None` where it is too large to be kept.
    #[must_use]
    pub fn seal(&self, key: &CacheKey, entry: &Entry) -> Option<Sealed> {
        let payload = entry.encode();
        let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
        out.push(VERSION);
        out.extend_from_slice(&self.signs.id);
        out.extend_from_slice(&self.signs.mac(key, &payload));
        out.extend_from_slice(&payload);
        (out.len() <= VALUE_BYTES_MAX).then_some(Sealed(out))
    }

    /// The entry, if one of the keys sealed it under this cache key.
    ///
    /// # Errors
    /// [`BadEntry`]: it must be treated as missing, and an operator told.
    pub fn open(&self, key: &CacheKey, sealed: &Sealed) -> Result<Entry, BadEntry> {
        let len = sealed.0.len();
        if len > VALUE_BYTES_MAX {
            return Err(BadEntry::Length(len));
        }
        let short = BadEntry::Length(len);
        let (&version, rest) = sealed.0.split_first().ok_or(short)?;
        if version != VERSION {
            return Err(BadEntry::Version(version));
        }
        let (id, rest) = rest.split_first_chunk::<KEY_ID_BYTES>().ok_or(short)?;
        let (mac, payload) = rest.split_first_chunk::<MAC_BYTES>().ok_or(short)?;
        let mut keys = [Some(&self.signs), self.accepted.as_ref()].into_iter();
        let signer = keys.find_map(|known| known.filter(|known| known.id == *id));
        let signer = signer.ok_or(BadEntry::UnknownKey)?;
        if !equal_in_constant_time(&signer.mac(key, payload), mac) {
            return Err(BadEntry::Mac);
        }
        Entry::decode(key, payload).ok_or(BadEntry::Content)
    }
}

/// The time taken says nothing about where two MACs differ.
fn equal_in_constant_time(one: &[u8; MAC_BYTES], other: &[u8; MAC_BYTES]) -> bool {
    let difference = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Coverage, Digest, Generation, Outcome, Verdict};
    use scan_core::{ContextClass, Settings};
    use std::os::unix::fs::PermissionsExt;

    fn key() -> CacheKey {
        CacheKey {
            digest: Digest::of(b"x"),
            context: ContextClass::ANY,
            generation: Generation([1; 16]),
            settings: Settings::of(&[]),
        }
    }

    fn entry() -> Entry {
        let verdict = Verdict {
            outcome: Outcome::Clean,
            coverage: Coverage::whole(1),
            generation: key().generation,
            digest: Some(key().digest),
            sha256: None,
        };
        Entry::of(&key(), &verdict, Vec::new(), 7).unwrap()
    }

    fn fleet_key(n: u8) -> FleetKey {
        FleetKey::new(&[n; 32])
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let ring = Keyring::new(fleet_key(1), Some(fleet_key(2)));
        let good = ring.seal(&key(), &entry()).unwrap();
        assert_eq!(ring.open(&key(), &good), Ok(entry()));
        for at in 0..good.0.len() {
            assert!(ring.open(&key(), &Sealed(good.0[..at].to_vec())).is_err());
            for bit in 0..8 {
                let mut bad = good.clone();
                bad.0[at] ^= 1 << bit;
                assert!(ring.open(&key(), &bad).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn an_entry_under_another_key_is_dead() {
        let ring = Keyring::new(fleet_key(1), None);
        let good = ring.seal(&key(), &entry()).unwrap();
        let others = [
            CacheKey {
                digest: Digest::of(b"malware"),
                ..key()
            },
            CacheKey {
                generation: Generation([2; 16]),
                ..key()
            },
            CacheKey {
                settings: Settings::of(&[1]),
                ..key()
            },
        ];
        for other in others {
            assert_eq!(ring.open(&other, &good), Err(BadEntry::Mac));
        }
    }

    #[test]
    fn keys_rotate_without_losing_entries() {
        let old = Keyring::new(fleet_key(1), None);
        let prepared = Keyring::new(fleet_key(1), Some(fleet_key(2)));
        let turned = Keyring::new(fleet_key(2), Some(fleet_key(1)));
        let done = Keyring::new(fleet_key(2), None);
        let by_old = old.seal(&key(), &entry()).unwrap();
        let by_new = turned.seal(&key(), &entry()).unwrap();
        assert_eq!(prepared.open(&key(), &by_new), Ok(entry()));
        assert_eq!(turned.open(&key(), &by_old), Ok(entry()));
        assert_eq!(done.open(&key(), &by_old), Err(BadEntry::UnknownKey));
        assert_eq!(done.open(&key(), &by_new), Ok(entry()));
    }

    #[test]
    fn key_files_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let load = |bytes: &[u8], mode| {
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            FleetKey::load(&path)
        };
        let good: Vec<u8> = (0..32).collect();
        assert!(load(&good, 0o600).is_ok());
        assert!(matches!(load(&good, 0o640), Err(KeyError::Mode { .. })));
        assert!(matches!(load(&good[1..], 0o600), Err(KeyError::Length(_))));
        assert!(matches!(load(&[0; 33], 0o600), Err(KeyError::Length(_))));
        assert!(matches!(load(&[0; 32], 0o600), Err(KeyError::NotRandom(_))));
        let missing = dir.path().join("none");
        assert!(matches!(
            FleetKey::load(&missing),
            Err(KeyError::Read { .. })
        ));
        let made = FleetKey::load_or_make(&missing).unwrap();
        assert_eq!(FleetKey::load_or_make(&missing).unwrap().mac, made.mac);
    }
}
