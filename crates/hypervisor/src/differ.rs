//! Compares what is observed with what is known: the only place where changes are made.

use std::collections::BTreeMap;

use crate::connector::{Observation, Snapshot};
use crate::event::{Change, MovePhase};
use crate::record::{Host, HostId, Vm, VmId};

/// Hosts of one connector; more are an error of its configuration.
pub const HOSTS_MAX: usize = 10_000;
/// VMs of one connector.
pub const VMS_MAX: usize = 500_000;

/// An inventory and how it changes. No I/O, no clock.
#[derive(Debug, Default)]
pub struct Differ {
    hosts: BTreeMap<HostId, Host>,
    vms: BTreeMap<VmId, Known>,
    /// The first inventory has been seen: what appears later is new.
    is_synced: bool,
}

#[derive(Debug)]
struct Known {
    vm: Vm,
    /// The host it left in the move that is under way, once it has left.
    has_switched: bool,
}

impl Differ {
    /// Knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is known of a VM.
    #[must_use]
    pub fn vm(&self, id: &VmId) -> Option<&Vm> {
        self.vms.get(id).map(|known| &known.vm)
    }

    /// What is known of a host.
    #[must_use]
    pub fn host(&self, id: &HostId) -> Option<&Host> {
        self.hosts.get(id)
    }

    /// All that is known.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            hosts: self.hosts.clone(),
            vms: self
                .vms
                .iter()
                .map(|(id, known)| (id.clone(), known.vm.clone()))
                .collect(),
        }
    }

    /// Takes an observation in and tells what it changes: hosts before the VMs on them.
    pub fn observe(&mut self, observation: Observation) -> Vec<Change> {
        let mut changes = Vec::new();
        match observation {
            Observation::Everything(snapshot) => self.everything(snapshot, &mut changes),
            Observation::Host(host) => self.take_host(host, &mut changes),
            Observation::HostGone(id) => self.drop_host(&id, &mut changes),
            Observation::Vm(vm) => self.take_vm(vm, &mut changes),
            Observation::VmGone(id) => self.drop_vm(&id, &mut changes),
        }
        changes
    }

    fn everything(&mut self, snapshot: Snapshot, changes: &mut Vec<Change>) {
        let gone_vms: Vec<VmId> = missing(&self.vms, &snapshot.vms);
        let gone_hosts: Vec<HostId> = missing(&self.hosts, &snapshot.hosts);
        for host in snapshot.hosts.into_values() {
            self.take_host(host, changes);
        }
        for id in gone_vms {
            self.drop_vm(&id, changes);
        }
        for vm in snapshot.vms.into_values() {
            self.take_vm(vm, changes);
        }
        for id in gone_hosts {
            self.drop_host(&id, changes);
        }
        self.is_synced = true;
        changes.push(Change::Synced);
    }

    fn take_host(&mut self, host: Host, changes: &mut Vec<Change>) {
        match self.hosts.get(&host.id) {
            None if self.hosts.len() >= HOSTS_MAX => return,
            None => changes.push(Change::HostAppeared(host.clone())),
            Some(known) if *known == host => return,
            Some(_) => changes.push(Change::HostChanged(host.clone())),
        }
        self.hosts.insert(host.id.clone(), host);
    }

    fn drop_host(&mut self, id: &HostId, changes: &mut Vec<Change>) {
        if self.hosts.remove(id).is_some() {
            changes.push(Change::HostGone(id.clone()));
        }
    }

    fn drop_vm(&mut self, id: &VmId, changes: &mut Vec<Change>) {
        if self.vms.remove(id).is_some() {
            changes.push(Change::VmGone(id.clone()));
        }
    }

    fn take_vm(&mut self, mut vm: Vm, changes: &mut Vec<Change>) {
        vm.bound();
        let Some(known) = self.vms.get_mut(&vm.id) else {
            self.take_new_vm(vm, changes);
            return;
        };
        if known.vm == vm {
            return;
        }
        known.compare_place(&vm, changes);
        if known.vm.power != vm.power {
            changes.push(Change::VmPowered {
                vm: vm.id.clone(),
                from: known.vm.power,
                to: vm.power,
            });
        }
        if let (None, Some(from)) = (&known.vm.cloned_from, &vm.cloned_from) {
            changes.push(Change::VmCloned {
                vm: vm.id.clone(),
                from: from.clone(),
            });
        }
        if known.is_described_differently(&vm) {
            changes.push(Change::VmChanged(vm.clone()));
        }
        known.vm = vm;
    }

    fn take_new_vm(&mut self, vm: Vm, changes: &mut Vec<Change>) {
        if self.vms.len() >= VMS_MAX {
            return;
        }
        changes.push(Change::VmAppeared(vm.clone()));
        if let Some(from) = vm.cloned_from.clone().filter(|_| self.is_synced) {
            let vm = vm.id.clone();
            changes.push(Change::VmCloned { vm, from });
        }
        if let Some(migration) = &vm.migration {
            changes.push(Change::VmMoved {
                vm: vm.id.clone(),
                from: vm.host.clone(),
                to: migration.to.clone(),
                phase: MovePhase::Started,
            });
        }
        let has_switched = false;
        self.vms.insert(vm.id.clone(), Known { vm, has_switched });
    }
}

impl Known {
    /// Where it runs and where it goes: the phases of a move, each at most once.
    fn compare_place(&mut self, now: &Vm, changes: &mut Vec<Change>) {
        let before = &self.vm;
        let mut moved = |to: Option<HostId>, phase| {
            changes.push(Change::VmMoved {
                vm: now.id.clone(),
                from: before.host.clone(),
                to,
                phase,
            });
        };
        let has_moved = before.host != now.host;
        if has_moved && now.host.is_some() && before.host.is_some() {
            moved(now.host.clone(), MovePhase::Switched);
            self.has_switched = now.migration.is_some();
            return;
        }
        match (&before.migration, &now.migration) {
            (None, Some(migration)) => {
                moved(migration.to.clone(), MovePhase::Started);
                self.has_switched = false;
            }
            (Some(migration), None) => {
                if !self.has_switched && now.host.is_some() {
                    moved(migration.to.clone(), MovePhase::Failed);
                }
                self.has_switched = false;
            }
            (Some(was), Some(is)) if was.to != is.to && !self.has_switched => {
                moved(is.to.clone(), MovePhase::Started);
            }
            _ => {}
        }
    }

    /// Something that no other change tells. A host that is assigned or taken away without a move
    /// (a VM that starts, or is shut down) is told here.
    fn is_described_differently(&self, now: &Vm) -> bool {
        let before = &self.vm;
        before.name != now.name
            || before.host.is_some() != now.host.is_some()
            || before.smbios_uuid != now.smbios_uuid
            || before.macs != now.macs
            || before.addresses != now.addresses
            || before.tags != now.tags
            || before.is_template != now.is_template
    }
}

fn missing<K: Ord + Clone, A, B>(known: &BTreeMap<K, A>, seen: &BTreeMap<K, B>) -> Vec<K> {
    let is_missing = |id: &&K| !seen.contains_key(*id);
    known.keys().filter(is_missing).cloned().collect()
}

#[cfg(test)]
mod tests;
