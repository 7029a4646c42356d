//! What runs, is mapped or open from before the marks: it raised no event (trap 15), so it is
//! judged now, once, as the ledger's entries are.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use daemon::signal::Stop;
use fanotify::lease;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::execs::running;
use super::marks::Guarded;
use super::scope::Scope;
use super::sweeping::UnderWay;
use crate::gate::Gate;

/// Files of one sweep; a machine with more open ones has the rest judged at their next open.
const FILES_MAX: usize = 65_536;
/// How long to wait for room, or for a link.
const PAUSE: Duration = Duration::from_millis(50);

/// Judges everything in turns with other guests, as fast as there is room for work that nobody waits
/// for.
pub(crate) fn sweep(gate: &Gate, scope: &Scope, guarded: &Guarded, stop: &Stop) {
    let under_way = gate.sweeping.begin(&gate.bell);
    let mut seen = HashSet::new();
    let own = std::process::id().to_string();
    let pids = names_in("/proc")
        .into_iter()
        .filter(|name| *name != own && name.bytes().all(|byte| byte.is_ascii_digit()));
    for pid in pids {
        // Programs first, then what they have mapped (libraries, scripts' modules), then the rest.
        let mut links = vec![format!("/proc/{pid}/exe")];
        for folder in ["map_files", "fd"] {
            let folder = format!("/proc/{pid}/{folder}");
            links.extend(
                names_in(&folder)
                    .into_iter()
                    .map(|name| format!("{folder}/{name}")),
            );
        }
        for link in links {
            if stop.is_set() || seen.len() >= FILES_MAX {
                return;
            }
            wait_for_room(gate, &under_way, stop);
            take_in(gate, scope, guarded, &pid, &link, &mut seen);
        }
    }
    tracing::info!(
        files = seen.len(),
        "what was open before the start is being judged"
    );
}

fn names_in(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn take_in(
    gate: &Gate,
    scope: &Scope,
    guarded: &Guarded,
    pid: &str,
    link: &str,
    seen: &mut HashSet<(u64, u64)>,
) {
    let Some(file) = guarded_file(link, guarded) else {
        return;
    };
    if !seen.insert(file) {
        return;
    }
    let Ok(name) = rustix::fs::readlink(link, Vec::new()) else {
        return;
    };
    let name = name.into_bytes();
    if !scope.holds(&name) {
        return;
    }
    let pid = pid.parse().unwrap_or(0);
    if let Some(content) = running(link, pid, name) {
        gate.tally.swept.add(1);
        let unwritten = lease::is_unwritten(content.file.as_fd());
        gate.take_in(content, unwritten);
    }
}

/// Device and inode of a regular file on a guarded file system. Nothing is asked of the file system
/// itself, for it may be one whose server does not answer.
fn guarded_file(link: &str, guarded: &Guarded) -> Option<(u64, u64)> {
    let found = rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
    let seen = rustix::fs::statx(&found, "", flags, wanted).ok()?;
    let kind = rustix::fs::FileType::from_raw_mode(seen.stx_mode.into());
    let device = rustix::fs::makedev(seen.stx_dev_major, seen.stx_dev_minor);
    let here = guarded.mounts.contains(&seen.stx_mnt_id) || guarded.devices.contains(&device);
    (kind.is_file() && here).then_some((device, seen.stx_ino))
}

/// Opens what a link in `/proc` leads to, if that is a regular file. Never waits for a FIFO's other
/// end, and opens no device.
pub(super) fn open_regular(link: &str) -> Option<OwnedFd> {
    let found = rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&found).ok()?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
    rustix::fs::open(link, flags, Mode::empty()).ok()
}

/// Openers come first, other guests may, and without a link nothing would come of it.
fn wait_for_room(gate: &Gate, under_way: &UnderWay<'_>, stop: &Stop) {
    under_way.wait(stop);
    while !stop.is_set() && !gate.has_room_for_background() {
        std::thread::sleep(PAUSE);
    }
}
