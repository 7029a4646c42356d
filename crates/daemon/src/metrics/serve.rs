//! A very small HTTP/1.1 server for `GET /metrics`, on loopback only: it has neither TLS nor
//! authentication.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Registry;

/// Bytes of a request's head; more is refused.
const REQUEST_MAX_BYTES: usize = 4096;
/// Time a client has to send its request, then to take the answer.
const CLIENT_TIME: Duration = Duration::from_secs(2);

/// Metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address could be reached from elsewhere.
    #[error(
        "metrics: {0} is not a loopback address; metrics have no TLS and no authentication: use 127.0.0.1 or [::1] and let a local collector fetch them"
    )]
    NotLoopback(SocketAddr),
    /// The port cannot be had.
    #[error("metrics: cannot listen on {addr}")]
    Bind {
        /// As asked for.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No thread.
    #[error("metrics: cannot start a thread")]
    Thread(#[source] io::Error),
}

/// A running server; dropped, it stops.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Where it listens; the port is the real one where 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the accept; if nobody answers, the thread ends with the process.
        if TcpStream::connect_timeout(&self.addr, CLIENT_TIME).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ended = thread.join();
        }
    }
}

/// Serves `GET /metrics` on a loopback address, one client at a time, from a thread of its own.
///
/// # Errors
/// The address is not a loopback address, or cannot be had.
pub fn serve(addr: SocketAddr, registry: Registry) -> Result<Server, ServeError> {
    serve_fresh(addr, registry, || {})
}

/// As [`serve`], with values that `refresh` brings up to date before each answer: nothing has to
/// be copied while nobody asks.
///
/// # Errors
/// The address is not a loopback address, or cannot be had.
pub fn serve_fresh(
    addr: SocketAddr,
    registry: Registry,
    refresh: impl Fn() + Send + 'static,
) -> Result<Server, ServeError> {
    if !addr.ip().is_loopback() {
        return Err(ServeError::NotLoopback(addr));
    }
    let failed = |source| ServeError::Bind { addr, source };
    let listener = TcpListener::bind(addr).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::Builder::new()
        .name("metrics".into())
        .stack_size(128 * 1024)
        .spawn(move || run(&listener, &registry, &refresh, &stopped))
        .map_err(ServeError::Thread)?;
    Ok(Server {
        addr: bound,
        stop,
        thread: Some(thread),
    })
}

fn run(listener: &TcpListener, registry: &Registry, refresh: &impl Fn(), stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) if !stop.load(Ordering::Acquire) => {
                refresh();
                if let Err(error) = answer(stream, registry) {
                    tracing::debug!(%error, "metrics client");
                }
            }
            Ok(_) => {}
            Err(error) => {
                // Out of descriptors, say: wait rather than spin.
                tracing::debug!(%error, "metrics accept");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    stream.set_write_timeout(Some(CLIENT_TIME))?;
    let head = read_head(&mut stream)?;
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path) = (words.next(), words.next());
    let (status, body) = match (method, path) {
        (Some(b"GET"), Some(b"/metrics")) => ("200 OK", registry.render()),
        (Some(b"GET"), Some(_)) => ("404 Not Found", "only /metrics is here\n".into()),
        _ => ("405 Method Not Allowed", "only GET is understood\n".into()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n\
         Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// Reads up to the empty line; a client that drips bytes has [`CLIENT_TIME`] in all.
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let give_up = Instant::now() + CLIENT_TIME;
    let mut head = Vec::new();
    let mut chunk = [0; 512];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > REQUEST_MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => head.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).expect("connect");
        stream.write_all(request.as_bytes()).expect("write");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("read");
        reply
    }

    #[test]
    fn serves_and_stops() {
        let registry = Registry::new();
        registry.counter("seen", "Seen.").inc();
        let server = serve(([127, 0, 0, 1], 0).into(), registry).expect("serve");
        let addr = server.local_addr();
        let good = ask(addr, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
        assert!(good.contains("\nseen_total 1\n"), "{good}");
        let missing = ask(addr, "GET / HTTP/1.1\r\n\r\n");
        assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
        let posted = ask(addr, "POST /metrics HTTP/1.1\r\n\r\n");
        assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
        drop(server);
        assert!(TcpStream::connect(addr).is_err());
    }

    #[test]
    fn a_flood_of_header_is_cut() {
        let server = serve(([127, 0, 0, 1], 0).into(), Registry::new()).expect("serve");
        let mut stream = TcpStream::connect(server.local_addr()).expect("connect");
        let _cut = stream.write_all(&vec![b'a'; 1 << 20]);
        let mut reply = Vec::new();
        let _reset = stream.read_to_end(&mut reply);
        assert!(reply.is_empty());
        let next = ask(server.local_addr(), "GET /metrics HTTP/1.1\r\n\r\n");
        assert!(next.starts_with("HTTP/1.1 200 "), "{next}");
    }

    #[test]
    fn elsewhere_is_refused() {
        let refused = serve(([0, 0, 0, 0], 0).into(), Registry::new()).expect_err("refused");
        assert!(refused.to_string().contains("is not a loopback address"));
    }
}
