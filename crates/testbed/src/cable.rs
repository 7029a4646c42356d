//! A unix socket in front of another one, whose connections can be cut.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

/// Relays what connects to a path of its own to another socket, or refuses to. Its threads end with
/// their connections; the listening thread with the process.
#[derive(Debug)]
pub struct Cable {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    is_cut: bool,
    connections: Vec<UnixStream>,
}

impl Cable {
    /// Starts one at `path` in front of the socket `to`.
    ///
    /// # Errors
    /// It cannot listen there.
    pub fn start(path: &Path, to: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        let state = Arc::<Mutex<State>>::default();
        let (shared, to) = (Arc::clone(&state), to.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Dropped, it is refused.
                let _refused = join(client, &to, &shared);
            }
        });
        let path = path.to_owned();
        Ok(Self { path, state })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Breaks what is connected, and everything that connects.
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.is_cut = true;
        for connection in state.connections.drain(..) {
            let _gone = connection.shutdown(Shutdown::Both);
        }
    }

    /// Relays again.
    pub fn mend(&self) {
        lock(&self.state).is_cut = false;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn join(client: UnixStream, to: &Path, state: &Mutex<State>) -> io::Result<()> {
    let mut state = lock(state);
    if state.is_cut {
        return Ok(());
    }
    let server = UnixStream::connect(to)?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        thread::spawn(move || {
            let _broken = io::copy(&mut from, &mut to);
            let _closed = to.shutdown(Shutdown::Both);
        });
    }
    state.connections.extend([client, server]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_is_cut_is_refused_until_it_is_mended() {
        let dir = tempfile::tempdir().expect("a folder");
        let (front, back) = (dir.path().join("front"), dir.path().join("back"));
        let server = UnixListener::bind(&back).expect("bind");
        let cable = Cable::start(&front, &back).expect("a cable");
        let echo = || {
            let mut client = UnixStream::connect(cable.path()).expect("connect");
            let (mut conn, _) = server.accept().expect("accept");
            client.write_all(b"x").expect("write");
            let mut byte = [0];
            conn.read_exact(&mut byte).expect("read");
            (client, conn)
        };
        let (mut client, _conn) = echo();
        cable.cut();
        assert_eq!(client.read(&mut [0]).expect("an end"), 0);
        let mut refused = UnixStream::connect(cable.path()).expect("connect");
        assert_eq!(refused.read(&mut [0]).expect("an end"), 0);
        cable.mend();
        let _both = echo();
    }
}
