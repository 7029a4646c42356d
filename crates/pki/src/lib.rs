//! Keys and certificates of a fleet: the CA, join tokens, certificate requests, lifetimes.
//!
//! Roles never mix. An appliance's certificate carries the DNS name [`APPLIANCE_NAME`]; it serves
//! guests, and shows itself to the controller; a guest's carries one URI `lazaret:guest:<32 hex>` and may only be a client. A
//! request's subject and extensions are ignored: the signer names the guest, the request gives
//! nothing but a public key and the proof that its sender holds the private half.
//!
//! ECDSA P-256 throughout; private keys are written with mode 0600, whole or not at all.

mod ca;
mod files;
mod guest_key;
mod identity;
mod lifetime;
mod names;
mod token;

pub use ca::{CA_CERT_FILE, CA_KEY_FILE, Ca, CaError, SignError};
pub use files::{FileError, read_secret, write_atomic};
pub use guest_key::{CSR_MAX_BYTES, GuestKey, KeyError};
pub use identity::{Identity, load_anchors, save_anchors};
pub use lifetime::{BACK_DATE, CA_LIFETIME, LIFETIME, RENEW_GRACE, Validity, renew_after};
pub use names::{
    APPLIANCE_NAME, CertError, Fingerprint, KeyId, appliance_name_of, guest_id_of, is_same_key,
    not_after_of, validity_of,
};
pub use rustls_pki_types::{CertificateDer, PrivateKeyDer};
pub use token::{JoinToken, Secret, SecretHash, TokenError};

/// Fills `N` bytes from the system's random source.
///
/// # Errors
/// Where the system has no random source; nothing secret can be made then.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    use ring::rand::SecureRandom;
    let mut bytes = [0; N];
    match ring::rand::SystemRandom::new().fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(ring::error::Unspecified) => Err(NoRandomness),
    }
}

/// The system's random source failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;
