//! The digests that package databases give their files.

use std::fs::File;

use md5::Md5;
use sha2::{Sha256, Sha512};

use crate::{Digest, tree};

/// What a file must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sum {
    Md5([u8; 16]),
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

impl Sum {
    /// By the number that OpenPGP and rpm give a hash function; `None`: not one of these, or
    /// not so many digits.
    pub(crate) fn parse(algorithm: u32, hex: &[u8]) -> Option<Self> {
        match algorithm {
            1 => bytes(hex).map(Self::Md5),
            8 => bytes(hex).map(Self::Sha256),
            10 => bytes(hex).map(|sum| Self::Sha512(Box::new(sum))),
            _ => None,
        }
    }

    /// The BLAKE3 of `file` if it hashes to this sum; `None` for an empty file.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) fn verify(&self, file: File) -> Result<Option<Digest>, String> {
        match self {
            Self::Md5(sum) => verify::<Md5>(file, sum, "MD5"),
            Self::Sha256(sum) => verify::<Sha256>(file, sum, "SHA-256"),
            Self::Sha512(sum) => verify::<Sha512>(file, &sum[..], "SHA-512"),
        }
    }
}

fn verify<H: md5::Digest>(file: File, sum: &[u8], name: &str) -> Result<Option<Digest>, String> {
    let (mut theirs, mut ours) = (H::new(), blake3::Hasher::new());
    let size = tree::read(file, |piece| {
        theirs.update(piece);
        ours.update(piece);
    })?;
    if theirs.finalize().as_slice() != sum {
        return Err(format!("its {name} is not the package's"));
    }
    Ok((size > 0).then(|| ours.finalize().into()))
}

/// Exactly `N` bytes in hexadecimal digits.
pub(crate) fn bytes<const N: usize>(hex: &[u8]) -> Option<[u8; N]> {
    if hex.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(hex.as_chunks::<2>().0) {
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(out)
}
