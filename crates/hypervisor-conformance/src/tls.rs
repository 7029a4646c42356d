//! Certificates for tests, and TLS in front of a server that has none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// PEM files in a folder: a CA, a server's certificate from it for `localhost` and 127.0.0.1, and a
/// CA that signed nothing.
#[derive(Debug, Clone)]
pub struct TestCertificates {
    dir: PathBuf,
    der: CertificateDer<'static>,
}

impl TestCertificates {
    /// Makes them in `dir`.
    ///
    /// # Errors
    /// `dir` cannot be written.
    pub fn make(dir: &Path) -> Result<Self> {
        let right = ca("the right CA")?;
        std::fs::write(dir.join("ca.pem"), right.pem())?;
        std::fs::write(dir.join("another-ca.pem"), ca("another CA")?.pem())?;
        let key = KeyPair::generate()?;
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let cert = CertificateParams::new(names)?.signed_by(&key, &right)?;
        std::fs::write(dir.join("cert.pem"), cert.pem())?;
        std::fs::write(dir.join("key.pem"), key.serialize_pem())?;
        Ok(Self {
            dir: dir.to_owned(),
            der: cert.der().clone(),
        })
    }

    /// The CA to trust: the one that signed the server's certificate, or another.
    #[must_use]
    pub fn ca(&self, is_right: bool) -> PathBuf {
        let name = if is_right { "ca.pem" } else { "another-ca.pem" };
        self.dir.join(name)
    }

    /// The server's certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    /// The server's certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The server's key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("key.pem")
    }
}

/// TLS on a port of its own on loopback, in front of a server that has none.
#[derive(Debug)]
pub struct TlsFront {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl TlsFront {
    /// Starts one in front of `server`.
    ///
    /// # Errors
    /// No port is to be had.
    pub async fn start(server: SocketAddr, certificates: &TestCertificates) -> Result<Self> {
        let key = PrivateKeyDer::from_pem_file(certificates.key())?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificates.der.clone()], key)?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(serve(listener, acceptor, server));
        Ok(Self { addr, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn ca(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, server: SocketAddr) {
    while let Ok((client, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut client) = acceptor.accept(client).await else {
                return;
            };
            let Ok(mut server) = TcpStream::connect(server).await else {
                return;
            };
            let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}
