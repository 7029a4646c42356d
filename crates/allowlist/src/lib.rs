//! Signed lists of known content: built from real files, verified, loaded, looked up.
//!
//! A list names content by its BLAKE3 digest, whole and exact: no filter that could be ground
//! into a collision stands between a digest and "listed". A list also carries revoked digests,
//! and a revocation wins over any listing, in the same list, in another one, and when merging.
//!
//! The reader trusts nothing of a file but its signature: see [`Map::open`].

mod build;
mod dpkg;
mod error;
mod format;
mod key;
mod list;
mod map;

pub use build::{Builder, Differing};
pub use error::Error;
pub use key::{PublicKey, SigningKey};
pub use list::{Difference, List};
pub use map::{Map, Set};

/// A BLAKE3 digest of a whole file's content.
pub type Digest = [u8; 32];

/// The digest that `text` spells in 64 hexadecimal digits.
#[must_use]
pub fn parse_hex(text: &str) -> Option<Digest> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    blake3::Hash::from_hex(text).ok().map(Into::into)
}

/// `bytes` in lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
