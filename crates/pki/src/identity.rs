//! A private key with its certificates, and trust anchors; in memory and in files.

use std::fmt;
use std::fs;
use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::files::{FileError, read_secret, write_atomic};

/// A private key and the certificates for it, leaf first.
pub struct Identity {
    /// Certificates, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} certificates, key ..)", self.chain.len())
    }
}

impl Identity {
    /// The certificate itself.
    #[must_use]
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }

    /// Writes key and certificates into one PEM file with mode 0600, so that the two always
    /// belong together, after a crash too.
    ///
    /// # Errors
    /// [`FileError::Io`]; the file is then unchanged.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        write_atomic(path, 0o600, self.to_pem().as_bytes())
    }

    /// Key and certificates as [`Self::save`] writes them: a secret.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let mut text = pem("PRIVATE KEY", self.key.secret_der());
        for cert in &self.chain {
            text.push_str(&pem("CERTIFICATE", cert));
        }
        text
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// [`FileError`], naming the file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let text = read_secret(path)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(&text)
            .map_err(|_| FileError::content(path, "holds no PEM private key"))?;
        let chain = certificates(path, &text)?;
        Ok(Self {
            chain,
            key: PrivateKeyDer::from(key),
        })
    }
}

/// Writes trust anchors into a PEM file with mode 0644.
///
/// # Errors
/// [`FileError::Io`]; the file is then unchanged.
pub fn save_anchors(path: &Path, anchors: &[CertificateDer<'_>]) -> Result<(), FileError> {
    let text: String = anchors
        .iter()
        .map(|anchor| pem("CERTIFICATE", anchor))
        .collect();
    write_atomic(path, 0o644, text.as_bytes())
}

/// Reads trust anchors; at least one.
///
/// # Errors
/// [`FileError`], naming the file.
pub fn load_anchors(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = fs::read(path).map_err(FileError::io("read", path))?;
    certificates(path, &text)
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(FileError::content(path, "holds no PEM certificate")),
        Err(_) => Err(FileError::content(
            path,
            "holds a PEM section that is cut or damaged",
        )),
    }
}

/// One PEM section, lines ending in LF.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchors.pem");
        fs::write(&path, "nothing").unwrap();
        let refused = load_anchors(&path).unwrap_err().to_string();
        assert!(refused.contains("anchors.pem"), "{refused}");
        assert!(load_anchors(&dir.path().join("missing")).is_err());
    }
}
