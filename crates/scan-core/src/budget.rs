//! What fits: bytes and requests in flight, for each guest and in all, and a byte rate.

use std::collections::HashMap;
use std::time::Duration;

use model::{GuestId, UnscannedReason};

/// The limits, each enforced by [`Budget::reserve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Content held in memory for all guests.
    pub memory_bytes_max: u64,
    /// Content held on disk for all guests.
    pub spool_bytes_max: u64,
    /// Content held for one guest, in memory and on disk.
    pub guest_bytes_in_flight_max: u64,
    /// Of the memory and of the disk, what one guest may hold, in percent.
    pub guest_share_max_percent: u64,
    /// Requests of one guest that hold content.
    pub guest_requests_in_flight_max: u32,
    /// Bytes of content that one guest may send in a second, on average. 0: any.
    pub guest_bytes_per_second: u64,
    /// Bytes that it may send at once after a rest.
    pub guest_burst_bytes: u64,
}

impl BudgetLimits {
    /// Bytes of `max` that one guest may hold.
    #[must_use]
    pub fn guest_share(&self, max: u64) -> u64 {
        let share = u128::from(max) * u128::from(self.guest_share_max_percent) / 100;
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

/// Where content is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Anonymous memory.
    Memory,
    /// An unlinked file.
    Spool,
}

/// The limit that was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `guest_bytes_in_flight_max`
    #[error("limit guest_bytes_in_flight_max reached")]
    GuestBytes,
    /// `guest_share_max_percent`
    #[error("limit guest_share_max_percent reached")]
    GuestShare,
    /// `guest_requests_in_flight_max`
    #[error("limit guest_requests_in_flight_max reached")]
    GuestRequests,
    /// `guest_bytes_per_second`
    #[error("limit guest_bytes_per_second reached")]
    GuestRate,
    /// `memory_bytes_max`
    #[error("limit memory_bytes_max reached")]
    Memory,
    /// `spool_bytes_max`
    #[error("limit spool_bytes_max reached")]
    Spool,
    /// `queue_len_max`
    #[error("limit queue_len_max reached")]
    Queue,
    /// `guest_queue_len_max`
    #[error("limit guest_queue_len_max reached")]
    GuestQueue,
    /// `in_flight_max`
    #[error("limit in_flight_max reached")]
    Checks,
}

impl Refusal {
    /// Every limit, for metrics.
    pub const ALL: [Self; 9] = [
        Self::GuestBytes,
        Self::GuestShare,
        Self::GuestRequests,
        Self::GuestRate,
        Self::Memory,
        Self::Spool,
        Self::Queue,
        Self::GuestQueue,
        Self::Checks,
    ];

    /// The limit's name, as in configuration and metrics.
    #[must_use]
    pub fn limit(self) -> &'static str {
        match self {
            Self::GuestBytes => "guest_bytes_in_flight_max",
            Self::GuestShare => "guest_share_max_percent",
            Self::GuestRequests => "guest_requests_in_flight_max",
            Self::GuestRate => "guest_bytes_per_second",
            Self::Memory => "memory_bytes_max",
            Self::Spool => "spool_bytes_max",
            Self::Queue => "queue_len_max",
            Self::GuestQueue => "guest_queue_len_max",
            Self::Checks => "in_flight_max",
        }
    }

    /// What the file is, then: the guest's own doing is *quota*, everybody's is *overloaded*.
    #[must_use]
    pub fn reason(self) -> UnscannedReason {
        match self {
            Self::GuestBytes
            | Self::GuestShare
            | Self::GuestRequests
            | Self::GuestRate
            | Self::GuestQueue
            | Self::Checks => UnscannedReason::Quota,
            Self::Memory | Self::Queue => UnscannedReason::Overloaded,
            Self::Spool => UnscannedReason::NoSpace,
        }
    }
}

/// A reservation; give it back with [`Budget::release`], once.
#[derive(Debug)]
#[must_use = "a grant that is not released is lost for ever"]
pub struct Grant {
    guest: GuestId,
    place: Place,
    bytes: u64,
}

/// Content in flight, counted.
#[derive(Debug)]
pub struct Budget {
    limits: BudgetLimits,
    memory_bytes: u64,
    spool_bytes: u64,
    guests: HashMap<GuestId, Guest>,
}

#[derive(Debug)]
struct Guest {
    memory_bytes: u64,
    spool_bytes: u64,
    requests: u32,
    bucket: Bucket,
}

impl Guest {
    fn held(&mut self, place: Place) -> &mut u64 {
        match place {
            Place::Memory => &mut self.memory_bytes,
            Place::Spool => &mut self.spool_bytes,
        }
    }
}

impl Budget {
    /// Nothing is in flight.
    #[must_use]
    pub fn new(limits: BudgetLimits) -> Self {
        Self {
            limits,
            memory_bytes: 0,
            spool_bytes: 0,
            guests: HashMap::new(),
        }
    }

    /// Changes the limits; what is in flight stays.
    pub fn set_limits(&mut self, limits: BudgetLimits) {
        self.limits = limits;
    }

    /// Reserves place for content of `bytes`. `now` is the time since any fixed moment.
    ///
    /// # Errors
    /// The first limit hit; nothing is reserved then.
    pub fn reserve(
        &mut self,
        now: Duration,
        guest: GuestId,
        place: Place,
        bytes: u64,
    ) -> Result<Grant, Refusal> {
        let limits = self.limits;
        let (used, max, full) = match place {
            Place::Memory => (
                &mut self.memory_bytes,
                limits.memory_bytes_max,
                Refusal::Memory,
            ),
            Place::Spool => (
                &mut self.spool_bytes,
                limits.spool_bytes_max,
                Refusal::Spool,
            ),
        };
        let account = self.guests.entry(guest).or_insert_with(|| Guest {
            memory_bytes: 0,
            spool_bytes: 0,
            requests: 0,
            bucket: Bucket::full(now, &limits),
        });
        if account.requests >= limits.guest_requests_in_flight_max {
            return Err(Refusal::GuestRequests);
        }
        let held = account.memory_bytes.saturating_add(account.spool_bytes);
        if held.saturating_add(bytes) > limits.guest_bytes_in_flight_max {
            return Err(Refusal::GuestBytes);
        }
        if used.saturating_add(bytes) > max {
            return Err(full);
        }
        if account.held(place).saturating_add(bytes) > limits.guest_share(max) {
            return Err(Refusal::GuestShare);
        }
        if !account.bucket.take(now, bytes, &limits) {
            return Err(Refusal::GuestRate);
        }
        account.requests += 1;
        *account.held(place) += bytes;
        *used += bytes;
        Ok(Grant {
            guest,
            place,
            bytes,
        })
    }

    /// Gives a reservation back.
    pub fn release(&mut self, grant: Grant) {
        let used = match grant.place {
            Place::Memory => &mut self.memory_bytes,
            Place::Spool => &mut self.spool_bytes,
        };
        *used = used.saturating_sub(grant.bytes);
        if let Some(account) = self.guests.get_mut(&grant.guest) {
            let held = account.held(grant.place);
            *held = held.saturating_sub(grant.bytes);
            account.requests = account.requests.saturating_sub(1);
        }
    }

    /// Counts bytes that were sent without a reservation. False: the guest is over its rate.
    pub fn charge(&mut self, now: Duration, guest: GuestId, bytes: u64) -> bool {
        let limits = self.limits;
        self.guests
            .get_mut(&guest)
            .is_none_or(|account| account.bucket.take(now, bytes, &limits))
    }

    /// Forgets guests that have nothing in flight and whose rate has recovered, so that the table
    /// is no larger than what is going on.
    pub fn forget_idle(&mut self, now: Duration) {
        let limits = self.limits;
        self.guests
            .retain(|_, guest| guest.requests > 0 || !guest.bucket.is_full(now, &limits));
    }

    /// Bytes held, in memory and on disk.
    #[must_use]
    pub fn bytes_held(&self) -> (u64, u64) {
        (self.memory_bytes, self.spool_bytes)
    }

    /// Guests that are counted.
    #[must_use]
    pub fn guests(&self) -> usize {
        self.guests.len()
    }
}

/// A token bucket that may go into debt by one request, so that a file larger than the burst can
/// still be sent.
#[derive(Debug)]
struct Bucket {
    tokens: i128,
    at: Duration,
}

impl Bucket {
    fn full(now: Duration, limits: &BudgetLimits) -> Self {
        Self {
            tokens: limits.guest_burst_bytes.into(),
            at: now,
        }
    }

    fn refill(&mut self, now: Duration, limits: &BudgetLimits) {
        let elapsed_us = now.saturating_sub(self.at).as_micros();
        let earned = elapsed_us.saturating_mul(limits.guest_bytes_per_second.into()) / 1_000_000;
        if earned > 0 {
            let earned = i128::try_from(earned).unwrap_or(i128::MAX);
            let burst = i128::from(limits.guest_burst_bytes);
            self.tokens = self.tokens.saturating_add(earned).min(burst);
            self.at = now;
        }
    }

    fn take(&mut self, now: Duration, bytes: u64, limits: &BudgetLimits) -> bool {
        if limits.guest_bytes_per_second == 0 {
            return true;
        }
        self.refill(now, limits);
        if self.tokens <= 0 {
            return false;
        }
        self.tokens -= i128::from(bytes);
        true
    }

    fn is_full(&mut self, now: Duration, limits: &BudgetLimits) -> bool {
        self.refill(now, limits);
        limits.guest_bytes_per_second == 0 || self.tokens >= i128::from(limits.guest_burst_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BudgetLimits = BudgetLimits {
        memory_bytes_max: 100,
        spool_bytes_max: 1000,
        guest_bytes_in_flight_max: 80,
        guest_share_max_percent: 100,
        guest_requests_in_flight_max: 3,
        guest_bytes_per_second: 10,
        guest_burst_bytes: 200,
    };
    const A: GuestId = GuestId([1; 16]);
    const B: GuestId = GuestId([2; 16]);
    const NOW: Duration = Duration::from_secs(5);

    #[test]
    fn each_limit_has_its_refusal() {
        let mut budget = Budget::new(LIMITS);
        let first = budget.reserve(NOW, A, Place::Memory, 70).unwrap();
        let refused = |r: Result<Grant, Refusal>| r.map(drop).unwrap_err();
        assert_eq!(
            refused(budget.reserve(NOW, A, Place::Memory, 11)),
            Refusal::GuestBytes
        );
        assert_eq!(
            refused(budget.reserve(NOW, B, Place::Memory, 31)),
            Refusal::Memory
        );
        let _second = budget.reserve(NOW, A, Place::Memory, 1).unwrap();
        let _third = budget.reserve(NOW, A, Place::Memory, 1).unwrap();
        assert_eq!(
            refused(budget.reserve(NOW, A, Place::Memory, 1)),
            Refusal::GuestRequests
        );
        budget.release(first);
        assert_eq!(budget.bytes_held(), (2, 0));
        let _again = budget.reserve(NOW, A, Place::Memory, 70).unwrap();
    }

    #[test]
    fn spool_is_counted_apart() {
        let mut budget = Budget::new(BudgetLimits {
            guest_bytes_in_flight_max: u64::MAX,
            ..LIMITS
        });
        let _held = budget.reserve(NOW, A, Place::Spool, 1000).unwrap();
        let refused = budget.reserve(NOW, B, Place::Spool, 1).map(drop);
        assert_eq!(refused, Err(Refusal::Spool));
        assert_eq!(Refusal::Spool.reason(), UnscannedReason::NoSpace);
        assert!(budget.reserve(NOW, B, Place::Memory, 1).is_ok());
    }

    #[test]
    fn one_guest_leaves_place_to_the_others() {
        let mut budget = Budget::new(BudgetLimits {
            guest_bytes_in_flight_max: u64::MAX,
            guest_share_max_percent: 25,
            ..LIMITS
        });
        let refused = |r: Result<Grant, Refusal>| r.map(drop).unwrap_err();
        let held = budget.reserve(NOW, A, Place::Memory, 25).unwrap();
        assert_eq!(
            refused(budget.reserve(NOW, A, Place::Memory, 1)),
            Refusal::GuestShare
        );
        assert_eq!(Refusal::GuestShare.reason(), UnscannedReason::Quota);
        let _spooled = budget.reserve(NOW, A, Place::Spool, 250).unwrap();
        let mut budget_of = |guest, place, bytes| budget.reserve(NOW, guest, place, bytes);
        let _others = budget_of(B, Place::Memory, 25).unwrap();
        assert_eq!(
            refused(budget_of(B, Place::Spool, 251)),
            Refusal::GuestShare
        );
        budget.release(held);
        assert!(budget.reserve(NOW, A, Place::Memory, 25).is_err(), "rate");
    }

    #[test]
    fn the_rate_recovers_with_time() {
        let mut budget = Budget::new(LIMITS);
        for _ in 0..3 {
            let grant = budget.reserve(NOW, A, Place::Memory, 80).unwrap();
            budget.release(grant);
        }
        let refused = budget.reserve(NOW, A, Place::Memory, 1).map(drop);
        assert_eq!(refused, Err(Refusal::GuestRate));
        assert!(!budget.charge(NOW, A, 1));
        let later = NOW + Duration::from_secs(5);
        assert!(budget.reserve(later, A, Place::Memory, 1).is_ok());
    }

    #[test]
    fn idle_guests_are_forgotten_but_no_debt_is() {
        let mut budget = Budget::new(LIMITS);
        let grant = budget.reserve(NOW, A, Place::Memory, 80).unwrap();
        budget.forget_idle(NOW + Duration::from_secs(3600));
        assert_eq!(budget.guests(), 1, "a grant is out");
        budget.release(grant);
        budget.forget_idle(NOW + Duration::from_secs(3600));
        assert_eq!(budget.guests(), 0, "the bucket was refilled by the hour");
        let grant = budget.reserve(NOW, A, Place::Memory, 80).unwrap();
        budget.release(grant);
        budget.forget_idle(NOW);
        assert_eq!(budget.guests(), 1, "its rate has not recovered");
    }

    #[test]
    fn every_limit_has_a_name_of_its_own() {
        let names: std::collections::HashSet<_> = Refusal::ALL.map(Refusal::limit).into();
        assert_eq!(names.len(), Refusal::ALL.len());
    }
}
