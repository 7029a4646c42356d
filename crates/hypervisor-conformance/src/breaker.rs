//! A TCP relay that breaks connections when told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where a relay leads.
#[derive(Debug, Clone)]
pub enum Upstream {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// Relays from a port of its own on loopback to one server, or refuses to.
#[derive(Debug)]
pub struct Breaker {
    addr: SocketAddr,
    is_cut: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl Breaker {
    /// Starts one in front of `server`.
    ///
    /// # Errors
    /// No port is to be had.
    pub async fn start(server: Upstream) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let is_cut = Arc::new(watch::channel(false).0);
        let task = tokio::spawn(relay(listener, server, Arc::clone(&is_cut)));
        Ok(Self { addr, is_cut, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Breaks what is connected, and everything that connects.
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// Relays again.
    pub fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(listener: TcpListener, server: Upstream, is_cut: Arc<watch::Sender<bool>>) {
    while let Ok((client, _)) = listener.accept().await {
        let (server, cut) = (server.clone(), is_cut.subscribe());
        tokio::spawn(async move {
            if *cut.borrow() {
                return;
            }
            match server {
                Upstream::Tcp(addr) => {
                    if let Ok(server) = TcpStream::connect(addr).await {
                        join(client, server, cut).await;
                    }
                }
                Upstream::Unix(path) => {
                    if let Ok(server) = UnixStream::connect(path).await {
                        join(client, server, cut).await;
                    }
                }
            }
        });
    }
}

/// Relays both ways until one side ends or the relay is cut.
async fn join(
    mut client: TcpStream,
    mut server: impl AsyncRead + AsyncWrite + Unpin,
    mut cut: watch::Receiver<bool>,
) {
    tokio::select! {
        _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _cut = cut.wait_for(|is_cut| *is_cut) => {}
    }
}
