//! An HTTP client for one server: one connection, one request at a time, everything bounded.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use hypervisor::{ConnectorError, Pace};
use rustls::pki_types::CertificateDer;

use crate::endpoint::Endpoint;
use crate::secret::Secret;

/// Largest body of an answer.
pub const BODY_MAX_BYTES: usize = 64 << 20;
/// Longest wait for an answer, unless a request says otherwise.
pub const REQUEST_TIME: Duration = Duration::from_secs(30);

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text, whatever is not UTF-8 replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client of one server.
#[derive(Debug)]
pub struct HttpClient {
    endpoint: Endpoint,
    pace: Arc<Pace>,
    headers: HeaderMap,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    certificate: Option<CertificateDer<'static>>,
}

impl HttpClient {
    /// Connects at the first request.
    #[must_use]
    pub fn new(endpoint: Endpoint, pace: Arc<Pace>) -> Self {
        Self {
            endpoint,
            pace,
            headers: HeaderMap::new(),
            connection: None,
        }
    }

    /// Whom it speaks to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends this header with every request from now on. It is marked as a secret.
    ///
    /// # Errors
    /// The value cannot be a header's.
    pub fn set_header(&mut self, name: HeaderName, value: &str) -> Result<(), ConnectorError> {
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| ConnectorError::Config(format!("no value for the header {name}")))?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(())
    }

    /// Authenticates every request with name and password.
    ///
    /// # Errors
    /// They cannot be sent.
    pub fn set_basic_auth(&mut self, user: &str, password: &Secret) -> Result<(), ConnectorError> {
        let pair = format!("{user}:{}", password.reveal());
        let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
        self.set_header(hyper::header::AUTHORIZATION, &format!("Basic {encoded}"))
    }

    /// The certificate of the connection in use, where there is one.
    #[must_use]
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.as_ref()?.certificate.as_ref()
    }

    /// True while the connection of the last request can take another one.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let is_open = |connection: &Connection| !connection.sender.is_closed();
        self.connection.as_ref().is_some_and(is_open)
    }

    /// Sends a request and reads the answer, whatever its status is.
    ///
    /// # Errors
    /// [`ConnectorError`]: no connection, no answer in `limit`, or one that is too large.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: impl Into<Bytes>,
        limit: Duration,
    ) -> Result<Answer, ConnectorError> {
        self.pace.next().await;
        let request = self.request(method, path, headers, body.into())?;
        let exchanged = tokio::time::timeout(limit, self.exchange(request)).await;
        let answer = exchanged.unwrap_or_else(|_| {
            Err(ConnectorError::Timeout {
                endpoint: self.endpoint.to_string(),
                what: path.to_owned(),
                limit_ms: limit.as_millis() as u64,
            })
        });
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, ConnectorError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.endpoint.to_string());
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let mut request = request
            .body(Full::new(body))
            .map_err(|error| ConnectorError::Config(format!("{path}: {error}")))?;
        request
            .headers_mut()
            .extend(self.headers.iter().map(|(k, v)| (k.clone(), v.clone())));
        Ok(request)
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, ConnectorError> {
        let endpoint = self.endpoint.clone();
        let failed = |error: hyper::Error| endpoint.unreachable(into_io(error));
        let mut connection = self.reuse_or_connect().await?;
        let answer = connection
            .sender
            .send_request(request)
            .await
            .map_err(failed)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, BODY_MAX_BYTES)
            .collect()
            .await
            .map_err(|error| self.body_failed(error))?;
        self.connection = Some(connection);
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    async fn reuse_or_connect(&mut self) -> Result<Connection, ConnectorError> {
        if let Some(mut old) = self.connection.take()
            && old.sender.ready().await.is_ok()
        {
            return Ok(old);
        }
        self.connect().await
    }

    async fn connect(&self) -> Result<Connection, ConnectorError> {
        let stream = self.endpoint.connect().await?;
        let (sender, driver) = handshake(TokioIo::new(stream.io))
            .await
            .map_err(|error| self.endpoint.unreachable(into_io(error)))?;
        // It ends with the sender or the connection; its error is the sender's too.
        tokio::spawn(driver);
        Ok(Connection {
            sender,
            certificate: stream.certificate,
        })
    }

    fn body_failed(&self, error: Box<dyn std::error::Error + Send + Sync>) -> ConnectorError {
        if error.is::<http_body_util::LengthLimitError>() {
            return ConnectorError::TooMuch {
                endpoint: self.endpoint.to_string(),
                what: "a body's bytes",
                limit: BODY_MAX_BYTES,
            };
        }
        self.endpoint.unreachable(io::Error::other(error))
    }
}

/// The error of the connection itself, where there is one.
fn into_io(error: hyper::Error) -> io::Error {
    let source = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>());
    let tls = source
        .and_then(io::Error::get_ref)
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => io::Error::other(tls.clone()),
        None => io::Error::other(error),
    }
}
