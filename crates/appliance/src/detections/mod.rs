//! What was found on which guest, and how its removal ended: the newest in memory, all of them in
//! an append-only log of JSON lines, rotated by size.
//!
//! A guest can cause detections at will, so it can neither push out what others caused faster
//! than a bounded rate, nor fill memory or disk.

mod log;
mod record;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;

use model::{Detection, Digest, GuestId, Sha256};
use parking_lot::Mutex;
use proto::v1::OrderStatus;

pub use log::LogError;
use log::LogWriter;
use record::Line;
pub(crate) use record::status_name;

/// Bytes that the newest detections may take in memory, whatever their number.
const RING_BYTES_MAX: usize = 32 << 20;
const MINUTE_MS: u64 = 60_000;
/// Paths are cut to this; the kernel's own limit.
const PATH_MAX_BYTES: usize = 4096;
/// Detections of one file that are kept.
const DETECTIONS_MAX: usize = 64;
/// Levels of containers of one detection that are kept, the outer ones, and bytes of each name.
const INSIDE_MAX: usize = 16;
const INSIDE_NAME_MAX_BYTES: usize = 256;
/// Bytes that a removal's line costs beside its detail.
const REMOVAL_BYTES: usize = 128;

/// The limits, from `limits` in the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DetectionLimits {
    pub(crate) kept_max: usize,
    pub(crate) guest_per_minute_max: u32,
    pub(crate) guest_bytes_per_minute_max: u64,
    pub(crate) log_bytes_max: u64,
    pub(crate) logs_kept: usize,
}

/// A malicious verdict on a guest's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: u64,
    pub(crate) at_ms: u64,
    pub(crate) guest: GuestId,
    /// Hostile bytes.
    pub(crate) path: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) sha256: Option<Sha256>,
    pub(crate) detections: Vec<Detection>,
    pub(crate) removal: Option<OrderStatus>,
}

/// What is recorded; the rest of a [`Record`] is filled in.
#[derive(Debug, Clone)]
pub(crate) struct Sighting {
    pub(crate) guest: GuestId,
    pub(crate) path: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) sha256: Option<Sha256>,
    pub(crate) detections: Vec<Detection>,
}

/// What became of a sighting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    /// It is new.
    New(u64),
    /// The same file of the same guest is there already and was not removed since.
    Known(u64),
    /// The guest causes too many; it was only counted.
    Suppressed,
}

impl Noted {
    pub(crate) fn id(self) -> Option<u64> {
        match self {
            Self::New(id) | Self::Known(id) => Some(id),
            Self::Suppressed => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Detections {
    limits: DetectionLimits,
    newest: Mutex<Newest>,
    log: LogWriter,
}

#[derive(Debug, Default)]
struct Newest {
    /// Oldest first, ids rising.
    ring: VecDeque<Record>,
    bytes: usize,
    next_id: u64,
    /// By guest, content and path.
    known: HashMap<[u8; 16], u64>,
    rates: HashMap<GuestId, Rate>,
}

#[derive(Debug)]
struct Rate {
    minute: u64,
    count: u32,
    bytes: u64,
}

impl Detections {
    /// Reads the newest back from the log, and appends to it from now on.
    pub(crate) fn open(path: PathBuf, limits: DetectionLimits) -> Result<Self, LogError> {
        let mut newest = Newest::default();
        log::read_back(&path, &mut |line| newest.replay(line, &limits))?;
        Ok(Self {
            limits,
            newest: Mutex::new(newest),
            log: LogWriter::start(path, limits)?,
        })
    }

    pub(crate) fn note(&self, mut sighting: Sighting, now_ms: u64) -> Noted {
        sighting.cut();
        let mut newest = self.newest.lock();
        let key = identity(&sighting.guest, &sighting.digest, &sighting.path);
        if let Some(id) = newest.known.get(&key).copied() {
            return Noted::Known(id);
        }
        let record = Record {
            id: newest.next_id,
            at_ms: now_ms,
            guest: sighting.guest,
            path: sighting.path,
            digest: sighting.digest,
            sha256: sighting.sha256,
            detections: sighting.detections,
            removal: None,
        };
        let id = record.id;
        if !newest.admit(record.guest, weight(&record), now_ms, &self.limits) {
            return Noted::Suppressed;
        }
        self.log.append(Line::detection(&record));
        newest.add(record, &self.limits);
        Noted::New(id)
    }

    /// How a removal ended. A file that was removed is a new detection when it comes back. False:
    /// it was nothing new, or the guest says too much; it is not on record.
    pub(crate) fn removal(&self, id: u64, status: OrderStatus, detail: &str, now_ms: u64) -> bool {
        let mut newest = self.newest.lock();
        let Some(record) = newest.by_id(id) else {
            return false;
        };
        let guest = record.guest;
        let cost = REMOVAL_BYTES + detail.len().min(record::DETAIL_MAX_BYTES);
        if record.removal == Some(status)
            || record.removal == Some(OrderStatus::Done)
            || !newest.admit(guest, cost, now_ms, &self.limits)
        {
            return false;
        }
        newest.set_removal(id, status);
        drop(newest);
        self.log.append(Line::removal(id, status, detail, now_ms));
        true
    }

    pub(crate) fn newest(&self, limit: usize) -> Vec<Record> {
        let newest = self.newest.lock();
        newest.ring.iter().rev().take(limit).cloned().collect()
    }

    /// Lines that never reached the disk.
    pub(crate) fn lines_lost(&self) -> u64 {
        self.log.lost()
    }
}

impl Newest {
    fn admit(
        &mut self,
        guest: GuestId,
        bytes: usize,
        now_ms: u64,
        limits: &DetectionLimits,
    ) -> bool {
        let minute = now_ms / MINUTE_MS;
        self.rates.retain(|_, rate| rate.minute == minute);
        let rate = self.rates.entry(guest).or_insert(Rate {
            minute,
            count: 0,
            bytes: 0,
        });
        rate.count = rate.count.saturating_add(1);
        rate.bytes = rate.bytes.saturating_add(bytes as u64);
        rate.count <= limits.guest_per_minute_max && rate.bytes <= limits.guest_bytes_per_minute_max
    }

    fn add(&mut self, record: Record, limits: &DetectionLimits) {
        self.next_id = self.next_id.max(record.id.saturating_add(1));
        let key = identity(&record.guest, &record.digest, &record.path);
        if record.removal != Some(OrderStatus::Done) {
            self.known.insert(key, record.id);
        }
        self.bytes += weight(&record);
        self.ring.push_back(record);
        while self.ring.len() > limits.kept_max || self.bytes > RING_BYTES_MAX {
            let Some(old) = self.ring.pop_front() else {
                break;
            };
            self.bytes -= weight(&old);
            self.forget(&old);
        }
    }

    fn forget(&mut self, record: &Record) {
        let key = identity(&record.guest, &record.digest, &record.path);
        if self.known.get(&key) == Some(&record.id) {
            self.known.remove(&key);
        }
    }

    fn by_id(&mut self, id: u64) -> Option<&mut Record> {
        let at = self.ring.binary_search_by_key(&id, |record| record.id);
        self.ring.get_mut(at.ok()?)
    }

    fn set_removal(&mut self, id: u64, status: OrderStatus) {
        let Some(record) = self.by_id(id) else {
            return;
        };
        // Several openers get an order each: the first removes, the others find nothing there.
        if record.removal == Some(OrderStatus::Done) {
            return;
        }
        record.removal = Some(status);
        if status == OrderStatus::Done {
            let record = record.clone();
            self.forget(&record);
        }
    }

    fn replay(&mut self, line: Line, limits: &DetectionLimits) {
        match line.into_event() {
            Some(record::Event::Detection(record))
                if self.ring.back().is_none_or(|last| last.id < record.id) =>
            {
                self.add(record, limits);
            }
            // An id that does not rise: not a line that we wrote there.
            Some(record::Event::Detection(_)) | None => {}
            Some(record::Event::Removal { id, status }) => self.set_removal(id, status),
        }
    }
}

impl Sighting {
    /// What a guest chose is cut to what people can read.
    fn cut(&mut self) {
        self.path.truncate(PATH_MAX_BYTES);
        self.detections.truncate(DETECTIONS_MAX);
        for detection in &mut self.detections {
            detection.path_inside.truncate(INSIDE_MAX);
            for name in &mut detection.path_inside {
                name.truncate(INSIDE_NAME_MAX_BYTES);
            }
        }
    }
}

/// Bytes that a record costs, roughly.
fn weight(record: &Record) -> usize {
    let detections = record.detections.iter().map(|d| {
        let inside: usize = d.path_inside.iter().map(|part| part.len() + 24).sum();
        size_of::<Detection>() + d.name.len() + d.engine.len() + inside
    });
    size_of::<Record>() + record.path.len() + 64 + detections.sum::<usize>()
}

fn identity(guest: &GuestId, digest: &Digest, path: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&guest.0);
    hasher.update(&digest.0);
    hasher.update(path);
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const LIMITS: DetectionLimits = DetectionLimits {
        kept_max: 50,
        guest_per_minute_max: 30,
        guest_bytes_per_minute_max: 1 << 20,
        log_bytes_max: 1 << 20,
        logs_kept: 2,
    };
    const A: GuestId = GuestId([1; 16]);
    const B: GuestId = GuestId([2; 16]);

    fn sighting(guest: GuestId, path: &[u8]) -> Sighting {
        Sighting {
            guest,
            path: path.to_vec(),
            digest: Digest::of(b"bad"),
            sha256: None,
            detections: vec![Detection {
                name: "Eicar".into(),
                engine: "yara".into(),
                path_inside: vec![b"a.zip".to_vec(), b"\xff\n".to_vec()],
            }],
        }
    }

    fn open(dir: &Path) -> Detections {
        Detections::open(dir.join("detections.jsonl"), LIMITS).unwrap()
    }

    #[test]
    fn a_restart_shows_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let before = {
            let detections = open(dir.path());
            let first = detections.note(sighting(A, b"/srv/\xff\"x\n"), 1);
            detections.note(sighting(B, b"/y"), 2);
            let id = first.id().unwrap();
            detections.removal(id, OrderStatus::RefusedChanged, "it changed", 3);
            detections.newest(10)
        };
        let after = open(dir.path());
        assert_eq!(after.newest(10), before);
        assert_eq!(before[1].removal, Some(OrderStatus::RefusedChanged));
        assert_eq!(after.note(sighting(A, b"/new"), 4), Noted::New(2));
    }

    #[test]
    fn a_half_written_last_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).note(sighting(A, b"/x"), 1);
        let path = dir.path().join("detections.jsonl");
        let mut text = std::fs::read(&path).unwrap();
        let whole = text.clone();
        text.extend_from_slice(&whole[..whole.len() / 2]);
        std::fs::write(&path, text).unwrap();
        let detections = open(dir.path());
        assert_eq!(detections.newest(10).len(), 1);
        detections.note(sighting(A, b"/z"), 2);
        drop(detections);
        assert_eq!(open(dir.path()).newest(10).len(), 2);
    }

    #[test]
    fn the_same_file_is_noted_once_until_it_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let detections = open(dir.path());
        assert_eq!(detections.note(sighting(A, b"/x"), 1), Noted::New(0));
        assert_eq!(detections.note(sighting(A, b"/x"), 2), Noted::Known(0));
        assert_eq!(detections.note(sighting(B, b"/x"), 3), Noted::New(1));
        detections.removal(0, OrderStatus::Failed, "", 4);
        assert_eq!(detections.note(sighting(A, b"/x"), 5), Noted::Known(0));
        detections.removal(0, OrderStatus::Done, "", 6);
        detections.removal(0, OrderStatus::RefusedMissing, "", 6);
        let status = detections.newest(10)[1].removal;
        assert_eq!(status, Some(OrderStatus::Done));
        assert_eq!(detections.note(sighting(A, b"/x"), 7), Noted::New(2));
    }

    #[test]
    fn a_guest_cannot_push_out_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let detections = open(dir.path());
        detections.note(sighting(B, b"/mine"), 0);
        let noted = (0..1000).map(|n: u32| detections.note(sighting(A, &n.to_be_bytes()), 1));
        let suppressed = noted.filter(|n| *n == Noted::Suppressed).count();
        assert_eq!(suppressed, 1000 - 30);
        assert!(detections.newest(100).iter().any(|r| r.guest == B));
        let later = detections.note(sighting(A, b"/later"), MINUTE_MS);
        let id = later.id().unwrap();
        let statuses = [OrderStatus::Failed, OrderStatus::RefusedMissing];
        let results =
            (0..1000).map(|n: usize| detections.removal(id, statuses[n % 2], "", MINUTE_MS));
        assert_eq!(results.filter(|noted| *noted).count(), 29);
    }

    #[test]
    fn memory_and_disk_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let limits = DetectionLimits {
            log_bytes_max: 8192,
            guest_per_minute_max: u32::MAX,
            guest_bytes_per_minute_max: u64::MAX,
            ..LIMITS
        };
        let path = dir.path().join("detections.jsonl");
        for n in 0..500u32 {
            let detections = Detections::open(path.clone(), limits).unwrap();
            detections.note(sighting(A, format!("/file/{n}").as_bytes()), 1);
            assert!(detections.newest(1000).len() <= 50);
            assert!(detections.known() <= 50);
        }
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 1 + limits.logs_kept);
        let reopened = Detections::open(path, limits).unwrap();
        assert_eq!(reopened.newest(1000).len(), 50);
        assert_eq!(reopened.newest(1)[0].path, b"/file/499");
        assert_eq!(reopened.lines_lost(), 0);
    }

    #[test]
    fn large_records_are_cut_and_bounded_by_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let limits = DetectionLimits {
            guest_per_minute_max: u32::MAX,
            guest_bytes_per_minute_max: 100_000,
            ..LIMITS
        };
        let path = dir.path().join("detections.jsonl");
        let detections = Detections::open(path.clone(), limits).unwrap();
        let large = |n: u32| {
            let mut large = sighting(A, &[&n.to_be_bytes()[..], &vec![b'x'; 32 << 10]].concat());
            large.detections[0].path_inside = vec![vec![b'y'; 10_000]; 100];
            large.detections = vec![large.detections[0].clone(); 1000];
            large
        };
        let noted: Vec<_> = (0..20).map(|n| detections.note(large(n), 1)).collect();
        assert_eq!(noted[0], Noted::Suppressed, "it alone is more");
        let small = detections.note(sighting(B, &[b'x'; 32 << 10]), 1);
        let of_b = (0..1000u32).map(|n| {
            let path = [&n.to_be_bytes()[..], &[b'x'; 5000]].concat();
            detections.note(sighting(B, &path), 1)
        });
        let new = of_b.filter(|noted| noted.id().is_some()).count();
        assert!((10..25).contains(&new), "{new}");
        assert_eq!(small, Noted::New(0));
        let kept = detections.newest(1000);
        assert!(kept.iter().all(|record| record.path.len() == 4096));
        drop(detections);
        assert_eq!(Detections::open(path, limits).unwrap().newest(1000), kept);
    }

    #[test]
    fn a_log_that_cannot_be_rotated_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let limits = DetectionLimits {
            log_bytes_max: 4096,
            ..LIMITS
        };
        let path = dir.path().join("detections.jsonl");
        let note = |from: u32, to: u32| {
            let detections = Detections::open(path.clone(), limits).unwrap();
            for n in from..to {
                detections.note(sighting(A, &n.to_be_bytes()), 1);
            }
        };
        // A record's length depends on the time in it.
        let mut full = 0;
        while std::fs::metadata(&path).map_or(0, |log| log.len()) <= 4096 {
            note(full, full + 1);
            full += 1;
        }
        let (next, old) = (
            dir.path().join("detections.jsonl.new"),
            dir.path().join("detections.jsonl.1"),
        );
        std::fs::create_dir(&next).unwrap();
        note(full, full + 1);
        assert!(!old.exists());
        std::fs::remove_dir(&next).unwrap();
        note(full + 1, full + 2);
        assert!(old.exists() && !next.exists());
        let detections = Detections::open(path.clone(), limits).unwrap();
        assert_eq!(detections.newest(100).len(), full as usize + 2);
    }

    impl Detections {
        fn known(&self) -> usize {
            self.newest.lock().known.len()
        }
    }
}
