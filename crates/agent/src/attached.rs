//! The hypervisor's channel to the appliance on this host: a virtio-serial port. What the appliance
//! wrote into it is told to whoever this guest is connected to, which is how the fleet knows its
//! place. After a migration the same open port leads to the appliance on the new host.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use daemon::signal::Stop;
use link::channel::{ASK, Lines, PORT_NAME, taken};
use model::ChannelId;
use rustix::event::{Timespec, epoll};

use crate::bell::wait;
use crate::gate::Gate;

/// Where the kernel shows such ports.
const PORTS: &str = "/sys/class/virtio-ports";
/// Without a port it is looked for again: the driver may come later, and a port be plugged in.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// After reading it failed.
const FAILED_AGAIN: Duration = Duration::from_secs(30);
/// The other end went: on a migration the next one is there within this.
const NEXT_WITHIN: Duration = Duration::from_secs(3);

/// What is read from the channel now.
#[derive(Debug, Default)]
pub(crate) struct Attached(Mutex<Option<ChannelId>>);

impl Attached {
    fn lock(&self) -> MutexGuard<'_, Option<ChannelId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self) -> Option<ChannelId> {
        *self.lock()
    }

    /// Whether that is something else than before.
    fn set(&self, id: Option<ChannelId>) -> bool {
        std::mem::replace(&mut *self.lock(), id) != id
    }
}

/// Finds the port and follows it, until told to stop.
pub(crate) fn follow(gate: &Gate, stop: &Stop) {
    let note = |id| {
        if gate.attached.set(id) {
            gate.bell.ring();
        }
    };
    while !stop.is_set() {
        let mut again = LOOK_AGAIN;
        if let Some(port) = port_in(Path::new(PORTS)).and_then(|path| open(&path)) {
            tracing::info!("this guest has a channel to its host");
            let followed = follow_port(port, stop.as_fd(), note);
            note(None);
            if let Err(error) = followed {
                tracing::warn!(%error, "the channel to the host");
                again = FAILED_AGAIN;
            }
        }
        wait(stop.as_fd(), again);
    }
}

/// The port of our name.
fn port_in(ports: &Path) -> Option<PathBuf> {
    let ports = std::fs::read_dir(ports).ok()?.flatten();
    let mut ours = ports.filter(|port| {
        let name = std::fs::read_to_string(port.path().join("name"));
        name.is_ok_and(|name| name.trim_end() == PORT_NAME)
    });
    Some(Path::new("/dev").join(ours.next()?.file_name()))
}

fn open(path: &Path) -> Option<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(nonblocking);
    let opened = options.open(path);
    if let Err(error) = &opened {
        // Another program has it: only one can.
        tracing::warn!(path = %path.display(), %error, "the channel to the host");
    }
    opened.ok()
}

/// Reads until told to stop; what is read goes to `note`.
fn follow_port(
    mut port: impl Read + Write + AsFd,
    stop: BorrowedFd<'_>,
    note: impl Fn(Option<ChannelId>),
) -> std::io::Result<()> {
    let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let key = |fd: BorrowedFd<'_>| epoll::EventData::new_u64(fd.as_raw_fd().unsigned_abs().into());
    // A port without anybody at its other end would report that without pause.
    let edge = epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ET;
    epoll::add(&changes, port.as_fd(), key(port.as_fd()), edge)?;
    epoll::add(&changes, stop, key(stop), epoll::EventFlags::IN)?;
    // What was written before this agent ran is gone. Without room nobody reads at the other end.
    let _ = port.write(&[ASK]);
    let mut lines = Lines::default();
    let mut gone_at: Option<Instant> = None;
    loop {
        let read = drain(&mut port, &mut lines)?;
        if let Some(id) = read.latest {
            note(Some(id));
            // Without room it is told again.
            let _ = port.write(taken(id).as_bytes());
        }
        match gone_at {
            _ if !read.is_gone => gone_at = None,
            None => gone_at = Some(Instant::now()),
            Some(since) if since.elapsed() >= NEXT_WITHIN => note(None),
            Some(_) => {}
        }
        let left = gone_at.map(|since| NEXT_WITHIN.saturating_sub(since.elapsed()));
        let left = left.filter(|left| !left.is_zero());
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut events = Vec::with_capacity(2);
        match epoll::wait(
            &changes,
            rustix::buffer::spare_capacity(&mut events),
            left.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_stop = |event: &epoll::Event| event.data.u64() == key(stop).u64();
        if events.iter().any(is_stop) {
            return Ok(());
        }
    }
}

/// What a reading brought.
struct Drained {
    latest: Option<ChannelId>,
    /// Nobody is at the other end.
    is_gone: bool,
}

fn drain(port: &mut impl Read, lines: &mut Lines) -> std::io::Result<Drained> {
    let mut latest = None;
    let mut buffer = [0; 512];
    loop {
        match port.read(&mut buffer) {
            Ok(0) => {
                return Ok(Drained {
                    latest,
                    is_gone: true,
                });
            }
            Ok(length) => {
                let read = buffer.get(..length).unwrap_or_default();
                latest = lines.take(read).or(latest);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Ok(Drained {
                    latest,
                    is_gone: false,
                });
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use link::channel::line;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn what_the_host_writes_is_told_and_its_going_too() {
        let (guest, mut host) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let stop = Stop::manual().unwrap();
        let (said, told) = mpsc::channel();
        let following = stop.clone();
        let thread = std::thread::spawn(move || {
            follow_port(guest, following.as_fd(), |id| said.send(id).unwrap()).unwrap();
        });
        let mut asked = [0];
        host.read_exact(&mut asked).unwrap();
        assert_eq!(asked, [ASK]);
        // Half of one host's line, and then another host's.
        let (first, second) = (ChannelId([1; 16]), ChannelId([2; 16]));
        host.write_all(&line(first).as_bytes()[..20]).unwrap();
        host.write_all(line(second).as_bytes()).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(second));
        let mut said = vec![0; taken(second).len()];
        host.read_exact(&mut said).unwrap();
        assert_eq!(said, taken(second).as_bytes());
        drop(host);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), None);
        stop.stop();
        thread.join().unwrap();
    }

    #[test]
    fn our_port_is_found_among_others() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(port_in(dir.path()), None);
        for (port, name) in [
            ("vport1p1", "org.qemu.guest_agent.0"),
            ("vport1p2", PORT_NAME),
        ] {
            std::fs::create_dir(dir.path().join(port)).unwrap();
            let file = dir.path().join(port).join("name");
            std::fs::write(file, format!("{name}\n")).unwrap();
        }
        assert_eq!(port_in(dir.path()), Some("/dev/vport1p2".into()));
    }
}
