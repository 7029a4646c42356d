//! What people and the controller read: lists, sums, what an appliance carries.

use crate::fleet::Fleet;
use crate::{ApplianceId, Availability, Epoch, HostId, VmId};

/// Why a VM has the list that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It started, or appeared.
    Started,
    /// It came to another host, or the inventory says something else of its host.
    Migrated,
    /// Its appliance went down.
    ApplianceDown,
    /// Its appliance drains.
    Drain,
    /// Its appliance was over its bound.
    Shed,
    /// A nearer appliance has room again.
    Homecoming,
    /// Measured round trips say that it is elsewhere than the inventory says.
    Measured,
    /// It reaches the appliance on its host by a channel of the hypervisor.
    Attached,
    /// Rules changed.
    Rules,
    /// Only its second or third appliance changed.
    Backup,
    /// Read back after a restart.
    Restored,
}

impl Cause {
    /// A stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Migrated => "migrated",
            Self::ApplianceDown => "appliance_down",
            Self::Drain => "drain",
            Self::Shed => "shed",
            Self::Homecoming => "homecoming",
            Self::Measured => "measured",
            Self::Attached => "attached",
            Self::Rules => "rules",
            Self::Backup => "backup",
            Self::Restored => "restored",
        }
    }
}

/// The list of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Whose.
    pub vm: VmId,
    /// First the best. Empty: no appliance can be reached.
    pub appliances: Vec<ApplianceId>,
    /// Rises with every change.
    pub epoch: Epoch,
    /// Why it is so.
    pub cause: Cause,
}

/// Sums over the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// VMs known.
    pub vms: usize,
    /// VMs that run and have no appliance.
    pub homeless: usize,
    /// VMs that a nearer appliance would serve if it had room.
    pub displaced: usize,
    /// Load of all running VMs.
    pub load: u64,
    /// Weight of all appliances that are up.
    pub weight: u64,
    /// First appliances changed since the start, first placements aside.
    pub moves: u64,
}

/// What an appliance carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplianceView {
    /// Which.
    pub id: ApplianceId,
    /// Where it runs.
    pub host: Option<HostId>,
    /// As the fleet sees it; draining too where its host is in maintenance.
    pub availability: Availability,
    /// Load of the running VMs it serves.
    pub load: u64,
    /// What it takes at most now.
    pub bound: u64,
    /// What it can carry.
    pub capacity: u64,
    /// VMs whose first appliance it is.
    pub vms: usize,
    /// How long its queue holds scans up.
    pub queue_ms: u32,
}

impl Fleet {
    /// Sends the list of every VM that holds this appliance anew, with a new epoch: it is reached
    /// in another way than before.
    pub fn renew_lists_with(&mut self, id: ApplianceId) {
        let Some(slot) = self.slots.get(&id).copied() else {
            return;
        };
        let appliance = &self.appliances[slot];
        let holders = appliance.vms.union(&appliance.backs);
        let holders: Vec<VmId> = holders.copied().collect();
        for id in holders {
            self.send_anew(id);
        }
    }

    /// A guest holds a list of this epoch, made for another VM or by a placer whose writing is
    /// lost: where that is not older than ours, ours is sent with a higher one.
    pub fn outrank(&mut self, id: VmId, epoch: Epoch) {
        let Some(vm) = self.vms.get_mut(&id) else {
            return;
        };
        // The guest's own, as it was sent.
        if epoch > vm.epoch {
            vm.epoch = epoch;
            self.send_anew(id);
        }
    }

    fn send_anew(&mut self, id: VmId) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.epoch = vm.epoch.next(self.term);
            self.changed.insert(id);
        }
    }

    /// Lists that changed since they were last taken, at most `max`.
    pub fn take_changes(&mut self, max: usize) -> Vec<Placement> {
        let mut taken = Vec::new();
        while taken.len() < max {
            let Some(id) = self.changed.pop_first() else {
                break;
            };
            taken.extend(self.placement(id));
        }
        taken
    }

    /// The list of a VM; `None` where it is not known.
    #[must_use]
    pub fn placement(&self, id: VmId) -> Option<Placement> {
        let vm = self.vms.get(&id)?;
        Some(Placement {
            vm: id,
            appliances: vm
                .list
                .iter()
                .map(|slot| self.appliances[*slot].id)
                .collect(),
            epoch: vm.epoch,
            cause: vm.cause,
        })
    }

    /// What an appliance carries; `None` where it is not known.
    #[must_use]
    pub fn appliance(&self, id: ApplianceId) -> Option<ApplianceView> {
        let slot = self.slots.get(&id).copied()?;
        let appliance = &self.appliances[slot];
        Some(ApplianceView {
            id,
            host: appliance.facts.host,
            availability: self.availability(slot),
            load: appliance.load,
            bound: self.bound(slot),
            capacity: appliance.facts.capacity,
            vms: appliance.vms.len(),
            queue_ms: appliance.queue_ms,
        })
    }

    /// Sums.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            vms: self.vms.len(),
            homeless: self.homeless.len(),
            displaced: self.displaced.len(),
            load: self.load_total,
            weight: self.weight_total,
            moves: self.moves,
        }
    }

    /// How far the first appliance of a VM is: 0 same host, 1 same cluster, 2 same site, 3
    /// anywhere, by what is believed of its place; `None` where it has none.
    #[must_use]
    pub fn tier(&self, id: VmId) -> Option<u8> {
        let vm = self.vms.get(&id)?;
        let first = *vm.list.first()?;
        Some(self.wish(id, vm).level(self, first) % crate::choose::TIERS)
    }
}
