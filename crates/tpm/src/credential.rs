//! A challenge that one TPM alone can open: `TPM2_MakeCredential` without a TPM (Part 1, section 24,
//! and B.10.4).

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use ring::hmac;
use rsa::{BoxedUint, Oaep};
use sha2::Sha256;

use crate::wire::MODULUS_BYTES;
use crate::{KEY_NAME_BYTES, SECRET_BYTES, bytes_of};

const AES_KEY_BYTES: usize = 16;
const AES_BLOCK_BYTES: usize = 16;
const MODULUS_BITS: u32 = 2048;
const EXPONENT: u64 = 65537;

/// The public part of an RSA 2048 endorsement key of the default template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndorsementKey {
    pub(crate) modulus: [u8; MODULUS_BYTES],
}

/// A challenge that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MakeError {
    /// The key cannot be one.
    #[error("its endorsement key is of no use")]
    Key,
    /// The system has no random source.
    #[error("the system gives no random bytes")]
    NoRandomness,
}

/// A secret, and the challenge that holds it: `TPM2B_ID_OBJECT` and `TPM2B_ENCRYPTED_SECRET`, one
/// after the other. The TPM opens it only while it holds a key of this name.
///
/// # Errors
/// [`MakeError`].
pub fn make_credential(
    key: &EndorsementKey,
    name: &[u8; KEY_NAME_BYTES],
) -> Result<([u8; SECRET_BYTES], Vec<u8>), MakeError> {
    let (mut secret, mut seed) = ([0; SECRET_BYTES], [0; 32]);
    getrandom::fill(&mut secret).map_err(|_| MakeError::NoRandomness)?;
    getrandom::fill(&mut seed).map_err(|_| MakeError::NoRandomness)?;
    let mut challenge = sized(&id_object(&seed, name, &secret));
    challenge.extend(sized(&encrypted(key, &seed)?));
    Ok((secret, challenge))
}

/// Whether this is the proof of whoever opened the challenge with that secret and asks with that
/// request. The time that it takes says nothing.
#[must_use]
pub fn proves(offered: &[u8], secret: &[u8; SECRET_BYTES], csr: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::verify(&key, csr, offered).is_ok()
}

/// The seed for the TPM (B.4, with the label of B.10.4).
fn encrypted(key: &EndorsementKey, seed: &[u8]) -> Result<Vec<u8>, MakeError> {
    let modulus = BoxedUint::from_be_slice(&key.modulus, MODULUS_BITS);
    let modulus = modulus.map_err(|_| MakeError::Key)?;
    let key = rsa::PublicKey::new(modulus, BoxedUint::from(EXPONENT));
    let key = key.map_err(|_| MakeError::Key)?;
    let padding = Oaep::<Sha256>::new_with_label(*b"IDENTITY\0");
    let sealed = key.encrypt(&mut getrandom::SysRng, padding, seed);
    sealed.map_err(|_| MakeError::Key)
}

/// The secret for whoever has the seed: its MAC, and itself encrypted (`TPMS_ID_OBJECT`).
fn id_object(seed: &[u8], name: &[u8], secret: &[u8]) -> Vec<u8> {
    let key: [u8; AES_KEY_BYTES] = kdf_a(seed, "STORAGE", name);
    let mut hidden = sized(secret);
    encrypt(&key, &mut hidden);
    let key: [u8; 32] = kdf_a(seed, "INTEGRITY", &[]);
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
    mac.update(&hidden);
    mac.update(name);
    let mut object = sized(mac.sign().as_ref());
    object.extend(hidden);
    object
}

/// `KDFa` with SHA-256 (Part 1, 11.4.10.2) for at most the 32 bytes of one round.
fn kdf_a<const N: usize>(key: &[u8], label: &str, context: &[u8]) -> [u8; N] {
    const ROUND: u32 = 1;
    let bits = u32::try_from(8 * N).unwrap_or(0);
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    mac.update(&ROUND.to_be_bytes());
    mac.update(label.as_bytes());
    mac.update(&[0]);
    mac.update(context);
    mac.update(&bits.to_be_bytes());
    let all = bytes_of(mac.sign().as_ref());
    std::array::from_fn(|at| all.get(at).copied().unwrap_or(0))
}

/// AES-128 in CFB mode with an initial vector of zeros: the key is used once.
fn encrypt(key: &[u8; AES_KEY_BYTES], bytes: &mut [u8]) {
    let cipher = Aes128::new(key.into());
    let mut feedback = [0; AES_BLOCK_BYTES];
    for block in bytes.chunks_mut(AES_BLOCK_BYTES) {
        let mut stream = feedback.into();
        cipher.encrypt_block(&mut stream);
        for ((byte, mask), next) in block.iter_mut().zip(&stream).zip(&mut feedback) {
            *byte ^= mask;
            *next = *byte;
        }
    }
}

/// Bytes behind their count (`TPM2B`).
fn sized(bytes: &[u8]) -> Vec<u8> {
    let count = u16::try_from(bytes.len()).unwrap_or(0);
    [&count.to_be_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof;

    fn key() -> [u8; 32] {
        std::array::from_fn(|at| at as u8)
    }

    /// By another implementation: `openssl kdf … KBKDF`, whose counter mode is the same.
    #[test]
    fn keys_are_derived_as_elsewhere() {
        let storage: [u8; 16] = kdf_a(&key(), "STORAGE", &[0, 0x0b, 0xaa, 0xbb, 0xcc]);
        let expected = 0x43ed_6805_3c24_6f82_70ff_3db5_c2a8_6808_u128;
        assert_eq!(u128::from_be_bytes(storage), expected);
        let integrity: [u8; 32] = kdf_a(&key(), "INTEGRITY", &[]);
        assert_eq!(
            integrity[..8],
            0xbacf_689f_634e_ce30_u64.to_be_bytes(),
            "{integrity:x?}"
        );
    }

    /// By another implementation: `openssl enc -aes-128-cfb` with a vector of zeros.
    #[test]
    fn a_secret_is_encrypted_as_elsewhere() {
        let key = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128.to_be_bytes();
        let mut text = *b"thirty-four bytes, as in TPM2B+32.";
        encrypt(&key, &mut text);
        let expected = [
            0x09, 0x9f, 0x02, 0x7e, 0x6e, 0xc1, 0xb4, 0xd5, 0x51, 0x37, 0x82, 0x67, 0xdb, 0x62,
            0x20, 0x0a, 0xbd, 0xdf, 0x93, 0x71, 0xaf, 0x64, 0x87, 0xad, 0x9b, 0x2c, 0x6e, 0x19,
            0x3b, 0xb5, 0xcf, 0xd8, 0x38, 0xf2,
        ];
        assert_eq!(text, expected);
    }

    #[test]
    fn a_proof_is_of_one_secret_and_one_request() {
        let made = proof(&[1; 32], b"request");
        assert!(proves(&made, &[1; 32], b"request"));
        assert!(!proves(&made, &[2; 32], b"request"));
        assert!(!proves(&made, &[1; 32], b"another"));
        assert!(!proves(&made[..31], &[1; 32], b"request"));
        assert!(!proves(&[], &[1; 32], b"request"));
    }
}
