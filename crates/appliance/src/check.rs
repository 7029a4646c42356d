//! A check: known here or to a store, under way, whole already, or to be sent.

use std::sync::Arc;

use bytes::Bytes;
use chunks::DecompressError;
use model::{AccessClass, Digest, FilterId, UnscannedReason};
use proto::v1;
use scan_core::{CacheKey, Context, Place, Refusal};
use tokio::sync::mpsc::unbounded_channel;

use crate::answer::{OpenCheck, Waiter};
use crate::assembly::{AssemblyError, INLINE_MAX_BYTES, prove_whole};
use crate::force::Force;
use crate::reported::Earlier;
use crate::scans::ScanJob;
use crate::session::{Breach, Session};
use crate::shared::{Reservation, Shared};
use crate::upload::{CameAlong, Upload};

/// A longer path is no path: the kernel's own limit is 4096 bytes for one call.
const PATH_MAX_BYTES: usize = 32 * 1024;

/// A check that breaks the contract.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("blake3 must have 32 bytes")]
    Digest,
    #[error("class is not valid")]
    Class,
    #[error("context is not set")]
    NoContext,
    #[error("context.path is longer than {PATH_MAX_BYTES} bytes")]
    Path,
    #[error("content is longer than ride_along_max_bytes ever was")]
    Content,
}

/// A check, read.
struct Ask {
    digest: Digest,
    size: u64,
    class: AccessClass,
    context: Context,
    content: Option<Bytes>,
    /// The guest can report by this one.
    filter: Option<FilterId>,
    /// `content` is a zstd frame.
    compressed: bool,
    /// What that filter found.
    report: Option<v1::FilterReport>,
}

fn read(check: v1::Check) -> Result<Ask, CheckError> {
    let class = AccessClass::try_from(check.class()).map_err(|_| CheckError::Class)?;
    let context = check.context.ok_or(CheckError::NoContext)?;
    if context.path.len() > PATH_MAX_BYTES {
        return Err(CheckError::Path);
    }
    let is_long = |content: &Bytes| content.len() > model::RIDE_ALONG_MAX as usize;
    if check.content.as_ref().is_some_and(is_long) {
        return Err(CheckError::Content);
    }
    let is_long = check.size > u64::from(model::RIDE_ALONG_MAX);
    if check.content_compressed && is_long {
        return Err(CheckError::Content);
    }
    Ok(Ask {
        digest: Digest::from_slice(&check.blake3).ok_or(CheckError::Digest)?,
        size: check.size,
        class,
        context: Context {
            path: context.path,
            uid: context.uid,
            mode: context.mode,
        },
        content: check.content.or_else(|| (check.size == 0).then(Bytes::new)),
        filter: FilterId::from_slice(&check.filter),
        compressed: check.content_compressed,
        report: check.report,
    })
}

impl Session {
    /// Answers at once what memory knows; otherwise begins what leads to an answer.
    pub(crate) fn check(&self, request_id: u64, check: v1::Check) -> Result<(), Breach> {
        let ask = read(check)?;
        let shared = &self.shared;
        let force = shared.force();
        let (waiter, is_over_limit) = self.open(request_id, &ask, &force)?;
        if is_over_limit {
            waiter.refuse(shared, ask.size, Refusal::Checks);
            return Ok(());
        }
        if ask.size > force.policy.size_max_bytes {
            let detail = format!("larger than {} bytes", force.policy.size_max_bytes);
            waiter.unscanned(shared, ask.size, UnscannedReason::TooLarge, detail);
            return Ok(());
        }
        let key = force.key(ask.digest, &ask.context);
        if let Some(recent) = shared.guests.recent(self.guest()) {
            recent.note(&key);
        }
        if let Some(verdict) = shared.verdicts.find(&key) {
            waiter.answer(shared, &verdict, true);
            return Ok(());
        }
        let earlier = shared.reported.find(&key, self.guest());
        if let Some(Earlier::Own(verdict)) = &earlier {
            waiter.answer(shared, verdict, true);
            return Ok(());
        }
        // Before any store is asked: in a storm all ask for the same.
        let waiter = match shared.scans.join(shared, &key, ask.size, waiter) {
            Ok(()) => return Ok(()),
            Err(waiter) => waiter,
        };
        let filter = ask.filter.filter(|it| {
            let wanted = force.policy.report_min_bytes;
            let is_wanted = wanted.is_some_and(|bytes| ask.size >= bytes);
            is_wanted && earlier.is_none() && shared.filters.offered() == Some(*it)
        });
        let report = ask.report.filter(|it| {
            let is_of = |filter: FilterId| it.filter == filter.0;
            filter.is_some_and(is_of)
        });
        let report = match report.map(|it| self.hold_report(it)).transpose() {
            Ok(report) => report,
            Err(limit) => {
                waiter.refuse(shared, ask.size, limit);
                return Ok(());
            }
        };
        let (size, compressed) = (ask.size, ask.compressed);
        let held = ask.content.map(|bytes| self.hold(bytes, size, compressed));
        let held = match held.transpose() {
            Ok(held) => held,
            Err(limit) => {
                waiter.refuse(shared, ask.size, limit);
                return Ok(());
            }
        };
        let unknown = Unknown {
            key,
            context: ask.context,
            size: ask.size,
            held,
            filter,
            report,
            waiter,
            _counted: self.asker.unknown.clone(),
        };
        shared.runtime.spawn(unknown.resolve(shared.clone()));
        Ok(())
    }

    /// Finds a place for content that came with its check.
    fn hold(&self, bytes: Bytes, size: u64, compressed: bool) -> Result<Held, Refusal> {
        let came = bytes.len() as u64;
        let content_bytes = &self.shared.metrics.guests.content_bytes;
        content_bytes.with(["ride_along"]).inc_by(came);
        // Compressed content's size is bounded by `read`.
        let held = if compressed { size.max(came) } else { came };
        let reservation = self.shared.reserve(self.guest(), Place::Memory, held)?;
        Ok(Held {
            bytes,
            compressed,
            reservation,
        })
    }

    /// Finds a place for a report that came with its check.
    fn hold_report(&self, report: v1::FilterReport) -> Result<CameAlong, Refusal> {
        let came = (report.head.len() + report.report.len()) as u64;
        let place = self.shared.reserve(self.guest(), Place::Memory, came)?;
        Ok(CameAlong {
            report,
            _place: place,
        })
    }

    /// Enters the check among those that are owed a reply. True: there are too many.
    fn open(&self, request_id: u64, ask: &Ask, force: &Force) -> Result<(Waiter, bool), Breach> {
        let mut open = self.asker.open.lock();
        if open.contains_key(&request_id) {
            return Err(Breach::RequestOpen(request_id));
        }
        // A check that was cancelled while a store is asked about it counts until that is over.
        let under_way = open.len().max(Arc::strong_count(&self.asker.unknown) - 1);
        let is_over_limit = under_way >= force.limits.in_flight_max.count();
        open.insert(request_id, OpenCheck::default());
        let waiter = Waiter {
            asker: self.asker.clone(),
            request_id,
            class: ask.class,
            path: ask.context.path.clone(),
            awaited: self.shared.asked.take(self.guest(), ask.digest),
        };
        Ok((waiter, is_over_limit))
    }
}

/// Content that came with its check, and its place.
struct Held {
    bytes: Bytes,
    compressed: bool,
    reservation: Reservation,
}

impl Held {
    /// The content, of at most `size` bytes where it is compressed.
    fn content(&self, size: u64) -> Result<Bytes, DecompressError> {
        if self.compressed {
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            return chunks::decompress(&self.bytes, size).map(Bytes::from);
        }
        Ok(self.bytes.clone())
    }
}

/// A check of what memory does not know.
struct Unknown {
    key: CacheKey,
    context: Context,
    size: u64,
    held: Option<Held>,
    /// The guest is asked to report by this one.
    filter: Option<FilterId>,
    /// Or has done so.
    report: Option<CameAlong>,
    waiter: Waiter,
    /// Counts it, until a store has answered and more is known of it.
    _counted: Arc<()>,
}

impl Unknown {
    /// A store may know it; otherwise it is judged.
    async fn resolve(mut self, shared: Arc<Shared>) {
        if let Some(verdict) = shared.verdicts.look_up(&self.key).await {
            return self.waiter.answer(&shared, &verdict, true);
        }
        if self.waiter.awaited.is_some() {
            let bytes_per_s = shared.force().recheck.bytes_per_s.get();
            shared.asked.costs(bytes_per_s);
            if let Some(held) = &self.held {
                shared.asked.came(held.bytes.len() as u64, bytes_per_s);
            }
        }
        match self.held.take() {
            Some(held) => self.judge_whole(&shared, held),
            None => match shared
                .scans
                .join(&shared, &self.key, self.size, self.waiter)
            {
                Ok(()) => {}
                Err(waiter) => Self { waiter, ..self }.ask_for_content(&shared),
            },
        }
    }

    fn judge_whole(self, shared: &Arc<Shared>, held: Held) {
        let Self {
            key,
            context,
            size,
            waiter,
            ..
        } = self;
        let content = match held.content(size) {
            Ok(content) => content,
            Err(error) => {
                let reason = AssemblyError::from(error).reason();
                return waiter.unscanned(shared, size, reason, error.to_string());
            }
        };
        match prove_whole(content, size, key.digest) {
            Ok(proved) => {
                let job = ScanJob {
                    key,
                    context,
                    proved,
                    reservation: Arc::new(held.reservation),
                };
                shared.scans.submit(shared, job, waiter);
            }
            Err(error) => waiter.unscanned(shared, size, error.reason(), error.to_string()),
        }
    }

    fn ask_for_content(self, shared: &Arc<Shared>) {
        let Self {
            key,
            context,
            size,
            filter,
            report,
            waiter,
            ..
        } = self;
        let limits = &shared.force().limits;
        let memory_max = limits.upload_memory_max_bytes.get().max(INLINE_MAX_BYTES);
        let place = if size <= memory_max {
            Place::Memory
        } else {
            Place::Spool
        };
        let (to_upload, pieces) = unbounded_channel();
        match waiter.asker.open.lock().get_mut(&waiter.request_id) {
            Some(open) => open.upload = Some(to_upload),
            // Cancelled meanwhile, or the session is over.
            None => return,
        }
        let upload = Upload {
            key,
            context,
            size,
            place,
            memory_max,
            credit_bytes: limits.upload_credit_bytes.get(),
            idle_timeout: limits.upload_idle_timeout(),
            filter,
            report,
            waiter,
        };
        shared.runtime.spawn(upload.receive(shared.clone(), pieces));
    }
}
