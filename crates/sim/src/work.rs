//! Scans and sweeps that run under leases, and what they really use at each moment.

use std::collections::BTreeMap;
use std::time::Duration;

use placement::{Admission, Begin, HostId, Job, Lease, Resources, StormPolicy, VmId, WorkKind};

use crate::random::Random;

pub(crate) struct Work {
    admission: Admission,
    policy: StormPolicy,
    waiting: Vec<Lease>,
    running: Vec<Lease>,
    pub(crate) done: u64,
    pub(crate) late: u64,
}

impl Work {
    pub(crate) fn new(seed: u64) -> Self {
        let policy = StormPolicy::default();
        Self {
            admission: Admission::new(policy.clone(), seed, 1),
            policy,
            waiting: Vec::new(),
            running: Vec::new(),
            done: 0,
            late: 0,
        }
    }

    pub(crate) fn ask(&mut self, random: &mut Random, now: Duration, vm: usize, host: usize) {
        let takes = Duration::from_secs(5 + random.next() % 60);
        let job = Job {
            vm: VmId(vm as u64),
            host: HostId(host as u64),
            datastore: Some(host as u64 / 3),
            link: None,
            kind: WorkKind::Sweep,
            needs: Resources {
                cpu_milli: 200 + u32::try_from(random.next() % 1500).unwrap_or(0),
                read_mib_s: 40,
                link_mib_s: 0,
            },
            takes,
            not_before: now,
            deadline: now + takes + Duration::from_secs(10 + random.next() % 300),
        };
        // What does not fit is refused, and nobody works without a lease.
        self.waiting.extend(self.admission.reserve(now, job).ok());
    }

    pub(crate) fn hold(&mut self, host: usize, until: Duration) {
        self.admission.hold(HostId(host as u64), until);
    }

    pub(crate) fn step(&mut self, now: Duration) {
        let (admission, running) = (&mut self.admission, &mut self.running);
        let late = &mut self.late;
        self.waiting
            .retain(|lease| match admission.begin(now, lease.id) {
                Begin::Go { until } => {
                    *late += u64::from(until > lease.job.deadline);
                    running.push(Lease {
                        begins: now,
                        ends: until,
                        ..*lease
                    });
                    false
                }
                Begin::NotYet { .. } => true,
                Begin::Over => false,
            });
        let before = self.running.len();
        self.running.retain(|lease| lease.ends > now);
        self.done += (before - self.running.len()) as u64;
    }

    /// What runs never uses more than a budget.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut hosts: BTreeMap<HostId, u32> = BTreeMap::new();
        let mut stores: BTreeMap<Option<u64>, u32> = BTreeMap::new();
        for lease in &self.running {
            *hosts.entry(lease.job.host).or_default() += lease.job.needs.cpu_milli;
            *stores.entry(lease.job.datastore).or_default() += lease.job.needs.read_mib_s;
        }
        if let Some((host, used)) = hosts
            .iter()
            .find(|(_, used)| **used > self.policy.host.cpu_milli)
        {
            return Err(format!(
                "host {host} works with {used} thousandths of a processor"
            ));
        }
        let over = |used: &u32| *used > self.policy.datastore_read_mib_s;
        if let Some((store, used)) = stores.iter().find(|(_, used)| over(used)) {
            return Err(format!("datastore {store:?} is read at {used} MiB/s"));
        }
        if self.late > 0 {
            return Err("work went beyond its deadline".to_owned());
        }
        Ok(())
    }
}
