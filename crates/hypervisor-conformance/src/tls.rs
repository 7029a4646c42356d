//! Certificates for tests, and TLS in front of a server that has none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// TLS on a port of its own on loopback, in front of a server; with the CA that signed its
/// certificate and one that did not.
#[derive(Debug)]
pub struct TlsFront {
    addr: SocketAddr,
    right_ca: PathBuf,
    wrong_ca: PathBuf,
    task: JoinHandle<()>,
}

impl TlsFront {
    /// Starts one in front of `server`; certificates are for `localhost` and 127.0.0.1, the CAs'
    /// PEM files are written to `dir`.
    ///
    /// # Errors
    /// No port is to be had, or `dir` cannot be written.
    pub async fn start(server: SocketAddr, dir: &Path) -> Result<Self> {
        let right = ca("the right CA")?;
        let wrong = ca("another CA")?;
        let (right_ca, wrong_ca) = (dir.join("ca.pem"), dir.join("another-ca.pem"));
        std::fs::write(&right_ca, right.pem())?;
        std::fs::write(&wrong_ca, wrong.pem())?;

        let key = KeyPair::generate()?;
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let cert = CertificateParams::new(names)?.signed_by(&key, &right)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;

        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(serve(listener, acceptor, server));
        Ok(Self {
            addr,
            right_ca,
            wrong_ca,
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The CA to trust: the one that signed its certificate, or another.
    #[must_use]
    pub fn ca(&self, is_right: bool) -> &Path {
        if is_right {
            &self.right_ca
        } else {
            &self.wrong_ca
        }
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
