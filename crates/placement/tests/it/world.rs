//! A fleet to try things on.

use std::time::Duration;

use placement::{
    ApplianceFacts, ApplianceId, Availability, Fleet, HostFacts, HostId, Settings, VmFacts, VmId,
};

pub(crate) fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn on(host: u64) -> VmFacts {
    VmFacts {
        host: Some(HostId(host)),
        ..VmFacts::default()
    }
}

/// `sites` × `clusters` × `hosts`; an appliance on every `each`th host, with room for 60 VMs.
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) hosts: u64,
    pub(crate) hosts_per_cluster: u64,
}

impl World {
    pub(crate) fn new(sites: u64, clusters: u64, hosts: u64, each: u64) -> Self {
        let mut fleet = Fleet::new(Settings::default(), 7, 1);
        let total = sites * clusters * hosts;
        for host in 0..total {
            let facts = HostFacts {
                cluster: Some(format!("c{}", host / hosts)),
                site: Some(format!("s{}", host / hosts / clusters)),
                maintenance: false,
            };
            fleet.put_host(at(0), HostId(host), facts);
        }
        for host in (0..total).step_by(usize::try_from(each).unwrap()) {
            let id = ApplianceId(host);
            fleet.put_appliance(at(0), id, appliance_on(host));
            fleet.set_availability(at(0), id, Availability::Up);
        }
        Self {
            fleet,
            hosts: total,
            hosts_per_cluster: hosts,
        }
    }

    /// `per_host` VMs on each host.
    pub(crate) fn fill(&mut self, per_host: u64) {
        for vm in 0..self.hosts * per_host {
            let host = vm % self.hosts;
            self.fleet.put_vm(at(0), VmId(vm), on(host));
        }
    }

    /// The first appliance of a VM.
    pub(crate) fn first(&self, vm: u64) -> Option<u64> {
        let placement = self.fleet.placement(VmId(vm))?;
        placement.appliances.first().map(|id| id.0)
    }
}

pub(crate) fn appliance_on(host: u64) -> ApplianceFacts {
    ApplianceFacts {
        host: Some(HostId(host)),
        cluster: None,
        site: None,
        capacity: 60_000,
        labels: vec![
            if host.is_multiple_of(2) {
                "even"
            } else {
                "odd"
            }
            .to_owned(),
        ],
    }
}
