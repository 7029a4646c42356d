//! The threads that hash and those that send content.
//!
//! They are apart because a sender waits for the appliance to take more, and hashing must not
//! wait behind that. Urgent files come first in both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::{Input, Ticket};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use link::Priority;
use link::client::{Client, SendDataError};
use model::{AccessClass, UnscannedReason};
use proto::DATA_MAX_BYTES;
use proto::v1::{self, envelope::Body};

use super::Gate;
use super::content::Content;

/// How long the end waits for a place in a full queue.
const END_WAIT_MAX: Duration = Duration::from_secs(1);

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
    /// What of it; empty: all.
    pub(super) ranges: Vec<v1::ByteRange>,
}

/// A bounded queue of two urgencies.
struct TwoLanes<T> {
    urgent: Sender<Option<T>>,
    others: Sender<Option<T>>,
}

/// The taking end.
pub(crate) struct Lanes<T> {
    urgent: Receiver<Option<T>>,
    others: Receiver<Option<T>>,
}

impl<T> Clone for Lanes<T> {
    fn clone(&self) -> Self {
        Self {
            urgent: self.urgent.clone(),
            others: self.others.clone(),
        }
    }
}

fn two_lanes<T>(len_max: usize) -> (TwoLanes<T>, Lanes<T>) {
    let (urgent, urgent_end) = bounded(len_max);
    let (others, others_end) = bounded(len_max);
    let lanes = Lanes {
        urgent: urgent_end,
        others: others_end,
    };
    (TwoLanes { urgent, others }, lanes)
}

impl<T> TwoLanes<T> {
    fn put(&self, class: AccessClass, task: T) -> Result<(), T> {
        let lane = if class.has_opener() {
            &self.urgent
        } else {
            &self.others
        };
        match lane.try_send(Some(task)) {
            Err(TrySendError::Full(Some(task)) | TrySendError::Disconnected(Some(task))) => {
                Err(task)
            }
            _ => Ok(()),
        }
    }

    /// Ends one worker, after what it has in hand.
    fn end_one(&self) {
        // Full: a worker takes from it before long.
        let _ = self.urgent.send_timeout(None, END_WAIT_MAX);
    }
}

impl<T> Lanes<T> {
    /// The next task, urgent ones first; `None` when this worker shall end.
    fn take(&self) -> Option<T> {
        if let Ok(task) = self.urgent.try_recv() {
            return task;
        }
        crossbeam_channel::select_biased! {
            recv(self.urgent) -> task => task.ok().flatten(),
            recv(self.others) -> task => task.ok().flatten(),
        }
    }
}

/// The giving ends.
pub(crate) struct Queues {
    hash: TwoLanes<HashTask>,
    upload: TwoLanes<UploadTask>,
}

/// Tasks that a lane holds for each file in flight: files that the core gave up may still be queued
/// when others take their places.
const TASKS_PER_FILE: usize = 4;

/// Tasks that all lanes together hold; each has a descriptor.
pub(crate) fn tasks_max(in_flight_max: usize) -> usize {
    const LANES: usize = 4;
    in_flight_max.saturating_mul(LANES * TASKS_PER_FILE)
}

/// Queues, and what their workers take from.
pub(crate) fn queues(in_flight_max: usize) -> (Queues, Lanes<HashTask>, Lanes<UploadTask>) {
    let len_max = in_flight_max.saturating_mul(TASKS_PER_FILE);
    let (hash, hash_end) = two_lanes(len_max);
    let (upload, upload_end) = two_lanes(len_max);
    (Queues { hash, upload }, hash_end, upload_end)
}

impl Queues {
    pub(super) fn hash(&self, task: HashTask) -> Result<(), HashTask> {
        self.hash.put(task.class, task)
    }

    /// Ends so many workers of each kind.
    pub(crate) fn end(&self, hashing: usize, uploading: usize) {
        (0..hashing).for_each(|_| self.hash.end_one());
        (0..uploading).for_each(|_| self.upload.end_one());
    }

    pub(super) fn upload(&self, task: UploadTask) -> Result<(), UploadTask> {
        self.upload.put(task.class, task)
    }
}

/// Hashes until told to end. A panic fails that one file.
pub(crate) fn hash_all(gate: &Gate, lanes: &Lanes<HashTask>) {
    let mut buffer = Vec::new();
    while let Some(task) = lanes.take() {
        let ticket = task.ticket;
        let hashing = AssertUnwindSafe(|| hash_one(gate, &task, &mut buffer));
        if catch_unwind(hashing).is_err() {
            gate.tally.panics.add(1);
            let reason = UnscannedReason::Other;
            gate.input(Input::DigestFailed { ticket, reason });
        }
    }
}

fn hash_one(gate: &Gate, task: &HashTask, buffer: &mut Vec<u8>) {
    let (ride_along_max, size_max) = gate.size_limits();
    let ticket = task.ticket;
    task.content.stages.hashing(gate.now());
    let hashed = task.content.hash(ride_along_max, size_max, buffer);
    task.content.stages.hashed(gate.now());
    match hashed {
        Ok(hashed) => {
            gate.tally.hashed_files.add(1);
            gate.tally.hashed_bytes.add(hashed.key.size);
            gate.hashed(ticket, hashed);
        }
        Err(reason) => gate.input(Input::DigestFailed { ticket, reason }),
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

/// Why an upload stopped short.
enum Stopped {
    /// Nobody wants it any more, or there is nobody.
    Unwanted,
    /// It cannot be completed; the appliance is told.
    Failed(UnscannedReason),
}

fn upload_one(gate: &Gate, task: &UploadTask) {
    let Some(client) = gate.client() else {
        return;
    };
    let whole = [v1::ByteRange {
        offset: 0,
        length: task.content.hashed_size(),
    }];
    let ranges = if task.ranges.is_empty() {
        &whole[..]
    } else {
        &task.ranges
    };
    let sent = ranges
        .iter()
        .try_for_each(|range| send_range(gate, client, task, range));
    match sent {
        Ok(()) => gate.end_data(task, None),
        Err(Stopped::Failed(reason)) => gate.end_data(task, Some(reason)),
        Err(Stopped::Unwanted) => {}
    }
}

/// Sends up to the end of the range or of the file, whichever comes first: where the file was cut
/// meanwhile, the appliance notices by the digest.
fn send_range(
    gate: &Gate,
    client: &Client,
    task: &UploadTask,
    range: &v1::ByteRange,
) -> Result<(), Stopped> {
    let stall_max = Duration::from_secs(gate.limits.upload_stall_max_s);
    let end = range.offset.saturating_add(range.length);
    let mut offset = range.offset;
    while offset < end {
        let room = end.saturating_sub(offset).min(DATA_MAX_BYTES as u64) as usize;
        let mut piece = vec![0; room];
        let read = task.content.read_at(&mut piece, offset);
        let read = read.map_err(|_| Stopped::Failed(UnscannedReason::ReadFailed))?;
        if read == 0 {
            break;
        }
        piece.truncate(read);
        let give_up = Instant::now() + stall_max;
        let priority = Priority::from(task.class);
        let sent = client.send_data(
            task.request_id,
            priority,
            offset,
            Bytes::from(piece),
            give_up,
        );
        sent.map_err(|error| match error {
            SendDataError::NotConnected | SendDataError::NotWanted => Stopped::Unwanted,
            SendDataError::TimedOut => Stopped::Failed(UnscannedReason::Deadline),
        })?;
        gate.tally.content_bytes_sent.add(read as u64);
        offset += read as u64;
    }
    Ok(())
}

impl Gate {
    pub(super) fn end_data(&self, task: &UploadTask, failed: Option<UnscannedReason>) {
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
