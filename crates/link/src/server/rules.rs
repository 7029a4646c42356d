//! What an agent may send, and when. Whatever breaks a rule of the contract ends the session. No
//! I/O; public for the fuzz targets, which throw arbitrary frames at it.

use std::collections::HashMap;

use proto::v1;
use proto::v1::envelope::Body;

/// Checks that an agent may have open beyond its `in_flight_max`, times: those it has cancelled
/// while our reply was on its way.
const OPEN_FACTOR: usize = 2;

/// A piece of fewer bytes is short: it costs more to keep than it carries.
pub const PIECE_MIN_BYTES: usize = 4096;
/// Short pieces of one request that are put up with, besides those at the end of content or of a
/// range, and one more for each [`BYTES_PER_SHORT_PIECE`] received. An honest agent cuts a piece
/// where its credit ends, and cannot know what credit is on its way.
pub const SHORT_PIECES_MAX: u64 = 1024;
/// See [`SHORT_PIECES_MAX`].
pub const BYTES_PER_SHORT_PIECE: u64 = 8192;

/// A broken rule, for the log and for the agent's author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub &'static str);

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// It is for the appliance.
    Deliver,
    /// Answer with Pong.
    Answer {
        /// To be returned.
        nonce: u64,
    },
    /// Nobody waits for it.
    Drop,
}

/// The rules of one session.
#[derive(Debug)]
pub struct AgentRules {
    open: HashMap<u64, Upload>,
    open_max: usize,
    renew_only: bool,
}

/// What an open check may send.
#[derive(Debug, Default)]
struct Upload {
    /// Data was asked for and has not ended.
    is_wanted: bool,
    /// A manifest will do in its place.
    wants_manifest: bool,
    /// A report is wanted, and no content.
    wants_report: bool,
    credit: u64,
    /// No piece may begin before this.
    offset_min: u64,
    /// Where pieces may be short: the end of the content and of each range asked for.
    ends: Vec<u64>,
    received: u64,
    short_pieces: u64,
}

impl AgentRules {
    /// For an agent that was told `in_flight_max`; `renew_only`: its certificate has expired.
    #[must_use]
    pub fn new(in_flight_max: u32, renew_only: bool) -> Self {
        let in_flight_max = usize::try_from(in_flight_max).unwrap_or(usize::MAX);
        Self {
            open: HashMap::new(),
            open_max: in_flight_max.saturating_mul(OPEN_FACTOR),
            renew_only,
        }
    }

    /// Judges a frame from the agent.
    ///
    /// # Errors
    /// [`Violation`]: close the session.
    pub fn received(&mut self, envelope: &v1::Envelope) -> Result<Pass, Violation> {
        let Some(body) = &envelope.body else {
            return Ok(Pass::Drop);
        };
        let id = envelope.request_id;
        match body {
            Body::Ping(ping) => return Ok(Pass::Answer { nonce: ping.nonce }),
            Body::Pong(_) | Body::Refused(_) => return Ok(Pass::Drop),
            Body::Goodbye(_) => return Ok(Pass::Deliver),
            Body::Renew(_) => return self.opens(id).map(|()| Pass::Deliver),
            // An expired certificate can only be renewed. An agent says what it has to say all the
            // same, in any order: it comes again with the new one.
            _ if self.renew_only => return Ok(Pass::Drop),
            _ => {}
        }
        match body {
            Body::Check(check) => self.check(id, check),
            Body::Data(data) => self.data(id, data),
            Body::DataEnd(_) => Ok(self.data_end(id)),
            Body::Manifest(manifest) => self.manifest(id, manifest),
            Body::FilterReport(report) => self.report(id, report),
            Body::Cancel(_) => Ok(match self.open.remove(&id) {
                Some(_) => Pass::Deliver,
                None => Pass::Drop,
            }),
            Body::OrderResult(_)
            | Body::LedgerReport(_)
            | Body::FastPaths(_)
            | Body::Alert(_)
            | Body::FetchAllowlist(_)
            | Body::FetchFilter(_)
            | Body::Nearness(_)
            | Body::NotHeld(_)
            | Body::Attached(_)
            | Body::TurnOver(_) => Ok(Pass::Deliver),
            Body::AskTurn(_) => self.opens(id).map(|()| Pass::Deliver),
            Body::Hello(_) => Err(Violation("a second Hello")),
            _ => Err(Violation("a frame that only appliances send")),
        }
    }

    /// Notes a frame that is sent to the agent.
    pub fn sending(&mut self, envelope: &v1::Envelope) {
        let id = envelope.request_id;
        match &envelope.body {
            Some(Body::Need(need)) => {
                if let Some(upload) = self.open.get_mut(&id) {
                    if !upload.is_wanted {
                        upload.credit = 0;
                        upload.offset_min = 0;
                    }
                    upload.is_wanted = true;
                    upload.wants_manifest = need.manifest;
                    upload.wants_report = need.report;
                    let ends = need
                        .ranges
                        .iter()
                        .map(|r| r.offset.saturating_add(r.length));
                    upload.ends.extend(ends);
                    upload.credit = upload.credit.saturating_add(need.credit_bytes.into());
                }
            }
            Some(Body::Credit(more)) => {
                if let Some(upload) = self.open.get_mut(&id) {
                    upload.credit = upload.credit.saturating_add(more.bytes.into());
                }
            }
            Some(Body::CheckReply(_)) => {
                self.open.remove(&id);
            }
            _ => {}
        }
    }

    /// Whether a frame may be sent to the agent at all.
    #[must_use]
    pub fn may_send(&self, envelope: &v1::Envelope) -> bool {
        !self.renew_only
            || matches!(
                envelope.body,
                Some(
                    Body::Welcome(_)
                        | Body::Renewed(_)
                        | Body::Ping(_)
                        | Body::Pong(_)
                        | Body::Refused(_)
                        | Body::Goodbye(_)
                )
            )
    }

    fn opens(&self, id: u64) -> Result<(), Violation> {
        if id.is_multiple_of(2) {
            return Err(Violation("an agent's request id must be odd"));
        }
        if self.open.contains_key(&id) {
            return Err(Violation("a request id that is in use"));
        }
        Ok(())
    }

    fn check(&mut self, id: u64, check: &v1::Check) -> Result<Pass, Violation> {
        let size = check.size;
        check.report.as_ref().map_or(Ok(()), bounded)?;
        self.opens(id)?;
        if self.open.len() >= self.open_max {
            return Err(Violation("more checks than in_flight_max allows"));
        }
        let upload = Upload {
            ends: vec![size],
            ..Upload::default()
        };
        self.open.insert(id, upload);
        Ok(Pass::Deliver)
    }

    fn data(&mut self, id: u64, data: &v1::Data) -> Result<Pass, Violation> {
        // Answered or cancelled while it was on its way.
        let Some(upload) = self.open.get_mut(&id) else {
            return Ok(Pass::Drop);
        };
        if !upload.is_wanted || upload.wants_report {
            return Err(Violation("data that nobody asked for"));
        }
        upload.wants_manifest = false;
        if data.bytes.is_empty() || data.bytes.len() > proto::DATA_MAX_BYTES {
            return Err(Violation("a piece of data must have 1 byte to 64 KiB"));
        }
        let len = plain_bytes(data)?;
        if data.offset < upload.offset_min {
            return Err(Violation("data whose offsets do not rise"));
        }
        upload.offset_min = data
            .offset
            .checked_add(len)
            .ok_or(Violation("data beyond the end of any file"))?;
        upload.credit = upload
            .credit
            .checked_sub(len)
            .ok_or(Violation("more data than credit"))?;
        upload.received = upload.received.saturating_add(len);
        let is_short = len < PIECE_MIN_BYTES as u64;
        if is_short && upload.credit > 0 && !upload.ends.contains(&upload.offset_min) {
            upload.short_pieces += 1;
            if upload.short_pieces > SHORT_PIECES_MAX + upload.received / BYTES_PER_SHORT_PIECE {
                return Err(Violation("too many pieces of data below 4 KiB"));
            }
        }
        Ok(Pass::Deliver)
    }

    fn data_end(&mut self, id: u64) -> Pass {
        match self.open.get_mut(&id) {
            Some(upload) if upload.is_wanted => {
                upload.is_wanted = false;
                Pass::Deliver
            }
            _ => Pass::Drop,
        }
    }

    fn manifest(&mut self, id: u64, manifest: &v1::Manifest) -> Result<Pass, Violation> {
        let Some(upload) = self.open.get_mut(&id) else {
            return Ok(Pass::Drop);
        };
        if !upload.is_wanted || !upload.wants_manifest {
            return Err(Violation("a manifest that nobody asked for"));
        }
        if manifest.chunks.len() > proto::MANIFEST_MAX_BYTES {
            return Err(Violation("a manifest must have at most 896 KiB"));
        }
        upload.is_wanted = false;
        upload.wants_manifest = false;
        Ok(Pass::Deliver)
    }

    fn report(&mut self, id: u64, report: &v1::FilterReport) -> Result<Pass, Violation> {
        let Some(upload) = self.open.get_mut(&id) else {
            return Ok(Pass::Drop);
        };
        if !upload.is_wanted || !upload.wants_report {
            return Err(Violation("a filter report that nobody asked for"));
        }
        bounded(report)?;
        upload.is_wanted = false;
        upload.wants_report = false;
        Ok(Pass::Deliver)
    }
}

/// What an agent's filter can say is bounded.
fn bounded(report: &v1::FilterReport) -> Result<(), Violation> {
    if report.head.len() > proto::REPORT_HEAD_BYTES {
        return Err(Violation(
            "a filter report's head must have at most 512 bytes",
        ));
    }
    if report.report.len() > proto::REPORT_MAX_BYTES {
        return Err(Violation("a filter report must have at most 64 KiB"));
    }
    Ok(())
}

/// Bytes of content that a piece stands for: what it costs in memory, on either side of the
/// compression.
fn plain_bytes(data: &v1::Data) -> Result<u64, Violation> {
    let (on_wire, plain) = (data.bytes.len(), data.plain_bytes as usize);
    match plain {
        0 => Ok(on_wire as u64),
        _ if plain < on_wire => Err(Violation(
            "a compressed piece that is longer than the plain",
        )),
        _ if plain > proto::DATA_PLAIN_MAX_BYTES => {
            Err(Violation("a compressed piece of more than 128 KiB"))
        }
        _ => Ok(plain as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(request_id: u64, body: Body) -> v1::Envelope {
        v1::Envelope {
            request_id,
            body: Some(body),
        }
    }

    fn check(id: u64) -> v1::Envelope {
        envelope(id, Body::Check(v1::Check::default()))
    }

    fn data(id: u64, offset: u64, len: usize) -> v1::Envelope {
        let bytes = vec![0; len].into();
        envelope(
            id,
            Body::Data(v1::Data {
                offset,
                bytes,
                ..v1::Data::default()
            }),
        )
    }

    fn need(id: u64, credit_bytes: u32) -> v1::Envelope {
        let need = v1::Need {
            credit_bytes,
            ..v1::Need::default()
        };
        envelope(id, Body::Need(need))
    }

    fn compressed(id: u64, len: usize, plain_bytes: u32) -> v1::Envelope {
        let data = v1::Data {
            offset: 0,
            bytes: vec![0; len].into(),
            plain_bytes,
        };
        envelope(id, Body::Data(data))
    }

    fn manifest(id: u64, len: usize) -> v1::Envelope {
        let manifest = v1::Manifest {
            kind: 2,
            chunks: vec![0; len],
        };
        envelope(id, Body::Manifest(manifest))
    }

    fn listing() -> AgentRules {
        let mut rules = AgentRules::new(4, false);
        rules.received(&check(1)).unwrap();
        let need = v1::Need {
            credit_bytes: 10,
            manifest: true,
            ..v1::Need::default()
        };
        rules.sending(&envelope(1, Body::Need(need)));
        rules
    }

    #[test]
    fn a_manifest_comes_where_it_was_asked_for_and_once() {
        let mut rules = listing();
        assert_eq!(rules.received(&manifest(1, 100)), Ok(Pass::Deliver));
        check_violation(rules, &manifest(1, 100), "nobody asked");
        let mut rules = listing();
        assert_eq!(rules.received(&manifest(1, 100)), Ok(Pass::Deliver));
        check_violation(rules, &data(1, 0, 5), "nobody asked");
        // The content itself will do as well, but not both.
        let mut rules = listing();
        assert_eq!(rules.received(&data(1, 0, 5)), Ok(Pass::Deliver));
        check_violation(rules, &manifest(1, 100), "nobody asked");
        check_violation(uploading(10), &manifest(1, 100), "nobody asked");
        let too_long = proto::MANIFEST_MAX_BYTES + 1;
        check_violation(listing(), &manifest(1, too_long), "896 KiB");
        assert_eq!(listing().received(&manifest(3, 100)), Ok(Pass::Drop));
    }

    fn reporting() -> AgentRules {
        let mut rules = AgentRules::new(4, false);
        rules.received(&check(1)).unwrap();
        let need = v1::Need {
            report: true,
            ..v1::Need::default()
        };
        rules.sending(&envelope(1, Body::Need(need)));
        rules
    }

    fn report(id: u64, head: usize, len: usize) -> v1::Envelope {
        let report = v1::FilterReport {
            filter: vec![1; 16],
            head: vec![0; head],
            report: vec![0; len].into(),
        };
        envelope(id, Body::FilterReport(report))
    }

    #[test]
    fn a_report_comes_where_it_was_asked_for_and_once() {
        let mut rules = reporting();
        assert_eq!(rules.received(&report(1, 512, 65_536)), Ok(Pass::Deliver));
        check_violation(rules, &report(1, 0, 0), "nobody asked");
        check_violation(uploading(10), &report(1, 0, 0), "nobody asked");
        check_violation(listing(), &report(1, 0, 0), "nobody asked");
        check_violation(reporting(), &report(1, 513, 0), "512 bytes");
        check_violation(reporting(), &report(1, 0, 65_537), "64 KiB");
        let along = |report: v1::Envelope| {
            let Some(Body::FilterReport(report)) = report.body else {
                unreachable!("it was made one");
            };
            let report = Some(report);
            let check = v1::Check {
                report,
                ..v1::Check::default()
            };
            envelope(3, Body::Check(check))
        };
        check_violation(reporting(), &along(report(3, 513, 0)), "512 bytes");
        check_violation(reporting(), &along(report(3, 0, 65_537)), "64 KiB");
        let whole = along(report(3, 512, 65_536));
        assert_eq!(reporting().received(&whole), Ok(Pass::Deliver));
        check_violation(reporting(), &data(1, 0, 1), "nobody asked");
        check_violation(reporting(), &manifest(1, 1), "nobody asked");
        assert_eq!(reporting().received(&report(3, 0, 0)), Ok(Pass::Drop));
        // A reason in its place, and ranges after it.
        let mut rules = reporting();
        let end = envelope(1, Body::DataEnd(v1::DataEnd::default()));
        assert_eq!(rules.received(&end), Ok(Pass::Deliver));
        rules.sending(&need(1, 10));
        assert_eq!(rules.received(&data(1, 5, 10)), Ok(Pass::Deliver));
    }

    #[test]
    fn another_need_begins_anew() {
        let mut rules = listing();
        rules.received(&manifest(1, 100)).unwrap();
        rules.sending(&need(1, 60));
        assert_eq!(rules.received(&data(1, 500, 60)), Ok(Pass::Deliver));
        let end = envelope(1, Body::DataEnd(v1::DataEnd::default()));
        rules.received(&end).unwrap();
        rules.sending(&need(1, 30));
        assert_eq!(rules.received(&data(1, 0, 30)), Ok(Pass::Deliver));
        check_violation(rules, &data(1, 30, 1), "credit");
    }

    #[test]
    fn a_compressed_piece_costs_what_it_becomes() {
        let piece = compressed(1, 100, 5000);
        assert_eq!(uploading(5000).received(&piece), Ok(Pass::Deliver));
        check_violation(uploading(4999), &piece, "credit");
        check_violation(uploading(1 << 20), &compressed(1, 100, 99), "longer");
        check_violation(uploading(1 << 20), &compressed(1, 100, 131_073), "128 KiB");
    }

    fn uploading(credit: u32) -> AgentRules {
        let mut rules = AgentRules::new(4, false);
        assert_eq!(rules.received(&check(1)), Ok(Pass::Deliver));
        rules.sending(&need(1, credit));
        rules
    }

    #[track_caller]
    fn check_violation(mut rules: AgentRules, envelope: &v1::Envelope, expected: &str) {
        let violation = rules.received(envelope).unwrap_err();
        assert!(violation.0.contains(expected), "{violation}");
    }

    #[test]
    fn an_upload_within_its_credit_passes() {
        let mut rules = uploading(100);
        assert_eq!(rules.received(&data(1, 0, 60)), Ok(Pass::Deliver));
        assert_eq!(rules.received(&data(1, 1000, 40)), Ok(Pass::Deliver));
        rules.sending(&envelope(1, Body::Credit(v1::Credit { bytes: 5 })));
        assert_eq!(rules.received(&data(1, 1040, 5)), Ok(Pass::Deliver));
        let end = envelope(1, Body::DataEnd(v1::DataEnd::default()));
        assert_eq!(rules.received(&end), Ok(Pass::Deliver));
        assert_eq!(rules.received(&end), Ok(Pass::Drop));
    }

    #[test]
    fn short_pieces_are_bounded_except_at_ends() {
        let mut rules = uploading(1 << 20);
        for offset in 0..SHORT_PIECES_MAX {
            assert_eq!(rules.received(&data(1, offset, 1)), Ok(Pass::Deliver));
        }
        assert_eq!(rules.received(&data(1, 10_000, 4096)), Ok(Pass::Deliver));
        check_violation(rules, &data(1, 20_000, 3000), "below 4 KiB");

        // An agent that cuts its pieces at credits it has heard of, while more is on its way.
        let mut rules = uploading(1 << 30);
        for n in 0..300 {
            let at = n * 65_536;
            assert_eq!(rules.received(&data(1, at, 65_000)), Ok(Pass::Deliver));
            assert_eq!(
                rules.received(&data(1, at + 65_000, 536)),
                Ok(Pass::Deliver)
            );
        }

        let mut rules = AgentRules::new(4, false);
        let size = 1_000_000;
        let asked = Body::Check(v1::Check {
            size,
            ..v1::Check::default()
        });
        rules.received(&envelope(1, asked)).unwrap();
        let range = |n: u64| v1::ByteRange {
            offset: n * 10_000,
            length: 5,
        };
        let asked = Body::Need(v1::Need {
            ranges: (0..40).map(range).collect(),
            credit_bytes: 1 << 20,
            ..v1::Need::default()
        });
        rules.sending(&envelope(1, asked));
        for n in 0..40 {
            let piece = data(1, n * 10_000, 5);
            assert_eq!(rules.received(&piece), Ok(Pass::Deliver));
        }
        let last = data(1, size - 7, 7);
        assert_eq!(rules.received(&last), Ok(Pass::Deliver));
        assert_eq!(rules.open[&1].short_pieces, 0);

        let mut rules = uploading(1);
        for offset in 0..40 {
            let all_credit = rules.received(&data(1, offset, 1));
            assert_eq!(all_credit, Ok(Pass::Deliver));
            rules.sending(&envelope(1, Body::Credit(v1::Credit { bytes: 1 })));
        }
    }

    #[test]
    fn late_data_is_dropped() {
        let mut rules = uploading(100);
        rules.sending(&envelope(1, Body::CheckReply(v1::CheckReply::default())));
        assert_eq!(rules.received(&data(1, 0, 60)), Ok(Pass::Drop));
        assert_eq!(rules.received(&check(1)), Ok(Pass::Deliver));
    }

    #[test]
    fn each_rule_is_held() {
        check_violation(uploading(10), &data(1, 0, 11), "credit");
        check_violation(uploading(10), &data(1, 0, 0), "1 byte");
        check_violation(uploading(1 << 20), &data(1, 0, 65_537), "64 KiB");
        check_violation(uploading(10), &data(1, u64::MAX, 1), "end of any file");
        check_violation(uploading(10), &check(1), "in use");
        check_violation(uploading(10), &check(2), "odd");
        let mut rules = uploading(10);
        rules.received(&data(1, 5, 5)).unwrap();
        check_violation(rules, &data(1, 9, 1), "rise");
        let mut rules = AgentRules::new(4, false);
        rules.received(&check(1)).unwrap();
        check_violation(rules, &data(1, 0, 1), "nobody asked");
        let hello = envelope(0, Body::Hello(v1::Hello::default()));
        check_violation(uploading(1), &hello, "second Hello");
        let policy = envelope(0, Body::Policy(v1::Policy::default()));
        check_violation(uploading(1), &policy, "only appliances");
        let mut rules = AgentRules::new(2, false);
        for id in [1, 3, 5, 7] {
            rules.received(&check(id)).unwrap();
        }
        check_violation(rules, &check(9), "in_flight_max");
    }

    #[test]
    fn an_expired_certificate_can_only_be_renewed() {
        let rules = || AgentRules::new(4, true);
        // An agent that does not know it yet says more, and is to get its renewal all the same.
        let alert = envelope(0, Body::Alert(v1::Alert::default()));
        for other in [check(1), alert] {
            assert_eq!(rules().received(&other), Ok(Pass::Drop));
        }
        let renew = envelope(1, Body::Renew(v1::Renew::default()));
        assert_eq!(rules().received(&renew), Ok(Pass::Deliver));
        let ping = envelope(0, Body::Ping(v1::Ping { nonce: 3 }));
        assert_eq!(rules().received(&ping), Ok(Pass::Answer { nonce: 3 }));
        let order = envelope(2, Body::Order(v1::Order::default()));
        assert!(!rules().may_send(&order));
        assert!(rules().may_send(&envelope(1, Body::Renewed(v1::Renewed::default()))));
        // Whether it is there is asked of everybody.
        assert!(rules().may_send(&ping));
    }

    #[test]
    fn what_is_unknown_is_ignored() {
        let unknown = v1::Envelope {
            request_id: 1,
            body: None,
        };
        assert_eq!(AgentRules::new(1, true).received(&unknown), Ok(Pass::Drop));
    }
}
