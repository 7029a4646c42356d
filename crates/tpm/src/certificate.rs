//! Certificates of endorsement keys: whose TPM it is, said by a CA that a pool names.

use std::fmt;
use std::time::SystemTime;

use ring::digest;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA, Oid, asn1_rs::oid};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::time::ASN1Time;

use crate::credential::EndorsementKey;
use crate::{CERTIFICATE_MAX_BYTES, INTERMEDIATES_MAX_BYTES, bytes_of};

/// CAs between an endorsement certificate and one that a pool names.
const INTERMEDIATES_MAX: usize = 4;
/// `tcg-kp-EKCertificate`: the use of an endorsement certificate.
const EK_CERTIFICATE_USE: Oid<'static> = oid!(2.23.133.8.1);
const EXPONENT: [u8; 3] = [1, 0, 1];

/// A certificate that is not taken. The text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not DER, or too long.
    #[error("the certificate of its TPM makes no sense")]
    Senseless,
    /// Those between it and its CA are not DER, or too many.
    #[error("the certificates between that of its TPM and a CA make no sense")]
    Intermediates,
    /// It is for something else.
    #[error("what its TPM shows is no endorsement certificate")]
    NotEndorsement,
    /// Another kind of key.
    #[error("the endorsement key of its TPM is not RSA 2048")]
    NotRsa,
    /// It, or one of those above it, is over or not yet begun.
    #[error("the certificate of its TPM, or of the CA that issued it, is not valid now")]
    NotNow,
    /// Nobody who counts has issued it.
    #[error("no CA of this pool has issued the certificate of its TPM")]
    NoChain,
    /// A certificate that was named as a CA's cannot be read.
    #[error("it is no certificate")]
    NoCa,
    /// It can be read, and may issue none.
    #[error("it is not a CA's: its basic constraints or its key's usage do not allow certificates")]
    NotACa,
    /// Something in it is marked critical that is not known here.
    #[error("it has a critical extension that is not known here")]
    Critical,
}

/// Which endorsement key: SHA-256 of its modulus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EkId(pub [u8; 32]);

impl fmt::Display for EkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A TPM that a CA vouches for; that somebody has it is still to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsed {
    /// What a challenge is encrypted to.
    pub key: EndorsementKey,
    /// The VM that it was made for, where its hypervisor puts that into certificates.
    pub vm_uuid: Option<[u8; 16]>,
    /// Which of the CAs vouches for it: its place among those given.
    pub ca: usize,
}

impl Endorsed {
    /// Which key it is.
    #[must_use]
    pub fn id(&self) -> EkId {
        let digest = digest::digest(&digest::SHA256, &self.key.modulus);
        EkId(bytes_of(digest.as_ref()))
    }
}

/// Whether a certificate (DER) may stand as a CA of endorsement certificates.
///
/// # Errors
/// [`CertificateError::NoCa`], [`CertificateError::NotACa`], [`CertificateError::Critical`].
pub fn check_ca(ca_der: &[u8]) -> Result<(), CertificateError> {
    match X509Certificate::from_der(ca_der) {
        Ok(([], ca)) if ca_der.len() <= CERTIFICATE_MAX_BYTES => may_issue(&ca, 0),
        _ => Err(CertificateError::NoCa),
    }
}

/// Verifies an endorsement certificate (DER): that one of the CAs (DER each) has issued it, by those
/// between them (DER, one after the other) where there are some; that all are valid now; and that it
/// is for an endorsement key. Revocation lists are not looked at.
///
/// # Errors
/// [`CertificateError`].
pub fn verify(
    certificate: &[u8],
    intermediates: &[u8],
    cas: &[impl AsRef<[u8]>],
    now: SystemTime,
) -> Result<Endorsed, CertificateError> {
    let leaf = match X509Certificate::from_der(certificate) {
        Ok(([], leaf)) if certificate.len() <= CERTIFICATE_MAX_BYTES => leaf,
        _ => return Err(CertificateError::Senseless),
    };
    let between = split(intermediates)?;
    let parsed = cas.iter().enumerate().filter_map(|(at, ca)| {
        let (_, ca) = X509Certificate::from_der(ca.as_ref()).ok()?;
        Some((at, ca))
    });
    let cas: Vec<(usize, X509Certificate<'_>)> = parsed.collect();
    is_endorsement(&leaf)?;
    Ok(Endorsed {
        ca: issued_by(&leaf, between, &cas, now)?,
        key: endorsement_key(&leaf)?,
        vm_uuid: vm_uuid(&leaf),
    })
}

/// Certificates that stand one after the other.
fn split(mut der: &[u8]) -> Result<Vec<X509Certificate<'_>>, CertificateError> {
    if der.len() > INTERMEDIATES_MAX_BYTES {
        return Err(CertificateError::Intermediates);
    }
    let mut found = Vec::new();
    while !der.is_empty() {
        let Ok((left, next)) = X509Certificate::from_der(der) else {
            return Err(CertificateError::Intermediates);
        };
        if found.len() == INTERMEDIATES_MAX {
            return Err(CertificateError::Intermediates);
        }
        found.push(next);
        der = left;
    }
    Ok(found)
}

/// Goes up from a certificate to a CA. Each certificate between is used once at most, so that the
/// signatures that a guest can have verified are few. Which CA it was.
fn issued_by(
    leaf: &X509Certificate<'_>,
    mut between: Vec<X509Certificate<'_>>,
    cas: &[(usize, X509Certificate<'_>)],
    now: SystemTime,
) -> Result<usize, CertificateError> {
    let mut below = leaf.clone();
    let mut depth = 0;
    is_valid(leaf, now)?;
    loop {
        // One that is over may stand beside its successor, of the same name and key.
        let mut why = CertificateError::NoChain;
        let mut counts = |issuer: &X509Certificate<'_>| {
            let valid = has_issued(issuer, &below, depth).then(|| is_valid(issuer, now));
            if let Some(Err(over)) = valid {
                why = over;
            }
            valid == Some(Ok(()))
        };
        if let Some((at, _)) = cas.iter().find(|(_, ca)| counts(ca)) {
            return Ok(*at);
        }
        let next = between.iter().position(&mut counts).ok_or(why)?;
        below = between.swap_remove(next);
        depth += 1;
    }
}

fn is_valid(certificate: &X509Certificate<'_>, now: SystemTime) -> Result<(), CertificateError> {
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map(|it| it.as_secs());
    let seconds = seconds.ok().and_then(|it| i64::try_from(it).ok());
    let now = seconds.and_then(|it| ASN1Time::from_timestamp(it).ok());
    match now {
        Some(now) if certificate.validity().is_valid_at(now) => Ok(()),
        _ => Err(CertificateError::NotNow),
    }
}

/// Whether a CA with so many others below it has issued a certificate. SHA-1 does not count.
fn has_issued(ca: &X509Certificate<'_>, below: &X509Certificate<'_>, depth: u32) -> bool {
    let algorithm = &below.signature_algorithm.algorithm;
    let is_weak = *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA;
    !is_weak
        && ca.subject().as_raw() == below.issuer().as_raw()
        && may_issue(ca, depth).is_ok()
        && below.verify_signature(Some(ca.public_key())).is_ok()
}

/// Whether a certificate is a CA's that may have so many others below it.
fn may_issue(ca: &X509Certificate<'_>, depth: u32) -> Result<(), CertificateError> {
    let constraints = ca.basic_constraints().ok().flatten();
    let usage = ca.key_usage().map_err(|_| CertificateError::NotACa)?;
    let constraints = constraints.ok_or(CertificateError::NotACa)?.value;
    let is_long = constraints
        .path_len_constraint
        .is_some_and(|max| depth > max);
    let signs = usage.is_none_or(|usage| usage.value.key_cert_sign());
    if !constraints.ca || is_long || !signs {
        return Err(CertificateError::NotACa);
    }
    knows_all(ca)
}

/// What is marked critical has to be known. Names of TPMs are no host names: constraints of names
/// are not known here.
fn knows_all(certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
    let is_known = |parsed: &ParsedExtension<'_>| {
        matches!(
            parsed,
            ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::SubjectAlternativeName(_)
                | ParsedExtension::CertificatePolicies(_)
        )
    };
    let mut critical = certificate.extensions().iter().filter(|it| it.critical);
    match critical.all(|extension| is_known(extension.parsed_extension())) {
        true => Ok(()),
        false => Err(CertificateError::Critical),
    }
}

/// Whether it is for an endorsement key: no CA's, for encryption, and for that use where it names
/// uses. A CA may issue certificates for other things, too, whose keys no TPM keeps.
fn is_endorsement(leaf: &X509Certificate<'_>) -> Result<(), CertificateError> {
    let other = CertificateError::NotEndorsement;
    let constraints = leaf.basic_constraints().map_err(|_| other)?;
    let usage = leaf.key_usage().map_err(|_| other)?;
    let uses = leaf.extended_key_usage().map_err(|_| other)?;
    let is_ca = constraints.is_some_and(|it| it.value.ca);
    let encrypts = usage.is_none_or(|usage| usage.value.key_encipherment());
    let is_use = uses.is_none_or(|uses| uses.value.other.contains(&EK_CERTIFICATE_USE));
    if is_ca || !encrypts || !is_use || knows_all(leaf).is_err() {
        return Err(other);
    }
    Ok(())
}

/// Some makers say that the key is for OAEP where others say RSA: what it is made of counts.
fn endorsement_key(leaf: &X509Certificate<'_>) -> Result<EndorsementKey, CertificateError> {
    let key = RSAPublicKey::from_der(&leaf.public_key().subject_public_key.data);
    let Ok(([], key)) = key else {
        return Err(CertificateError::NotRsa);
    };
    let modulus = key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus);
    match modulus.try_into() {
        Ok(modulus) if key.exponent == EXPONENT => Ok(EndorsementKey { modulus }),
        _ => Err(CertificateError::NotRsa),
    }
}

/// What libvirt has swtpm put there: `CN=name:uuid`. The name is of whoever made the VM, who could
/// write more into it: the common name has to be all of the subject, and what counts is its end.
fn vm_uuid(leaf: &X509Certificate<'_>) -> Option<[u8; 16]> {
    const DIGITS: usize = 32;
    let mut parts = leaf.subject().iter_attributes();
    let (Some(_), None) = (parts.next(), parts.next()) else {
        return None;
    };
    let name = leaf.subject().iter_common_name().next()?.as_str().ok()?;
    let (_, text) = name.rsplit_once(':').unwrap_or(("", name));
    let is_dash = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    let mut chars = text.chars().enumerate();
    let is_uuid = text.len() == DIGITS + 4
        && chars.all(|(at, c)| match is_dash(at) {
            true => c == '-',
            false => c.is_ascii_hexdigit(),
        });
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let value = u128::from_str_radix(&digits, 16).ok().filter(|_| is_uuid)?;
    Some(value.to_be_bytes())
}
