//! An upload of content that is like something that the guest has sent: by a list of its chunks and
//! the ranges that are not here. What is put together is proved as a whole, and where it is not the
//! content that was asked about, the content is asked for as if no list had come: once.

use std::sync::Arc;

use chunks::{Kind, Manifest};
use proto::v1;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::{Assembled, End, Piece, Upload, UploadError, split};
use crate::assembly::AssemblyError;
use crate::rebuild::Rebuild;
use crate::shared::Shared;

/// How it went.
pub(super) enum ByChunks {
    Done(Assembled),
    /// The agent sends the content instead.
    ContentComes,
    /// The content is to be asked for.
    InVain,
}

impl Upload {
    /// Asks for a list and what is missing by it. What comes in place of a list is left in `batch`.
    pub(super) async fn by_chunks(
        &self,
        shared: &Arc<Shared>,
        pieces: &mut UnboundedReceiver<Piece>,
        batch: &mut Vec<Piece>,
    ) -> Result<ByChunks, UploadError> {
        self.send(v1::envelope::Body::Need(v1::Need {
            manifest: true,
            credit_bytes: u32::try_from(self.first_credit()).unwrap_or(u32::MAX),
            ..v1::Need::default()
        }));
        // The guest reads its file before it sends anything: that is no idleness.
        let time_max = shared.force().limits.upload_time_max(self.size);
        self.pieces_within(pieces, batch, Instant::now(), time_max, time_max)
            .await?;
        let how = |result| shared.metrics.guests.manifests.with([result]).inc();
        if !matches!(batch.first(), Some(Piece::Manifest(_))) {
            how("declined");
            return Ok(ByChunks::ContentComes);
        }
        let Some(manifest) = batch.drain(..).next().and_then(|sent| self.read(sent)) else {
            how("refused");
            return Ok(ByChunks::InVain);
        };
        let rebuild = self.rebuild(shared, &manifest).await?;
        if rebuild.held_bytes == 0 {
            how("nothing_held");
            return Ok(ByChunks::InVain);
        }
        let held_bytes = rebuild.held_bytes;
        match self.fill(shared, pieces, rebuild).await {
            Ok(proved) => {
                how("used");
                shared.metrics.guests.chunk_bytes_held.inc_by(held_bytes);
                let manifest = Some(manifest);
                Ok(ByChunks::Done(Assembled { proved, manifest }))
            }
            // The list lied, or what is here is not what it is called.
            Err(UploadError::Assembly(AssemblyError::Changed)) => {
                how("mismatch");
                Ok(ByChunks::InVain)
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, piece: Piece) -> Option<Manifest> {
        let Piece::Manifest(sent) = piece else {
            return None;
        };
        let kind = Kind::from_number(sent.kind)?;
        let read = Manifest::decode(kind, self.size, &self.key.digest.0, &sent.chunks);
        let guest = self.waiter.asker.guest;
        read.inspect_err(|error| tracing::debug!(%guest, %error, "a manifest was refused"))
            .ok()
    }

    /// Puts into place what is here.
    async fn rebuild(
        &self,
        shared: &Arc<Shared>,
        manifest: &Manifest,
    ) -> Result<Rebuild, UploadError> {
        let (guest, place) = (self.waiter.asker.guest, self.place);
        let (shared, manifest) = (shared.clone(), manifest.clone());
        let begun = spawn_blocking(move || {
            let take = |chunk: &_| shared.chunks.take(guest, manifest.kind(), chunk);
            Rebuild::begin(&manifest, place, &shared.spool, take)
        });
        Ok(begun.await.map_err(|_| UploadError::Broken)??)
    }

    /// Asks for what is missing and proves the whole.
    async fn fill(
        &self,
        shared: &Shared,
        pieces: &mut UnboundedReceiver<Piece>,
        mut rebuild: Rebuild,
    ) -> Result<crate::assembly::Proved, UploadError> {
        let missing = rebuild.missing_bytes();
        if missing > 0 {
            let mut granted = missing.min(self.credit_bytes);
            self.send(v1::envelope::Body::Need(v1::Need {
                ranges: rebuild.ranges().iter().map(super::wire_range).collect(),
                credit_bytes: u32::try_from(granted).unwrap_or(u32::MAX),
                ..v1::Need::default()
            }));
            let time_max = shared.force().limits.upload_time_max(missing);
            let begun = Instant::now();
            let mut batch = Vec::new();
            loop {
                self.pieces(pieces, &mut batch, begun, time_max).await?;
                let (data, end) = split(batch.drain(..))?;
                self.count(shared, "chunks", &data);
                rebuild = self.absorb(rebuild, data, Rebuild::absorb).await?;
                match end {
                    End::NotYet => granted = self.replenish(rebuild.received(), granted, missing),
                    End::Failed(reason) => return Err(UploadError::Failed(reason)),
                    End::Complete => break,
                }
            }
        }
        let claimed = self.key.digest;
        let proved = spawn_blocking(move || rebuild.finish(claimed)).await;
        Ok(proved.map_err(|_| UploadError::Broken)??)
    }
}
