//! What people and programs look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::GuestId;
use placement::{ApplianceId, Availability, Considered, Explanation, HostId, VmId};

use crate::core::Core;
use crate::guests::NO_CONNECTOR;
use crate::rows::{Event, StoredAppliance, StoredHost, StoredVm};

/// A host, as the fleet sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    /// As it is written down.
    pub stored: StoredHost,
    /// VMs on it that are awake.
    pub vms_awake: usize,
    /// VMs on it.
    pub vms: usize,
    /// Names of the appliances on it.
    pub appliances: Vec<String>,
}

/// A VM, as the fleet sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    /// As it is written down.
    pub stored: StoredVm,
    /// Its host's name.
    pub host: Option<String>,
    /// Names of the appliances of its list.
    pub appliances: Vec<String>,
    /// The list's epoch.
    pub epoch: u64,
    /// Why it has that list.
    pub cause: &'static str,
    /// How far its first appliance is: 0 same host, 1 same cluster, 2 same site, 3 anywhere.
    pub tier: Option<u8>,
    /// The appliance that its agent is connected to.
    pub connected_to: Option<String>,
}

/// An appliance, as the fleet sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplianceRow {
    /// As it is written down.
    pub stored: StoredAppliance,
    /// Its host's name.
    pub host: Option<String>,
    /// Whether it takes guests.
    pub availability: Availability,
    /// Its stream is up.
    pub is_connected: bool,
    /// Its load: 1000 for each average VM.
    pub load: u64,
    /// What it takes at most.
    pub bound: u64,
    /// VMs whose first appliance it is.
    pub vms: usize,
    /// How long its queue holds scans up, in milliseconds.
    pub queue_ms: u32,
}

/// Why a VM has its appliance.
#[derive(Debug, Clone, PartialEq)]
pub struct Why {
    /// The VM.
    pub vm: VmRow,
    /// Where measured round trips say it is, where that is another host than the inventory's.
    pub measured_host: Option<String>,
    /// The appliance that it reaches by a channel of the hypervisor, on whose host it is.
    pub attached: Option<String>,
    /// The rule that fits it.
    pub rule: Option<String>,
    /// Appliances as they were weighed.
    pub considered: Vec<WhyAppliance>,
    /// How many more there are.
    pub omitted: usize,
}

/// One appliance as it was weighed.
#[derive(Debug, Clone, PartialEq)]
pub struct WhyAppliance {
    /// Its name.
    pub name: String,
    /// How it was weighed.
    pub considered: Considered,
}

/// A VM, as evidence of what a machine is that asks to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSeen {
    /// Who reports it.
    pub connector: String,
    /// The connector's id of it.
    pub id: String,
    /// Its name; hostile text.
    pub name: String,
    /// It runs, or is being started.
    pub is_running: bool,
    /// Addresses that the hypervisor knows of it.
    pub addresses: BTreeSet<IpAddr>,
    /// Its labels.
    pub tags: BTreeSet<String>,
    /// Its host's cluster.
    pub cluster: Option<String>,
    /// The guest in it.
    pub guest: Option<GuestId>,
}

impl VmSeen {
    /// `None`: no connector reports it.
    #[must_use]
    pub fn of(vm: &StoredVm, cluster: Option<String>) -> Option<Self> {
        (vm.connector != NO_CONNECTOR).then(|| Self {
            connector: vm.connector.clone(),
            id: vm.record.id.clone(),
            name: vm.record.name.clone(),
            is_running: vm.state.is_awake(),
            addresses: vm.record.addresses.clone(),
            tags: vm.record.tags.clone(),
            cluster,
            guest: vm.guest,
        })
    }
}

impl Core {
    /// VMs that connectors report with this uuid.
    #[must_use]
    pub fn vms_with_uuid(&self, uuid: [u8; 16]) -> Vec<VmSeen> {
        let ids = self.by_uuid.get(&uuid).into_iter().flatten();
        ids.filter_map(|id| self.vm_seen(*id)).collect()
    }

    /// A VM that a connector reports.
    #[must_use]
    pub fn vm_seen(&self, id: VmId) -> Option<VmSeen> {
        let vm = self.vms.get(&id)?;
        let host = self.host_of(vm);
        VmSeen::of(vm, host.and_then(|host| host.record.cluster.clone()))
    }

    /// Every host, by name.
    #[must_use]
    pub fn host_rows(&self) -> Vec<HostRow> {
        let mut rows: Vec<HostRow> = self
            .hosts
            .iter()
            .map(|(id, host)| self.host_row(*id, host))
            .collect();
        let mut vms = std::collections::BTreeMap::<HostId, (usize, usize)>::new();
        for vm in self.vms.values() {
            let host = vm.record.host.as_deref();
            if let Some(id) = host.and_then(|host| self.host_id(&vm.connector, host)) {
                let (awake, all) = vms.entry(id).or_default();
                *awake += usize::from(vm.state.is_awake());
                *all += 1;
            }
        }
        for row in &mut rows {
            let counted = vms.get(&HostId(row.stored.id)).copied();
            (row.vms_awake, row.vms) = counted.unwrap_or_default();
        }
        rows.sort_by(|a, b| a.stored.record.name.cmp(&b.stored.record.name));
        rows
    }

    fn host_row(&self, id: HostId, host: &StoredHost) -> HostRow {
        let on_it = self.appliances.iter().filter(|(appliance, _)| {
            self.fleet
                .appliance(**appliance)
                .is_some_and(|view| view.host == Some(id))
        });
        HostRow {
            stored: host.clone(),
            vms_awake: 0,
            vms: 0,
            appliances: on_it.map(|(_, stored)| stored.name.clone()).collect(),
        }
    }

    /// At most `max` VMs, by name, without the first `skip`; those on this host only, where one is
    /// named.
    #[must_use]
    pub fn vm_rows(&self, host: Option<&str>, skip: usize, max: usize) -> Vec<VmRow> {
        let is_asked_for = |vm: &StoredVm| {
            host.is_none() || self.host_of(vm).map(|it| it.record.name.as_str()) == host
        };
        let asked_for = self.vms.iter().filter(|(_, vm)| is_asked_for(vm));
        // A row costs much more than a name: one is made of those that are shown.
        let mut by_name: Vec<(&str, VmId)> = asked_for
            .map(|(id, vm)| (vm.record.name.as_str(), *id))
            .collect();
        by_name.sort_unstable();
        let shown = by_name.into_iter().skip(skip).take(max);
        shown
            .filter_map(|(_, id)| Some(self.vm_row(id, self.vms.get(&id)?)))
            .collect()
    }

    fn host_of(&self, vm: &StoredVm) -> Option<&StoredHost> {
        let host = vm.record.host.as_deref();
        let host = host.and_then(|host| self.host_id(&vm.connector, host));
        self.hosts.get(&host?)
    }

    fn vm_row(&self, id: VmId, vm: &StoredVm) -> VmRow {
        let host = self.host_of(vm);
        let list = self.fleet.placement(id);
        let name = |id: &ApplianceId| Some(self.appliances.get(id)?.name.clone());
        let via = vm
            .guest
            .and_then(|guest| self.guests.get(&guest))
            .and_then(|guest| guest.via);
        VmRow {
            stored: vm.clone(),
            host: host.map(|host| host.record.name.clone()),
            epoch: list.as_ref().map_or(0, |list| list.epoch.0),
            cause: list.as_ref().map_or("", |list| list.cause.name()),
            appliances: list
                .map(|list| list.appliances.iter().filter_map(name).collect())
                .unwrap_or_default(),
            tier: self.fleet.tier(id),
            connected_to: via.as_ref().and_then(name),
        }
    }

    /// Every appliance, by name.
    #[must_use]
    pub fn appliance_rows(&self) -> Vec<ApplianceRow> {
        let rows = self.appliances.iter().filter_map(|(id, stored)| {
            let view = self.fleet.appliance(*id)?;
            let host = view.host.and_then(|host| self.hosts.get(&host));
            Some(ApplianceRow {
                stored: stored.clone(),
                host: host.map(|host| host.record.name.clone()),
                availability: view.availability,
                is_connected: self.connected.contains(id),
                load: view.load,
                bound: view.bound,
                vms: view.vms,
                queue_ms: view.queue_ms,
            })
        });
        let mut rows: Vec<ApplianceRow> = rows.collect();
        rows.sort_by(|a, b| a.stored.name.cmp(&b.stored.name));
        rows
    }

    /// Why a VM has its appliances, with at most `max` others that were weighed; `None` where
    /// there is no such VM.
    #[must_use]
    pub fn why(&self, id: VmId, max: usize) -> Option<Why> {
        let vm = self.vms.get(&id)?;
        let Explanation {
            measured_host,
            attached,
            rule,
            considered,
            omitted,
            ..
        } = self.fleet.explain(id, max)?;
        let considered = considered.into_iter().map(|considered| {
            let stored = self.appliances.get(&considered.appliance);
            WhyAppliance {
                name: stored.map_or_else(String::new, |stored| stored.name.clone()),
                considered,
            }
        });
        let measured = measured_host.and_then(|host| self.hosts.get(&host));
        Some(Why {
            vm: self.vm_row(id, vm),
            measured_host: measured.map(|host| host.record.name.clone()),
            attached: attached.and_then(|id| Some(self.appliances.get(&id)?.name.clone())),
            rule,
            considered: considered.collect(),
            omitted,
        })
    }

    /// The VMs that people may mean: by our number, the connector's id, the guest's id or the name.
    #[must_use]
    pub fn find_vms(&self, text: &str) -> Vec<VmId> {
        self.find_each_vm(&[text]).pop().unwrap_or_default()
    }

    /// The same of many texts, in one look at the VMs.
    #[must_use]
    pub fn find_each_vm(&self, texts: &[&str]) -> Vec<Vec<VmId>> {
        let mut found = vec![Vec::new(); texts.len()];
        let mut asked = BTreeMap::<&str, Vec<usize>>::new();
        for (at, (text, found)) in texts.iter().zip(&mut found).enumerate() {
            let guest = GuestId::from_hex(text);
            match guest.and_then(|guest| self.vm_of_guest.get(&guest)) {
                Some(id) => found.push(*id),
                None => asked.entry(text).or_default().push(at),
            }
        }
        for (id, vm) in &self.vms {
            let number = vm.id.to_string();
            let texts = BTreeSet::from([&*vm.record.name, &*vm.record.id, &*number]);
            let meant = texts.into_iter().filter_map(|text| asked.get(text));
            for at in meant.flatten() {
                found.get_mut(*at).into_iter().for_each(|it| it.push(*id));
            }
        }
        found
    }

    /// An appliance by its name.
    #[must_use]
    pub fn find_appliance(&self, name: &str) -> Option<ApplianceId> {
        self.appliance_ids.get(name).copied()
    }

    /// Hosts of this name or id.
    #[must_use]
    pub fn find_hosts(&self, name: &str) -> Vec<HostId> {
        let fits = |host: &StoredHost| host.record.name == name || host.record.id == name;
        let found = self.hosts.iter().filter(|(_, host)| fits(host));
        found.map(|(id, _)| *id).collect()
    }

    /// Events after this one, at most `max`, the latest of them, oldest first.
    #[must_use]
    pub fn events_after(&self, after: u64, max: usize) -> Vec<Event> {
        let newer = self
            .events
            .iter()
            .rev()
            .take_while(|event| event.id > after);
        let mut events: Vec<Event> = newer.take(max).cloned().collect();
        events.reverse();
        events
    }
}
