//! A VM that moves takes its leases along, as far as there is room for them.

use std::time::Duration;

use super::{Admission, Job, Lease, LeaseId, uses};
use crate::HostId;

/// Where work is done, and what it shares there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The host.
    pub host: HostId,
    /// The datastore. Unset: one of its own.
    pub datastore: Option<u64>,
    /// The site's link. Unset: none that is shared.
    pub link: Option<u64>,
}

/// What became of a lease whose VM moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// It is charged where the VM is now. It may begin later than it would have.
    Kept,
    /// There is no room: it is over. Work that has begun must stop.
    Over,
}

impl Admission {
    /// Charges a lease to where its VM is now, and no longer to where it was. Work that has begun
    /// goes on where there is room for the rest of it; what has not begun may be put off within
    /// its window.
    pub fn follow(&mut self, now: Duration, id: LeaseId, to: Place) -> Followed {
        let Some(lease) = self.leases.get(&id).copied() else {
            return Followed::Over;
        };
        if now >= lease.ends {
            self.release(now, id);
            return Followed::Over;
        }
        if lease.job.place() == to {
            return Followed::Kept;
        }
        self.release(now, id);
        match self.place_at(now, &lease, to) {
            Some(moved) => {
                self.enter(moved);
                Followed::Kept
            }
            None => Followed::Over,
        }
    }

    /// The same lease there: at the same time, or else later, or else whenever there is room.
    fn place_at(&self, now: Duration, lease: &Lease, to: Place) -> Option<Lease> {
        let job = Job {
            host: to.host,
            datastore: to.datastore,
            link: to.link,
            ..lease.job
        };
        let first = self.step_of(lease.begins).max(self.step_of(now));
        let length = self.step_of(lease.ends).checked_sub(first)?;
        let as_it_is = Lease {
            job,
            begins: self.time_of(first),
            ..*lease
        };
        if self.first_free(&uses(&job), first, first, length).is_some() {
            return Some(as_it_is);
        }
        if lease.has_begun {
            return None;
        }
        let later = Job {
            not_before: lease.begins,
            ..job
        };
        let begins = self.find(now, &later).or_else(|_| self.find(now, &job));
        Some(self.lease_for(lease.id, job, begins.ok()?))
    }
}

impl Job {
    /// Where it is done.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            host: self.host,
            datastore: self.datastore,
            link: self.link,
        }
    }
}
