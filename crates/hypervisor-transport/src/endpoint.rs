//! Connections to a hypervisor's management, in clear or over TLS.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::ConnectorError;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest wait for a connection, its TLS included.
pub const CONNECT_TIME: Duration = Duration::from_secs(10);

/// A connection's two directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection, over TLS or not.
pub struct Stream {
    /// Its bytes.
    pub io: Box<dyn Duplex>,
    /// The other side's certificate, where TLS is spoken.
    pub certificate: Option<CertificateDer<'static>>,
}

/// Whom to connect to.
#[derive(Clone)]
pub struct Endpoint {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self}, tls: {})", self.tls.is_some())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Endpoint {
    /// `host` is a name or an address; with `tls`, its certificate must be for it.
    #[must_use]
    pub fn new(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Self {
            host: host.to_owned(),
            port,
            tls,
        }
    }

    /// True where TLS is spoken.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ConnectorError::Unreachable`], [`Untrusted`](ConnectorError::Untrusted) or
    /// [`Timeout`](ConnectorError::Timeout).
    pub async fn connect(&self) -> Result<Stream, ConnectorError> {
        let connected = tokio::time::timeout(CONNECT_TIME, self.dial()).await;
        connected.unwrap_or_else(|_| {
            Err(ConnectorError::Timeout {
                endpoint: self.to_string(),
                what: "a connection".to_owned(),
                limit_ms: CONNECT_TIME.as_millis() as u64,
            })
        })
    }

    async fn dial(&self) -> Result<Stream, ConnectorError> {
        let tcp = TcpStream::connect((&*self.host, self.port))
            .await
            .map_err(|source| self.unreachable(source))?;
        tcp.set_nodelay(true)
            .map_err(|source| self.unreachable(source))?;
        let Some(config) = &self.tls else {
            let io = Box::new(tcp);
            return Ok(Stream {
                io,
                certificate: None,
            });
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| ConnectorError::Config(format!("{self}: not a name for TLS")))?;
        let tls = TlsConnector::from(Arc::clone(config))
            .connect(name, tcp)
            .await
            .map_err(|error| self.tls_failed(error))?;
        let (_, session) = tls.get_ref();
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let certificate = shown.map(|cert| cert.clone().into_owned());
        let io = Box::new(tls);
        Ok(Stream { io, certificate })
    }

    /// The error of a broken connection.
    #[must_use]
    pub fn unreachable(&self, source: io::Error) -> ConnectorError {
        // With TLS 1.3 a server refuses our certificate only after the handshake.
        match rustls_error(&source) {
            Some(rustls::Error::AlertReceived(_)) => self.untrusted(&source),
            _ => ConnectorError::Unreachable {
                endpoint: self.to_string(),
                source,
            },
        }
    }

    fn untrusted(&self, error: &io::Error) -> ConnectorError {
        ConnectorError::Untrusted {
            endpoint: self.to_string(),
            reason: error.to_string(),
        }
    }

    fn tls_failed(&self, error: io::Error) -> ConnectorError {
        if rustls_error(&error).is_some() {
            return self.untrusted(&error);
        }
        self.unreachable(error)
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}
