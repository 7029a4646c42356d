//! The agent's requests that are under way, and how much data each may send. No I/O.

use std::collections::HashMap;

use proto::v1;
use proto::v1::envelope::Body;

/// Requests under way in one session.
#[derive(Debug)]
pub(crate) struct Exchanges {
    /// Unanswered checks, each with the bytes it may send; `None`: no data is wanted.
    open: HashMap<u64, Option<u64>>,
    in_flight_max: usize,
    is_over: bool,
}

/// What a piece of data gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    /// So many bytes may be sent now; they have been counted off.
    Bytes(usize),
    /// None yet.
    Wait,
    /// No data of this request is wanted.
    NotWanted,
    /// The session is over.
    SessionOver,
}

impl Exchanges {
    pub(crate) fn new(in_flight_max: usize) -> Self {
        Self {
            open: HashMap::new(),
            in_flight_max,
            is_over: false,
        }
    }

    /// Notes a frame that is about to be sent; `false`: it may not, too many are unanswered.
    pub(crate) fn sending(&mut self, envelope: &v1::Envelope) -> bool {
        match &envelope.body {
            Some(Body::Check(_)) => {
                if self.open.len() >= self.in_flight_max {
                    return false;
                }
                self.open.insert(envelope.request_id, None);
            }
            Some(Body::DataEnd(_) | Body::Manifest(_)) => {
                if let Some(credit) = self.open.get_mut(&envelope.request_id) {
                    *credit = None;
                }
            }
            _ => {}
        }
        true
    }

    /// Notes a frame that was received; `false`: it concerns a request that is not open, so
    /// nobody waits for it.
    pub(crate) fn received(&mut self, envelope: &v1::Envelope) -> bool {
        let id = envelope.request_id;
        match &envelope.body {
            Some(Body::Need(need)) => self.credit(id, need.credit_bytes, true),
            Some(Body::Credit(more)) => self.credit(id, more.bytes, false),
            Some(Body::CheckReply(_)) => self.open.remove(&id).is_some(),
            _ => true,
        }
    }

    fn credit(&mut self, request_id: u64, bytes: u32, begins: bool) -> bool {
        let Some(credit) = self.open.get_mut(&request_id) else {
            return false;
        };
        match credit {
            Some(left) => *left = left.saturating_add(bytes.into()),
            None if begins => *credit = Some(bytes.into()),
            None => {}
        }
        true
    }

    /// Counts off what `wanted` bytes of data may be sent now, not fewer than `least`.
    pub(crate) fn take(&mut self, request_id: u64, wanted: usize, least: usize) -> Grant {
        if self.is_over {
            return Grant::SessionOver;
        }
        match self.open.get_mut(&request_id) {
            Some(Some(left)) if *left < least.max(1) as u64 => Grant::Wait,
            Some(Some(left)) => {
                let bytes = usize::try_from(*left).unwrap_or(usize::MAX).min(wanted);
                *left -= bytes as u64;
                Grant::Bytes(bytes)
            }
            Some(None) | None => Grant::NotWanted,
        }
    }

    /// Gives back what was counted off and not sent.
    pub(crate) fn give_back(&mut self, request_id: u64, bytes: usize) {
        if let Some(Some(left)) = self.open.get_mut(&request_id) {
            *left = left.saturating_add(bytes as u64);
        }
    }

    /// Nobody waits for it any more; whether it was open.
    pub(crate) fn cancel(&mut self, request_id: u64) -> bool {
        self.open.remove(&request_id).is_some()
    }

    /// Whether it is under way here.
    pub(crate) fn has(&self, request_id: u64) -> bool {
        self.open.contains_key(&request_id)
    }

    /// The session is over; the first time, what was not answered.
    pub(crate) fn end(&mut self) -> Vec<u64> {
        self.is_over = true;
        let mut unanswered: Vec<u64> = self.open.drain().map(|(id, _)| id).collect();
        unanswered.sort_unstable();
        unanswered
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(crate) fn open_count(&self) -> usize {
        self.open.len()
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

    fn need(id: u64, credit_bytes: u32) -> v1::Envelope {
        let ranges = Vec::new();
        envelope(
            id,
            Body::Need(v1::Need {
                ranges,
                credit_bytes,
                ..v1::Need::default()
            }),
        )
    }

    fn credit(id: u64, bytes: u32) -> v1::Envelope {
        envelope(id, Body::Credit(v1::Credit { bytes }))
    }

    #[test]
    fn data_goes_as_far_as_credit() {
        let mut exchanges = Exchanges::new(8);
        assert_eq!(exchanges.take(1, 10, 1), Grant::NotWanted);
        assert!(exchanges.sending(&check(1)));
        assert_eq!(exchanges.take(1, 10, 1), Grant::NotWanted, "before Need");
        exchanges.received(&credit(1, 100));
        assert_eq!(
            exchanges.take(1, 10, 1),
            Grant::NotWanted,
            "credit is no Need"
        );
        assert!(exchanges.received(&need(1, 15)));
        assert_eq!(exchanges.take(1, 10, 1), Grant::Bytes(10));
        assert_eq!(exchanges.take(1, 10, 1), Grant::Bytes(5));
        assert_eq!(exchanges.take(1, 10, 1), Grant::Wait);
        exchanges.give_back(1, 2);
        exchanges.received(&credit(1, 1));
        assert_eq!(exchanges.take(1, 10, 1), Grant::Bytes(3));
        exchanges.sending(&envelope(1, Body::DataEnd(v1::DataEnd::default())));
        exchanges.received(&credit(1, 1));
        assert_eq!(exchanges.take(1, 10, 1), Grant::NotWanted, "after DataEnd");
    }

    #[test]
    fn an_answer_a_cancel_and_the_end_stop_data() {
        let mut exchanges = Exchanges::new(8);
        for id in [1, 3, 5] {
            exchanges.sending(&check(id));
            exchanges.received(&need(id, 10));
        }
        let reply = envelope(1, Body::CheckReply(v1::CheckReply::default()));
        assert!(exchanges.received(&reply));
        assert!(!exchanges.received(&reply), "a second answer is for nobody");
        assert_eq!(exchanges.take(1, 1, 1), Grant::NotWanted);
        assert!(exchanges.cancel(3));
        assert_eq!(exchanges.take(3, 1, 1), Grant::NotWanted);
        assert!(!exchanges.received(&need(3, 10)));
        exchanges.end();
        assert_eq!(exchanges.take(5, 1, 1), Grant::SessionOver);
    }

    #[test]
    fn unanswered_checks_are_bounded() {
        let mut exchanges = Exchanges::new(2);
        assert!(exchanges.sending(&check(1)));
        assert!(exchanges.sending(&check(3)));
        assert!(!exchanges.sending(&check(5)));
        exchanges.cancel(1);
        assert!(exchanges.sending(&check(5)));
        assert_eq!(exchanges.open_count(), 2);
    }
}
