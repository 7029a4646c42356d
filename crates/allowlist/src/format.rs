//! The bytes of a list. All numbers are little-endian.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | format version |
//! | 12 | 4 | kinds: bit 0 = BLAKE3; the others are zero |
//! | 16 | 8 | serial |
//! | 24 | 8 | created, seconds of Unix time |
//! | 32 | 8 | listed digests |
//! | 40 | 8 | revoked digests |
//! | 48 | 64 | name, padded with zeros |
//! | 112 | 32 each | listed, then revoked; each strictly rising |
//! | end − 112 | 32 | the signer's public key; zeros: not signed |
//! | end − 80 | 8 | length of the file |
//! | end − 72 | 8 | magic of the end |
//! | end − 64 | 64 | Ed25519 over everything before it |
//!
//! The prefix index is not stored: it is counted while the order is checked, and so cannot lie.

use crate::{Digest, Error, List, PublicKey, SigningKey};

pub(crate) const MAGIC: &[u8; 8] = b"LZALLOW\0";
const END: &[u8; 8] = b"LZALEND\0";
pub(crate) const VERSION: u32 = 1;
const BLAKE3: u32 = 1;
pub(crate) const HEADER: usize = 112;
pub(crate) const TRAILER: usize = 112;
const SIGNATURE: usize = 64;
pub(crate) const NAME: usize = 64;

/// What the header says, after it was checked against the file.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) serial: u64,
    pub(crate) created: u64,
    pub(crate) listed: usize,
    pub(crate) name: String,
}

pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > NAME || name.chars().any(char::is_control) {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}

/// The file of `list`, signed when there is a key.
pub(crate) fn encode(list: &List, key: Option<&SigningKey>) -> Result<Vec<u8>, Error> {
    check_name(&list.name)?;
    let length = HEADER + 32 * (list.listed().len() + list.revoked().len()) + TRAILER;
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&BLAKE3.to_le_bytes());
    out.extend_from_slice(&list.serial.to_le_bytes());
    out.extend_from_slice(&list.created.to_le_bytes());
    out.extend_from_slice(&(list.listed().len() as u64).to_le_bytes());
    out.extend_from_slice(&(list.revoked().len() as u64).to_le_bytes());
    out.extend_from_slice(list.name.as_bytes());
    out.resize(HEADER, 0);
    out.extend_from_slice(list.listed().as_flattened());
    out.extend_from_slice(list.revoked().as_flattened());
    out.extend_from_slice(&key.map_or([0; 32], |key| key.public().0));
    out.extend_from_slice(&(length as u64).to_le_bytes());
    out.extend_from_slice(END);
    let signature = key.map_or([0; SIGNATURE], |key| key.sign(&out));
    out.extend_from_slice(&signature);
    Ok(out)
}

/// Checks everything but the signature.
pub(crate) fn check(bytes: &[u8]) -> Result<Header, Error> {
    let header = header(bytes)?;
    trailer(bytes)?;
    let digests = digests(bytes);
    let (listed, revoked) = digests.split_at(header.listed);
    rising(listed, "listed")?;
    rising(revoked, "revoked")?;
    Ok(header)
}

/// The digests of a file whose length was checked: listed, then revoked.
pub(crate) fn digests(bytes: &[u8]) -> &[Digest] {
    bytes[HEADER..bytes.len() - TRAILER].as_chunks().0
}

/// The key that the trailer names; zeros when the list is not signed.
pub(crate) fn signer(bytes: &[u8]) -> PublicKey {
    PublicKey(array(bytes, bytes.len() - TRAILER))
}

/// Checks the signature of a file whose length was checked, by a key that is trusted.
pub(crate) fn check_signature(bytes: &[u8], trusted: &[PublicKey]) -> Result<(), Error> {
    let key = signer(bytes);
    if key.0 == [0; 32] {
        return Err(Error::Unsigned);
    }
    if !trusted.contains(&key) {
        return Err(Error::Untrusted {
            key: key.to_string(),
        });
    }
    let (signed, signature) = bytes.split_at(bytes.len() - SIGNATURE);
    if key.verifies(signed, signature) {
        Ok(())
    } else {
        Err(Error::Signature)
    }
}

fn header(bytes: &[u8]) -> Result<Header, Error> {
    if !bytes.starts_with(MAGIC) {
        return Err(Error::Magic);
    }
    let found = bytes.len() as u64;
    if bytes.len() < HEADER + TRAILER {
        return Err(Error::Length {
            expected: (HEADER + TRAILER) as u64,
            found,
        });
    }
    let version = u32::from_le_bytes(array(bytes, 8));
    if version != VERSION {
        return Err(Error::Version { found: version });
    }
    if u32::from_le_bytes(array(bytes, 12)) != BLAKE3 {
        return Err(Error::Header {
            offset: 12,
            what: "kinds other than BLAKE3",
        });
    }
    let (listed, revoked) = (number(bytes, 32), number(bytes, 40));
    // Saturating: a count that overflows is a count that the file does not have.
    let expected = listed
        .saturating_add(revoked)
        .saturating_mul(32)
        .saturating_add((HEADER + TRAILER) as u64);
    if expected != found {
        return Err(Error::Length { expected, found });
    }
    Ok(Header {
        serial: number(bytes, 16),
        created: number(bytes, 24),
        // Below the length of `bytes`.
        listed: listed as usize,
        name: name(&bytes[48..48 + NAME])?,
    })
}

fn name(field: &[u8]) -> Result<String, Error> {
    let bad = |what| Error::Header { offset: 48, what };
    let end = field
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    let name = str::from_utf8(&field[..end]).map_err(|_| bad("the name is not UTF-8"))?;
    check_name(name).map_err(|_| bad("the name is empty or has control characters"))?;
    Ok(name.to_owned())
}

fn trailer(bytes: &[u8]) -> Result<(), Error> {
    let start = bytes.len() - TRAILER;
    if number(bytes, start + 32) != bytes.len() as u64 {
        return Err(Error::Trailer {
            offset: start + 32,
            what: "the length is not the file's",
        });
    }
    if array::<8>(bytes, start + 40) != *END {
        return Err(Error::Trailer {
            offset: start + 40,
            what: "the end mark is missing",
        });
    }
    Ok(())
}

fn rising(digests: &[Digest], section: &'static str) -> Result<(), Error> {
    match digests.array_windows().position(|[a, b]| a >= b) {
        Some(at) => Err(Error::Unsorted {
            section,
            entry: at + 1,
        }),
        None => Ok(()),
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
