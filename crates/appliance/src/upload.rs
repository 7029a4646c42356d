//! An upload: asks for content, takes it piece by piece, proves it, and has it scanned.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::UnscannedReason;
use proto::v1;
use scan_core::{CacheKey, Context, Place};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::answer::Waiter;
use crate::assembly::{Assembly, AssemblyError, Proved};
use crate::scans::ScanJob;
use crate::shared::{Reservation, Shared};

/// Pieces taken at once; with 64 KiB each they fill the largest credit.
const BATCH_MAX: usize = 64;
/// Content of more bytes is hashed and stored on a thread that may block.
const INLINE_WORK_MAX_BYTES: u64 = 256 * 1024;

/// Something of an upload.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Bytes at their offset.
    Data { offset: u64, bytes: Bytes },
    /// No more; or why the guest could not send it all.
    End { failed: Option<UnscannedReason> },
}

/// Content on its way.
pub(crate) struct Upload {
    pub(crate) key: CacheKey,
    pub(crate) context: Context,
    pub(crate) size: u64,
    pub(crate) place: Place,
    pub(crate) memory_max: u64,
    pub(crate) credit_bytes: u64,
    pub(crate) idle_timeout: Duration,
    pub(crate) reservation: Reservation,
    pub(crate) waiter: Waiter,
}

/// Why no content came of it.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    #[error("the agent could not send it all")]
    Failed(UnscannedReason),
    #[error("not over within {} ms, below limit upload_bytes_per_second_min", .0.as_millis())]
    Slow(Duration),
    #[error("nothing arrived for {} ms", .0.as_millis())]
    Idle(Duration),
    /// Cancelled, or the session is over: nobody is owed a reply.
    #[error("nobody waits for it")]
    Abandoned,
    #[error("the thread that assembled it ended badly")]
    Broken,
}

impl UploadError {
    fn reason(&self) -> UnscannedReason {
        match self {
            Self::Assembly(error) => error.reason(),
            Self::Failed(reason) => *reason,
            Self::Idle(_) | Self::Slow(_) => UnscannedReason::Truncated,
            Self::Abandoned => UnscannedReason::Cancelled,
            Self::Broken => UnscannedReason::Other,
        }
    }
}

impl Upload {
    /// Runs the upload to its end.
    pub(crate) async fn receive(self, shared: Arc<Shared>, mut pieces: UnboundedReceiver<Piece>) {
        let proved = self.assemble(&shared, &mut pieces).await;
        let Self {
            key,
            context,
            size,
            reservation,
            waiter,
            ..
        } = self;
        match proved {
            Err(error) => waiter.unscanned(&shared, size, error.reason(), error.to_string()),
            Ok(proved) => match shared.verdicts.find(&key) {
                // Another guest was faster.
                Some(verdict) => waiter.answer(&shared, &verdict, true),
                None => {
                    let job = ScanJob {
                        key,
                        context,
                        proved,
                        reservation,
                    };
                    shared.scans.submit(&shared, job, waiter);
                }
            },
        }
    }

    /// The next pieces, before the guest is too late with them or with the whole.
    async fn pieces(
        &self,
        pieces: &mut UnboundedReceiver<Piece>,
        batch: &mut Vec<Piece>,
        begun: Instant,
        time_max: Duration,
    ) -> Result<(), UploadError> {
        let (over, idle) = (begun + time_max, Instant::now() + self.idle_timeout);
        let some = pieces.recv_many(batch, BATCH_MAX);
        match timeout_at(over.min(idle), some).await {
            Err(_) if over <= idle => Err(UploadError::Slow(time_max)),
            Err(_) => Err(UploadError::Idle(self.idle_timeout)),
            Ok(0) => Err(UploadError::Abandoned),
            Ok(_) => Ok(()),
        }
    }

    async fn assemble(
        &self,
        shared: &Shared,
        pieces: &mut UnboundedReceiver<Piece>,
    ) -> Result<Proved, UploadError> {
        let (size, memory_max, spool) = (self.size, self.memory_max, shared.spool.clone());
        let begin = move || Assembly::begin(size, memory_max, &spool);
        let mut assembly = match self.place {
            Place::Memory => begin()?,
            Place::Spool => spawn_blocking(begin)
                .await
                .map_err(|_| UploadError::Broken)??,
        };
        let mut granted = size.min(self.credit_bytes);
        let credit_bytes = u32::try_from(granted).unwrap_or(u32::MAX);
        self.send(v1::envelope::Body::Need(v1::Need {
            ranges: Vec::new(),
            credit_bytes,
        }));
        let time_max = shared.force().limits.upload_time_max(self.size);
        let begun = Instant::now();
        let mut batch = Vec::new();
        loop {
            self.pieces(pieces, &mut batch, begun, time_max).await?;
            let (data, end) = split(batch.drain(..));
            let bytes: u64 = data.iter().map(|(_, bytes)| bytes.len() as u64).sum();
            shared
                .metrics
                .guests
                .content_bytes
                .with(["upload"])
                .inc_by(bytes);
            assembly = self.absorb(assembly, data).await?;
            match end {
                End::NotYet => granted = self.replenish(assembly.received(), granted),
                End::Failed(reason) => return Err(UploadError::Failed(reason)),
                End::Complete => return Ok(assembly.finish(self.key.digest)?),
            }
        }
    }

    /// Hashes and stores; on a thread that may block where that takes long.
    async fn absorb(
        &self,
        mut assembly: Assembly,
        data: Vec<(u64, Bytes)>,
    ) -> Result<Assembly, UploadError> {
        let work = move || {
            data.iter()
                .try_for_each(|(offset, bytes)| assembly.absorb(*offset, bytes))
                .map(|()| assembly)
        };
        if self.size <= INLINE_WORK_MAX_BYTES {
            return Ok(work()?);
        }
        let done = spawn_blocking(work).await;
        Ok(done.map_err(|_| UploadError::Broken)??)
    }

    /// Lets the agent send as much again as has been taken, in steps worth a frame. Returns what
    /// it may have sent in all by then.
    fn replenish(&self, received: u64, granted: u64) -> u64 {
        let may_have_sent = received.saturating_add(self.credit_bytes).min(self.size);
        let more = may_have_sent.saturating_sub(granted);
        let is_worth_a_frame = more >= self.credit_bytes / 4 || may_have_sent == self.size;
        if more == 0 || !is_worth_a_frame {
            return granted;
        }
        let bytes = u32::try_from(more).unwrap_or(u32::MAX);
        self.send(v1::envelope::Body::Credit(v1::Credit { bytes }));
        granted + u64::from(bytes)
    }

    fn send(&self, body: v1::envelope::Body) {
        let envelope = v1::Envelope {
            request_id: self.waiter.request_id,
            body: Some(body),
        };
        self.waiter
            .asker
            .outbox
            .send(self.waiter.class.into(), envelope);
    }
}

enum End {
    NotYet,
    Complete,
    Failed(UnscannedReason),
}

/// Data up to the end; what comes after an end is nothing.
fn split(pieces: impl Iterator<Item = Piece>) -> (Vec<(u64, Bytes)>, End) {
    let mut data = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data { offset, bytes } => data.push((offset, bytes)),
            Piece::End { failed: None } => return (data, End::Complete),
            Piece::End {
                failed: Some(reason),
            } => return (data, End::Failed(reason)),
        }
    }
    (data, End::NotYet)
}
