//! Lists that the appliance offers: which is fetched, and how far it is. No I/O; one piece at a
//! time is asked for, so that a list never fills the link.

use std::time::{Duration, Instant};

use allowlist::Digest;
use proto::v1::{AllowlistOffer, AllowlistPart, FetchAllowlist};

/// An unanswered question is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Offers that are looked at; an appliance has a few lists.
const OFFERS_MAX: usize = 256;
/// Fingerprints of lists that were fetched and refused.
const REFUSED_MAX: usize = 256;

/// A list that was fetched whole; nothing of it is verified.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) name: String,
    pub(crate) fingerprint: Digest,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug)]
struct Fetching {
    list: Fetched,
    size: u64,
    asked_at: Option<Instant>,
}

/// What is offered, fetched and refused.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    /// Names of the lists that are wanted.
    names: Vec<String>,
    bytes_max: u64,
    offers: Vec<AllowlistOffer>,
    offered_at: Option<Instant>,
    fetching: Option<Fetching>,
    fetched: Option<Fetched>,
    refused: Vec<Digest>,
}

impl Delivery {
    pub(crate) fn new(names: Vec<String>, bytes_max: u64) -> Self {
        Self {
            names,
            bytes_max,
            ..Self::default()
        }
    }

    pub(crate) fn offered(&mut self, mut offers: Vec<AllowlistOffer>, now: Instant) {
        offers.truncate(OFFERS_MAX);
        self.offers = offers;
        self.offered_at = Some(now);
    }

    /// Whether a list is being fetched, or to be fetched now.
    pub(crate) fn is_wanted(
        &self,
        in_force: impl Fn(&str) -> Option<u64>,
        spread: Duration,
        now: Instant,
    ) -> bool {
        let is_time = |at: Instant| now.saturating_duration_since(at) >= spread;
        self.fetching.is_some()
            || self.offered_at.is_some_and(is_time)
                && self.offers.iter().any(|it| self.wants(it, &in_force))
    }

    /// What to ask for now, if anything: a list that is wanted and newer than what is `in_force`
    /// under its name, `spread` after it was offered; or again what was not answered.
    pub(crate) fn ask(
        &mut self,
        in_force: impl Fn(&str) -> Option<u64>,
        spread: Duration,
        now: Instant,
    ) -> Option<FetchAllowlist> {
        if self.fetched.is_some() {
            return None;
        }
        if self.fetching.is_none() {
            self.offered_at
                .filter(|at| now.saturating_duration_since(*at) >= spread)?;
            let offer = self.offers.iter().find(|it| self.wants(it, &in_force))?;
            self.fetching = Some(Fetching {
                list: Fetched {
                    name: offer.name.clone(),
                    fingerprint: offer.fingerprint.as_slice().try_into().ok()?,
                    bytes: Vec::new(),
                },
                size: offer.size,
                asked_at: None,
            });
        }
        let fetching = self.fetching.as_mut()?;
        let waits = |at: Instant| now.saturating_duration_since(at) < ASK_AGAIN;
        if fetching.asked_at.is_some_and(waits) {
            return None;
        }
        Some(fetching.next(now))
    }

    fn wants(&self, offer: &AllowlistOffer, in_force: impl Fn(&str) -> Option<u64>) -> bool {
        let Ok(fingerprint) = Digest::try_from(offer.fingerprint.as_slice()) else {
            return false;
        };
        self.names.contains(&offer.name)
            && offer.size <= self.bytes_max
            && !self.refused.contains(&fingerprint)
            && in_force(&offer.name).is_none_or(|serial| offer.serial > serial)
    }

    /// A piece came: the next question, if there is one.
    pub(crate) fn part(&mut self, part: &AllowlistPart, now: Instant) -> Option<FetchAllowlist> {
        let fetching = self.fetching.as_mut()?;
        let is_next = part.fingerprint == fetching.list.fingerprint
            && part.offset == fetching.list.bytes.len() as u64;
        if !is_next {
            return None;
        }
        let bytes = &mut fetching.list.bytes;
        let left = fetching.size - bytes.len() as u64;
        if part.bytes.is_empty() || part.bytes.len() as u64 > left {
            // Replaced meanwhile, or not what was offered: a new offer begins anew.
            self.fetching = None;
            self.offers.clear();
            return None;
        }
        bytes.extend_from_slice(&part.bytes);
        if (bytes.len() as u64) < fetching.size {
            return Some(fetching.next(now));
        }
        self.fetched = self.fetching.take().map(|fetching| fetching.list);
        None
    }

    /// The session ended. Another appliance may go on with the same list.
    pub(crate) fn link_lost(&mut self) {
        self.offers.clear();
        if let Some(fetching) = &mut self.fetching {
            fetching.asked_at = None;
        }
    }

    /// Something was offered, or is being fetched: it is to be looked at again soon.
    pub(crate) fn is_busy(&self, in_force: impl Fn(&str) -> Option<u64>) -> bool {
        let is_wanted = |offer: &AllowlistOffer| self.wants(offer, &in_force);
        self.fetching.is_some() || self.fetched.is_some() || self.offers.iter().any(is_wanted)
    }

    /// A list that is whole.
    pub(crate) fn take_fetched(&mut self) -> Option<Fetched> {
        self.fetched.take()
    }

    /// It was fetched and is of no use: it is not fetched again.
    pub(crate) fn refuse(&mut self, fingerprint: Digest) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.remove(0);
        }
        self.refused.push(fingerprint);
    }
}

impl Fetching {
    fn next(&mut self, now: Instant) -> FetchAllowlist {
        self.asked_at = Some(now);
        FetchAllowlist {
            fingerprint: self.list.fingerprint.to_vec(),
            offset: self.list.bytes.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(name: &str, serial: u64, size: u64) -> AllowlistOffer {
        AllowlistOffer {
            name: name.into(),
            serial,
            size,
            fingerprint: vec![serial as u8; 32],
        }
    }

    fn part(serial: u8, offset: u64, bytes: &'static [u8]) -> AllowlistPart {
        AllowlistPart {
            fingerprint: vec![serial; 32],
            offset,
            bytes: bytes.into(),
        }
    }

    fn delivery(now: Instant, offers: &[AllowlistOffer]) -> Delivery {
        let mut delivery = Delivery::new(vec!["gold".into()], 100);
        delivery.offered(offers.to_vec(), now);
        delivery
    }

    /// Serial and offset of what is asked for, when `in_force` is.
    fn asked(delivery: &mut Delivery, in_force: Option<u64>, now: Instant) -> Option<(u8, u64)> {
        let fetch = delivery.ask(|_| in_force, Duration::ZERO, now)?;
        Some((fetch.fingerprint[0], fetch.offset))
    }

    #[test]
    fn only_what_is_wanted_and_newer_is_fetched() {
        let now = Instant::now();
        let check = |offer: AllowlistOffer, in_force, expected| {
            let mut delivery = delivery(now, &[offer]);
            assert_eq!(asked(&mut delivery, in_force, now), expected);
        };
        check(offer("gold", 3, 10), None, Some((3, 0)));
        check(offer("gold", 3, 10), Some(2), Some((3, 0)));
        check(offer("gold", 3, 10), Some(3), None);
        check(offer("other", 3, 10), None, None);
        check(offer("gold", 3, 101), None, None);
        let nameless = AllowlistOffer {
            fingerprint: vec![1; 5],
            ..offer("gold", 3, 10)
        };
        check(nameless, None, None);
    }

    #[test]
    fn piece_by_piece_and_again_where_none_comes() {
        let now = Instant::now();
        let mut it = delivery(now, &[offer("gold", 3, 10)]);
        assert_eq!(asked(&mut it, None, now), Some((3, 0)));
        assert_eq!(asked(&mut it, None, now), None, "one at a time");
        let later = now + ASK_AGAIN;
        assert_eq!(asked(&mut it, None, later), Some((3, 0)));
        assert_eq!(it.part(&part(3, 0, b"12345678"), now).unwrap().offset, 8);
        assert!(it.part(&part(3, 0, b"12345678"), now).is_none(), "twice");
        assert!(it.part(&part(9, 8, b"90"), now).is_none(), "another list");
        it.link_lost();
        it.offered(vec![offer("gold", 3, 10)], now);
        assert_eq!(asked(&mut it, None, now), Some((3, 8)), "goes on");
        assert!(it.part(&part(3, 8, b"90"), now).is_none());
        assert_eq!(asked(&mut it, None, later), None);
        let fetched = it.take_fetched().unwrap();
        assert_eq!(
            (&fetched.name[..], &fetched.bytes[..]),
            ("gold", &b"1234567890"[..])
        );
        it.refuse(fetched.fingerprint);
        assert_eq!(asked(&mut it, None, later), None, "refused for good");
    }

    #[test]
    fn what_is_not_as_offered_is_dropped() {
        let now = Instant::now();
        for bytes in [&b""[..], b"more than was said"] {
            let mut it = delivery(now, &[offer("gold", 3, 10)]);
            asked(&mut it, None, now).unwrap();
            assert!(it.part(&part(3, 0, bytes), now).is_none());
            assert_eq!(asked(&mut it, None, now), None);
            it.offered(vec![offer("gold", 4, 10)], now);
            assert_eq!(asked(&mut it, None, now), Some((4, 0)));
        }
    }

    #[test]
    fn a_fleet_does_not_come_all_at_once() {
        let now = Instant::now();
        let mut it = delivery(now, &[offer("gold", 3, 10)]);
        let spread = Duration::from_secs(7);
        assert!(it.ask(|_| None, spread, now).is_none());
        assert!(it.ask(|_| None, spread, now + spread).is_some());
    }
}
