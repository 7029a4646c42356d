//! Lists that changed become rows, and orders for the guests that are connected.

use placement::{ApplianceId, Placement, VmId};

use crate::core::{Core, Order};
use crate::rows::{Row, StoredPlacement};

/// Lists taken from placement at once.
const CHANGES_AT_ONCE: usize = 4096;

impl Core {
    /// Takes what placement has changed.
    pub(crate) fn note_changes(&mut self) {
        loop {
            let changes = self.fleet.take_changes(CHANGES_AT_ONCE);
            if changes.is_empty() {
                return;
            }
            for list in changes {
                self.note_change(list);
            }
        }
    }

    fn note_change(&mut self, list: Placement) {
        self.write(Row::Placement(StoredPlacement {
            vm: list.vm.0,
            epoch: list.epoch.0,
            appliances: list.appliances.iter().map(|id| id.0).collect(),
        }));
        self.order_list(list.vm);
    }

    /// Sends a VM's list to the guest in it, where that is connected.
    pub(crate) fn order_list(&mut self, vm: VmId) {
        let guest = self.vms.get(&vm).and_then(|vm| vm.guest);
        let list = self.fleet.placement(vm);
        let (Some(id), Some(list)) = (guest, list) else {
            return;
        };
        let via = self.guests.get(&id).and_then(|guest| guest.via);
        let Some(via) = via.filter(|via| self.connected.contains(via)) else {
            return;
        };
        let appliances = self.addresses(&list.appliances);
        // Nobody to go to: what it has is better than nothing.
        let Some(first) = list
            .appliances
            .first()
            .copied()
            .filter(|_| !appliances.is_empty())
        else {
            return;
        };
        let guest = self.guests.get_mut(&id);
        let is_new = guest.is_some_and(|guest| guest.told_first.replace(first) != Some(first));
        if is_new && first != via {
            // Before it goes there.
            self.orders.push(Order::Warm {
                from: via,
                to: first,
                guest: id,
            });
        }
        self.orders.push(Order::Place {
            via,
            guest: id,
            epoch: list.epoch.0,
            appliances,
        });
    }

    /// An appliance has another address: everybody who may go there is told.
    pub(crate) fn readdress(&mut self, id: ApplianceId) {
        self.fleet.renew_lists_with(id);
    }

    pub(crate) fn addresses(&self, ids: &[ApplianceId]) -> Vec<String> {
        let stored = ids.iter().filter_map(|id| self.appliances.get(id));
        stored.map(|stored| stored.address.clone()).collect()
    }
}
