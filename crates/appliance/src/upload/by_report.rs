//! Content judged by a guest's report: what its filter found, and the ranges that engines ask for
//! because of it. Only *clean* comes of it; whatever else there is to say is said of the whole.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use chunks::Range;
use engine::sparse;
use model::{Coverage, FilterId, Ranges, Verdict};
use proto::v1;
use scan_core::{Finding, PartialStep, PartialTask, Place, generation_in_force, merge};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::{CameAlong, End, Piece, Upload, UploadError, split};
use crate::assembly::AssemblyError;
use crate::expected::Expected;
use crate::shared::{Reservation, Shared};

/// How often ranges are asked for before the whole is.
const ROUNDS_MAX: u32 = 8;
/// With more than this part of the content to send, all of it is sent.
const PART_MAX: u64 = 2;
/// What is held of each known byte: here, where what grows has room for as much again, and as it is
/// laid out for an engine.
const COPIES: u64 = 3;

/// How it went.
pub(super) enum ByReport {
    Clean(Verdict),
    /// The content is to be asked for in another way.
    InVain,
}

impl Upload {
    /// Asks for a report by this filter, unless one came `along`, and for what engines want to see
    /// because of it.
    pub(super) async fn by_report(
        &self,
        shared: &Arc<Shared>,
        pieces: &mut UnboundedReceiver<Piece>,
        filter: FilterId,
        along: Option<CameAlong>,
    ) -> Result<ByReport, UploadError> {
        let how = |result| shared.metrics.guests.reports.with([result]).inc();
        let in_vain = |result| {
            how(result);
            Ok(ByReport::InVain)
        };
        let report = match along {
            Some(along) => Some(along.report),
            None => self.ask_for_report(shared, pieces).await?,
        };
        let report = match report {
            Some(report) if report.filter == filter.0 => report,
            Some(report) if report.filter.is_empty() => return in_vain("declined"),
            _ => return in_vain("refused"),
        };
        if shared.engines().want_whole(&report.head) {
            return in_vain("whole");
        }
        let Some(mut known) = self.begin(shared, filter, report)? else {
            return in_vain("refused");
        };
        for round in 0..=ROUNDS_MAX {
            let ask = match self.judge(shared, &known).await? {
                PartialStep::Judged(finding) if is_clean(&finding) => {
                    how(if round == 0 { "report" } else { "ranges" });
                    return Ok(ByReport::Clean(known.verdict(shared, &finding)));
                }
                PartialStep::Judged(_) => return in_vain("found"),
                PartialStep::Failed(_) => return in_vain("failed"),
                PartialStep::Whole(why) => {
                    tracing::debug!(guest = %self.waiter.asker.guest, why, "wanted whole");
                    return in_vain("whole");
                }
                PartialStep::Ask(ask) => ask.without(&known.ranges),
            };
            let is_much = known.ranges.bytes() + ask.bytes() > self.size / PART_MAX;
            if ask.is_empty() || is_much || round == ROUNDS_MAX {
                return in_vain("too_much");
            }
            known = self.fetch(shared, pieces, known, &ask).await?;
        }
        in_vain("too_much")
    }

    /// `None`: something else came.
    async fn ask_for_report(
        &self,
        shared: &Shared,
        pieces: &mut UnboundedReceiver<Piece>,
    ) -> Result<Option<v1::FilterReport>, UploadError> {
        self.send(v1::envelope::Body::Need(v1::Need {
            report: true,
            ..v1::Need::default()
        }));
        // The guest reads its file before it sends anything: that is no idleness.
        let time_max = shared.force().limits.upload_time_max(self.size);
        let mut batch = Vec::new();
        self.pieces_within(pieces, &mut batch, Instant::now(), time_max, time_max)
            .await?;
        match batch.into_iter().next() {
            Some(Piece::Report(report)) => Ok(Some(report)),
            Some(Piece::End {
                failed: Some(reason),
            }) => Err(UploadError::Failed(reason)),
            _ => Ok(None),
        }
    }

    /// What a report tells by itself; `None`: its head is not that of content of this size.
    fn begin(
        &self,
        shared: &Arc<Shared>,
        filter: FilterId,
        report: v1::FilterReport,
    ) -> Result<Option<Known>, UploadError> {
        let came = (report.head.len() + report.report.len()) as u64;
        let content_bytes = &shared.metrics.guests.content_bytes;
        content_bytes.with(["report"]).inc_by(came);
        let head = self.size.min(proto::REPORT_HEAD_BYTES as u64);
        if report.head.len() as u64 != head {
            return Ok(None);
        }
        let reservation = self.reserve(shared, came + head * COPIES)?;
        Ok(Some(Known {
            size: self.size,
            filter,
            report: report.report,
            pieces: BTreeMap::from([(0, report.head)]),
            ranges: Ranges::of(0..head),
            expected: Expected::new(Vec::new()),
            _reservations: vec![reservation],
        }))
    }

    fn reserve(&self, shared: &Arc<Shared>, bytes: u64) -> Result<Reservation, UploadError> {
        let reserved = shared.reserve(self.waiter.asker.guest, Place::Memory, bytes);
        reserved.map_err(UploadError::Refused)
    }

    /// In its turn, as any scan.
    async fn judge(&self, shared: &Arc<Shared>, known: &Known) -> Result<PartialStep, UploadError> {
        let (guest, class) = (self.waiter.asker.guest, self.waiter.class);
        let turn = shared.scans.turn(shared, guest, class.priority()).await;
        let _turn = turn.map_err(UploadError::Refused)?;
        let engines = shared.engines();
        let [engine] = &engines.engines[..] else {
            return Ok(PartialStep::Whole("several engines".to_owned()));
        };
        let mut read = |offset, buffer: &mut [u8]| known.read(offset, buffer);
        let content = sparse::pack(known.size, &known.ranges, &mut read);
        let facts = engine.facts();
        let task = PartialTask {
            content: content.map_err(AssemblyError::Memory)?,
            size: known.size,
            known: known.ranges.clone(),
            filter: known.filter,
            report: known.report.clone(),
            context: facts.context_sensitive.then(|| self.context.clone()),
        };
        let begun = Instant::now();
        let step = engine.judge_partial(task).await;
        let scans = &shared.metrics.scans;
        let seconds = begun.elapsed().as_secs_f64();
        scans.partial_seconds.with([&facts.name]).observe(seconds);
        Ok(step)
    }

    /// Asks for ranges and takes them.
    async fn fetch(
        &self,
        shared: &Arc<Shared>,
        pieces: &mut UnboundedReceiver<Piece>,
        mut known: Known,
        ask: &Ranges,
    ) -> Result<Known, UploadError> {
        let missing = ask.bytes();
        known
            ._reservations
            .push(self.reserve(shared, missing * COPIES)?);
        let list = ask.iter().map(|range| Range {
            offset: range.start,
            len: range.end - range.start,
        });
        known.expected = Expected::new(list.collect());
        let mut granted = missing.min(self.credit_bytes);
        self.send(v1::envelope::Body::Need(v1::Need {
            ranges: known
                .expected
                .ranges()
                .iter()
                .map(super::wire_range)
                .collect(),
            credit_bytes: u32::try_from(granted).unwrap_or(u32::MAX),
            ..v1::Need::default()
        }));
        let time_max = shared.force().limits.upload_time_max(missing);
        let (begun, mut batch) = (Instant::now(), Vec::new());
        loop {
            self.pieces(pieces, &mut batch, begun, time_max).await?;
            let (data, end) = split(batch.drain(..))?;
            self.count(shared, "ranges", &data);
            known = self.absorb(known, data, Known::absorb).await?;
            match end {
                End::NotYet => {
                    granted = self.replenish(known.expected.received(), granted, missing);
                }
                End::Failed(reason) => return Err(UploadError::Failed(reason)),
                End::Complete => break,
            }
        }
        known.expected.finish()?;
        known.ranges.extend(ask);
        Ok(known)
    }
}

/// All was judged, and nothing found.
fn is_clean(finding: &Finding) -> bool {
    finding.outcome_name() == "clean"
}

/// What is known of content that is not here.
struct Known {
    size: u64,
    filter: FilterId,
    report: Bytes,
    /// What is known, by its offset.
    pieces: BTreeMap<u64, Vec<u8>>,
    ranges: Ranges,
    /// What comes now.
    expected: Expected,
    /// Held until it is judged.
    _reservations: Vec<Reservation>,
}

impl Known {
    fn absorb(&mut self, offset: u64, bytes: &[u8]) -> Result<(), AssemblyError> {
        self.expected.take(offset, bytes.len() as u64)?;
        let before = self.pieces.range_mut(..offset).next_back();
        match before.filter(|(at, piece)| **at + piece.len() as u64 == offset) {
            Some((_, piece)) => piece.extend_from_slice(bytes),
            None => {
                self.pieces.insert(offset, bytes.to_vec());
            }
        }
        Ok(())
    }

    /// Fills the buffer with what is known from `offset` on.
    fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let piece = self.pieces.range(..=offset).next_back();
            let rest = piece.and_then(|(at, piece)| {
                let within = usize::try_from(offset - at).ok()?;
                piece.get(within..).filter(|rest| !rest.is_empty())
            });
            let rest = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
            let len = rest.len().min(buffer.len());
            let (now, later) = buffer.split_at_mut(len);
            now.copy_from_slice(rest.get(..len).unwrap_or_default());
            buffer = later;
            offset += len as u64;
        }
        Ok(())
    }

    /// It holds for the guest that reported: nothing proves that this content has its digest.
    fn verdict(&self, shared: &Shared, finding: &Finding) -> Verdict {
        let engines = shared.engines();
        let facts = engines.facts();
        let names = facts
            .iter()
            .map(|it| (it.name.as_str(), finding.generation));
        let generation = generation_in_force(names, engines.settings);
        let merged = merge(self.size, generation, None, std::slice::from_ref(finding));
        let ranges = self.ranges.iter();
        Verdict {
            coverage: Coverage {
                bytes_judged: self.ranges.bytes(),
                ranges: ranges.map(|r| (r.start, r.end - r.start)).collect(),
                filter: Some(self.filter),
                ..merged.coverage
            },
            ..merged
        }
    }
}
