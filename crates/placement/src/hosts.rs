//! Hosts: they come, change and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::fleet::{Fleet, Location};
use crate::lists::Cause;
use crate::{HostFacts, HostId};

impl Fleet {
    /// A host appeared or changed.
    pub fn put_host(&mut self, now: Duration, id: HostId, facts: HostFacts) {
        self.at(now);
        let location = Location {
            host: Some(id),
            cluster: self.name(facts.cluster.as_ref()),
            site: self.name(facts.site.as_ref()),
        };
        let host = self.hosts.entry(id).or_default();
        if host.facts == facts && host.location == location {
            return;
        }
        let old = std::mem::replace(&mut host.location, location);
        host.facts = facts;
        let (slots, vms) = (host.appliances.clone(), host.vms.clone());
        index(
            &mut self.hosts_by_cluster,
            old.cluster,
            location.cluster,
            id,
        );
        index(&mut self.hosts_by_site, old.site, location.site, id);
        if old == location {
            // Maintenance: the tick drains, or may place here again.
            self.stale_lists.extend(self.short_lists.iter().copied());
            return;
        }
        for slot in slots {
            self.locate(slot);
        }
        for vm in vms {
            self.place(vm, Cause::Migrated);
        }
    }

    /// A host is gone. Its VMs are nowhere for now, and keep their lists; its appliances stay
    /// what they are.
    pub fn remove_host(&mut self, now: Duration, id: HostId) {
        self.at(now);
        let Some(host) = self.hosts.remove(&id) else {
            return;
        };
        index(&mut self.hosts_by_cluster, host.location.cluster, None, id);
        index(&mut self.hosts_by_site, host.location.site, None, id);
        for vm in host.vms {
            if let Some(vm) = self.vms.get_mut(&vm) {
                vm.facts.host = None;
            }
        }
        for slot in host.appliances {
            self.appliances[slot].facts.host = None;
            self.locate(slot);
        }
    }
}

fn index(
    by: &mut BTreeMap<u32, BTreeSet<HostId>>,
    old: Option<u32>,
    new: Option<u32>,
    host: HostId,
) {
    if let Some(hosts) = old.and_then(|old| by.get_mut(&old)) {
        hosts.remove(&host);
    }
    if let Some(new) = new {
        by.entry(new).or_default().insert(host);
    }
}
