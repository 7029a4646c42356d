//! Which programs start, as the kernel's process connector tells: for what marks cannot see.
//!
//! A program that is run from memory (`memfd`) is on no file system that can be marked (trap 13): it
//! is reported, and judged after the fact. And whoever starts programs in a mount namespace of its
//! own (a container) may have mounted what our table of mounts does not show.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use daemon::log::escape;
use daemon::signal::Stop;
use fanotify::{FileIdentity, FileKind};
use model::AccessClass;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::container;
use super::strangers::{Namespace, Strangers};
use crate::gate::Gate;
use crate::gate::content::Content;

/// Room for one message; the connector sends one in each datagram.
const MESSAGE_BYTES: usize = 1024;

const PROC_EVENT_EXEC: u32 = 2;

/// Tells of each exec on this machine.
struct Execs(OwnedFd);

impl Execs {
    /// # Errors
    /// No connector: in a network or PID namespace of our own, or a kernel without it.
    fn open() -> io::Result<Self> {
        const CN_IDX_PROC: u32 = 1;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::CONNECTOR);
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, CN_IDX_PROC))?;
        rustix::net::send(&socket, &listen(None), SendFlags::empty())?;
        // Since 6.6: nothing else wakes us. An older kernel does not know this question, and goes
        // by the one before.
        let only_execs = listen(Some(PROC_EVENT_EXEC));
        rustix::net::send(&socket, &only_execs, SendFlags::empty())?;
        Ok(Self(socket))
    }

    /// Takes the execs so far. True: some were lost.
    fn take(&self, mut each: impl FnMut(i32)) -> io::Result<bool> {
        let mut lost = false;
        let mut message = [0; MESSAGE_BYTES];
        loop {
            match rustix::net::recv(&self.0, &mut message, RecvFlags::empty()) {
                Ok((length, _)) => {
                    let told = message.get(..length).unwrap_or_default();
                    exec_in(told).into_iter().for_each(&mut each);
                }
                Err(Errno::AGAIN) => return Ok(lost),
                Err(Errno::NOBUFS) => lost = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// `PROC_CN_MCAST_LISTEN`, to all that processes do or to one kind of it, in a connector's message
/// in a netlink message.
fn listen(only: Option<u32>) -> Vec<u8> {
    const NLMSG_DONE: u16 = 3;
    const LISTEN: u32 = 1;
    /// Of `struct nlmsghdr` and `struct cn_msg`.
    const HEADERS_LEN: u32 = 36;
    let wanted = [Some(LISTEN), only].into_iter().flatten();
    let wanted: Vec<u8> = wanted.flat_map(u32::to_ne_bytes).collect();
    // Four or eight.
    let wanted_len = wanted.len() as u16;
    let mut message = Vec::new();
    message.extend((HEADERS_LEN + u32::from(wanted_len)).to_ne_bytes());
    message.extend(NLMSG_DONE.to_ne_bytes());
    message.extend([0; 10]);
    // CN_IDX_PROC, CN_VAL_PROC.
    message.extend(1_u32.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(wanted_len.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(wanted);
    message
}

/// The process that a message says to have run a program; `None`: it says something else.
fn exec_in(message: &[u8]) -> Option<i32> {
    /// After `struct nlmsghdr` (16 bytes) and `struct cn_msg` (20).
    const EVENT_AT: usize = 36;
    /// After what happened, the processor and the time.
    const DATA_AT: usize = EVENT_AT + 16;
    let word = |at: usize| Some(*message.get(at..)?.first_chunk::<4>()?);
    if u32::from_ne_bytes(word(EVENT_AT)?) != PROC_EVENT_EXEC {
        return None;
    }
    // The thread's id, then the process's.
    Some(i32::from_ne_bytes(word(DATA_AT + 4)?))
}

/// Watches until told to stop.
pub(crate) fn watch(gate: &Gate, strangers: &Strangers, stop: &Stop) {
    let execs = match Execs::open() {
        Ok(execs) => execs,
        Err(error) => {
            tracing::warn!(
                %error,
                "programs run from memory, and mounts of containers, are not seen"
            );
            return;
        }
    };
    loop {
        let mut sources = [
            PollFd::new(&execs.0, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None));
        if polled.is_err() || stop.is_set() {
            return;
        }
        match execs.take(|pid| look_at(gate, strangers, pid)) {
            Ok(false) => {}
            Ok(true) => gate.tally.execs_lost.add(1),
            Err(error) => {
                tracing::error!(%error, "programs run from memory are not seen any more");
                return;
            }
        }
    }
}

fn look_at(gate: &Gate, strangers: &Strangers, pid: i32) {
    if let Some(namespace) = Namespace::of(pid) {
        strangers.saw(namespace, pid);
    }
    // Links in /proc: reading them opens no file of a guarded file system.
    let link = format!("/proc/{pid}/exe");
    let Ok(program) = rustix::fs::readlink(&link, Vec::new()) else {
        return;
    };
    let program = program.into_bytes();
    if program.starts_with(b"/memfd:") {
        ran_from_memory(gate, pid, &link, program);
    }
}

fn ran_from_memory(gate: &Gate, pid: i32, link: &str, program: Vec<u8>) {
    gate.tally.memfd_execs.add(1);
    let container = container::of(pid);
    let place = container
        .as_ref()
        .map_or_else(String::new, |it| format!(", {it}"));
    gate.send_alert("memfd_exec", &format!("process {pid}{place}"), &program);
    if let Some(suppressed) = gate.lines.memory.allow(Instant::now()) {
        let program = escape(&program).to_string();
        let container = escape(place.as_bytes()).to_string();
        tracing::warn!(
            program,
            pid,
            container,
            suppressed,
            "a program was run from memory"
        );
    }
    // It runs already; whether it should have is still worth knowing.
    if let Some(content) = running(link, pid, program) {
        gate.take_in(content, false);
    }
}

/// What a link in `/proc` leads to, whether or not it has a name any more.
pub(super) fn running(link: &str, pid: i32, name: Vec<u8>) -> Option<Content> {
    let file = super::sweep::open_regular(link)?;
    let identity = FileIdentity::of(std::os::fd::AsFd::as_fd(&file)).ok()?;
    let worth = identity.kind == FileKind::Regular && identity.size > 0;
    let content = Content::new(Arc::new(file), &identity, AccessClass::Ledger, pid);
    worth.then(|| content.with_path(name).before_us())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(what: u32, thread: i32, process: i32) -> Vec<u8> {
        let mut bytes = vec![0; 36];
        bytes.extend(what.to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(thread.to_ne_bytes());
        bytes.extend(process.to_ne_bytes());
        bytes
    }

    #[test]
    fn execs_are_told_by_their_process() {
        assert_eq!(exec_in(&message(2, 8, 7)), Some(7));
        assert_eq!(exec_in(&message(1, 8, 7)), None, "a fork");
        let whole = message(2, 8, 7);
        for length in 0..whole.len() {
            assert_eq!(exec_in(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn the_question_is_as_long_as_it_says() {
        assert_eq!(listen(None).len(), 40);
        assert_eq!(listen(Some(PROC_EVENT_EXEC)).len(), 44);
    }
}
