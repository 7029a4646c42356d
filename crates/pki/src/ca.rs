//! The certificate authority: one key, in one folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use model::GuestId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::files::{Existing, FileError, read_secret, write, write_atomic};
use crate::guest_key::{KeyError, key_of_csr};
use crate::identity::pem;
use crate::{APPLIANCE_NAME, CA_LIFETIME, Fingerprint, Identity, NoRandomness, Validity, names};

/// Key and certificate in one file, mode 0600: the CA exists exactly where this file does.
pub const CA_KEY_FILE: &str = "ca.key";
/// The certificate alone, for people and other programs; never read back.
pub const CA_CERT_FILE: &str = "ca.crt";

/// A CA that cannot be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is one already; it is left alone.
    #[error("{0} exists: this CA is not replaced")]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// No key could be made.
    #[error("cannot make the CA's key and certificate")]
    Generate(#[source] rcgen::Error),
    /// No key could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// A certificate that was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is not acceptable.
    #[error(transparent)]
    Request(#[from] KeyError),
    /// An appliance's name that no certificate can carry.
    #[error("{0:?} cannot be an appliance's name (1 to 64 printable ASCII characters)")]
    Name(String),
    /// Dates that no certificate can carry.
    #[error("the certificate's dates are out of range")]
    Dates,
    /// Signing failed.
    #[error("cannot sign the certificate")]
    Sign(#[source] rcgen::Error),
    /// No serial number could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// The certificate authority of a fleet.
pub struct Ca {
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Makes a CA in `dir` (which is made too where it is missing).
    ///
    /// # Errors
    /// [`CaError::Exists`] where there is one; nothing is changed then.
    pub fn init(dir: &Path) -> Result<Self, CaError> {
        let path = dir.join(CA_KEY_FILE);
        if path.exists() {
            return Err(CaError::Exists(path));
        }
        fs::create_dir_all(dir).map_err(FileError::io("create", dir))?;
        let key = KeyPair::generate().map_err(CaError::Generate)?;
        let cert = self_signed(&key)?;
        let both = pem("PRIVATE KEY", key.serialized_der()) + &pem("CERTIFICATE", &cert);
        match write(&path, 0o600, both.as_bytes(), Existing::Keep) {
            Err(FileError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                return Err(CaError::Exists(path));
            }
            other => other?,
        }
        let for_people = pem("CERTIFICATE", &cert);
        write_atomic(&dir.join(CA_CERT_FILE), 0o644, for_people.as_bytes())?;
        Self::from_parts(&path, cert, key)
    }

    /// Loads the CA in `dir`.
    ///
    /// # Errors
    /// [`CaError::File`], naming the file: missing, damaged, readable by others, or key and
    /// certificate that do not belong together.
    pub fn load(dir: &Path) -> Result<Self, CaError> {
        let path = dir.join(CA_KEY_FILE);
        let text = read_secret(&path)?;
        let bad = |problem: &str| FileError::content(&path, problem);
        let key = PrivatePkcs8KeyDer::from_pem_slice(&text)
            .map_err(|_| bad("holds no PEM private key"))?;
        let cert =
            CertificateDer::from_pem_slice(&text).map_err(|_| bad("holds no PEM certificate"))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|_| bad("its private key is not ECDSA P-256"))?;
        Self::from_parts(&path, cert, key)
    }

    fn from_parts(
        path: &Path,
        cert: CertificateDer<'static>,
        key: KeyPair,
    ) -> Result<Self, CaError> {
        if !names::is_same_key(&cert, &key.subject_public_key_info()) {
            let problem = "its certificate is not for its private key";
            return Err(FileError::content(path, problem).into());
        }
        let issuer = Issuer::from_ca_cert_der(&cert, key)
            .map_err(|e| FileError::content(path, format!("its certificate is of no use: {e}")))?;
        Ok(Self { cert, issuer })
    }

    /// The CA's certificate: the trust anchor of its fleet.
    #[must_use]
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// What join tokens pin.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.cert)
    }

    /// Signs a certificate for `guest`. Of the request only the key is used.
    ///
    /// # Errors
    /// [`SignError::Request`] where the request is not acceptable.
    pub fn sign_guest(
        &self,
        csr_der: &[u8],
        guest: GuestId,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, SignError> {
        let key = key_of_csr(csr_der)?;
        let mut params = leaf_params(&guest.to_string(), validity)?;
        let uri = names::guest_uri(guest).try_into();
        params.subject_alt_names = vec![SanType::URI(uri.map_err(SignError::Sign)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, &key)
    }

    /// Makes a key and a certificate for an appliance or controller. `name` is for people. The
    /// chain ends with the CA's certificate, which joining guests check against their token.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn issue_appliance(&self, name: &str, validity: Validity) -> Result<Identity, SignError> {
        let key = KeyPair::generate().map_err(SignError::Sign)?;
        let cert = self.sign(&appliance_params(name, validity)?, &key)?;
        Ok(Identity {
            chain: vec![cert, self.cert.clone()],
            key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }

    /// Signs the next certificate of an appliance; of the request only the key is used.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign_appliance(
        &self,
        csr_der: &[u8],
        name: &str,
        validity: Validity,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let key = key_of_csr(csr_der)?;
        let cert = self.sign(&appliance_params(name, validity)?, &key)?;
        Ok(vec![cert, self.cert.clone()])
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, SignError> {
        let cert = params.signed_by(key, &self.issuer);
        Ok(cert.map_err(SignError::Sign)?.der().clone())
    }
}

fn self_signed(key: &KeyPair) -> Result<CertificateDer<'static>, CaError> {
    let validity = Validity::starting(SystemTime::now(), CA_LIFETIME);
    let [a, b, c, d] = crate::random()?;
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::from(validity.not_before);
    params.not_after = OffsetDateTime::from(validity.not_after);
    params.serial_number = Some(serial()?);
    // Two CAs may be trusted at once during a roll: their names differ.
    params.distinguished_name = named(&format!("Lazaret CA {a:02x}{b:02x}{c:02x}{d:02x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let cert = params.self_signed(key).map_err(CaError::Generate)?;
    Ok(cert.der().clone())
}

fn appliance_params(name: &str, validity: Validity) -> Result<CertificateParams, SignError> {
    let printable = name.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if !printable || !(1..=64).contains(&name.len()) {
        return Err(SignError::Name(name.chars().take(80).collect()));
    }
    let mut params = leaf_params(name, validity)?;
    let dns = APPLIANCE_NAME.try_into().map_err(SignError::Sign)?;
    params.subject_alt_names = vec![SanType::DnsName(dns)];
    // It serves guests, and is a client of the controller.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

fn leaf_params(common_name: &str, validity: Validity) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    params.serial_number = Some(serial()?);
    params.distinguished_name = named(common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// 126 random bits; positive and of fixed length in DER.
fn serial() -> Result<SerialNumber, NoRandomness> {
    let mut bytes: [u8; 16] = crate::random()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn date(moment: SystemTime) -> Result<OffsetDateTime, SignError> {
    let since_1970 = moment.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since_1970.map_err(|_| SignError::Dates)?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| SignError::Dates)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| SignError::Dates)
}
