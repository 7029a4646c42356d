//! An HTTP server whose answers a test makes up.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request, read whole.
#[derive(Debug)]
pub struct FakeRequest {
    /// `GET`, …
    pub method: String,
    /// With its query.
    pub path: String,
    /// Tells connections apart: some authentications count for a connection.
    pub connection: u64,
    /// Its body as text.
    pub body: String,
    headers: HeaderMap,
}

impl FakeRequest {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct FakeResponse {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its body.
    pub body: String,
}

impl FakeResponse {
    /// A status alone.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: String::new(),
        }
    }

    /// 200 with this body.
    #[must_use]
    pub fn body(content_type: &str, body: String) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type", content_type.to_owned())],
            body,
        }
    }

    /// 200 with JSON.
    #[must_use]
    pub fn json(value: &impl std::fmt::Display) -> Self {
        Self::body("application/json;charset=UTF-8", value.to_string())
    }
}

/// The server, on a port of its own on loopback; dropped, it takes no more connections.
#[derive(Debug)]
pub struct FakeHttp {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl FakeHttp {
    /// Starts one. `answer` may block for a short time.
    ///
    /// # Errors
    /// No port is to be had.
    pub async fn start(
        answer: impl Fn(FakeRequest) -> FakeResponse + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let task = tokio::spawn(serve(listener, Arc::new(answer)));
        Ok(Self { addr, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for FakeHttp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answer = dyn Fn(FakeRequest) -> FakeResponse + Send + Sync;

async fn serve(listener: TcpListener, answer: Arc<Answer>) {
    let mut connection = 0;
    while let Ok((stream, _)) = listener.accept().await {
        connection += 1;
        let answer = Arc::clone(&answer);
        let service = service_fn(move |request| handle(request, connection, Arc::clone(&answer)));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn handle(
    request: Request<Incoming>,
    connection: u64,
    answer: Arc<Answer>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    let request = FakeRequest {
        method: head.method.as_str().to_owned(),
        path: head.uri.to_string(),
        connection,
        body: String::from_utf8_lossy(&body.unwrap_or_default()).into_owned(),
        headers: head.headers,
    };
    let made = tokio::task::spawn_blocking(move || answer(request)).await;
    let made = made.unwrap_or_else(|_| FakeResponse::status(500));
    let mut response = Response::builder().status(made.status);
    for (name, value) in made.headers {
        response = response.header(name, value);
    }
    let response = response.body(Full::new(Bytes::from(made.body)));
    Ok(response.unwrap_or_default())
}
