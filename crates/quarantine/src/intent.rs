//! What is being done outside the vault, written down before it begins.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use model::Digest;
use prost::Message;

const MAGIC: &[u8; 8] = b"LAZARETI";
const VERSION: u32 = 1;
/// Most bytes of an intent's file: the path is the guest's.
pub(crate) const INTENT_BYTES_MAX: u64 = 1 << 20;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Doing {
    /// Not valid.
    Unspecified = 0,
    /// The file at `path` becomes an item.
    Take = 1,
    /// The file at `path` is deleted.
    Delete = 2,
    /// The item becomes the file at `path`.
    Restore = 3,
}

/// An operation under way, on the item whose id is the intent's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) doing: Doing,
    /// The file outside the vault.
    pub(crate) path: PathBuf,
    /// The content.
    pub(crate) digest: Digest,
}

#[derive(Clone, PartialEq, Message)]
struct IntentV1 {
    #[prost(enumeration = "Doing", tag = "1")]
    doing: i32,
    #[prost(bytes = "vec", tag = "2")]
    path: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    blake3: Vec<u8>,
}

impl Intent {
    pub(crate) fn new(doing: Doing, path: &Path, digest: Digest) -> Self {
        Self {
            doing,
            path: path.to_owned(),
            digest,
        }
    }

    /// `LAZARETI`, version, the message, and BLAKE3 of all that.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let message = IntentV1 {
            doing: self.doing as i32,
            path: self.path.as_os_str().as_bytes().to_vec(),
            blake3: self.digest.0.to_vec(),
        };
        let mut bytes = [MAGIC.as_slice(), &VERSION.to_be_bytes()].concat();
        bytes.extend(message.encode_to_vec());
        let check = Digest::of(&bytes);
        bytes.extend(check.0);
        bytes
    }

    /// The error says what is wrong, for people.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let body_len = bytes.len().checked_sub(32).ok_or("it is too short")?;
        let (body, check) = bytes.split_at(body_len);
        if Digest::of(body).0 != check {
            return Err("its checksum is wrong");
        }
        let body = body
            .strip_prefix(MAGIC)
            .ok_or("it does not begin like an intent")?;
        let body = body
            .strip_prefix(&VERSION.to_be_bytes())
            .ok_or("it has an unknown version")?;
        let message = IntentV1::decode(body).map_err(|_| "it does not decode")?;
        let doing = message.doing();
        if doing == Doing::Unspecified {
            return Err("it does not say what is being done");
        }
        Ok(Self {
            doing,
            path: OsString::from_vec(message.path).into(),
            digest: Digest::from_slice(&message.blake3).ok_or("it has no digest")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let intent = Intent::new(Doing::Delete, Path::new("/a\nb"), Digest::of(b"x"));
        let bytes = intent.encode();
        assert_eq!(Intent::decode(&bytes), Ok(intent));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Intent::decode(&damaged).is_err(), "byte {at}");
            assert!(Intent::decode(&bytes[..at]).is_err(), "length {at}");
        }
    }
}
