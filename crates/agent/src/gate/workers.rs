//! The threads that hash and those that send content.
//!
//! They are apart because a sender waits for the appliance to take more, and hashing must not
//! wait behind that. Urgent files come first in both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use agent_core::{Input, Ticket};
use fanotify::{FileIdentity, FileKind};
use link::Priority;
use model::{AccessClass, UnscannedReason};
use proto::v1::{self, envelope::Body};

use super::Gate;
use super::content::{Content, Hashed, Wanted};
use super::lanes::Lanes;
use super::look::Look;
use crate::transfer::{Sending, Stopped, asked_ranges};

/// What whoever reads the kernel's events hashes itself: it takes about as long as to wake a thread,
/// bytes.
const AT_ONCE_MAX_BYTES: u64 = 32 * 1024;

/// What whoever reads the kernel's events needs to hash a file itself.
pub(crate) struct AtOnce<'a> {
    /// What the file is read into.
    pub(crate) buffer: &'a mut Vec<u8>,
    /// As it came.
    pub(crate) look: Look,
}

/// A file to be hashed.
pub(crate) struct HashTask {
    pub(super) ticket: Ticket,
    pub(super) class: AccessClass,
    pub(super) content: Arc<Content>,
}

/// Content to be sent.
pub(crate) struct UploadTask {
    pub(super) request_id: u64,
    pub(super) class: AccessClass,
    pub(super) content: Arc<Content>,
    /// What the appliance asked for.
    pub(super) need: v1::Need,
}

/// What waits for each kind of worker.
pub(crate) struct Queues {
    hash: Lanes<HashTask>,
    upload: Lanes<UploadTask>,
}

/// Tasks that a lane holds for each file in flight: files that the core gave up may still be queued
/// when others take their places.
const TASKS_PER_FILE: usize = 4;

/// Tasks that all lanes together hold; each has a descriptor.
pub(crate) fn tasks_max(in_flight_max: usize) -> usize {
    const LANES: usize = 4;
    in_flight_max.saturating_mul(LANES * TASKS_PER_FILE)
}

impl Queues {
    /// Queues, and what their workers take from.
    pub(crate) fn new(in_flight_max: usize) -> (Self, Lanes<HashTask>, Lanes<UploadTask>) {
        let len_max = in_flight_max.saturating_mul(TASKS_PER_FILE);
        let (hash, upload) = (Lanes::new(len_max), Lanes::new(len_max));
        let queues = Self {
            hash: hash.clone(),
            upload: upload.clone(),
        };
        (queues, hash, upload)
    }

    pub(super) fn hash(&self, task: HashTask) -> Result<(), HashTask> {
        self.hash.put(task.class.has_opener(), task)
    }

    /// Ends so many workers of each kind.
    pub(crate) fn end(&self, hashing: usize, uploading: usize) {
        self.hash.end(hashing);
        self.upload.end(uploading);
    }

    pub(super) fn upload(&self, task: UploadTask) -> Result<(), UploadTask> {
        self.upload.put(task.class.has_opener(), task)
    }
}

/// Hashes until told to end. A panic fails that one file.
pub(crate) fn hash_all(gate: &Gate, lanes: &Lanes<HashTask>) {
    let mut buffer = Vec::new();
    while let Some(task) = lanes.take() {
        let wanted = gate.wanted_of_content();
        let hashed = hash_one(gate, &task, &wanted, &mut buffer, None);
        finish(gate, task.ticket, hashed);
    }
}

/// Whether whoever reads the kernel's events may hash it.
pub(super) fn is_for_at_once(identity: &FileIdentity) -> bool {
    let sizes = 1..=AT_ONCE_MAX_BYTES;
    identity.kind == FileKind::Regular && sizes.contains(&identity.size)
}

/// Hashes a small file whose content is in memory, in place of waking a thread for it. False: it is
/// for the threads, and nothing holds its writers up. Never waits for a disk, or for whoever serves a
/// file system.
pub(super) fn hash_at_once(gate: &Gate, task: &HashTask, at_once: AtOnce<'_>) -> bool {
    let mut wanted = gate.wanted_of_content();
    if task.content.key.size <= wanted.ride_along_max {
        // It would have to be made smaller, too.
        return false;
    }
    wanted.in_memory_only = true;
    let AtOnce { buffer, look } = at_once;
    let hashed = hash_one(gate, task, &wanted, buffer, Some(look));
    let is_hashed = hashed.is_ok();
    if is_hashed {
        finish(gate, task.ticket, hashed);
    }
    is_hashed
}

fn hash_one(
    gate: &Gate,
    task: &HashTask,
    wanted: &Wanted,
    buffer: &mut Vec<u8>,
    look: Option<Look>,
) -> Result<Hashed, UnscannedReason> {
    let hashing = || {
        task.content.stages.hashing(gate.now());
        let hashed = task.content.hash(wanted, buffer, look);
        task.content.stages.hashed(gate.now());
        hashed
    };
    catch_unwind(AssertUnwindSafe(hashing)).unwrap_or_else(|_| {
        gate.tally.panics.add(1);
        Err(UnscannedReason::Other)
    })
}

/// A panic of what comes of it fails that one file.
fn finish(gate: &Gate, ticket: Ticket, hashed: Result<Hashed, UnscannedReason>) {
    let finishing = || match hashed {
        Ok(hashed) => {
            gate.tally.hashed_files.add(1);
            gate.tally.hashed_bytes.add(hashed.key.size);
            gate.hashed(ticket, hashed);
        }
        Err(reason) => gate.input(Input::DigestFailed { ticket, reason }),
    };
    if catch_unwind(AssertUnwindSafe(finishing)).is_err() {
        gate.tally.panics.add(1);
        let reason = UnscannedReason::Other;
        gate.input(Input::DigestFailed { ticket, reason });
    }
}

/// Sends until told to end. A panic fails that one upload.
pub(crate) fn upload_all(gate: &Gate, lanes: &Lanes<UploadTask>) {
    while let Some(task) = lanes.take() {
        let sending = AssertUnwindSafe(|| upload_one(gate, &task));
        if catch_unwind(sending).is_err() {
            gate.tally.panics.add(1);
            gate.end_data(&task, Some(UnscannedReason::Other));
        }
    }
}

fn upload_one(gate: &Gate, task: &UploadTask) {
    let Some(client) = gate.client() else {
        return;
    };
    let mut sending = Sending::new(
        client,
        task.request_id,
        Priority::from(task.class),
        Duration::from_secs(gate.limits.upload_stall_max_s),
        gate.compresses(),
    );
    let instead = if task.need.report {
        send_report(gate, task, &sending).map(|()| true)
    } else {
        send_list(gate, task, &sending)
    };
    let sent = match instead {
        Ok(true) => return,
        Ok(false) => send_ranges(gate, task, &mut sending),
        Err(stopped) => Err(stopped),
    };
    match sent {
        Ok(()) => gate.end_data(task, None),
        Err(Stopped::Failed(reason)) => gate.end_data(task, Some(reason)),
        Err(Stopped::Stalled) => gate.end_data(task, Some(UnscannedReason::Deadline)),
        Err(Stopped::NotWanted | Stopped::NotConnected) => {}
    }
}

/// Sends what the filter finds, or that it cannot tell.
fn send_report(gate: &Gate, task: &UploadTask, sending: &Sending<'_>) -> Result<(), Stopped> {
    let is_wanted = || gate.is_wanted(task.request_id);
    let report = match gate.looking.in_force() {
        Some(pack) => task.content.report(&pack, is_wanted)?,
        None => None,
    };
    let report = report.unwrap_or_default();
    gate.tally.reported(&report);
    gate.was_sent(task);
    sending.report(report)
}

/// Sends the list of chunks where it was asked for and there is one.
fn send_list(gate: &Gate, task: &UploadTask, sending: &Sending<'_>) -> Result<bool, Stopped> {
    if !task.need.manifest {
        return Ok(false);
    }
    let Some(manifest) = task.content.list()? else {
        return Ok(false);
    };
    gate.was_sent(task);
    sending.manifest(&manifest).map(|()| true)
}

fn send_ranges(gate: &Gate, task: &UploadTask, sending: &mut Sending<'_>) -> Result<(), Stopped> {
    let content = &*task.content;
    let size = content.hashed_size();
    let ranges = asked_ranges(&task.need.ranges, size);
    let listed = content.listed();
    let because_of_report = !task.need.ranges.is_empty() && content.is_reported();
    sending.ranges(content, &ranges, listed.as_deref(), |bytes| {
        gate.tally.content_bytes_sent.add(bytes);
        if because_of_report {
            gate.tally.range_bytes_sent.add(bytes);
        }
        true
    })
}

impl Gate {
    /// The last frame that a Need is owed is about to be sent.
    fn was_sent(&self, task: &UploadTask) {
        let request_id = task.request_id;
        self.input(Input::Sent { request_id });
    }

    pub(super) fn end_data(&self, task: &UploadTask, failed: Option<UnscannedReason>) {
        self.was_sent(task);
        let failed = failed.map_or(0, |reason| v1::UnscannedReason::from(reason) as i32);
        let envelope = v1::Envelope {
            request_id: task.request_id,
            body: Some(Body::DataEnd(v1::DataEnd { failed })),
        };
        if let Some(client) = self.client() {
            // Without room for it now, there is none for the reply either: the scan's own time
            // limit ends it.
            let _ = client.send(Priority::from(task.class), envelope);
        }
    }
}
