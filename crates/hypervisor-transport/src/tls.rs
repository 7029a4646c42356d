//! TLS towards hypervisors: 1.2 and 1.3, verified by a CA or by the certificate itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::ConnectorError;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// CAs that the system trusts, where a configuration names none.
pub const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Whom a connector takes for its hypervisor. There is no way to trust just anybody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Trust {
    /// Whoever has a certificate for its name from a CA that the system trusts.
    #[default]
    System,
    /// Whoever has a certificate for its name from one of the CAs in this PEM file.
    CaFile(PathBuf),
    /// Whoever has exactly this certificate: SHA-256 of its DER form in hexadecimal, `:` allowed.
    /// For hypervisors that made their own.
    CertificateSha256(String),
}

/// What a connector shows, where a hypervisor asks for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// PEM, the whole chain.
    pub certificate_file: PathBuf,
    /// PEM.
    pub key_file: PathBuf,
}

/// The TLS of one connector.
///
/// # Errors
/// [`ConnectorError::Config`], naming the file.
pub fn tls_config(
    trust: &Trust,
    shown: Option<&ClientCertificate>,
) -> Result<Arc<ClientConfig>, ConnectorError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectorError::Config(format!("TLS cannot be set up: {error}")))?;
    let builder = match trust {
        Trust::System => builder.with_root_certificates(roots(Path::new(SYSTEM_CA_FILE))?),
        Trust::CaFile(path) => builder.with_root_certificates(roots(path)?),
        Trust::CertificateSha256(text) => {
            let pinned = Pinned {
                sha256: parse_sha256(text)?,
                provider,
            };
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(pinned))
        }
    };
    let config = match shown {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = certificates(&files.certificate_file)?;
            let key = PrivateKeyDer::from_pem_file(&files.key_file)
                .map_err(|error| at(&files.key_file, &error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| at(&files.certificate_file, &error))?
        }
    };
    Ok(Arc::new(config))
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> ConnectorError {
    ConnectorError::Config(format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectorError> {
    let certs = CertificateDer::pem_file_iter(path).map_err(|error| at(path, &error))?;
    let certs: Vec<_> = certs
        .collect::<Result<_, _>>()
        .map_err(|error| at(path, &error))?;
    if certs.is_empty() {
        return Err(at(path, &"no certificate in it"));
    }
    Ok(certs)
}

fn roots(path: &Path) -> Result<RootCertStore, ConnectorError> {
    let mut store = RootCertStore::empty();
    // A system's bundle may hold a certificate that cannot be read; the others count.
    store.add_parsable_certificates(certificates(path)?);
    if store.is_empty() {
        return Err(at(path, &"no certificate of a CA in it"));
    }
    Ok(store)
}

fn parse_sha256(text: &str) -> Result<[u8; 32], ConnectorError> {
    let digits: Option<Vec<u32>> = text
        .chars()
        .filter(|digit| *digit != ':')
        .map(|digit| digit.to_digit(16))
        .collect();
    let digits: Option<[u32; 64]> = digits.and_then(|digits| digits.try_into().ok());
    let digits = digits.ok_or_else(|| {
        ConnectorError::Config("certificate_sha256 has 64 hexadecimal digits".to_owned())
    })?;
    Ok(std::array::from_fn(|i| {
        (digits[2 * i] << 4 | digits[2 * i + 1]) as u8
    }))
}

/// Accepts one certificate, whatever name or date it carries: it is known by itself.
#[derive(Debug)]
struct Pinned {
    sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Sha256::digest(end_entity)[..] == self.sha256 {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_in_both_spellings() {
        let plain = "0f".repeat(32);
        assert_eq!(parse_sha256(&plain).expect("good"), [15; 32]);
        let colons = ["0F"; 32].join(":");
        assert_eq!(parse_sha256(&colons).expect("good"), [15; 32]);
        parse_sha256("0f").expect_err("too short");
    }

    #[test]
    fn a_file_that_is_no_ca_is_named() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let trust = Trust::CaFile(file.path().to_owned());
        let error = tls_config(&trust, None).expect_err("refused").to_string();
        assert!(error.contains("no certificate in it"), "{error}");
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    }
}
