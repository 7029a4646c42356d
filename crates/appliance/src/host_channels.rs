//! Channels to the guests on this appliance's host: the hypervisor makes a unix socket for each
//! guest's virtio-serial port. What is written into one reaches that guest and nobody else, so a
//! guest that knows it is here. A guest may say anything there, and is asked nothing but that.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use daemon::metrics::{Gauge, Registry};
use link::channel::{PORT_NAME, line, taken};
use model::ChannelId;
use parking_lot::Mutex;
use proto::v1;
use proto::v1::fleet_said::Body as Said;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::fleet::FleetPort;
use crate::shared::Shared;

/// New sockets are looked for so often: one appears before a guest that migrates has arrived.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Sockets that are held at most; the contract's limit.
const CHANNELS_MAX: usize = 4096;
/// Entries of one folder that are looked at.
const ENTRIES_MAX: usize = 65_536;
/// A guest that asks again is answered so soon.
const ANSWER_PAUSE: Duration = Duration::from_secs(1);
/// A line that a guest does not take is written again after so long, and after twice as long each
/// time; a guest that has not arrived yet, or without an agent, takes none.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);
/// And this long at most.
const AGAIN_MAX: Duration = Duration::from_secs(600);
/// A socket that takes no line for so long is opened anew.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Those that are open.
#[derive(Debug)]
pub(crate) struct HostChannels {
    held: Mutex<BTreeMap<PathBuf, ChannelId>>,
    count: Gauge,
}

impl HostChannels {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            held: Mutex::default(),
            count: registry.gauge(
                "lazaret_host_channels",
                "Channels to guests on this appliance's host that are open.",
            ),
        }
    }

    /// Changes them and tells the controller which there are, in one step: what is told later is
    /// newer.
    pub(crate) fn tell(
        &self,
        fleet: &dyn FleetPort,
        change: impl FnOnce(&mut BTreeMap<PathBuf, ChannelId>),
    ) {
        let mut held = self.held.lock();
        change(&mut held);
        self.count.set(crate::metrics::gauge_of(held.len()));
        fleet.tell(Said::Channels(v1::HostChannels {
            channels: held.values().map(|id| id.0.to_vec()).collect(),
        }));
    }
}

/// A socket, and not another one that later has its name.
type Socket = (PathBuf, u64);

/// Opens what appears in these folders and closes what goes, for ever.
pub(crate) async fn keep(shared: Arc<Shared>, folders: Vec<PathBuf>) {
    let mut open: BTreeMap<Socket, JoinHandle<()>> = BTreeMap::new();
    loop {
        let looked_in = folders.clone();
        let found = tokio::task::spawn_blocking(move || sockets_in(&looked_in)).await;
        let found = found.unwrap_or_default();
        open.retain(|socket, task| {
            let stays = found.contains(socket);
            if !stays {
                task.abort();
            }
            stays && !task.is_finished()
        });
        for socket in found {
            let path = socket.0.clone();
            let shared = shared.clone();
            open.entry(socket)
                .or_insert_with(|| tokio::spawn(hold(shared, path)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The sockets of our ports.
fn sockets_in(folders: &[PathBuf]) -> Vec<Socket> {
    let entries = folders.iter().filter_map(|folder| folder.read_dir().ok());
    let entries = entries.flat_map(|entries| entries.take(ENTRIES_MAX).flatten());
    let sockets = entries.filter_map(|entry| {
        let path = entry.path();
        let is_ours = entry.file_name().to_string_lossy().ends_with(PORT_NAME);
        let within = || socket(&path.join(PORT_NAME));
        is_ours.then(|| socket(&path)).flatten().or_else(within)
    });
    sockets.take(CHANNELS_MAX).collect()
}

fn socket(path: &Path) -> Option<Socket> {
    let metadata = path.symlink_metadata().ok()?;
    let is_socket = metadata.file_type().is_socket();
    is_socket.then(|| (path.to_owned(), metadata.ino()))
}

/// Named by its path while it is open.
struct Named<'a> {
    shared: &'a Shared,
    path: &'a Path,
    id: ChannelId,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        let channels = &self.shared.host_channels;
        channels.tell(&*self.shared.fleet, |held| {
            // Another socket may have the name by now.
            if held.get(self.path) == Some(&self.id) {
                held.remove(self.path);
            }
        });
    }
}

/// Holds one channel until its other end goes.
async fn hold(shared: Arc<Shared>, path: PathBuf) {
    // Nobody listens, or somebody else is connected: it is tried again with the next look.
    let Ok(stream) = UnixStream::connect(&path).await else {
        return;
    };
    let Ok(id) = pki::random().map(ChannelId) else {
        return;
    };
    // Before the guest can know it.
    let _named = Named {
        shared: &shared,
        path: &path,
        id,
    };
    shared.host_channels.tell(&*shared.fleet, |held| {
        held.insert(path.clone(), id);
    });
    serve(stream, id, TAKEN_WITHIN).await;
}

/// Tells the guest its line as often as it has to be told, until the other end goes.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, id: ChannelId, within: Duration) {
    let (line, taken) = (line(id), taken(id));
    let mut again = within;
    let mut is_taken = false;
    loop {
        if !is_taken {
            let written = tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(line.as_bytes()));
            if !matches!(written.await, Ok(Ok(()))) {
                return;
            }
        }
        // However much it says.
        tokio::time::sleep(ANSWER_PAUSE).await;
        let mut said = [0; 256];
        let wait = if is_taken { Duration::MAX } else { again };
        match tokio::time::timeout(wait, stream.read(&mut said)).await {
            Ok(Ok(length @ 1..)) => {
                // Whatever else it says, it wants to know again: another id was another host's.
                let said = said.get(..length).unwrap_or_default();
                is_taken = said.ends_with(taken.as_bytes());
                again = within;
            }
            Ok(_) => return,
            Err(_) => again = (again * 2).min(AGAIN_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_told_until_it_is_taken_and_when_it_is_asked_for() {
        use link::channel::ASK;
        let (id, other) = (ChannelId([1; 16]), ChannelId([2; 16]));
        let (appliance, mut guest) = tokio::io::duplex(4096);
        let within = Duration::from_millis(1);
        let serving = tokio::spawn(serve(appliance, id, within));
        let own = line(id);
        let mut said = vec![0; own.len()];
        // Nobody takes it.
        for _ in 0..3 {
            guest.read_exact(&mut said).await.unwrap();
        }
        guest.write_all(taken(id).as_bytes()).await.unwrap();
        // One may have been on its way.
        let wait = 3 * ANSWER_PAUSE;
        let mut told = 0;
        while let Ok(read) = tokio::time::timeout(wait, guest.read_exact(&mut said)).await {
            read.unwrap();
            told += 1;
        }
        assert!(told <= 1, "it was taken");
        let foreign = taken(other);
        for wants in [&[ASK][..], foreign.as_bytes()] {
            guest.write_all(wants).await.unwrap();
            guest.read_exact(&mut said).await.unwrap();
            assert_eq!(said, own.as_bytes());
        }
        drop(guest);
        serving.await.unwrap();
    }

    #[test]
    fn sockets_are_found_by_their_names_and_in_folders_of_guests() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("domain-1-a")).unwrap();
        std::fs::create_dir(path("domain-2-b")).unwrap();
        std::fs::write(path("domain-2-b").join(PORT_NAME), b"a file").unwrap();
        let ours = [
            path("domain-1-a").join(PORT_NAME),
            path(PORT_NAME),
            path("vm-7-org.lazaret.0"),
        ];
        let others = [path("org.qemu.guest_agent.0"), path("domain-1-a").join("x")];
        for socket in ours.iter().chain(&others) {
            drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
        }
        let missing = path("missing");
        let mut found: Vec<_> = sockets_in(&[dir.path().to_owned(), missing])
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        found.sort();
        assert_eq!(found, ours);
    }
}
