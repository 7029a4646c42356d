//! The control socket: how other commands on this machine talk to the running agent. A unix
//! socket for root alone; one line of JSON asks, one line answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use daemon::signal::Stop;
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::guard::scope::Registered;

/// Longest line either way.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// Time a peer has for its line.
const PEER_TIME: Duration = Duration::from_secs(5);

/// What may be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
enum Ask {
    /// How are you?
    Status,
    /// Where did the time of the last opens go?
    Trace,
    /// Let my opens through unseen as long as this connection lasts: I judge them myself.
    ExcludeMe,
}

/// The agent cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It does not run, or not with this configuration.
    #[error("no agent answers at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It broke off.
    #[error("the agent at {} broke off", path.display())]
    Conversation {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("the agent refused: {0}")]
    Refused(String),
}

/// As long as it lives, the agent lets this process's opens through.
#[derive(Debug)]
pub struct Exclusion {
    _connection: BufReader<UnixStream>,
}

/// What the running agent says of itself, one JSON object.
///
/// # Errors
/// No agent answers.
pub fn status(socket: &Path) -> Result<serde_json::Value, ControlError> {
    let (_, answer) = converse(socket, &Ask::Status)?;
    Ok(answer)
}

/// Where the time of the running agent's last opens went, a JSON list, the newest last.
///
/// # Errors
/// No agent answers.
pub fn trace(socket: &Path) -> Result<serde_json::Value, ControlError> {
    let (_, answer) = converse(socket, &Ask::Trace)?;
    Ok(answer)
}

/// Has the running agent let this process's opens through: an on-demand scan judges them itself.
///
/// # Errors
/// No agent answers, or it has no place left.
pub fn exclude_this_process(socket: &Path) -> Result<Exclusion, ControlError> {
    let (connection, _) = converse(socket, &Ask::ExcludeMe)?;
    Ok(Exclusion {
        _connection: connection,
    })
}

fn converse(
    socket: &Path,
    ask: &Ask,
) -> Result<(BufReader<UnixStream>, serde_json::Value), ControlError> {
    let path = socket.to_owned();
    let stream = UnixStream::connect(socket).map_err(|source| ControlError::Connect {
        path: path.clone(),
        source,
    })?;
    let talk = || -> io::Result<(BufReader<UnixStream>, serde_json::Value)> {
        stream.set_read_timeout(Some(PEER_TIME))?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        (&stream).write_all(&line)?;
        let mut reader = BufReader::new(stream);
        let answer = serde_json::from_slice(&read_line(&mut reader)?)?;
        Ok((reader, answer))
    };
    let (reader, answer) = talk().map_err(|source| ControlError::Conversation { path, source })?;
    match answer.get("refused").and_then(serde_json::Value::as_str) {
        Some(why) => Err(ControlError::Refused(why.to_owned())),
        None => Ok((reader, answer)),
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// What the agent tells of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Status,
    Trace,
}

/// Tells it as JSON.
pub(crate) type Tell = dyn Fn(Subject) -> serde_json::Value + Send + Sync;

/// The agent's end.
pub(crate) struct Server {
    path: PathBuf,
    listener: UnixListener,
    desk: Arc<Desk>,
}

struct Desk {
    tell: Box<Tell>,
    registered: Arc<Registered>,
    connections: AtomicUsize,
    connections_max: usize,
}

impl Server {
    /// Takes the socket's place; one left by a crashed agent is replaced.
    ///
    /// # Errors
    /// Another agent answers there, or the place cannot be had.
    pub(crate) fn bind(
        path: &Path,
        tell: Box<Tell>,
        registered: Arc<Registered>,
        connections_max: usize,
    ) -> io::Result<Self> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent answers there",
            ));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            desk: Arc::new(Desk {
                tell,
                registered,
                connections: AtomicUsize::new(0),
                connections_max,
            }),
        })
    }

    /// Answers until told to stop.
    pub(crate) fn run(&self, stop: &Stop) {
        while self.wait(stop) {
            match self.listener.accept() {
                Ok((stream, _)) => self.serve(stream),
                Err(error) => {
                    // Out of descriptors, say: wait rather than spin.
                    tracing::debug!(%error, "control socket");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn wait(&self, stop: &Stop) -> bool {
        let mut sources = [
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None));
        polled.is_ok() && !stop.is_set()
    }

    fn serve(&self, stream: UnixStream) {
        let desk = Arc::clone(&self.desk);
        if desk.connections.fetch_add(1, Ordering::AcqRel) >= desk.connections_max {
            desk.connections.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let spawned = std::thread::Builder::new()
            .name("control-peer".into())
            .stack_size(crate::STACK_BYTES)
            .spawn(move || {
                if let Err(error) = desk.answer(stream) {
                    tracing::debug!(%error, "control peer");
                }
                desk.connections.fetch_sub(1, Ordering::AcqRel);
            });
        if spawned.is_err() {
            self.desk.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A left-over is replaced by the next agent.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Desk {
    fn answer(&self, stream: UnixStream) -> io::Result<()> {
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        let own = rustix::process::geteuid();
        if !peer.uid.is_root() && peer.uid != own {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        stream.set_read_timeout(Some(PEER_TIME))?;
        stream.set_write_timeout(Some(PEER_TIME))?;
        let mut reader = BufReader::new(&stream);
        let line = read_line(&mut reader)?;
        match serde_json::from_slice(&line) {
            Ok(Ask::Status) => say(&stream, &(self.tell)(Subject::Status)),
            Ok(Ask::Trace) => say(&stream, &(self.tell)(Subject::Trace)),
            Ok(Ask::ExcludeMe) => self.exclude(&stream, peer.pid.as_raw_nonzero().get()),
            Err(error) => say(&stream, &refusal(&error.to_string())),
        }
    }

    fn exclude(&self, stream: &UnixStream, pid: i32) -> io::Result<()> {
        let Some(_registration) = self.registered.add(pid) else {
            return say(stream, &refusal("too many scans are registered"));
        };
        say(stream, &serde_json::json!({ "excluded": pid }))?;
        stream.set_read_timeout(None)?;
        // Ends when the peer does; whatever it says meanwhile is not listened to.
        let mut ignored = [0; 64];
        while (&mut &*stream).read(&mut ignored)? > 0 {}
        Ok(())
    }
}

fn refusal(why: &str) -> serde_json::Value {
    serde_json::json!({ "refused": why })
}

fn say(mut stream: &UnixStream, answer: &serde_json::Value) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::scope::Scope;
    use agent_config::Guard;

    #[test]
    fn asked_answered_and_excluded_for_a_connections_life() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let scope = Scope::new(&Guard::default());
        let tell = Box::new(|subject| match subject {
            Subject::Status => serde_json::json!({ "link": "up" }),
            Subject::Trace => serde_json::json!([]),
        });
        let server = Server::bind(&path, tell, scope.registered(), 2).unwrap();
        let stop = Stop::manual().unwrap();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        std::thread::scope(|threads| {
            threads.spawn(|| server.run(&stop));
            assert_eq!(status(&path).unwrap()["link"], "up");
            assert_eq!(trace(&path).unwrap(), serde_json::json!([]));
            let exclusion = exclude_this_process(&path).unwrap();
            assert!(scope.passes_process(own));
            drop(exclusion);
            while scope.passes_process(own) {
                std::thread::yield_now();
            }
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"{\"ask\":\"everything\"}\n").unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            assert!(said.contains("refused"), "{said}");
            let in_use = Server::bind(&path, Box::new(|_| ().into()), scope.registered(), 1);
            assert!(in_use.is_err());
            stop.stop();
        });
        drop(server);
        assert!(matches!(status(&path), Err(ControlError::Connect { .. })));
    }
}
