//! Guests: agents that are connected to an appliance, and the VMs they are in.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{ChannelId, GuestId, Machine};
use placement::{ApplianceId, VmId};

use crate::core::{Clock, Core};
use crate::identity::{Key, KnownGuest, Note};
use crate::inventory::{Power, VmRecord};
use crate::rows::{Row, StoredVm};
use crate::sessions::Sessions;

/// The connector of VMs that no connector knows: their agents alone tell of them. No connector
/// has this name.
pub(crate) const NO_CONNECTOR: &str = "";

/// What an appliance says of a guest that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFacts {
    /// What it says its SMBIOS UUID is, as it enrolled with.
    pub uuid: Option<[u8; 16]>,
    /// Where it connects from.
    pub address: IpAddr,
    /// What it says its name is; hostile text.
    pub hostname: String,
    /// Epoch of the list it has. 0: none.
    pub epoch: u64,
    /// What it reads from the hypervisor's channel to its host. `None`: it has none.
    pub channel: Option<ChannelId>,
    /// The key that it shows. `None`: its appliance does not say.
    pub key: Option<Key>,
    /// What its machine says of itself.
    pub machine: Machine,
    /// What is written down of it. `None`: nothing.
    pub known: Option<KnownGuest>,
    /// The VM that it was proved to be in: its connector, and the id there.
    pub vm: Option<(String, String)>,
}

#[derive(Debug)]
pub(crate) struct Guest {
    /// The appliance it is connected to.
    pub(crate) via: Option<ApplianceId>,
    pub(crate) facts: GuestFacts,
    /// Where it was told to go first, last.
    pub(crate) told_first: Option<ApplianceId>,
}

/// An epoch that a guest claims counts up to this: beyond, it is a lie that would cost the guest
/// its own lists.
const EPOCH_CLAIM_MAX: u64 = u64::MAX / 4;

impl Core {
    /// A guest has a session on an appliance.
    pub fn guest_up(&mut self, clock: Clock, via: ApplianceId, id: GuestId, facts: GuestFacts) {
        self.absent.remove(&id);
        let is_copy = self.judge(clock, via, id, &facts);
        if is_copy && self.sessions.get(&id).is_some_and(|it| it.own().is_some()) {
            // The list and the VM are the guest's own.
            return;
        }
        let before = self.guests.get(&id);
        let told_first = before.and_then(|guest| guest.told_first);
        let channel = before.and_then(|guest| guest.facts.channel);
        let guest = Guest {
            via: Some(via),
            facts: facts.clone(),
            told_first,
        };
        self.guests.insert(id, guest);
        let vm = self.vm_for(clock, id, &facts);
        self.outrank(vm, facts.epoch);
        self.claim_channel(clock, id, channel);
        self.follow_session(clock, id);
        let is_newer = self
            .fleet
            .placement(vm)
            .is_some_and(|list| list.epoch.0 > facts.epoch);
        if is_newer {
            self.order_list(vm);
        }
        self.tell_taken(clock.now, via, id);
    }

    /// What a guest follows, or more, is not to be sent to it as something older.
    fn outrank(&mut self, vm: VmId, epoch: u64) {
        if epoch <= EPOCH_CLAIM_MAX {
            self.fleet.outrank(vm, placement::Epoch(epoch));
        }
    }

    /// A guest's session on an appliance is over. It may have another one by now.
    pub fn guest_down(&mut self, clock: Clock, via: ApplianceId, id: GuestId) {
        let elsewhere = self.session_ended(clock.now, via, id);
        let Some(guest) = self.guests.get_mut(&id) else {
            return;
        };
        if guest.via != Some(via) {
            return;
        }
        if let Some(via) = elsewhere {
            self.goes_on(clock, id, via);
            return;
        }
        guest.via = None;
        self.went_away(clock, id);
    }

    /// A guest has no session any more. Where nobody but itself tells of its VM, it may be off.
    fn went_away(&mut self, clock: Clock, id: GuestId) {
        self.follow_session(clock, id);
        let vm = self.vm_of_guest.get(&id).and_then(|vm| self.vms.get(vm));
        if vm.is_some_and(|vm| vm.connector == NO_CONNECTOR) {
            self.absent.insert(id, clock.now);
        }
    }

    /// Where a guest's latest session is over it may have an earlier one that goes on: the latest was
    /// dead, and what was sent through it has reached nobody.
    fn goes_on(&mut self, clock: Clock, id: GuestId, via: ApplianceId) {
        if let Some(guest) = self.guests.get_mut(&id) {
            guest.via = Some(via);
        }
        if let Some(vm) = self.vm_of_guest.get(&id).copied() {
            self.order_list(vm);
        }
        self.tell_taken(clock.now, via, id);
    }

    /// Every session through an appliance is over, as far as anybody hears.
    pub(crate) fn guests_lost(&mut self, clock: Clock, via: ApplianceId) {
        self.sessions_ended_via(clock.now, via);
        let lost = self.guests.iter_mut();
        let lost = lost.filter(|(_, guest)| guest.via == Some(via));
        let lost = lost.map(|(id, guest)| {
            guest.via = None;
            *id
        });
        for id in lost.collect::<Vec<_>>() {
            match self.sessions.get(&id).and_then(Sessions::own) {
                Some(via) => self.goes_on(clock, id, via),
                None => self.went_away(clock, id),
            }
        }
    }

    /// A guest that is connected runs, whatever an inventory that has missed something says of its VM.
    pub(crate) fn is_at_work(&self, vm: &StoredVm) -> bool {
        let guest = vm.guest.and_then(|guest| self.guests.get(&guest));
        vm.state.is_awake() || guest.is_some_and(|guest| guest.via.is_some())
    }

    /// A session began or ended: where the inventory does not say that the VM runs, that tells.
    fn follow_session(&mut self, clock: Clock, id: GuestId) {
        if let Some(vm) = self.vm_of_guest.get(&id).copied() {
            self.place_if_asleep(clock, vm);
        }
    }

    fn place_if_asleep(&mut self, clock: Clock, vm: VmId) {
        if self.vms.get(&vm).is_some_and(|vm| !vm.state.is_awake()) {
            self.place_vm(clock, vm);
        }
    }

    /// A round trip that a guest measured, to an appliance at this address.
    pub fn measured(&mut self, clock: Clock, id: GuestId, address: &str, rtt_us: u32) {
        let vm = self.vm_of_guest.get(&id).copied();
        let appliance = self.by_address.get(address).copied();
        if let (Some(vm), Some(appliance)) = (vm, appliance) {
            self.fleet.measured(clock.now, vm, appliance, rtt_us);
        }
    }

    fn forget_guest(&mut self, id: GuestId) {
        if let Some(guest) = self.guests.remove(&id) {
            self.forget_claim(&guest.facts, id);
        }
    }

    /// Guests without a connector that stay away are off.
    pub(crate) fn silent_guests(&mut self, clock: Clock) {
        let limit = self.silence.guest;
        let due = self
            .absent
            .iter()
            .filter(|(_, since)| clock.now.saturating_sub(**since) >= limit);
        let due: Vec<GuestId> = due.map(|(id, _)| *id).collect();
        for id in due {
            self.absent.remove(&id);
            self.forget_guest(id);
            let vm = self.vm_of_guest.get(&id).and_then(|vm| self.vms.get(vm));
            let own = vm.filter(|vm| vm.connector == NO_CONNECTOR);
            if let Some(mut record) = own.map(|vm| vm.record.clone()) {
                record.power = Power::Off;
                self.put_vm(clock, NO_CONNECTOR, record);
            }
        }
    }

    /// The VM that a guest is in: the one that the inventory shows, else one of its own until the
    /// evidence agrees with one.
    fn vm_for(&mut self, clock: Clock, id: GuestId, facts: &GuestFacts) -> VmId {
        let known = self.vm_of_guest.get(&id).copied();
        let is_real = known
            .and_then(|vm| self.vms.get(&vm))
            .is_some_and(|vm| vm.connector != NO_CONNECTOR);
        if let (Some(vm), true) = (known, is_real) {
            return vm;
        }
        if let Some(vm) = self.proved(facts) {
            self.bind(clock, id, vm, facts.epoch);
            return vm;
        }
        if let Some(vm) = self.matching(facts.uuid, facts.address) {
            self.bind(clock, id, vm, facts.epoch);
            return vm;
        }
        let record = VmRecord {
            id: id.to_string(),
            name: facts.hostname.clone(),
            host: None,
            power: Power::Running,
            migrating: false,
            uuid: None,
            addresses: BTreeSet::from([facts.address]),
            tags: BTreeSet::new(),
            pool: None,
        };
        self.put_vm(clock, NO_CONNECTOR, record);
        let vm = self.vm_id(NO_CONNECTOR, &id.to_string());
        // It was put there just now.
        let vm = vm.unwrap_or(VmId(0));
        self.bind(clock, id, vm, facts.epoch);
        vm
    }

    /// The VM that a guest was proved to be in, unless another is there.
    fn proved(&self, facts: &GuestFacts) -> Option<VmId> {
        let (connector, vm) = facts.vm.as_ref()?;
        let id = self.vm_id(connector, vm)?;
        let is_free = self.vms.get(&id).is_some_and(|vm| vm.guest.is_none());
        is_free.then_some(id)
    }

    /// The one VM of the inventory that agrees with what a guest shows: it runs, has this uuid and this
    /// address, and no other guest is in it. Anybody can say a uuid; an address cannot be said. Where
    /// no address is known of any VM with this uuid (most connectors do not read them), the uuid of one
    /// VM alone has to do, and whoever comes first has it.
    fn matching(&self, uuid: Option<[u8; 16]>, address: IpAddr) -> Option<VmId> {
        let with_uuid = self.by_uuid.get(&uuid?)?.iter();
        let with_uuid = with_uuid.filter_map(|id| Some((*id, self.vms.get(id)?)));
        let all: Vec<(VmId, &StoredVm)> = with_uuid.collect();
        let is_unread = all.iter().all(|(_, vm)| vm.record.addresses.is_empty());
        let mut agreeing = all
            .into_iter()
            .filter(|(_, vm)| vm.state.is_awake())
            .filter(|(_, vm)| is_unread || vm.record.addresses.contains(&address));
        let (Some((id, vm)), None) = (agreeing.next(), agreeing.next()) else {
            return None;
        };
        vm.guest.is_none().then_some(id)
    }

    /// `epoch`: of the list that the guest follows.
    fn bind(&mut self, clock: Clock, id: GuestId, vm: VmId, epoch: u64) {
        let old = self.vm_of_guest.insert(id, vm);
        if let Some(stored) = self.vms.get_mut(&vm)
            && stored.guest != Some(id)
        {
            stored.guest = Some(id);
            let stored = stored.clone();
            if stored.connector != NO_CONNECTOR {
                self.notes.push(Note::VmFound(id));
            }
            self.write(Row::Vm(stored));
        }
        let mut follows = epoch;
        if let Some(old) = old.filter(|old| *old != vm) {
            // A VM of its own is of no use any more.
            if let Some(stored) = self.vms.get_mut(&old) {
                stored.guest = None;
            }
            let sent = self.fleet.placement(old).map(|list| list.epoch.0);
            follows = follows.max(sent.unwrap_or(0));
            self.vm_gone(clock, old);
        }
        if follows > 0 && old != Some(vm) {
            // It was another VM's list, though the epoch may be the same.
            self.outrank(vm, follows + 1);
        }
        self.attach(clock, id);
    }

    /// A VM appeared or changed: a guest that was without one may be in it.
    pub(crate) fn match_guest_of(&mut self, clock: Clock, vm: VmId) {
        let Some(stored) = self.vms.get(&vm) else {
            return;
        };
        if stored.guest.is_some() || stored.connector == NO_CONNECTOR {
            return;
        }
        let Some(uuid) = stored.record.uuid else {
            return;
        };
        let is_without = |id: &GuestId| {
            let of = self.vm_of_guest.get(id).and_then(|vm| self.vms.get(vm));
            of.is_none_or(|vm| vm.connector == NO_CONNECTOR)
        };
        let mut agreeing = self.guests.iter().filter(|(id, guest)| {
            let facts = &guest.facts;
            facts.uuid == Some(uuid)
                && is_without(id)
                && self.matching(facts.uuid, facts.address) == Some(vm)
        });
        // Of several that say so none is known to be it.
        if let (Some((id, guest)), None) = (agreeing.next(), agreeing.next()) {
            let (id, epoch) = (*id, guest.facts.epoch);
            self.bind(clock, id, vm, epoch);
            // It follows the list of another VM; this one's may be later already.
            self.order_list(vm);
        }
    }

    /// The VM that a guest was in was deleted; if the guest is still there it gets another.
    pub(crate) fn vm_of_guest_gone(&mut self, clock: Clock, id: GuestId, epoch: u64) {
        self.vm_of_guest.remove(&id);
        if let Some(guest) = self.guests.get_mut(&id) {
            guest.facts.epoch = guest.facts.epoch.max(epoch);
        }
        self.absent.remove(&id);
        let Some(guest) = self.guests.get(&id) else {
            return;
        };
        match guest.via {
            Some(via) => {
                let facts = guest.facts.clone();
                self.guest_up(clock, via, id, facts);
            }
            None => self.forget_guest(id),
        }
    }

    /// A guest has left the fleet: its VM is free for another one.
    pub fn guest_ended(&mut self, clock: Clock, id: GuestId) {
        self.forget_guest(id);
        self.absent.remove(&id);
        self.sessions.remove(&id);
        let Some(vm) = self.vm_of_guest.remove(&id) else {
            return;
        };
        // Whoever comes into it next says by itself what it is beside.
        self.fleet.attached(clock.now, vm, None);
        let Some(stored) = self.vms.get_mut(&vm) else {
            return;
        };
        stored.guest = None;
        if stored.connector == NO_CONNECTOR {
            self.vm_gone(clock, vm);
            return;
        }
        let stored = stored.clone();
        self.place_if_asleep(clock, vm);
        self.write(Row::Vm(stored));
        self.match_guest_of(clock, vm);
    }

    /// Whom a guest should ask that has no list yet: those of its VM, else the least used.
    #[must_use]
    pub fn suggest(&self, uuid: Option<[u8; 16]>, address: IpAddr) -> Vec<String> {
        let vm = self.matching(uuid, address);
        let list = vm.and_then(|vm| self.fleet.placement(vm));
        let listed = list
            .map(|list| self.addresses(&list.appliances))
            .unwrap_or_default();
        if !listed.is_empty() {
            return listed;
        }
        let up = self
            .connected
            .iter()
            .filter_map(|id| self.fleet.appliance(*id));
        let up = up.filter(|view| view.availability == placement::Availability::Up);
        let mut up: Vec<_> = up.collect();
        up.sort_by_key(|view| (view.load * 1000 / view.capacity.max(1), view.id));
        let ids: Vec<ApplianceId> = up
            .iter()
            .map(|view| view.id)
            .take(placement::LIST_LEN)
            .collect();
        self.addresses(&ids)
    }
}
