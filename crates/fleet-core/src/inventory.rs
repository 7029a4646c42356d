//! What connectors say, and what becomes of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use placement::{HostFacts, HostId, Started, VmFacts, VmId};
use serde::{Deserialize, Serialize};

use crate::core::{Clock, Core};
use crate::identity::Note;
use crate::rows::{Row, StoredHost, StoredVm};

/// A host as its connector knows it. Names are hostile text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its id, unique within the connector.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The cluster or rack.
    pub cluster: Option<String>,
    /// Its VMs are to leave, or have left.
    pub maintenance: bool,
    /// Its management answers.
    pub reachable: bool,
}

/// What a VM does, as the hypervisor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// No memory anywhere, or it is on a disk.
    Off,
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It has memory and does not run.
    Paused,
    /// The hypervisor does not say: taken for running, since protection must not hang on it.
    Unknown,
}

/// A VM as its connector knows it. Names and tags are hostile text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its id, unique within the connector.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it runs.
    pub host: Option<String>,
    /// What it does.
    pub power: Power,
    /// A move has begun and not ended; where to, if that is known.
    pub migrating: bool,
    /// The uuid that its firmware shows to the guest.
    pub uuid: Option<[u8; 16]>,
    /// Addresses that the hypervisor knows of it.
    pub addresses: BTreeSet<IpAddr>,
    /// Labels.
    pub tags: BTreeSet<String>,
    /// The image it came from, where it is known.
    pub pool: Option<String>,
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovePhase {
    /// It has begun; the guest runs where it was.
    Started,
    /// The guest runs at the destination.
    Switched,
    /// It has ended, and the guest is where it was.
    Failed,
}

/// What changed, as a connector says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InventoryChange {
    /// The whole inventory was told since the connection: what was not in it is gone.
    Synced,
    /// The connection is lost; nothing is taken back.
    Lost {
        /// Why, for people.
        reason: String,
    },
    /// A host as it is now.
    Host(HostRecord),
    /// A host is gone.
    HostGone(String),
    /// A VM as it is now.
    Vm(VmRecord),
    /// A VM moves.
    VmMoved {
        /// Which.
        vm: String,
        /// Where to.
        to: Option<String>,
        /// How far.
        phase: MovePhase,
    },
    /// A VM was started, stopped, paused or resumed.
    VmPowered {
        /// Which.
        vm: String,
        /// What it does now.
        power: Power,
    },
    /// A VM was deleted.
    VmGone(String),
}

/// What the fleet says of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It does not run.
    Off,
    /// It starts.
    Starting,
    /// It runs.
    Running,
    /// It runs, and moves.
    Migrating,
    /// It is paused.
    Paused,
    /// It is no more.
    Gone,
}

impl VmState {
    /// A stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Migrating => "migrating",
            Self::Paused => "paused",
            Self::Gone => "gone",
        }
    }

    /// It needs an appliance and makes load.
    pub(crate) fn is_awake(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Migrating)
    }

    fn of(record: &VmRecord) -> Self {
        match record.power {
            Power::Off => Self::Off,
            Power::Paused => Self::Paused,
            _ if record.migrating => Self::Migrating,
            Power::Starting => Self::Starting,
            Power::Running | Power::Unknown => Self::Running,
        }
    }
}

impl Core {
    /// Takes what a connector says.
    pub fn inventory(&mut self, clock: Clock, connector: &str, change: InventoryChange) {
        match change {
            InventoryChange::Synced => self.synced(clock, connector),
            InventoryChange::Lost { reason } => {
                self.event(clock, "connector_lost", format!("{connector}: {reason}"));
            }
            InventoryChange::Host(record) => self.put_host(clock, connector, record),
            InventoryChange::HostGone(id) => {
                if let Some(id) = self.host_id(connector, &id) {
                    self.host_gone(clock, id);
                }
            }
            InventoryChange::Vm(record) => self.put_vm(clock, connector, record),
            InventoryChange::VmMoved { vm, to, phase } => {
                self.vm_moved(clock, connector, &vm, to, phase);
            }
            InventoryChange::VmPowered { vm, power } => {
                self.change_vm(clock, connector, &vm, |record| record.power = power);
            }
            InventoryChange::VmGone(vm) => {
                if let Some(id) = self.vm_id(connector, &vm) {
                    self.vm_gone(clock, id);
                }
            }
        }
    }

    /// What was written down before a restart and was not told of since is gone.
    fn synced(&mut self, clock: Clock, connector: &str) {
        let unseen = |seen: &str| seen == connector;
        let hosts = self.unseen_hosts.iter().filter(|id| {
            self.hosts
                .get(id)
                .is_some_and(|host| unseen(&host.connector))
        });
        let hosts: Vec<HostId> = hosts.copied().collect();
        let vms = self
            .unseen_vms
            .iter()
            .filter(|id| self.vms.get(id).is_some_and(|vm| unseen(&vm.connector)));
        let vms: Vec<VmId> = vms.copied().collect();
        for vm in vms {
            self.vm_gone(clock, vm);
        }
        for host in hosts {
            self.host_gone(clock, host);
        }
        self.event(clock, "connector_synced", connector.to_owned());
    }

    fn put_host(&mut self, clock: Clock, connector: &str, record: HostRecord) {
        let id = match self.host_id(connector, &record.id) {
            Some(id) => id,
            None => {
                let id = HostId(self.next_id());
                let key = (connector.to_owned(), record.id.clone());
                self.host_ids.insert(key, id);
                self.event(clock, "host_appeared", record.name.clone());
                id
            }
        };
        self.unseen_hosts.remove(&id);
        let site = self.sites.site_of(connector, record.cluster.as_deref());
        let ordered = self
            .hosts
            .get(&id)
            .is_some_and(|host| host.ordered_maintenance);
        let host = StoredHost {
            id: id.0,
            connector: connector.to_owned(),
            record,
            site,
            ordered_maintenance: ordered,
        };
        let old = self.hosts.insert(id, host.clone());
        if old.as_ref() == Some(&host) {
            return;
        }
        if let Some(old) = &old
            && old.record.maintenance != host.record.maintenance
        {
            let kind = if host.record.maintenance {
                "host_maintenance"
            } else {
                "host_available"
            };
            self.event(clock, kind, host.record.name.clone());
        }
        self.fleet.put_host(clock.now, id, host_facts(&host));
        let is_new = old.is_none();
        let is_named_anew = old.is_none_or(|old| old.record.name != host.record.name);
        self.write(Row::Host(host));
        if is_named_anew {
            self.settle_appliances(clock, id);
        }
        if is_new {
            for vm in std::mem::take(&mut self.hostless) {
                self.place_vm(clock, vm);
            }
        }
    }

    /// An administrator puts a host into maintenance, or takes it out; what its connector says of
    /// that counts besides. False: no such host.
    pub fn order_maintenance(&mut self, clock: Clock, id: HostId, on: bool) -> bool {
        let Some(host) = self.hosts.get_mut(&id) else {
            return false;
        };
        host.ordered_maintenance = on;
        let host = host.clone();
        self.fleet.put_host(clock.now, id, host_facts(&host));
        let kind = if on {
            "host_maintenance"
        } else {
            "host_available"
        };
        self.event(clock, kind, host.record.name.clone());
        self.write(Row::Host(host));
        true
    }

    fn host_gone(&mut self, clock: Clock, id: HostId) {
        self.unseen_hosts.remove(&id);
        let Some(host) = self.hosts.remove(&id) else {
            return;
        };
        // They say that they are on it until they are told elsewhere; it may come back.
        let is_here = |vm: &StoredVm| {
            vm.connector == host.connector && vm.record.host.as_ref() == Some(&host.record.id)
        };
        let here = self.vms.iter().filter(|(_, vm)| is_here(vm));
        self.hostless.extend(here.map(|(id, _)| *id));
        self.host_ids.remove(&(host.connector, host.record.id));
        self.fleet.remove_host(clock.now, id);
        self.event(clock, "host_gone", host.record.name);
        self.write(Row::HostGone(id.0));
    }

    pub(crate) fn put_vm(&mut self, clock: Clock, connector: &str, record: VmRecord) {
        let id = match self.vm_id(connector, &record.id) {
            Some(id) => id,
            None => {
                let id = VmId(self.next_id());
                let key = (connector.to_owned(), record.id.clone());
                self.vm_ids.insert(key, id);
                id
            }
        };
        self.unseen_vms.remove(&id);
        self.store_vm(clock, id, connector, record);
    }

    fn change_vm(
        &mut self,
        clock: Clock,
        connector: &str,
        vm: &str,
        change: impl FnOnce(&mut VmRecord),
    ) {
        let Some(id) = self.vm_id(connector, vm) else {
            return;
        };
        let Some(mut record) = self.vms.get(&id).map(|vm| vm.record.clone()) else {
            return;
        };
        self.unseen_vms.remove(&id);
        change(&mut record);
        self.store_vm(clock, id, connector, record);
    }

    fn vm_moved(
        &mut self,
        clock: Clock,
        connector: &str,
        vm: &str,
        to: Option<String>,
        phase: MovePhase,
    ) {
        self.change_vm(clock, connector, vm, |record| {
            record.migrating = phase == MovePhase::Started;
            if phase == MovePhase::Switched && to.is_some() {
                record.host = to;
            }
        });
    }

    fn store_vm(&mut self, clock: Clock, id: VmId, connector: &str, record: VmRecord) {
        let state = VmState::of(&record);
        let old = self.vms.get(&id);
        if old.is_some_and(|old| old.record == record && old.state == state) {
            return;
        }
        let was = old.map(|old| (old.state, old.record.host.clone(), old.record.uuid));
        let vm = StoredVm {
            id: id.0,
            connector: connector.to_owned(),
            record,
            state,
            guest: old.and_then(|old| old.guest),
            in_session: old.and_then(|old| old.in_session),
        };
        self.tell_of_vm(
            clock,
            &vm,
            was.as_ref()
                .map(|(state, host, _)| (*state, host.as_deref())),
        );
        if let Some((_, _, old_uuid)) = was
            && old_uuid != vm.record.uuid
        {
            self.forget_uuid(old_uuid, id);
        }
        if let Some(uuid) = vm.record.uuid {
            self.by_uuid.entry(uuid).or_default().insert(id);
        }
        self.vms.insert(id, vm.clone());
        self.write(Row::Vm(vm));
        self.place_vm(clock, id);
        self.match_guest_of(clock, id);
    }

    fn tell_of_vm(&mut self, clock: Clock, vm: &StoredVm, was: Option<(VmState, Option<&str>)>) {
        let name = &vm.record.name;
        let was_awake = was.is_some_and(|(state, _)| state.is_awake());
        // A connector's first inventory is no storm: those VMs run already.
        let starts =
            vm.state.is_awake() && !was_awake && (was.is_some() || vm.state == VmState::Starting);
        if starts {
            self.vm_starts(clock, vm);
        }
        let Some((state, host)) = was else {
            return;
        };
        if host != vm.record.host.as_deref() {
            let to = vm.record.host.as_deref().unwrap_or("nowhere");
            self.event(clock, "vm_moved", format!("{name} to {to}"));
        }
        if state != vm.state && !starts {
            let text = format!("{name}: {} to {}", state.name(), vm.state.name());
            self.event(clock, "vm_state", text);
        }
    }

    /// Starts of a storm are told once, and put background work of their host off.
    fn vm_starts(&mut self, clock: Clock, vm: &StoredVm) {
        let host = vm.record.host.as_deref();
        let Some(host) = host.and_then(|host| self.host_id(&vm.connector, host)) else {
            return;
        };
        let pool = vm.record.pool.as_deref();
        match self.storms.started(clock.now, host, pool) {
            Started::Alone => {
                let text = format!("{} starts", vm.record.name);
                self.event(clock, "vm_state", text);
            }
            Started::StormBegins { calm_at } => {
                self.admission.hold(host, calm_at);
                let name = self.hosts.get(&host).map(|host| host.record.name.clone());
                let text = name.unwrap_or_else(|| host.to_string());
                self.event(clock, "boot_storm", format!("many VMs start on {text}"));
            }
            Started::InStorm { calm_at } => self.admission.hold(host, calm_at),
        }
    }

    /// Tells placement of a VM as it is now.
    pub(crate) fn place_vm(&mut self, clock: Clock, id: VmId) {
        let Some(vm) = self.vms.get(&id) else {
            return;
        };
        let facts = self.facts_of(vm);
        let is_hostless = facts.host.is_none() && vm.record.host.is_some();
        self.note_hostless(id, is_hostless);
        self.fleet.put_vm(clock.now, id, facts);
        self.turns_follow(clock.now, id);
    }

    /// Whether a VM was told of before its host.
    pub(crate) fn note_hostless(&mut self, id: VmId, is_hostless: bool) {
        if is_hostless {
            self.hostless.insert(id);
        } else {
            self.hostless.remove(&id);
        }
    }

    /// What placement is to know of a VM.
    pub(crate) fn facts_of(&self, vm: &StoredVm) -> VmFacts {
        let host = vm.record.host.as_deref();
        VmFacts {
            host: host.and_then(|host| self.host_id(&vm.connector, host)),
            pool: vm.record.pool.clone(),
            tags: vm.record.tags.iter().cloned().collect(),
            address: vm.record.addresses.first().copied(),
            weight: crate::core::WEIGHT,
            running: self.is_at_work(vm),
        }
    }

    pub(crate) fn vm_gone(&mut self, clock: Clock, id: VmId) {
        self.unseen_vms.remove(&id);
        self.hostless.remove(&id);
        let Some(vm) = self.vms.remove(&id) else {
            return;
        };
        self.vm_ids
            .remove(&(vm.connector.clone(), vm.record.id.clone()));
        self.forget_uuid(vm.record.uuid, id);
        self.end_turns(clock.now, id);
        let epoch = self.fleet.placement(id).map_or(0, |list| list.epoch.0);
        self.fleet.remove_vm(clock.now, id);
        if vm.connector != crate::guests::NO_CONNECTOR {
            self.event(clock, "vm_gone", vm.record.name.clone());
            self.notes.extend(vm.guest.map(Note::VmDeleted));
        }
        self.write(Row::VmGone(id.0));
        if let Some(guest) = vm.guest {
            self.vm_of_guest_gone(clock, guest, epoch);
        }
    }

    fn forget_uuid(&mut self, uuid: Option<[u8; 16]>, id: VmId) {
        let Some(uuid) = uuid else {
            return;
        };
        if let Some(vms) = self.by_uuid.get_mut(&uuid) {
            vms.remove(&id);
            if vms.is_empty() {
                self.by_uuid.remove(&uuid);
            }
        }
    }

    pub(crate) fn host_id(&self, connector: &str, id: &str) -> Option<HostId> {
        let key = (connector.to_owned(), id.to_owned());
        self.host_ids.get(&key).copied()
    }

    pub(crate) fn vm_id(&self, connector: &str, id: &str) -> Option<VmId> {
        let key = (connector.to_owned(), id.to_owned());
        self.vm_ids.get(&key).copied()
    }
}

pub(crate) fn host_facts(host: &StoredHost) -> HostFacts {
    // Clusters of two connectors may have one name.
    let cluster = host.record.cluster.as_ref();
    HostFacts {
        cluster: cluster.map(|cluster| format!("{}/{cluster}", host.connector)),
        site: host.site.clone(),
        maintenance: host.record.maintenance || host.ordered_maintenance,
    }
}
