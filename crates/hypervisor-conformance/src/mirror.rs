//! What a consumer knows that only reads events; it panics at an event that tells nothing new.

use std::collections::BTreeMap;

use hypervisor::{Change, Host, HostId, MovePhase, Power, Vm, VmId};

/// An inventory made of events alone.
#[derive(Debug, Default)]
pub struct Mirror {
    /// Hosts that exist.
    pub hosts: BTreeMap<HostId, Host>,
    /// VMs that exist.
    pub vms: BTreeMap<VmId, Vm>,
}

impl Mirror {
    /// Takes an event in.
    ///
    /// # Panics
    /// Where it is invented: it tells of what is known already, or of what does not exist.
    pub fn take(&mut self, change: &Change) {
        match change {
            Change::Synced | Change::Lost { .. } | Change::VmCloned { .. } => {}
            Change::HostAppeared(host) => {
                let old = self.hosts.insert(host.id.clone(), host.clone());
                assert_eq!(old, None, "a host appeared twice");
            }
            Change::HostChanged(host) => {
                let old = self.hosts.insert(host.id.clone(), host.clone());
                assert!(old.is_some_and(|old| old != *host), "invented: {change:?}");
            }
            Change::HostGone(id) => assert!(self.hosts.remove(id).is_some(), "{change:?}"),
            Change::VmAppeared(vm) => {
                let old = self.vms.insert(vm.id.clone(), vm.clone());
                assert_eq!(old, None, "a VM appeared twice");
            }
            Change::VmChanged(vm) => {
                let old = self.vms.insert(vm.id.clone(), vm.clone());
                assert!(old.is_some_and(|old| old != *vm), "invented: {change:?}");
            }
            Change::VmGone(id) => assert!(self.vms.remove(id).is_some(), "{change:?}"),
            Change::VmMoved { vm, to, phase, .. } => {
                let known = self.known(vm, change);
                if *phase == MovePhase::Switched {
                    assert_ne!(known.host, *to, "invented: {change:?}");
                    known.host.clone_from(to);
                }
            }
            Change::VmPowered { vm, from, to } => {
                let known = self.known(vm, change);
                assert_eq!(known.power, *from, "{change:?}");
                assert_ne!(known.power, *to, "invented: {change:?}");
                known.power = *to;
            }
        }
    }

    fn known(&mut self, vm: &VmId, change: &Change) -> &mut Vm {
        let known = self.vms.get_mut(vm);
        known.unwrap_or_else(|| panic!("of a VM that does not exist: {change:?}"))
    }

    /// What a VM does, so far as events tell.
    #[must_use]
    pub fn power(&self, vm: &VmId) -> Option<Power> {
        self.vms.get(vm).map(|vm| vm.power)
    }

    /// Where a VM is, so far as events tell.
    #[must_use]
    pub fn place(&self, vm: &VmId) -> Option<&HostId> {
        self.vms.get(vm)?.host.as_ref()
    }
}
