//! The database: rows, and the lease of the placer.

use std::collections::BTreeMap;

use crate::members::Members;
use fleet_core::{Event, Loaded, Row, StoredAppliance, StoredHost, StoredPlacement, StoredVm};

#[derive(Debug, Default)]
pub(crate) struct Disk {
    hosts: BTreeMap<u64, StoredHost>,
    vms: BTreeMap<u64, StoredVm>,
    appliances: BTreeMap<u64, StoredAppliance>,
    pub(crate) placements: BTreeMap<u64, StoredPlacement>,
    events: BTreeMap<u64, Event>,
    turns_out_s: u32,
    pub(crate) members: Members,
    pub(crate) term: u32,
}

impl Disk {
    /// Writes all rows, where this term still holds the lease.
    pub(crate) fn commit(&mut self, term: u32, rows: Vec<Row>) -> bool {
        if term != self.term {
            return false;
        }
        for row in rows {
            self.apply(row);
        }
        true
    }

    fn apply(&mut self, row: Row) {
        match row {
            Row::Host(host) => drop(self.hosts.insert(host.id, host)),
            Row::HostGone(id) => drop(self.hosts.remove(&id)),
            Row::Vm(vm) => drop(self.vms.insert(vm.id, vm)),
            Row::VmGone(id) => {
                self.vms.remove(&id);
                self.placements.remove(&id);
            }
            Row::Appliance(appliance) => drop(self.appliances.insert(appliance.id, appliance)),
            Row::ApplianceGone(id) => drop(self.appliances.remove(&id)),
            Row::Placement(list) => drop(self.placements.insert(list.vm, list)),
            Row::TurnsOut(seconds) => self.turns_out_s = seconds,
            Row::Event(event) => drop(self.events.insert(event.id, event)),
        }
    }

    pub(crate) fn load(&self) -> Loaded {
        Loaded {
            hosts: self.hosts.values().cloned().collect(),
            vms: self.vms.values().cloned().collect(),
            appliances: self.appliances.values().cloned().collect(),
            placements: self.placements.values().cloned().collect(),
            events: self.events.values().cloned().collect(),
            turns_out_s: self.turns_out_s,
        }
    }
}
