//! How often one address may try to join, and how many may take long about it. No clock: `now` comes
//! in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Attempts by address: so many at once, then so many a minute.
#[derive(Debug)]
pub(crate) struct Visitors {
    /// When each address has all its attempts back.
    rested_at: HashMap<IpAddr, Instant>,
    step: Duration,
    burst: Duration,
    addresses_max: usize,
}

impl Visitors {
    pub(crate) fn new(burst: u32, per_minute: u32, addresses_max: usize) -> Self {
        let step = Duration::from_secs(60) / per_minute.max(1);
        Self {
            rested_at: HashMap::new(),
            step,
            burst: step * burst.max(1),
            addresses_max: addresses_max.max(1),
        }
    }

    /// Whether this address may try now; counts the attempt where it may.
    pub(crate) fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        let rested_at = self.rested_at.get(&address).copied();
        let next = rested_at.unwrap_or(now).max(now) + self.step;
        if next.duration_since(now) > self.burst {
            return false;
        }
        if rested_at.is_none() && self.rested_at.len() >= self.addresses_max {
            self.forget(now);
        }
        self.rested_at.insert(address, next);
        true
    }

    /// Forgets those that have rested; where none has, the one that rests first.
    fn forget(&mut self, now: Instant) {
        self.rested_at.retain(|_, rested_at| *rested_at > now);
        if self.rested_at.len() >= self.addresses_max {
            let first = self.rested_at.iter().min_by_key(|(_, at)| **at);
            if let Some(address) = first.map(|(address, _)| *address) {
                self.rested_at.remove(&address);
            }
        }
    }
}

/// Those who show something that takes them long: so many at once, and so many of one address.
#[derive(Debug)]
pub(crate) struct Showing {
    max: usize,
    max_per_address: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    showing: Arc<Showing>,
    address: IpAddr,
}

impl Showing {
    pub(crate) fn new(max: usize, max_per_address: usize) -> Self {
        Self {
            max,
            max_per_address,
            by_address: Mutex::default(),
        }
    }

    /// `None`: there is no place now.
    pub(crate) fn place(showing: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut by_address = showing.lock();
        let all: usize = by_address.values().sum();
        let own = by_address.get(&address).copied().unwrap_or(0);
        if all >= showing.max || own >= showing.max_per_address {
            return None;
        }
        by_address.insert(address, own + 1);
        Some(Place {
            showing: Arc::clone(showing),
            address,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.showing.lock();
        let left = by_address.get(&self.address).copied().unwrap_or(0);
        if left > 1 {
            by_address.insert(self.address, left - 1);
        } else {
            by_address.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_few_of_one_address_and_come_back() {
        let showing = Arc::new(Showing::new(3, 2));
        let place = |n| Showing::place(&showing, address(n));
        let (first, second) = (place(1).unwrap(), place(1).unwrap());
        assert!(place(1).is_none(), "two of one address");
        let third = place(2).unwrap();
        assert!(place(3).is_none(), "three in all");
        drop(first);
        let again = place(1).unwrap();
        drop((second, third, again));
        assert!(showing.lock().is_empty());
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn a_burst_then_a_rate_for_each_address_alone() {
        let start = Instant::now();
        let mut visitors = Visitors::new(3, 60, 10);
        let admitted = |visitors: &mut Visitors, n, now| {
            (0..10).filter(|_| visitors.admit(address(n), now)).count()
        };
        assert_eq!(admitted(&mut visitors, 1, start), 3);
        assert_eq!(admitted(&mut visitors, 2, start), 3);
        let later = start + Duration::from_secs(2);
        assert_eq!(admitted(&mut visitors, 1, later), 2);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!(admitted(&mut visitors, 1, much_later), 3);
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut visitors = Visitors::new(3, 60, 10);
        for n in 0..1000 {
            assert!(visitors.admit(address(n), start));
            assert!(visitors.rested_at.len() <= 10);
        }
    }
}
