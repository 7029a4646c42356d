//! What a certificate says: role, guest, validity, key, fingerprint.

use std::fmt;
use std::time::{Duration, SystemTime};

use model::GuestId;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::Validity;

/// The DNS name in every appliance's certificate. Agents verify it whatever address they dial.
pub const APPLIANCE_NAME: &str = "appliance.lazaret.internal";
/// Before the guest's id in its URI name.
const GUEST_URI: &str = "lazaret:guest:";

/// A certificate that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Not a DER certificate.
    #[error("not a certificate")]
    NotACertificate,
    /// It is not that of a guest.
    #[error("not a guest's certificate")]
    NotAGuest,
    /// It is not that of an appliance.
    #[error("not an appliance's certificate")]
    NotAnAppliance,
}

/// SHA-256 of a certificate's DER, as `openssl x509 -fingerprint -sha256` prints it but for
/// the colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Fingerprint of a certificate.
    #[must_use]
    pub fn of(cert_der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, cert_der);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which key a certificate is for: the first 16 bytes of the SHA-256 of its public key (DER
/// SubjectPublicKeyInfo). Each renewal brings another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 16]);

impl KeyId {
    /// Of a certificate.
    ///
    /// # Errors
    /// [`CertError::NotACertificate`].
    pub fn of(cert_der: &[u8]) -> Result<Self, CertError> {
        let cert = parse(cert_der)?;
        let Fingerprint(digest) = Fingerprint::of(cert.public_key().raw);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Ok(Self(bytes))
    }

    /// From its bytes; `None` unless there are 16.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

pub(crate) fn guest_uri(guest: GuestId) -> String {
    format!("{GUEST_URI}{guest}")
}

fn parse(cert_der: &[u8]) -> Result<X509Certificate<'_>, CertError> {
    match X509Certificate::from_der(cert_der) {
        Ok(([], cert)) => Ok(cert),
        _ => Err(CertError::NotACertificate),
    }
}

/// Which guest a certificate names. Says nothing about who signed it.
///
/// # Errors
/// [`CertError::NotAGuest`] unless its only name is a guest's and its only use is that of a
/// client: whatever is ambiguous has no role.
pub fn guest_id_of(cert_der: &[u8]) -> Result<GuestId, CertError> {
    let cert = parse(cert_der)?;
    let usage = cert.extended_key_usage().ok().flatten();
    let usage = usage.ok_or(CertError::NotAGuest)?.value;
    if !usage.client_auth || usage.server_auth || usage.any {
        return Err(CertError::NotAGuest);
    }
    let names = cert.subject_alternative_name().ok().flatten();
    match names.ok_or(CertError::NotAGuest)?.value.general_names[..] {
        [GeneralName::URI(uri)] => uri
            .strip_prefix(GUEST_URI)
            .and_then(GuestId::from_hex)
            .ok_or(CertError::NotAGuest),
        _ => Err(CertError::NotAGuest),
    }
}

/// What an appliance's certificate calls it. Says nothing about who signed it.
///
/// # Errors
/// [`CertError::NotAnAppliance`] unless its only name is that of appliances and it may be a
/// client: whatever is ambiguous has no role.
pub fn appliance_name_of(cert_der: &[u8]) -> Result<String, CertError> {
    let cert = parse(cert_der)?;
    let usage = cert.extended_key_usage().ok().flatten();
    let usage = usage.ok_or(CertError::NotAnAppliance)?.value;
    let names = cert.subject_alternative_name().ok().flatten();
    let names = names.ok_or(CertError::NotAnAppliance)?;
    let is_one = matches!(
        names.value.general_names[..],
        [GeneralName::DNSName(APPLIANCE_NAME)]
    );
    if !is_one || !usage.client_auth || !usage.server_auth {
        return Err(CertError::NotAnAppliance);
    }
    let mut called = cert.subject().iter_common_name();
    let name = called.next().and_then(|name| name.as_str().ok());
    match (name, called.next()) {
        (Some(name), None) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(CertError::NotAnAppliance),
    }
}

/// When a certificate is valid.
///
/// # Errors
/// [`CertError::NotACertificate`], also for dates before 1970.
pub fn validity_of(cert_der: &[u8]) -> Result<Validity, CertError> {
    let cert = parse(cert_der)?;
    let moment = |seconds: i64| {
        let seconds = u64::try_from(seconds).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let dates = cert.validity();
    let not_before = moment(dates.not_before.timestamp());
    let not_after = moment(dates.not_after.timestamp());
    match (not_before, not_after) {
        (Some(not_before), Some(not_after)) => Ok(Validity {
            not_before,
            not_after,
        }),
        _ => Err(CertError::NotACertificate),
    }
}

/// The last moment at which a certificate is valid.
///
/// # Errors
/// As [`validity_of`].
pub fn not_after_of(cert_der: &[u8]) -> Result<SystemTime, CertError> {
    validity_of(cert_der).map(|validity| validity.not_after)
}

/// Whether a certificate is for this public key (DER SubjectPublicKeyInfo).
#[must_use]
pub fn is_same_key(cert_der: &[u8], public_key_info: &[u8]) -> bool {
    parse(cert_der).is_ok_and(|cert| cert.public_key().raw == public_key_info)
}
