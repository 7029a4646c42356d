//! The list of appliances that a placer gave: kept over restarts, and how near its members are.

use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use daemon::signal::Stop;
use link::client::{Client, ROUTE_LEN_MAX, Route};
use proto::v1::{self, envelope::Body};

use crate::bell::wait;
use crate::gate::Gate;

const FILE: &str = "placement";
/// A list is never longer than this on disk.
const FILE_BYTES_MAX: u64 = 4096;
/// A connection that takes longer tells nothing of nearness.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections to each appliance; the fastest counts.
const PROBES: usize = 3;
/// Where another appliance is the nearest than before, that is looked at again so soon.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// The file that keeps the list.
#[derive(Debug)]
pub(crate) struct Placed {
    path: PathBuf,
    written_epoch: u64,
}

impl Placed {
    /// What was kept, with `others` behind it as a last resort. A file that cannot be used counts
    /// as none: the placer sends a list again.
    pub(crate) fn load(state_dir: &Path, others: &[String]) -> (Self, u64, Vec<String>) {
        let path = state_dir.join(FILE);
        let kept = read(&path);
        if kept.is_none() && path.exists() {
            tracing::warn!(path = %path.display(), "the list of appliances cannot be used");
        }
        let (epoch, mut appliances) = kept.unwrap_or_default();
        for other in others {
            if !appliances.contains(other) {
                appliances.push(other.clone());
            }
        }
        let placed = Self {
            path,
            written_epoch: epoch,
        };
        (placed, epoch, appliances)
    }

    /// What was kept is another guest's.
    pub(crate) fn forget(state_dir: &Path) {
        // Where it cannot be removed, the placer's next list has to be later than that one.
        let _ = std::fs::remove_file(state_dir.join(FILE));
    }

    /// Writes the list down where it is another one.
    pub(crate) fn keep(&mut self, route: &Route) {
        if route.epoch() == self.written_epoch {
            return;
        }
        if route.epoch() == 0 {
            // Begun anew: it was forgotten.
            self.written_epoch = 0;
            return;
        }
        let lines = route.appliances().iter().map(|it| format!("{it}\n"));
        let text: String = std::iter::once(format!("{}\n", route.epoch()))
            .chain(lines)
            .collect();
        match pki::write_atomic(&self.path, 0o644, text.as_bytes()) {
            Ok(()) => self.written_epoch = route.epoch(),
            Err(error) => {
                tracing::warn!(
                    error = crate::orders::chain(&error),
                    "the list of appliances"
                );
            }
        }
    }
}

fn read(path: &Path) -> Option<(u64, Vec<String>)> {
    let metadata = std::fs::metadata(path).ok()?;
    if metadata.len() > FILE_BYTES_MAX {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let epoch: u64 = lines.next()?.parse().ok()?;
    let appliances: Vec<String> = lines.map(str::to_owned).collect();
    // Checked as if it came from the wire.
    let mut route = Route::new(0, Vec::new());
    route.offer(epoch, &appliances).ok()?;
    Some((epoch, appliances))
}

/// Measures how near the appliances of the list are, and tells the one that is connected.
pub(crate) fn measure_all(gate: &Gate, every: Duration, seed: u64, stop: &Stop) {
    // A fleet does not measure in step.
    let mut next = Instant::now() + every.mul_f64((seed % 1000) as f64 / 1000.0);
    let mut nearest = None;
    let mut is_second = false;
    while !stop.is_set() {
        let now = Instant::now();
        if now >= next {
            let found = gate.client().and_then(|client| measure(gate, client));
            // One round may have been held up: the placer believes two.
            is_second = !is_second && found.is_some() && found != nearest;
            next = now
                + if is_second {
                    every.min(SECOND_LOOK)
                } else {
                    every
                };
            nearest = found;
        }
        wait(stop.as_fd(), next.saturating_duration_since(Instant::now()));
    }
}

/// The nearest appliance of the list.
fn measure(gate: &Gate, client: &Client) -> Option<String> {
    let route = client.route();
    if route.epoch() == 0 || !client.is_up() {
        // Nobody places: nobody needs to know.
        return None;
    }
    let appliances = route.appliances().iter().take(ROUTE_LEN_MAX);
    let round_trips = appliances.filter_map(|appliance| {
        let rtt_us = probe(appliance)?;
        Some(v1::RoundTrip {
            appliance: appliance.clone(),
            rtt_us,
        })
    });
    let round_trips: Vec<_> = round_trips.collect();
    let nearest = round_trips.iter().min_by_key(|trip| trip.rtt_us)?;
    let nearest = nearest.appliance.clone();
    gate.send_control(0, Body::Nearness(v1::Nearness { round_trips }));
    Some(nearest)
}

/// The fastest of a few connections, in microseconds.
fn probe(appliance: &str) -> Option<u32> {
    let address = appliance.to_socket_addrs().ok()?.next()?;
    let times = (0..PROBES).filter_map(|_| {
        let start = Instant::now();
        TcpStream::connect_timeout(&address, PROBE_TIMEOUT).ok()?;
        u32::try_from(start.elapsed().as_micros()).ok()
    });
    times.min().map(|rtt_us| rtt_us.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_kept_and_what_is_no_list_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let others = ["c:1".to_owned(), "a:1".to_owned()];
        let (mut placed, epoch, list) = Placed::load(dir.path(), &others);
        assert_eq!((epoch, &list[..]), (0, &others[..]));
        placed.keep(&Route::new(7, vec!["a:1".into(), "b:1".into()]));
        let (_, epoch, list) = Placed::load(dir.path(), &others);
        assert_eq!(epoch, 7);
        assert_eq!(list, ["a:1", "b:1", "c:1"]);
        Placed::forget(dir.path());
        assert_eq!(Placed::load(dir.path(), &others).1, 0, "forgotten");
        for wrong in ["", "x\na:1\n", "7\n", "7\nno port\n", "0\na:1\n"] {
            std::fs::write(dir.path().join(FILE), wrong).unwrap();
            assert_eq!(Placed::load(dir.path(), &others).1, 0, "{wrong:?}");
        }
    }
}
