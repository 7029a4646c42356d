//! Appliances: they come, go, drain and die.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::choose::Slot;
use crate::fleet::{Appliance, Fleet, Host, Location};
use crate::lists::Cause;
use crate::{ApplianceFacts, ApplianceId, Availability, HostId, VmId};

impl Fleet {
    /// An appliance appeared (down, until [`Self::set_availability`]) or changed.
    pub fn put_appliance(&mut self, now: Duration, id: ApplianceId, facts: ApplianceFacts) {
        self.at(now);
        let slot = match self.slots.get(&id) {
            Some(slot) => *slot,
            None => {
                let slot = self.appliances.len();
                self.slots.insert(id, slot);
                self.appliances.push(Appliance {
                    id,
                    facts: facts.clone(),
                    location: Location::default(),
                    availability: Availability::Down,
                    queue_ms: 0,
                    slow_since: None,
                    weight: 0,
                    load: 0,
                    vms: BTreeSet::new(),
                    backs: BTreeSet::new(),
                });
                slot
            }
        };
        let old = self.appliances[slot].facts.host;
        if let Some(host) = old.and_then(|host| self.hosts.get_mut(&host)) {
            host.appliances.retain(|other| *other != slot);
        }
        if let Some(host) = facts.host {
            self.ensure_host(host).appliances.push(slot);
        }
        self.appliances[slot].facts = facts;
        self.weights_stale = true;
        self.locate(slot);
        self.at(now);
    }

    pub(crate) fn ensure_host(&mut self, id: HostId) -> &mut Host {
        let host = self.hosts.entry(id).or_default();
        host.location.host = Some(id);
        host
    }

    /// Puts an appliance where its host is.
    pub(crate) fn locate(&mut self, slot: Slot) {
        let facts = self.appliances[slot].facts.clone();
        let of_host = facts.host.and_then(|host| self.hosts.get(&host));
        let of_host = of_host.map(|host| host.location).unwrap_or_default();
        let location = Location {
            host: facts.host,
            cluster: of_host
                .cluster
                .or_else(|| self.name(facts.cluster.as_ref())),
            site: of_host.site.or_else(|| self.name(facts.site.as_ref())),
        };
        let old = std::mem::replace(&mut self.appliances[slot].location, location);
        for (by, old, new) in [
            (&mut self.by_cluster, old.cluster, location.cluster),
            (&mut self.by_site, old.site, location.site),
        ] {
            if let Some(slots) = old.and_then(|old| by.get_mut(&old)) {
                slots.retain(|other| *other != slot);
            }
            if let Some(new) = new {
                by.entry(new).or_default().push(slot);
            }
        }
    }

    /// Whether an appliance takes guests, as its stream or an administrator says. A death places
    /// its VMs anew at once; a drain goes on with [`Self::tick`].
    pub fn set_availability(&mut self, now: Duration, id: ApplianceId, to: Availability) {
        self.at(now);
        let Some(slot) = self.slots.get(&id).copied() else {
            return;
        };
        let from = std::mem::replace(&mut self.appliances[slot].availability, to);
        if from == to {
            return;
        }
        self.weights_stale = true;
        if from == Availability::Down {
            let is_late = self.warm_until.is_some_and(|until| self.now >= until);
            self.appliances[slot].slow_since = is_late.then_some(self.now);
        }
        self.at(now);
        match to {
            Availability::Down => self.lose(slot),
            Availability::Up => self.welcome(slot),
            Availability::Draining => {
                let backs = self.appliances[slot].backs.clone();
                self.stale_lists.extend(backs);
            }
        }
    }

    /// Its VMs go elsewhere; they have failed over by themselves meanwhile.
    fn lose(&mut self, slot: Slot) {
        for vm in self.appliances[slot].vms.clone() {
            self.place(vm, Cause::ApplianceDown);
        }
        let backs = self.appliances[slot].backs.clone();
        self.stale_lists.extend(backs);
    }

    /// Whoever has no appliance gets this one at once; whoever is nearer to it than to its own
    /// may come home, within the budget.
    fn welcome(&mut self, slot: Slot) {
        for vm in std::mem::take(&mut self.homeless) {
            self.place(vm, Cause::Started);
        }
        self.stale_lists.extend(self.short_lists.iter().copied());
        let here = self.appliances[slot].location;
        let others = |slots: Option<&Vec<Slot>>| slots.is_some_and(|slots| slots.len() > 1);
        let is_first_on_site = here
            .site
            .is_some_and(|site| !others(self.by_site.get(&site)));
        let hosts = if is_first_on_site {
            here.site.and_then(|site| self.hosts_by_site.get(&site))
        } else {
            here.cluster
                .and_then(|cluster| self.hosts_by_cluster.get(&cluster))
        };
        let own = here.host.filter(|_| hosts.is_none());
        let hosts: Vec<HostId> = hosts.into_iter().flatten().copied().chain(own).collect();
        for host in hosts {
            let vms = self.hosts.get(&host).map(|host| &host.vms);
            let vms: Vec<VmId> = vms.into_iter().flatten().copied().collect();
            for vm in vms {
                self.note_displaced(vm);
            }
        }
    }

    /// An appliance is gone for good.
    pub fn remove_appliance(&mut self, now: Duration, id: ApplianceId) {
        self.set_availability(now, id, Availability::Down);
        let Some(slot) = self.slots.get(&id).copied() else {
            return;
        };
        let host = self.appliances[slot].facts.host.take();
        if let Some(host) = host.and_then(|host| self.hosts.get_mut(&host)) {
            host.appliances.retain(|other| *other != slot);
        }
        (
            self.appliances[slot].facts.cluster,
            self.appliances[slot].facts.site,
        ) = (None, None);
        self.locate(slot);
        for vm in self.vms.values_mut() {
            vm.attached.take_if(|to| *to == slot);
        }
    }

    /// How long an appliance's queue holds scans up.
    pub fn set_queue(&mut self, now: Duration, id: ApplianceId, queue_ms: u32) {
        self.at(now);
        if let Some(slot) = self.slots.get(&id).copied() {
            self.appliances[slot].queue_ms = queue_ms;
        }
    }
}
