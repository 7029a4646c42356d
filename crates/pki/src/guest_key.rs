//! A guest's key, and the certificate request that proves it is held.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::files::{FileError, read_secret, write_atomic};
use crate::identity::pem;
use crate::{Identity, names};

/// Longest certificate request that is looked at.
pub const CSR_MAX_BYTES: usize = 4096;
/// Bytes of an uncompressed P-256 point.
const P256_POINT_BYTES: usize = 65;

/// A key or a request that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key could not be made or the request not be written.
    #[error("cannot make a key and its request")]
    Generate(#[source] rcgen::Error),
    /// Not PKCS#10.
    #[error("not a certificate request of at most {CSR_MAX_BYTES} bytes")]
    NotARequest,
    /// Whoever sent it does not hold the private key.
    #[error("the certificate request's signature does not match its key")]
    Signature,
    /// Another kind of key.
    #[error("the certificate request's key is not ECDSA P-256")]
    Algorithm,
    /// Certificates were given for another key, or none.
    #[error("the certificate is not for this key")]
    NotForThisKey,
}

/// A fresh private key with its certificate request.
pub struct GuestKey {
    pair: KeyPair,
    csr: Vec<u8>,
}

impl GuestKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate().map_err(KeyError::Generate)?;
        let mut params = CertificateParams::default();
        // The signer names the guest.
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&pair);
        let csr = request.map_err(KeyError::Generate)?.der().to_vec();
        Ok(Self { pair, csr })
    }

    /// The request, DER.
    #[must_use]
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// Joins the key with the certificates it got, leaf first.
    ///
    /// # Errors
    /// [`KeyError::NotForThisKey`].
    pub fn certified(&self, chain: Vec<CertificateDer<'static>>) -> Result<Identity, KeyError> {
        let public = self.pair.subject_public_key_info();
        match chain.first() {
            Some(leaf) if names::is_same_key(leaf, &public) => {}
            _ => return Err(KeyError::NotForThisKey),
        }
        let key = PrivatePkcs8KeyDer::from(self.pair.serialize_der());
        Ok(Identity {
            chain,
            key: PrivateKeyDer::from(key),
        })
    }

    /// Writes key and request into one PEM file with mode 0600, for a request that is answered later.
    ///
    /// # Errors
    /// [`FileError::Io`]; the file is then unchanged.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        let mut text = pem("PRIVATE KEY", &self.pair.serialize_der());
        text.push_str(&pem("CERTIFICATE REQUEST", &self.csr));
        write_atomic(path, 0o600, text.as_bytes())
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// [`FileError`], naming the file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let text = read_secret(path)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(&text)
            .map_err(|_| FileError::content(path, "holds no PEM private key"))?;
        let csr = CertificateSigningRequestDer::from_pem_slice(&text)
            .map_err(|_| FileError::content(path, "holds no PEM certificate request"))?;
        let pair = KeyPair::try_from(&key)
            .map_err(|_| FileError::content(path, "holds a key that cannot be used"))?;
        let key = key_of_csr(&csr).map(|key| key.der_bytes() == pair.der_bytes());
        if !matches!(key, Ok(true)) {
            return Err(FileError::content(path, "its request is not for its key"));
        }
        Ok(Self {
            pair,
            csr: csr.to_vec(),
        })
    }
}

/// The public key of a request whose signature is right. Everything else in it is ignored.
pub(crate) fn key_of_csr(csr: &[u8]) -> Result<SubjectPublicKeyInfo, KeyError> {
    if csr.len() > CSR_MAX_BYTES {
        return Err(KeyError::NotARequest);
    }
    let request = match X509CertificationRequest::from_der(csr) {
        Ok(([], request)) => request,
        _ => return Err(KeyError::NotARequest),
    };
    let info = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(info).map_err(|_| KeyError::Algorithm)?;
    let is_p256 = *key.algorithm() == rcgen::PKCS_ECDSA_P256_SHA256
        && key.der_bytes().len() == P256_POINT_BYTES;
    if !is_p256 {
        return Err(KeyError::Algorithm);
    }
    request
        .verify_signature()
        .map_err(|_| KeyError::Signature)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_waits_is_the_same_when_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pending.pem");
        let key = GuestKey::generate().unwrap();
        key.save(&path).unwrap();
        let read = GuestKey::load(&path).unwrap();
        assert_eq!(read.csr(), key.csr());
        assert_eq!(read.pair.serialize_der(), key.pair.serialize_der());

        let other = GuestKey::generate().unwrap();
        let mut text = pem("PRIVATE KEY", &other.pair.serialize_der());
        text.push_str(&pem("CERTIFICATE REQUEST", key.csr()));
        write_atomic(&path, 0o600, text.as_bytes()).unwrap();
        assert!(GuestKey::load(&path).is_err(), "another key's request");
        write_atomic(&path, 0o600, b"half of it").unwrap();
        assert!(GuestKey::load(&path).is_err());
    }

    #[test]
    fn only_a_p256_request_signed_by_its_own_key_passes() {
        let key = GuestKey::generate().unwrap();
        let found = key_of_csr(key.csr()).unwrap();
        assert_eq!(found.der_bytes(), key.pair.der_bytes());

        let mut forged = key.csr().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert!(matches!(key_of_csr(&forged), Err(KeyError::Signature)));

        let mut longer = key.csr().to_vec();
        longer.push(0);
        assert!(matches!(key_of_csr(&longer), Err(KeyError::NotARequest)));
        assert!(matches!(key_of_csr(&[]), Err(KeyError::NotARequest)));
        assert!(matches!(
            key_of_csr(&[0x30; CSR_MAX_BYTES + 1]),
            Err(KeyError::NotARequest)
        ));

        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&ed25519);
        let refused = key_of_csr(request.unwrap().der());
        assert!(matches!(refused, Err(KeyError::Algorithm)));
    }
}
