//! An upload: asks for content, takes it piece by piece, proves it, and has it scanned. Where the
//! guest has sent something before, it first asks for a list of chunks ([`by_chunks`]).

mod by_chunks;
mod by_report;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use by_chunks::ByChunks;
use by_report::ByReport;
use chunks::{Manifest, Range};
use engine::host::Content;
use model::{FilterId, GuestId, UnscannedReason, Verdict};
use proto::v1;
use scan_core::{CacheKey, Context, Place, Refusal};
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
    Data(v1::Data),
    /// A list of chunks.
    Manifest(v1::Manifest),
    /// What a filter found.
    Report(v1::FilterReport),
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
    /// The guest can report by this filter. `None`: it is not asked to.
    pub(crate) filter: Option<FilterId>,
    /// It has done so with its check.
    pub(crate) report: Option<CameAlong>,
    pub(crate) waiter: Waiter,
}

/// A report that came with its check, and its place.
pub(crate) struct CameAlong {
    pub(crate) report: v1::FilterReport,
    pub(crate) _place: Reservation,
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
    #[error("a manifest or a report that nobody asked for")]
    Unwanted,
    #[error("{0}")]
    Refused(Refusal),
}

impl UploadError {
    fn reason(&self) -> UnscannedReason {
        match self {
            Self::Assembly(error) => error.reason(),
            Self::Failed(reason) => *reason,
            Self::Idle(_) | Self::Slow(_) | Self::Unwanted => UnscannedReason::Truncated,
            Self::Abandoned => UnscannedReason::Cancelled,
            Self::Broken => UnscannedReason::Other,
            Self::Refused(limit) => limit.reason(),
        }
    }
}

impl Upload {
    /// Runs the upload to its end.
    pub(crate) async fn receive(
        mut self,
        shared: Arc<Shared>,
        mut pieces: UnboundedReceiver<Piece>,
    ) {
        if let Some(filter) = self.filter {
            let along = self.report.take();
            match self.by_report(&shared, &mut pieces, filter, along).await {
                Ok(ByReport::Clean(verdict)) => return self.reported(&shared, &verdict),
                Ok(ByReport::InVain) => {}
                Err(error) => return self.give_up(&shared, &error),
            }
        }
        let guest = self.waiter.asker.guest;
        let reservation = match shared.reserve(guest, self.place, self.size) {
            Ok(reservation) => Arc::new(reservation),
            Err(limit) => return self.give_up(&shared, &UploadError::Refused(limit)),
        };
        let (proved, manifest) = match self.assemble(&shared, &mut pieces).await {
            Ok(assembled) => (assembled.proved, assembled.manifest),
            Err(error) => return self.give_up(&shared, &error),
        };
        let Self {
            key,
            context,
            waiter,
            ..
        } = self;
        let (content, held) = (proved.content.clone(), Arc::clone(&reservation));
        match shared.verdicts.find(&key) {
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
        }
        if let Content::Sealed { fd, size } = content {
            keep_chunks(&shared, guest, fd, size, manifest).await;
        }
        // The content has its place until here.
        drop(held);
    }

    /// Answers by what the guest itself reported.
    fn reported(self, shared: &Shared, verdict: &Verdict) {
        let guest = self.waiter.asker.guest;
        let key = CacheKey {
            generation: verdict.generation,
            ..self.key
        };
        shared.reported.keep(&key, guest, verdict);
        shared.sightings.note_claim(guest, self.key.digest);
        self.waiter.answer(shared, verdict, false);
    }

    fn count(&self, shared: &Shared, how: &'static str, data: &[v1::Data]) {
        let bytes: u64 = data.iter().map(|piece| piece.bytes.len() as u64).sum();
        let received = &shared.metrics.guests.content_bytes;
        received.with([how]).inc_by(bytes);
        if self.waiter.awaited.is_some() {
            let bytes_per_s = shared.force().recheck.bytes_per_s.get();
            shared.asked.came(bytes, bytes_per_s);
        }
    }

    fn give_up(self, shared: &Shared, error: &UploadError) {
        match error {
            UploadError::Refused(limit) => self.waiter.refuse(shared, self.size, *limit),
            error => {
                let why = error.to_string();
                self.waiter
                    .unscanned(shared, self.size, error.reason(), why);
            }
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
        self.pieces_within(pieces, batch, begun, time_max, self.idle_timeout)
            .await
    }

    async fn pieces_within(
        &self,
        pieces: &mut UnboundedReceiver<Piece>,
        batch: &mut Vec<Piece>,
        begun: Instant,
        time_max: Duration,
        idle_max: Duration,
    ) -> Result<(), UploadError> {
        let (over, idle) = (begun + time_max, Instant::now() + idle_max);
        let some = pieces.recv_many(batch, BATCH_MAX);
        match timeout_at(over.min(idle), some).await {
            Err(_) if over <= idle => Err(UploadError::Slow(time_max)),
            Err(_) => Err(UploadError::Idle(idle_max)),
            Ok(0) => Err(UploadError::Abandoned),
            Ok(_) => Ok(()),
        }
    }

    async fn assemble(
        &self,
        shared: &Arc<Shared>,
        pieces: &mut UnboundedReceiver<Piece>,
    ) -> Result<Assembled, UploadError> {
        let mut batch = Vec::new();
        let asked = if shared.chunks.may_know(self.waiter.asker.guest, self.size) {
            match self.by_chunks(shared, pieces, &mut batch).await? {
                ByChunks::Done(assembled) => return Ok(assembled),
                ByChunks::ContentComes => true,
                ByChunks::InVain => false,
            }
        } else {
            false
        };
        let proved = self.whole(shared, pieces, batch, asked).await?;
        Ok(Assembled {
            proved,
            manifest: None,
        })
    }

    fn first_credit(&self) -> u64 {
        self.size.min(self.credit_bytes)
    }

    /// Asks for the whole content. Returns what may be sent of it for now.
    fn ask(&self) -> u64 {
        let granted = self.first_credit();
        self.send(v1::envelope::Body::Need(v1::Need {
            credit_bytes: u32::try_from(granted).unwrap_or(u32::MAX),
            ..v1::Need::default()
        }));
        granted
    }

    /// Makes place, asks unless that was done, and takes the whole content, of which `batch` is the
    /// beginning.
    async fn whole(
        &self,
        shared: &Shared,
        pieces: &mut UnboundedReceiver<Piece>,
        mut batch: Vec<Piece>,
        was_asked: bool,
    ) -> Result<Proved, UploadError> {
        let (size, memory_max, spool) = (self.size, self.memory_max, shared.spool.clone());
        let begin = move || Assembly::begin(size, memory_max, &spool);
        let mut assembly = match self.place {
            Place::Memory => begin()?,
            Place::Spool => spawn_blocking(begin)
                .await
                .map_err(|_| UploadError::Broken)??,
        };
        let mut granted = if was_asked {
            self.first_credit()
        } else {
            self.ask()
        };
        let time_max = shared.force().limits.upload_time_max(self.size);
        let begun = Instant::now();
        loop {
            if batch.is_empty() {
                self.pieces(pieces, &mut batch, begun, time_max).await?;
            }
            let (data, end) = split(batch.drain(..))?;
            self.count(shared, "upload", &data);
            assembly = self.absorb(assembly, data, Assembly::absorb).await?;
            match end {
                End::NotYet => granted = self.replenish(assembly.received(), granted, self.size),
                End::Failed(reason) => return Err(UploadError::Failed(reason)),
                End::Complete => return Ok(assembly.finish(self.key.digest)?),
            }
        }
    }

    /// Hashes and stores; on a thread that may block where that takes long.
    async fn absorb<T: Send + 'static>(
        &self,
        mut to: T,
        data: Vec<v1::Data>,
        absorb: fn(&mut T, u64, &[u8]) -> Result<(), AssemblyError>,
    ) -> Result<T, UploadError> {
        let work = move || {
            for piece in data {
                match piece.plain_bytes {
                    0 => absorb(&mut to, piece.offset, &piece.bytes)?,
                    plain => {
                        let bytes = chunks::decompress(&piece.bytes, plain as usize)?;
                        absorb(&mut to, piece.offset, &bytes)?;
                    }
                }
            }
            Ok::<_, AssemblyError>(to)
        };
        if self.size <= INLINE_WORK_MAX_BYTES {
            return Ok(work()?);
        }
        let done = spawn_blocking(work).await;
        Ok(done.map_err(|_| UploadError::Broken)??)
    }

    /// Lets the agent send as much again as has been taken, in steps worth a frame. Returns what
    /// it may have sent in all by then.
    fn replenish(&self, received: u64, granted: u64, all: u64) -> u64 {
        let may_have_sent = received.saturating_add(self.credit_bytes).min(all);
        let more = may_have_sent.saturating_sub(granted);
        let is_worth_a_frame = more >= self.credit_bytes / 4 || may_have_sent == all;
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

/// Proved content, and its chunks where the guest has listed them.
struct Assembled {
    proved: Proved,
    manifest: Option<Manifest>,
}

/// Data up to the end; what comes after an end is nothing.
fn split(pieces: impl Iterator<Item = Piece>) -> Result<(Vec<v1::Data>, End), UploadError> {
    let mut data = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(piece) => data.push(piece),
            Piece::Manifest(_) | Piece::Report(_) => return Err(UploadError::Unwanted),
            Piece::End { failed: None } => return Ok((data, End::Complete)),
            Piece::End {
                failed: Some(reason),
            } => return Ok((data, End::Failed(reason))),
        }
    }
    Ok((data, End::NotYet))
}

fn wire_range(range: &Range) -> v1::ByteRange {
    v1::ByteRange {
        offset: range.offset,
        length: range.len,
    }
}

/// Keeps what a guest has sent, so that it need not send what is like it.
async fn keep_chunks(
    shared: &Arc<Shared>,
    guest: GuestId,
    content: Arc<OwnedFd>,
    size: u64,
    manifest: Option<Manifest>,
) {
    let Some(waiting) = shared.chunks.wait(guest, size) else {
        return;
    };
    let Some(_turn) = waiting.turn().await else {
        return;
    };
    let cut = move || waiting.cut(&content, size, manifest.as_ref());
    if spawn_blocking(cut).await.is_err() {
        tracing::error!("the thread that cut content ended badly");
    }
}
