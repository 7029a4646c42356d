//! Storm control: work on shared resources needs a lease.
//!
//! A lease is a reserved piece of time on every resource that the work uses: the processor of its
//! host, its datastore's reads, its site's link. It begins at a moment that differs from guest to
//! guest within the window that was asked for, and ends by the window's end; what is reserved at
//! any moment never exceeds a budget. So a lease that is given is a deadline that is met.

mod boot;
mod calendar;
mod follow;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use boot::{BootPolicy, BootStorms, Started};
pub use follow::{Followed, Place};

use crate::rendezvous::mix;
use crate::{HostId, VmId};
use calendar::Calendar;

/// What work uses while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_milli: u32,
    /// Reads from the datastore, MiB a second.
    pub read_mib_s: u32,
    /// On the network, MiB a second.
    pub link_mib_s: u32,
}

impl Resources {
    fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            read_mib_s: self.read_mib_s.saturating_add(other.read_mib_s),
            link_mib_s: self.link_mib_s.saturating_add(other.link_mib_s),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            read_mib_s: self.read_mib_s.saturating_sub(other.read_mib_s),
            link_mib_s: self.link_mib_s.saturating_sub(other.link_mib_s),
        }
    }

    fn fits(self, limit: Self) -> bool {
        self.cpu_milli <= limit.cpu_milli
            && self.read_mib_s <= limit.read_mib_s
            && self.link_mib_s <= limit.link_mib_s
    }

    fn only_reads(self) -> Self {
        Self {
            read_mib_s: self.read_mib_s,
            ..Self::default()
        }
    }

    fn only_link(self) -> Self {
        Self {
            link_mib_s: self.link_mib_s,
            ..Self::default()
        }
    }
}

/// What is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A host: processor, reads, link.
    Host(HostId),
    /// A datastore: reads.
    Datastore(u64),
    /// A site's link: network.
    Link(u64),
}

/// The whole policy of storm control, each number with its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StormPolicy {
    /// Of each host. 2 processors, 200 MiB/s read, 100 MiB/s network.
    pub host: Resources,
    /// Of each datastore. 800 MiB/s.
    pub datastore_read_mib_s: u32,
    /// Of each site's link. 400 MiB/s.
    pub site_link_mib_s: u32,
    /// What a scan of one guest is taken to use. Half a processor, 40 MiB/s read, 10 on the network.
    pub scan: Resources,
    /// What a sweep is taken to use. A quarter of a processor, 20 MiB/s read, 5 on the network.
    pub sweep: Resources,
    /// What an update is taken to use. A twentieth of a processor, 5 MiB/s read, 20 on the network.
    pub content_update: Resources,
    /// Leases begin and end at multiples of this. 5 s.
    pub step: Duration,
    /// Nothing is reserved farther ahead. 7 days.
    pub horizon: Duration,
    /// No lease is longer. 12 h.
    pub lease_max: Duration,
    /// Leases at once. 200,000.
    pub leases_max: usize,
}

impl Default for StormPolicy {
    fn default() -> Self {
        Self {
            host: Resources {
                cpu_milli: 2000,
                read_mib_s: 200,
                link_mib_s: 100,
            },
            datastore_read_mib_s: 800,
            site_link_mib_s: 400,
            scan: Resources {
                cpu_milli: 500,
                read_mib_s: 40,
                link_mib_s: 10,
            },
            sweep: Resources {
                cpu_milli: 250,
                read_mib_s: 20,
                link_mib_s: 5,
            },
            content_update: Resources {
                cpu_milli: 50,
                read_mib_s: 5,
                link_mib_s: 20,
            },
            step: Duration::from_secs(5),
            horizon: Duration::from_secs(7 * 24 * 3600),
            lease_max: Duration::from_secs(12 * 3600),
            leases_max: 200_000,
        }
    }
}

impl StormPolicy {
    /// What work of a kind is taken to use: nobody who works says it of himself.
    #[must_use]
    pub fn needs(&self, kind: WorkKind) -> Resources {
        match kind {
            WorkKind::Scan => self.scan,
            WorkKind::Sweep => self.sweep,
            WorkKind::ContentUpdate => self.content_update,
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkKind {
    /// A scan that somebody asked for.
    Scan,
    /// A sweep over what was not scanned yet.
    Sweep,
    /// Rules, lists, software.
    ContentUpdate,
}

impl WorkKind {
    /// A stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Sweep => "sweep",
            Self::ContentUpdate => "content_update",
        }
    }
}

/// Work that asks for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// On which VM.
    pub vm: VmId,
    /// Where that runs.
    pub host: HostId,
    /// Where its disk lies. Unset: on a datastore of its own.
    pub datastore: Option<u64>,
    /// Its site's link. Unset: it uses none that is shared.
    pub link: Option<u64>,
    /// What it is.
    pub kind: WorkKind,
    /// What it uses.
    pub needs: Resources,
    /// How long it takes at most.
    pub takes: Duration,
    /// When it may begin.
    pub not_before: Duration,
    /// When it must have ended.
    pub deadline: Duration,
    /// It comes after the work of others: it begins as late as its deadline allows.
    pub yields: bool,
}

/// Names a lease; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// Time and resources that are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Which.
    pub id: LeaseId,
    /// What for.
    pub job: Job,
    /// When the work begins.
    pub begins: Duration,
    /// When it has to have ended.
    pub ends: Duration,
    /// Somebody was told that the work may begin.
    pub has_begun: bool,
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It could not be done by the deadline even alone.
    #[error("the work takes longer than from its beginning to its deadline")]
    Window,
    /// It is longer than any lease may be.
    #[error("limit lease_max reached")]
    TooLong,
    /// It needs more than a whole budget.
    #[error("the work needs more than a whole budget")]
    TooMuch,
    /// Everything until the deadline is taken.
    #[error("all is taken until the deadline; the work could be done by {by:?}")]
    Full {
        /// The earliest deadline that could be met; `None`: none within the horizon.
        by: Option<Duration>,
    },
    /// As many leases are out as may be.
    #[error("limit leases_max reached")]
    TooMany,
}

/// Who may work when.
#[derive(Debug)]
pub struct Admission {
    policy: StormPolicy,
    seed: u64,
    next_id: u64,
    calendars: BTreeMap<Resource, Calendar>,
    leases: BTreeMap<LeaseId, Lease>,
    /// The same by their ends.
    by_end: BTreeSet<(Duration, LeaseId)>,
    holds: BTreeMap<HostId, Duration>,
    /// No lease begins earlier.
    quiet_until: Duration,
    /// The past was forgotten up to this step.
    forgotten: u64,
}

impl Admission {
    /// Nothing is reserved. `seed` spreads the beginnings. `term` must be higher than any before:
    /// a lease of an earlier one names none of this one.
    #[must_use]
    pub fn new(policy: StormPolicy, seed: u64, term: u32) -> Self {
        Self {
            policy,
            seed,
            next_id: u64::from(term) << 32,
            calendars: BTreeMap::new(),
            leases: BTreeMap::new(),
            by_end: BTreeSet::new(),
            holds: BTreeMap::new(),
            quiet_until: Duration::ZERO,
            forgotten: 0,
        }
    }

    /// The numbers.
    #[must_use]
    pub fn policy(&self) -> &StormPolicy {
        &self.policy
    }

    /// A lease that is out.
    #[must_use]
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// No lease begins before that: those of an earlier term, which nobody knows any more, may last
    /// so long.
    pub fn hold_all(&mut self, until: Duration) {
        self.quiet_until = until;
    }

    /// Reserves time for a job.
    ///
    /// # Errors
    /// [`Refused`]; nothing is reserved then.
    pub fn reserve(&mut self, now: Duration, job: Job) -> Result<Lease, Refused> {
        self.forget_past(now);
        if self.leases.len() >= self.policy.leases_max {
            return Err(Refused::TooMany);
        }
        let begins = self.find(now, &job)?;
        self.next_id += 1;
        let id = LeaseId(self.next_id);
        Ok(self.write_down(id, job, begins))
    }

    /// Whether the work of a lease may begin: not before its time, and not while its host is held
    /// for a boot storm if it can be done in time after that.
    pub fn begin(&mut self, now: Duration, id: LeaseId) -> Begin {
        let Some(lease) = self.leases.get(&id).copied() else {
            return Begin::Over;
        };
        if now >= lease.ends {
            self.release(now, id);
            return Begin::Over;
        }
        let held = self.holds.get(&lease.job.host).copied();
        let held = held.filter(|until| now < *until && lease.begins < *until && !lease.has_begun);
        if let Some(until) = held {
            let mut later = lease.job;
            later.not_before = later.not_before.max(until);
            self.book(&lease, false);
            let found = self.find(now, &later);
            self.book(&lease, true);
            if let Ok(begins) = found {
                self.book(&lease, false);
                self.write_down(id, lease.job, begins);
                return Begin::NotYet { at: begins };
            }
        }
        if now < lease.begins {
            Begin::NotYet { at: lease.begins }
        } else {
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.has_begun = true;
            }
            Begin::Go { until: lease.ends }
        }
    }

    /// The work is done or given up: what it had left is free again.
    pub fn release(&mut self, now: Duration, id: LeaseId) {
        if let Some(lease) = self.leases.remove(&id) {
            self.by_end.remove(&(lease.ends, id));
            let from = self.step_of(now).max(self.step_of(lease.begins));
            self.book_from(&lease, from, false);
        }
    }

    /// A boot storm: background work on this host waits until then where it can.
    pub fn hold(&mut self, host: HostId, until: Duration) {
        let held = self.holds.entry(host).or_default();
        *held = until.max(*held);
    }

    /// Leases that are out, past ones aside.
    pub fn leases(&mut self, now: Duration) -> Vec<Lease> {
        self.forget_past(now);
        self.leases.values().copied().collect()
    }

    /// What is reserved of a resource at a moment, and its budget.
    #[must_use]
    pub fn reserved(&self, resource: Resource, at: Duration) -> (Resources, Resources) {
        let calendar = self.calendars.get(&resource);
        let step = self.step_of(at);
        let used = calendar.map(|calendar| calendar.used(step));
        (used.unwrap_or_default(), self.limit(resource))
    }

    fn limit(&self, resource: Resource) -> Resources {
        match resource {
            Resource::Host(_) => self.policy.host,
            Resource::Datastore(_) => Resources {
                read_mib_s: self.policy.datastore_read_mib_s,
                ..Resources::default()
            },
            Resource::Link(_) => Resources {
                link_mib_s: self.policy.site_link_mib_s,
                ..Resources::default()
            },
        }
    }

    fn step_of(&self, at: Duration) -> u64 {
        let step = self.policy.step.as_millis().max(1);
        u64::try_from(at.as_millis() / step).unwrap_or(u64::MAX)
    }

    fn time_of(&self, step: u64) -> Duration {
        let millis = u64::try_from(self.policy.step.as_millis().max(1)).unwrap_or(u64::MAX);
        Duration::from_millis(step.saturating_mul(millis))
    }

    /// Steps rounded up.
    fn steps_in(&self, time: Duration) -> u64 {
        let step = self.policy.step.as_millis().max(1);
        u64::try_from(time.as_millis().div_ceil(step)).unwrap_or(u64::MAX)
    }

    /// A beginning that fits everywhere.
    fn find(&self, now: Duration, job: &Job) -> Result<Duration, Refused> {
        if job.takes > self.policy.lease_max {
            return Err(Refused::TooLong);
        }
        let uses = uses(job);
        if uses
            .iter()
            .any(|(resource, needs)| !needs.fits(self.limit(*resource)))
        {
            return Err(Refused::TooMuch);
        }
        let length = self.steps_in(job.takes).max(1);
        let soonest = self.steps_in(job.not_before.max(now));
        // Beginnings are before this step.
        let past = (self.step_of(job.deadline) + 1).saturating_sub(length);
        if past <= soonest {
            return Err(Refused::Window);
        }
        let first = soonest.max(self.steps_in(self.quiet_until));
        let found = (first < past)
            .then(|| {
                if job.yields {
                    return self.last_free(&uses, first, past - 1, length);
                }
                let spread = mix(self.seed ^ mix(job.vm.0) ^ (job.kind as u64));
                let from = first + spread % (past - first);
                let found = self.first_free(&uses, from, past - 1, length);
                found.or_else(|| self.first_free(&uses, first, from, length))
            })
            .flatten();
        if let Some(step) = found {
            return Ok(self.time_of(step));
        }
        let horizon = self.steps_in(now.saturating_add(self.policy.horizon));
        let later = self.first_free(&uses, first.max(past), horizon, length);
        let by = later.map(|step| self.time_of(step + length));
        Err(Refused::Full { by })
    }

    /// The first step in `from..=last` from which on all is free for `length` steps.
    fn first_free(
        &self,
        uses: &[(Resource, Resources)],
        from: u64,
        last: u64,
        length: u64,
    ) -> Option<u64> {
        let mut start = from;
        while start <= last {
            let blocked = uses.iter().filter_map(|(resource, needs)| {
                let calendar = self.calendars.get(resource)?;
                calendar.last_blocked(start..start + length, *needs, self.limit(*resource))
            });
            match blocked.max() {
                Some(step) => start = step + 1,
                None => return Some(start),
            }
        }
        None
    }

    /// The last step in `first..=from` from which on all is free for `length` steps.
    fn last_free(
        &self,
        uses: &[(Resource, Resources)],
        first: u64,
        from: u64,
        length: u64,
    ) -> Option<u64> {
        let mut start = from;
        while start >= first {
            let blocked = uses.iter().filter_map(|(resource, needs)| {
                let calendar = self.calendars.get(resource)?;
                calendar.first_blocked(start..start + length, *needs, self.limit(*resource))
            });
            match blocked.min() {
                Some(step) => start = step.checked_sub(length)?,
                None => return Some(start),
            }
        }
        None
    }

    fn write_down(&mut self, id: LeaseId, job: Job, begins: Duration) -> Lease {
        let lease = self.lease_for(id, job, begins);
        self.enter(lease);
        lease
    }

    fn lease_for(&self, id: LeaseId, job: Job, begins: Duration) -> Lease {
        let length = self.steps_in(job.takes).max(1);
        Lease {
            id,
            job,
            begins,
            ends: self.time_of(self.step_of(begins) + length),
            has_begun: false,
        }
    }

    fn enter(&mut self, lease: Lease) {
        self.book(&lease, true);
        if let Some(old) = self.leases.insert(lease.id, lease) {
            self.by_end.remove(&(old.ends, lease.id));
        }
        self.by_end.insert((lease.ends, lease.id));
    }

    fn book(&mut self, lease: &Lease, takes: bool) {
        let from = self.step_of(lease.begins);
        self.book_from(lease, from, takes);
    }

    fn book_from(&mut self, lease: &Lease, from: u64, takes: bool) {
        let steps = from..self.step_of(lease.ends);
        for (resource, needs) in uses(&lease.job) {
            let calendar = self.calendars.entry(resource).or_default();
            calendar.book(steps.clone(), needs, takes);
            if calendar.is_empty() {
                self.calendars.remove(&resource);
            }
        }
    }

    fn forget_past(&mut self, now: Duration) {
        while let Some((ends, id)) = self.by_end.first().copied()
            && ends <= now
        {
            self.by_end.remove(&(ends, id));
            self.leases.remove(&id);
        }
        let step = self.step_of(now);
        if step == self.forgotten {
            return;
        }
        self.forgotten = step;
        self.calendars.retain(|_, calendar| {
            calendar.forget_before(step);
            !calendar.is_empty()
        });
        self.holds.retain(|_, until| *until > now);
    }
}

/// What [`Admission::begin`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Begin, and be done by then.
    Go {
        /// The end of the lease.
        until: Duration,
    },
    /// Ask again then.
    NotYet {
        /// When it begins.
        at: Duration,
    },
    /// There is no such lease (any more): reserve again.
    Over,
}

/// What a job uses of which resource.
fn uses(job: &Job) -> Vec<(Resource, Resources)> {
    let datastore = job.datastore.map(Resource::Datastore);
    let link = job.link.map(Resource::Link);
    let mut uses = vec![(Resource::Host(job.host), job.needs)];
    uses.extend(datastore.map(|datastore| (datastore, job.needs.only_reads())));
    uses.extend(link.map(|link| (link, job.needs.only_link())));
    uses
}
