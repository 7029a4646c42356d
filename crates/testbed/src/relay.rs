//! A TCP relay on loopback that counts what passes: the bytes of a link without touching its ends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::Result;

/// Bytes of TCP payload that passed, TLS and framing included, TCP and IP headers not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayBytes {
    /// From the client to the server.
    pub up: u64,
    /// From the server to the client.
    pub down: u64,
}

impl RelayBytes {
    /// Both directions.
    #[must_use]
    pub fn total(self) -> u64 {
        self.up + self.down
    }

    /// What passed since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            up: self.up - before.up,
            down: self.down - before.down,
        }
    }
}

/// Listens on a port of its own and relays each connection to one server. Its threads end with
/// their connections; the listening thread with the process.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    counts: Arc<[AtomicU64; 2]>,
}

impl Relay {
    /// Starts one in front of `server`.
    ///
    /// # Errors
    /// No port is to be had.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let addr = listener.local_addr()?;
        let counts: Arc<[AtomicU64; 2]> = Arc::default();
        let counted = counts.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let pair = client.and_then(|client| Ok((client, TcpStream::connect(server)?)));
                if let Ok((client, server)) = pair {
                    let _refused = connect(&client, &server, &counted);
                }
            }
        });
        Ok(Self { addr, counts })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What passed until now.
    #[must_use]
    pub fn bytes(&self) -> RelayBytes {
        RelayBytes {
            up: self.counts[0].load(Ordering::Relaxed),
            down: self.counts[1].load(Ordering::Relaxed),
        }
    }
}

fn connect(client: &TcpStream, server: &TcpStream, counts: &Arc<[AtomicU64; 2]>) -> io::Result<()> {
    for stream in [client, server] {
        stream.set_nodelay(true)?;
    }
    for (from, to, way) in [(client, server, 0), (server, client, 1)] {
        let (from, to, counts) = (from.try_clone()?, to.try_clone()?, counts.clone());
        thread::spawn(move || copy(from, to, &counts[way]));
    }
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        count.fetch_add(n as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_both_ways() {
        let server = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let relay = Relay::start(server.local_addr().expect("addr")).expect("relay");
        let client = thread::spawn({
            let addr = relay.addr();
            move || {
                let mut client = TcpStream::connect(addr).expect("connect");
                client.write_all(b"hello").expect("write");
                client.shutdown(Shutdown::Write).expect("shutdown");
                let mut reply = Vec::new();
                client.read_to_end(&mut reply).expect("read");
                reply
            }
        });
        let (mut conn, _) = server.accept().expect("accept");
        let mut request = Vec::new();
        conn.read_to_end(&mut request).expect("read");
        conn.write_all(b"yes").expect("write");
        drop(conn);
        assert_eq!(client.join().expect("join"), b"yes");
        assert_eq!(request, b"hello");
        assert_eq!(relay.bytes(), RelayBytes { up: 5, down: 3 });
    }
}
