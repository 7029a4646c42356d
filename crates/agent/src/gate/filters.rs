//! The filter that the appliance offers: how far it is fetched, and which is in hand. No I/O; one
//! piece at a time is asked for, so that a filter never fills the link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use literal_filter::Pack;
use model::FilterId;
use proto::v1::{FetchFilter, FilterOffer, FilterPart};

/// An unanswered question is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Filters that were fetched and are of no use.
const REFUSED_MAX: usize = 64;

/// What is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    id: FilterId,
    size: u64,
    at: Instant,
}

/// A filter as it was sent; nothing of it is verified.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) id: FilterId,
    /// Bytes that it is to have.
    pub(crate) size: u64,
    /// What it is to be applied to.
    pub(crate) base: Option<FilterId>,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug)]
struct Fetching {
    so_far: Fetched,
    /// What the first piece said that all pieces have.
    total: Option<u64>,
    asked_base: Option<FilterId>,
    asked_at: Instant,
}

/// What is offered, fetched, refused and in hand.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    bytes_max: u64,
    offer: Option<Offer>,
    fetching: Option<Fetching>,
    fetched: Option<Fetched>,
    in_hand: Option<Arc<Pack>>,
    /// What is in hand and on disk is to be forgotten.
    unwanted: bool,
    /// Failed as a change of another one: whole the next time.
    whole: Option<FilterId>,
    refused: Vec<FilterId>,
}

impl Filters {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    /// The appliance offers a filter, or says that there is none.
    pub(crate) fn offered(&mut self, offer: &FilterOffer, now: Instant) {
        self.offer = FilterId::from_slice(&offer.filter).map(|id| Offer {
            id,
            size: offer.size,
            at: now,
        });
        self.unwanted |= self.offer.is_none();
        let is_offered = |fetching: &Fetching| {
            let offer = self.offer.as_ref();
            offer.is_some_and(|it| it.id == fetching.so_far.id && it.size == fetching.so_far.size)
        };
        if !self.fetching.as_ref().is_some_and(is_offered) {
            self.fetching = None;
        }
    }

    /// Whether a filter is being fetched, or to be fetched now: `spread` after it was offered.
    pub(crate) fn is_wanted(&self, spread: Duration, now: Instant) -> bool {
        self.fetching.is_some() || self.wanted(spread, now).is_some()
    }

    /// What is to be fetched now.
    fn wanted(&self, spread: Duration, now: Instant) -> Option<Offer> {
        let (offer, left) = self.next_offer(spread, now)?;
        left.is_zero().then_some(offer)
    }

    /// What is offered, can be used and is not in hand, and in how long it is to be fetched.
    fn next_offer(&self, spread: Duration, now: Instant) -> Option<(Offer, Duration)> {
        let offer = self.offer.filter(|it| it.size <= self.bytes_max)?;
        let is_of_use = self.in_force().is_none() && !self.refused.contains(&offer.id);
        let waited = now.saturating_duration_since(offer.at);
        is_of_use.then(|| (offer, spread.saturating_sub(waited)))
    }

    /// What to ask for now, if anything: what is wanted, or again what was not answered.
    pub(crate) fn ask(&mut self, spread: Duration, now: Instant) -> Option<FetchFilter> {
        if self.fetched.is_some() {
            return None;
        }
        if let Some(fetching) = &mut self.fetching {
            let waited = now.saturating_duration_since(fetching.asked_at);
            return (waited >= ASK_AGAIN).then(|| fetching.next(now));
        }
        let offer = self.wanted(spread, now)?;
        let in_hand = self.in_hand.as_ref().map(|pack| FilterId(pack.id()));
        let asked_base = in_hand.filter(|_| self.whole != Some(offer.id));
        let fetching = self.fetching.insert(Fetching {
            so_far: Fetched {
                id: offer.id,
                size: offer.size,
                base: None,
                bytes: Vec::new(),
            },
            total: None,
            asked_base,
            asked_at: now,
        });
        Some(fetching.next(now))
    }

    /// A piece came: the next question, if there is one.
    pub(crate) fn part(&mut self, part: &FilterPart, now: Instant) -> Option<FetchFilter> {
        let fetching = self.fetching.as_mut()?;
        let at = fetching.so_far.bytes.len() as u64;
        if part.filter != fetching.so_far.id.0 || part.offset != at {
            return None;
        }
        if !fetching.takes(part, self.bytes_max) {
            // Replaced meanwhile, or not what was offered: a new offer begins anew.
            self.fetching = None;
            self.offer = None;
            return None;
        }
        let bytes = &mut fetching.so_far.bytes;
        bytes.extend_from_slice(&part.bytes);
        if (bytes.len() as u64) < part.total {
            return Some(fetching.next(now));
        }
        self.fetched = self.fetching.take().map(|fetching| fetching.so_far);
        None
    }

    /// The session ended. Another appliance may offer another filter, or compress it otherwise.
    pub(crate) fn link_lost(&mut self) {
        self.offer = None;
        self.fetching = None;
    }

    /// A filter that is whole.
    pub(crate) fn take_fetched(&mut self) -> Option<Fetched> {
        self.fetched.take()
    }

    /// It was verified, or is what was kept.
    pub(crate) fn take_in_hand(&mut self, pack: Arc<Pack>) {
        self.in_hand = Some(pack);
    }

    /// It was fetched and is of no use: it is not fetched again, but once whole where it came as a
    /// change of another one.
    pub(crate) fn refuse(&mut self, id: FilterId, had_base: bool) {
        if had_base {
            self.whole = Some(id);
            return;
        }
        if self.refused.len() >= REFUSED_MAX {
            self.refused.remove(0);
        }
        self.refused.push(id);
    }

    /// Whether the appliance said that there is no filter (any more), since this was asked last.
    pub(crate) fn take_unwanted(&mut self) -> bool {
        std::mem::take(&mut self.unwanted)
    }

    /// Forgets what is in hand and on its way; what is offered stays offered.
    pub(crate) fn forget(&mut self) {
        self.in_hand = None;
        self.fetching = None;
        self.fetched = None;
    }

    /// What content can be reported by: what is in hand, if it is what the appliance offers.
    pub(crate) fn in_force(&self) -> Option<&Arc<Pack>> {
        let offer = self.offer.as_ref()?;
        self.in_hand.as_ref().filter(|it| it.id() == offer.id.0)
    }

    /// In how long there is something to do; `None`: nothing is, as far as is known.
    pub(crate) fn due_in(&self, spread: Duration, now: Instant) -> Option<Duration> {
        if self.unwanted || self.fetched.is_some() || self.fetching.is_some() {
            return Some(Duration::ZERO);
        }
        self.next_offer(spread, now).map(|(_, left)| left)
    }

    pub(crate) fn in_hand(&self) -> Option<&Arc<Pack>> {
        self.in_hand.as_ref()
    }
}

impl Fetching {
    fn next(&mut self, now: Instant) -> FetchFilter {
        self.asked_at = now;
        FetchFilter {
            filter: self.so_far.id.0.to_vec(),
            offset: self.so_far.bytes.len() as u64,
            base: self.asked_base.map_or_else(Vec::new, |id| id.0.to_vec()),
        }
    }

    /// Notes what the first piece says, to which all others must hold.
    fn takes(&mut self, part: &FilterPart, bytes_max: u64) -> bool {
        let base = FilterId::from_slice(&part.base);
        let at = self.so_far.bytes.len() as u64;
        let is_asked = part.base.is_empty() || base.is_some() && base == self.asked_base;
        if self.total.is_none() && is_asked && part.total <= bytes_max {
            self.total = Some(part.total);
            self.so_far.base = base;
        }
        let left = part.total.saturating_sub(at);
        self.total == Some(part.total)
            && self.so_far.base == base
            && !part.bytes.is_empty()
            && part.bytes.len() as u64 <= left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use literal_filter::{Filter, Literal, Needles};

    const NONE: Duration = Duration::ZERO;

    fn offer(id: u8, size: u64) -> FilterOffer {
        FilterOffer {
            filter: vec![id; 16],
            size,
        }
    }

    fn part(id: u8, offset: u64, bytes: &'static [u8], total: u64) -> FilterPart {
        FilterPart {
            filter: vec![id; 16],
            offset,
            bytes: bytes.into(),
            base: Vec::new(),
            total,
        }
    }

    fn offered(now: Instant, id: u8, size: u64) -> Filters {
        let mut filters = Filters::new(100);
        filters.offered(&offer(id, size), now);
        filters
    }

    fn a_pack(literal: &[u8]) -> (Arc<Pack>, FilterOffer) {
        let bytes = literal.to_vec();
        let nocase = false;
        let filter = Filter::build(&[Literal { bytes, nocase }]).unwrap();
        let bytes = Pack::write(&filter, &Needles::default());
        let pack = Pack::read(&bytes).unwrap();
        let offer = FilterOffer {
            filter: pack.id().to_vec(),
            size: bytes.len() as u64,
        };
        (Arc::new(pack), offer)
    }

    #[test]
    fn piece_by_piece_and_again_where_none_comes() {
        let now = Instant::now();
        let later = now + ASK_AGAIN;
        let mut it = offered(now, 3, 50);
        let first = it.ask(NONE, now).unwrap();
        assert_eq!((&first.filter[..], first.offset), (&[3; 16][..], 0));
        assert!(first.base.is_empty());
        assert_eq!(it.ask(NONE, now), None, "one at a time");
        assert_eq!(it.ask(NONE, later).unwrap().offset, 0);
        assert_eq!(
            it.part(&part(3, 0, b"12345678", 10), later).unwrap().offset,
            8
        );
        assert_eq!(it.part(&part(3, 0, b"12345678", 10), later), None, "twice");
        assert_eq!(it.part(&part(9, 8, b"90", 10), later), None, "another");
        assert_eq!(it.part(&part(3, 8, b"90", 10), later), None);
        assert_eq!(it.ask(NONE, later + ASK_AGAIN), None);
        let fetched = it.take_fetched().unwrap();
        let expected = Fetched {
            id: FilterId([3; 16]),
            size: 50,
            base: None,
            bytes: b"1234567890".to_vec(),
        };
        assert_eq!(fetched, expected);
        it.refuse(fetched.id, false);
        it.offered(&offer(3, 50), later);
        assert_eq!(it.ask(NONE, later), None, "refused for good");
    }

    #[test]
    fn what_is_not_as_offered_is_dropped() {
        let now = Instant::now();
        for bad in [
            part(3, 0, b"", 10),
            part(3, 0, b"more than it says", 10),
            part(3, 0, b"too much in all", 101),
            FilterPart {
                base: vec![7; 16],
                ..part(3, 0, b"a base that nobody has", 50)
            },
        ] {
            let mut it = offered(now, 3, 50);
            it.ask(NONE, now).unwrap();
            assert_eq!(it.part(&bad, now), None);
            assert_eq!((it.take_fetched(), it.ask(NONE, now)), (None, None));
            it.offered(&offer(4, 50), now);
            assert_eq!(it.ask(NONE, now).unwrap().filter, [4; 16]);
        }
        let mut it = offered(now, 3, 50);
        it.ask(NONE, now).unwrap();
        it.part(&part(3, 0, b"12345678", 10), now).unwrap();
        assert_eq!(it.part(&part(3, 8, b"90", 11), now), None, "another total");
        assert_eq!(it.take_fetched(), None);
        assert_eq!(offered(now, 3, 101).ask(NONE, now), None, "too large");
    }

    #[test]
    fn what_is_in_hand_is_the_base_until_that_fails() {
        let now = Instant::now();
        let (old, old_offer) = a_pack(b"an old literal");
        let mut it = Filters::new(100);
        it.take_in_hand(Arc::clone(&old));
        assert!(it.in_force().is_none(), "nobody offers it");
        it.offered(&old_offer, now);
        assert_eq!(it.in_force().map(|it| it.id()), Some(old.id()));
        assert_eq!(it.ask(NONE, now), None);
        it.offered(&offer(3, 50), now);
        assert!(it.in_force().is_none());
        let asked = it.ask(NONE, now).unwrap();
        assert_eq!(asked.base, old.id());
        let delta = FilterPart {
            base: asked.base,
            ..part(3, 0, b"what changed", 12)
        };
        assert_eq!(it.part(&delta, now), None);
        let fetched = it.take_fetched().unwrap();
        assert_eq!(fetched.base, Some(FilterId(old.id())));
        it.refuse(fetched.id, true);
        assert!(it.ask(NONE, now).unwrap().base.is_empty(), "once whole");
        it.link_lost();
        assert_eq!((it.in_force().is_none(), it.ask(NONE, now)), (true, None));
        it.offered(&old_offer, now);
        assert!(it.in_force().is_some());
        it.offered(&FilterOffer::default(), now);
        assert!(it.in_force().is_none() && it.take_unwanted() && !it.take_unwanted());
    }

    #[test]
    fn a_fleet_does_not_come_all_at_once() {
        let now = Instant::now();
        let mut it = offered(now, 3, 10);
        let spread = Duration::from_secs(7);
        assert!(!it.is_wanted(spread, now));
        assert_eq!(it.due_in(spread, now), Some(spread), "nobody looks before");
        assert!(it.ask(spread, now).is_none());
        assert!(it.is_wanted(spread, now + spread));
        assert!(it.ask(spread, now + spread).is_some());
        assert!(it.is_wanted(spread, now), "it is on its way");
    }
}
