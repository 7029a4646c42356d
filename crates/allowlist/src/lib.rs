//! Signed lists of known content: built from real files, verified, loaded, looked up.
//!
//! A list names content by its BLAKE3 digest, whole and exact: no filter that could be ground
//! into a collision stands between a digest and "listed". A list also carries revoked digests,
//! and a revocation wins over any listing, in the same list, in another one, and when merging.
//!
//! The reader trusts nothing of a file but its signature: see [`Map::open`]. Who runs for long
//! keeps lists on a [`Shelf`], which replaces them and knows what was recalled.

mod build;
mod dpkg;
mod error;
mod format;
mod key;
mod list;
mod map;
mod recalls;
mod rpm;
mod shelf;
mod store;
mod sums;
mod tree;

pub use build::{Builder, Differing, read_digests};
pub use error::Error;
pub use key::{PublicKey, SigningKey};
pub use list::{Difference, List};
pub use map::{Map, Set};
pub use shelf::{Change, InForce, Reloaded, Shelf, Sources};

/// A BLAKE3 digest of a whole file's content; where it says so, a SHA-256.
pub type Digest = [u8; 32];

/// A whole file that an administrator named.
fn read_text(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(Error::io(path))
}

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
