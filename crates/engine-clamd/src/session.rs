//! One connection to clamd, kept open (`IDSESSION`): commands go in, numbered answers come back.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

/// Longest answer; clamd's are a name and a few words.
const ANSWER_MAX_BYTES: usize = 4096;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Connect(rustix::io::Errno),
    /// The connection broke, or clamd closed it.
    #[error("connection lost: {0}")]
    Lost(rustix::io::Errno),
    /// clamd took too long.
    #[error("no answer in time")]
    Timeout,
    /// clamd said what its protocol does not allow.
    #[error("answer not understood: {0:?}")]
    Nonsense(String),
    /// It did not pass the limits test: what is wrong, and what to do.
    #[error("{0}")]
    Unfit(String),
}

/// Asks for program and database version on a connection of its own.
pub(crate) fn version(path: &Path, limit: Duration) -> Result<String, SessionError> {
    let socket = open(path)?;
    send(socket.as_fd(), b"zVERSION\0", None)?;
    read(socket.as_fd(), Instant::now() + limit)
}

pub(crate) struct Session {
    socket: OwnedFd,
    sent: u64,
}

impl Session {
    pub(crate) fn open(path: &Path) -> Result<Self, SessionError> {
        let socket = open(path)?;
        send(socket.as_fd(), b"zIDSESSION\0", None)?;
        Ok(Self { socket, sent: 0 })
    }

    /// Has clamd scan a file; its answer without the number. After an error the session is of no
    /// use, since the next answer may be this one's.
    pub(crate) fn scan(
        &mut self,
        file: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<String, SessionError> {
        // The descriptor comes with a byte of its own, after the command.
        send(self.socket.as_fd(), b"zFILDES\0", None)?;
        send(self.socket.as_fd(), b"\0", Some(file))?;
        self.sent += 1;
        let answer = read(self.socket.as_fd(), Instant::now() + limit)?;
        match answer.split_once(": ") {
            Some((number, rest)) if number.parse() == Ok(self.sent) => Ok(rest.to_owned()),
            _ => Err(SessionError::Nonsense(answer)),
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd, SessionError> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(SessionError::Connect)?;
    let address = SocketAddrUnix::new(path).map_err(SessionError::Connect)?;
    connect(&socket, &address).map_err(SessionError::Connect)?;
    Ok(socket)
}

fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> Result<(), SessionError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    match sent {
        Ok(count) if count == bytes.len() => Ok(()),
        // A few bytes are sent whole or not at all.
        Ok(_) => Err(SessionError::Lost(rustix::io::Errno::MSGSIZE)),
        Err(errno) => Err(SessionError::Lost(errno)),
    }
}

/// One answer, up to its NUL.
fn read(socket: BorrowedFd<'_>, deadline: Instant) -> Result<String, SessionError> {
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    loop {
        wait(socket, deadline)?;
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let mut none = RecvAncillaryBuffer::default();
        let received = recvmsg(socket, &mut iov, &mut none, RecvFlags::CMSG_CLOEXEC)
            .map_err(SessionError::Lost)?;
        if received.bytes == 0 {
            return Err(SessionError::Lost(rustix::io::Errno::PIPE));
        }
        answer.extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
        let text = || String::from_utf8_lossy(&answer).into_owned();
        if let Some(end) = answer.iter().position(|byte| *byte == 0) {
            // Answers come one at a time, as commands go.
            if end + 1 != answer.len() {
                return Err(SessionError::Nonsense(text()));
            }
            answer.truncate(end);
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
        if answer.len() > ANSWER_MAX_BYTES {
            answer.truncate(80);
            return Err(SessionError::Nonsense(
                String::from_utf8_lossy(&answer).into_owned(),
            ));
        }
    }
}

fn wait(socket: BorrowedFd<'_>, deadline: Instant) -> Result<(), SessionError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(|_| SessionError::Timeout)?;
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    match poll(&mut polled, Some(&left)) {
        Ok(0) => Err(SessionError::Timeout),
        Ok(_) => Ok(()),
        Err(errno) => Err(SessionError::Lost(errno)),
    }
}
