//! VMs: they start, move and go, and measure how near appliances are.

use std::time::Duration;

use crate::choose::Slot;
use crate::fleet::{Fleet, Measured, Reading, Vm};
use crate::lists::Cause;
use crate::{ApplianceId, Epoch, HostId, LIST_LEN, VmFacts, VmId};

/// Round trips kept for one VM: as many as a list and what an agent is configured with have together.
/// With fewer none would be there still when it is measured again.
const MEASURED_MAX: usize = 8;

impl Fleet {
    /// A VM appeared, moved, started, stopped or changed.
    pub fn put_vm(&mut self, now: Duration, id: VmId, facts: VmFacts) {
        self.at(now);
        let Some(vm) = self.vms.get_mut(&id) else {
            self.enter(id, facts, Epoch::default());
            self.place(id, Cause::Started);
            return;
        };
        if vm.facts == facts {
            return;
        }
        let old = std::mem::replace(&mut vm.facts, facts.clone());
        if old.host != facts.host {
            // They were measured elsewhere.
            vm.measured.clear();
            vm.shown = None;
            vm.moved_at = Some(self.now);
        }
        let first = vm.list.first().copied();
        self.load_total = self.load_total - old.load() + facts.load();
        if let Some(slot) = first {
            let load = &mut self.appliances[slot].load;
            *load = *load - old.load() + facts.load();
        }
        if old.host != facts.host {
            self.leave_host(id, old.host);
            self.join_host(id, facts.host);
        }
        let started = facts.running && !old.running;
        self.place(
            id,
            if started {
                Cause::Started
            } else {
                Cause::Migrated
            },
        );
    }

    /// Brings back a VM with the list it had, as it was written down; no change comes of it.
    pub fn restore(
        &mut self,
        now: Duration,
        id: VmId,
        facts: VmFacts,
        list: &[ApplianceId],
        epoch: Epoch,
    ) {
        self.at(now);
        self.remove_vm(now, id);
        self.enter(id, facts, epoch);
        let slots = list.iter().filter_map(|id| self.slots.get(id).copied());
        let slots: Vec<Slot> = slots.take(LIST_LEN).collect();
        self.assign(id, slots);
        if let Some(vm) = self.vms.get_mut(&id) {
            (vm.epoch, vm.cause) = (epoch, Cause::Restored);
        }
        self.changed.remove(&id);
        self.note_displaced(id);
        let lacks = |vm: &Vm| vm.facts.running && vm.list.is_empty();
        if self.vms.get(&id).is_some_and(lacks) {
            self.homeless.insert(id);
        }
    }

    fn enter(&mut self, id: VmId, facts: VmFacts, epoch: Epoch) {
        self.load_total += facts.load();
        let host = facts.host;
        let vm = Vm {
            facts,
            list: Vec::new(),
            epoch,
            cause: Cause::Started,
            measured: Vec::new(),
            shown: None,
            attached: None,
            moved_at: None,
        };
        self.vms.insert(id, vm);
        self.join_host(id, host);
    }

    fn join_host(&mut self, vm: VmId, host: Option<HostId>) {
        if let Some(host) = host {
            self.ensure_host(host).vms.insert(vm);
        }
    }

    fn leave_host(&mut self, vm: VmId, host: Option<HostId>) {
        if let Some(host) = host.and_then(|host| self.hosts.get_mut(&host)) {
            host.vms.remove(&vm);
        }
    }

    /// A VM is gone for good.
    pub fn remove_vm(&mut self, now: Duration, id: VmId) {
        self.at(now);
        if !self.vms.contains_key(&id) {
            return;
        }
        self.assign(id, Vec::new());
        if let Some(vm) = self.vms.remove(&id) {
            self.load_total -= vm.facts.load();
            self.leave_host(id, vm.facts.host);
        }
        for set in [
            &mut self.homeless,
            &mut self.displaced,
            &mut self.stale_lists,
            &mut self.short_lists,
            &mut self.changed,
        ] {
            set.remove(&id);
        }
    }

    /// A round trip that a VM measured to an appliance, in microseconds.
    pub fn measured(&mut self, now: Duration, id: VmId, to: ApplianceId, rtt_us: u32) {
        self.at(now);
        let (Some(slot), Some(vm)) = (self.slots.get(&to).copied(), self.vms.get_mut(&id)) else {
            return;
        };
        let at = self.now;
        let grace = self.settings.measured_after_move;
        let is_stale = |moved_at: Duration| at.saturating_sub(moved_at) < grace;
        if vm.moved_at.is_some_and(is_stale) {
            return;
        }
        let before = vm.measured.iter().position(|old| old.slot == slot);
        let before = before.map(|at| vm.measured.remove(at));
        // What was measured too long ago says nothing of now.
        let valid = self.settings.measured_valid;
        let before = before.filter(|before| at.saturating_sub(before.last.at) <= valid);
        if vm.measured.len() >= MEASURED_MAX {
            vm.measured.remove(0);
        }
        vm.measured.push(Measured {
            slot,
            last: Reading { rtt_us, at },
            before: before.map(|before| before.last),
        });
        let shown = self.vms.get(&id).and_then(|vm| self.shown_by_measuring(vm));
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.shown = shown;
        }
        self.place(id, Cause::Measured);
    }

    /// The VM reaches this appliance by a channel of the hypervisor, which leads nowhere but to its
    /// host: that beats what any inventory says. `None`: it has no such channel (any more).
    pub fn attached(&mut self, now: Duration, id: VmId, to: Option<ApplianceId>) {
        self.at(now);
        let slot = to.and_then(|to| self.slots.get(&to).copied());
        let Some(vm) = self.vms.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut vm.attached, slot) != slot {
            self.place(id, Cause::Attached);
        }
    }
}
