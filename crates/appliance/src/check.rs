//! A check: known, under way, whole already, or to be sent.

use std::sync::Arc;

use bytes::Bytes;
use chunks::DecompressError;
use model::{AccessClass, Digest, UnscannedReason};
use proto::v1;
use scan_core::{CacheKey, Context, Place, Refusal, VerdictStore};
use tokio::sync::mpsc::unbounded_channel;

use crate::answer::{OpenCheck, Waiter};
use crate::assembly::{AssemblyError, INLINE_MAX_BYTES, prove_whole};
use crate::force::Force;
use crate::scans::ScanJob;
use crate::session::{Breach, Session};
use crate::upload::Upload;

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
    /// `content` is a zstd frame.
    compressed: bool,
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
        compressed: check.content_compressed,
    })
}

impl Session {
    /// Answers at once what is known; otherwise begins what leads to an answer.
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
        match ask.content {
            Some(content) => {
                let bytes = content.len() as u64;
                shared
                    .metrics
                    .guests
                    .content_bytes
                    .with(["ride_along"])
                    .inc_by(bytes);
                let plain = if ask.compressed {
                    // Its size is bounded by `read`.
                    chunks::decompress(&content, ask.size as usize).map(Bytes::from)
                } else {
                    Ok(content)
                };
                self.judge_whole(key, ask.context, ask.size, plain, waiter);
            }
            None => {
                if let Err(waiter) = shared.scans.join(shared, &key, ask.size, waiter) {
                    self.ask_for_content(key, ask.context, ask.size, waiter);
                }
            }
        }
        Ok(())
    }

    /// Enters the check among those that are owed a reply. True: there are too many.
    fn open(&self, request_id: u64, ask: &Ask, force: &Force) -> Result<(Waiter, bool), Breach> {
        let mut open = self.asker.open.lock();
        if open.contains_key(&request_id) {
            return Err(Breach::RequestOpen(request_id));
        }
        let is_over_limit = open.len() >= force.limits.in_flight_max.count();
        open.insert(request_id, OpenCheck::default());
        let waiter = Waiter {
            asker: self.asker.clone(),
            request_id,
            class: ask.class,
            path: ask.context.path.clone(),
        };
        Ok((waiter, is_over_limit))
    }

    fn judge_whole(
        &self,
        key: CacheKey,
        context: Context,
        size: u64,
        content: Result<Bytes, DecompressError>,
        waiter: Waiter,
    ) {
        let shared = &self.shared;
        let content = match content {
            Ok(content) => content,
            Err(error) => {
                let reason = AssemblyError::from(error).reason();
                return waiter.unscanned(shared, size, reason, error.to_string());
            }
        };
        let held = content.len() as u64;
        let reservation = match shared.reserve(waiter.asker.guest, Place::Memory, held) {
            Ok(reservation) => reservation,
            Err(limit) => return waiter.refuse(shared, size, limit),
        };
        match prove_whole(content, size, key.digest) {
            Ok(proved) => {
                let job = ScanJob {
                    key,
                    context,
                    proved,
                    reservation: Arc::new(reservation),
                };
                shared.scans.submit(shared, job, waiter);
            }
            Err(error) => waiter.unscanned(shared, size, error.reason(), error.to_string()),
        }
    }

    fn ask_for_content(&self, key: CacheKey, context: Context, size: u64, waiter: Waiter) {
        let shared = &self.shared;
        let limits = &shared.force().limits;
        let memory_max = limits.upload_memory_max_bytes.get().max(INLINE_MAX_BYTES);
        let place = if size <= memory_max {
            Place::Memory
        } else {
            Place::Spool
        };
        let reservation = match shared.reserve(waiter.asker.guest, place, size) {
            Ok(reservation) => reservation,
            Err(limit) => return waiter.refuse(shared, size, limit),
        };
        let (to_upload, pieces) = unbounded_channel();
        if let Some(open) = self.asker.open.lock().get_mut(&waiter.request_id) {
            open.upload = Some(to_upload);
        }
        let upload = Upload {
            key,
            context,
            size,
            place,
            memory_max,
            credit_bytes: limits.upload_credit_bytes.get(),
            idle_timeout: limits.upload_idle_timeout(),
            reservation: Arc::new(reservation),
            waiter,
        };
        shared.runtime.spawn(upload.receive(shared.clone(), pieces));
    }
}
