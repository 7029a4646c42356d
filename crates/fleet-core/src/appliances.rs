//! Appliances: who is there, who drains, who is silent.

use std::collections::BTreeSet;

use placement::{ApplianceFacts, ApplianceId, Availability, HostId};

use crate::core::{Clock, Core};
use crate::rows::{Row, StoredAppliance};

/// What an appliance says of itself when its stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplianceHello {
    /// Its name, from its certificate.
    pub name: String,
    /// How guests reach it, as host:port.
    pub address: String,
    /// The host it runs on, by the name or id that a connector gives it. Unset: it does not know.
    pub host_name: Option<String>,
    /// Where it is, if no host says so.
    pub cluster: Option<String>,
    /// Where it is, if no host says so.
    pub site: Option<String>,
    /// Average VMs that it can carry. Never 0.
    pub capacity: u64,
    /// What rules call it.
    pub labels: Vec<String>,
}

impl Core {
    /// An appliance's stream is up. Its guests are told next.
    pub fn appliance_up(&mut self, clock: Clock, hello: ApplianceHello) -> ApplianceId {
        let known = self.appliance_ids.get(&hello.name).copied();
        let id = match known {
            Some(id) => id,
            None => ApplianceId(self.next_id()),
        };
        let old = self.appliances.get(&id);
        let stored = StoredAppliance {
            id: id.0,
            name: hello.name,
            address: hello.address,
            host_name: hello.host_name,
            cluster: hello.cluster,
            site: hello.site,
            capacity: hello.capacity.max(1),
            labels: hello.labels,
            draining: old.is_some_and(|old| old.draining),
        };
        let old_address = old.map(|old| old.address.clone());
        if old != Some(&stored) {
            if let Some(address) = &old_address {
                self.by_address.remove(address);
            }
            self.appliance_ids.insert(stored.name.clone(), id);
            self.by_address.insert(stored.address.clone(), id);
            self.appliances.insert(id, stored.clone());
            self.write(Row::Appliance(stored.clone()));
            self.tell_of_appliance(clock, id);
            if old_address.is_some_and(|address| address != stored.address) {
                self.readdress(id);
            }
        }
        self.down_at.remove(&id);
        if self.connected.insert(id) {
            let kind = if known.is_some() {
                "appliance_up"
            } else {
                "appliance_new"
            };
            self.event(clock, kind, stored.name.clone());
        } else {
            // A newer stream took the older one's place: it tells all of its guests anew, and whoever
            // left meanwhile is not among them.
            self.guests_lost(clock, id);
        }
        let to = if stored.draining {
            Availability::Draining
        } else {
            Availability::Up
        };
        self.fleet.set_availability(clock.now, id, to);
        id
    }

    /// An appliance's stream ended. `said_goodbye`: it stops, so nothing is to be waited for.
    pub fn appliance_lost(&mut self, clock: Clock, id: ApplianceId, said_goodbye: bool) {
        if !self.connected.remove(&id) {
            return;
        }
        self.guests_lost(clock, id);
        if said_goodbye {
            self.appliance_down(clock, id);
        } else {
            self.down_at.insert(id, clock.now + self.silence.appliance);
        }
    }

    fn appliance_down(&mut self, clock: Clock, id: ApplianceId) {
        self.down_at.remove(&id);
        if let Some(stored) = self.appliances.get(&id) {
            let name = stored.name.clone();
            self.event(clock, "appliance_down", name);
        }
        self.fleet
            .set_availability(clock.now, id, Availability::Down);
    }

    pub(crate) fn silent_appliances(&mut self, clock: Clock) {
        let due = self.down_at.iter().filter(|(_, at)| **at <= clock.now);
        let due: Vec<ApplianceId> = due.map(|(id, _)| *id).collect();
        for id in due {
            self.appliance_down(clock, id);
        }
    }

    /// What an appliance is called.
    #[must_use]
    pub fn appliance_name(&self, id: ApplianceId) -> Option<&str> {
        self.appliances.get(&id).map(|stored| stored.name.as_str())
    }

    /// How long an appliance's queue holds scans up.
    pub fn appliance_queue(&mut self, clock: Clock, id: ApplianceId, queue_ms: u32) {
        self.fleet.set_queue(clock.now, id, queue_ms);
    }

    /// An administrator drains an appliance, or takes that back. False: no such appliance.
    pub fn order_drain(&mut self, clock: Clock, id: ApplianceId, on: bool) -> bool {
        let Some(stored) = self.appliances.get_mut(&id) else {
            return false;
        };
        stored.draining = on;
        let stored = stored.clone();
        let kind = if on {
            "appliance_drains"
        } else {
            "appliance_available"
        };
        self.event(clock, kind, stored.name.clone());
        self.write(Row::Appliance(stored));
        if self.connected.contains(&id) || self.down_at.contains_key(&id) {
            let to = if on {
                Availability::Draining
            } else {
                Availability::Up
            };
            self.fleet.set_availability(clock.now, id, to);
        }
        true
    }

    /// An appliance is no more. False: there is no such appliance, or its stream is up.
    pub fn forget_appliance(&mut self, clock: Clock, id: ApplianceId) -> bool {
        if self.connected.contains(&id) {
            return false;
        }
        let Some(stored) = self.appliances.remove(&id) else {
            return false;
        };
        self.appliance_ids.remove(&stored.name);
        self.by_address.remove(&stored.address);
        self.down_at.remove(&id);
        self.fleet.remove_appliance(clock.now, id);
        self.appliance_channels(clock, id, &BTreeSet::new());
        self.event(clock, "appliance_gone", stored.name);
        self.write(Row::ApplianceGone(id.0));
        true
    }

    /// Tells placement of an appliance as it is now.
    pub(crate) fn tell_of_appliance(&mut self, clock: Clock, id: ApplianceId) {
        let Some(stored) = self.appliances.get(&id) else {
            return;
        };
        let host = stored
            .host_name
            .as_deref()
            .and_then(|name| self.host_named(name));
        let facts = ApplianceFacts {
            host,
            cluster: stored.cluster.clone(),
            site: stored.site.clone(),
            capacity: stored.capacity.saturating_mul(crate::core::WEIGHT),
            labels: stored.labels.clone(),
        };
        self.fleet.put_appliance(clock.now, id, facts);
    }

    /// A host appeared: appliances that named it are on it.
    pub(crate) fn settle_appliances(&mut self, clock: Clock, id: HostId) {
        let Some(host) = self.hosts.get(&id) else {
            return;
        };
        let names = [host.record.name.clone(), host.record.id.clone()];
        let here = self.appliances.iter().filter(|(_, stored)| {
            stored
                .host_name
                .as_ref()
                .is_some_and(|name| names.contains(name))
        });
        let here: Vec<ApplianceId> = here.map(|(id, _)| *id).collect();
        for id in here {
            self.tell_of_appliance(clock, id);
        }
    }

    /// The host of that name or id; `None` where there is none, or more than one.
    fn host_named(&self, name: &str) -> Option<HostId> {
        let fits = |host: &crate::StoredHost| host.record.name == name || host.record.id == name;
        let mut hosts = self.hosts.iter().filter(|(_, host)| fits(host));
        let (id, _) = hosts.next()?;
        hosts.next().is_none().then_some(*id)
    }
}
