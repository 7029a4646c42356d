//! TPM 2.0 as proof of enrolment: credential activation (TCG *Trusted Platform Module Library*,
//! Part 1, section 24). No I/O: commands and responses go through a [`Transport`].
//!
//! - The guest's half, [`Tpm`]: reads the certificate of its endorsement key (EK), makes a key whose
//!   name it shows, and has the TPM open a challenge. What a TPM answers is foreign input.
//! - The controller's half (feature `verifier`): verifies the certificate by the CAs of a pool, and
//!   encrypts a secret that only that TPM can open, and only while it holds the key of that name.
//!
//! RSA 2048 with the default template of the TCG's *EK Credential Profile* alone: every hypervisor's
//! TPM has that one. Why it is made so: `docs/decisions/0023-vtpm.md`.

#[cfg(feature = "verifier")]
mod certificate;
#[cfg(feature = "verifier")]
mod credential;
mod guest;
mod wire;

#[cfg(feature = "verifier")]
pub use certificate::{CertificateError, EkId, Endorsed, check_ca, verify};
#[cfg(feature = "verifier")]
pub use credential::{EndorsementKey, MakeError, make_credential, proves};
pub use guest::{Shown, Tpm, TpmError, Transport};

use ring::{digest, hmac};

/// Most bytes of an endorsement certificate: an index of a TPM's NV memory holds about as many.
pub const CERTIFICATE_MAX_BYTES: usize = 4096;
/// Most bytes of the certificates between that and its CA.
pub const INTERMEDIATES_MAX_BYTES: usize = 8192;
/// Bytes of the name of a key: the algorithm of its digest, and the digest.
pub const KEY_NAME_BYTES: usize = 2 + 32;
/// Bytes of the secret in a challenge: what the digest of an endorsement key's name has at most.
pub const SECRET_BYTES: usize = 32;
/// Bytes of a [`proof`].
pub const PROOF_BYTES: usize = 32;

/// What shows that whoever asks with this certificate request has opened the challenge: HMAC-SHA-256
/// by the secret in it over the request.
#[must_use]
pub fn proof(secret: &[u8; SECRET_BYTES], csr: &[u8]) -> [u8; PROOF_BYTES] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    bytes_of(hmac::sign(&key, csr).as_ref())
}

/// A public area's name: SHA-256 is the only algorithm of names here.
fn name_of(public: &[u8]) -> [u8; KEY_NAME_BYTES] {
    let mut name = [0; KEY_NAME_BYTES];
    let (algorithm, digest) = name.split_at_mut(2);
    algorithm.copy_from_slice(&wire::SHA256.to_be_bytes());
    digest.copy_from_slice(digest::digest(&digest::SHA256, public).as_ref());
    name
}

/// The 32 bytes of a digest or MAC of SHA-256.
fn bytes_of(digest: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest);
    bytes
}
