//! The fleet's state and what changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::choose::{Slot, Wish};
use crate::rules::{Rule, Subject};
use crate::{
    ApplianceFacts, ApplianceId, Availability, Epoch, HostFacts, HostId, LIST_LEN, Settings,
    VmFacts, VmId,
};

/// Round trips kept for one VM.
const MEASURED_MAX: usize = 4;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Location {
    pub(crate) host: Option<HostId>,
    pub(crate) cluster: Option<u32>,
    pub(crate) site: Option<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) facts: HostFacts,
    pub(crate) location: Location,
    pub(crate) vms: BTreeSet<VmId>,
    pub(crate) appliances: Vec<Slot>,
}

#[derive(Debug)]
pub(crate) struct Appliance {
    pub(crate) id: ApplianceId,
    pub(crate) facts: ApplianceFacts,
    pub(crate) location: Location,
    pub(crate) availability: Availability,
    pub(crate) queue_ms: u32,
    /// `None`: it has its full weight.
    pub(crate) slow_since: Option<Duration>,
    /// Its share of choices now: capacity, less while it starts; 0 where it is down.
    pub(crate) weight: u64,
    pub(crate) load: u64,
    pub(crate) vms: BTreeSet<VmId>,
    pub(crate) backs: BTreeSet<VmId>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) slot: Slot,
    pub(crate) rtt_us: u32,
    pub(crate) at: Duration,
}

#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) facts: VmFacts,
    pub(crate) list: Vec<Slot>,
    pub(crate) epoch: Epoch,
    pub(crate) cause: Cause,
    pub(crate) measured: Vec<Measured>,
}

/// The whole fleet as placement sees it.
#[derive(Debug)]
pub struct Fleet {
    pub(crate) settings: Settings,
    pub(crate) seed: u64,
    pub(crate) term: u32,
    pub(crate) now: Duration,
    /// Until then appliances come with their full weight: everything starts.
    pub(crate) warm_until: Option<Duration>,
    names: BTreeMap<String, u32>,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) hosts_by_cluster: BTreeMap<u32, BTreeSet<HostId>>,
    pub(crate) hosts_by_site: BTreeMap<u32, BTreeSet<HostId>>,
    pub(crate) appliances: Vec<Appliance>,
    pub(crate) slots: BTreeMap<ApplianceId, Slot>,
    pub(crate) by_cluster: BTreeMap<u32, Vec<Slot>>,
    pub(crate) by_site: BTreeMap<u32, Vec<Slot>>,
    pub(crate) vms: BTreeMap<VmId, Vm>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) load_total: u64,
    pub(crate) weight_total: u64,
    weights_stale: bool,
    pub(crate) homeless: BTreeSet<VmId>,
    pub(crate) displaced: BTreeSet<VmId>,
    pub(crate) look_after: Option<VmId>,
    pub(crate) stale_lists: BTreeSet<VmId>,
    /// Lists that had fewer appliances than they should, or ones that drained, when they were made.
    pub(crate) short_lists: BTreeSet<VmId>,
    changed: BTreeSet<VmId>,
    pub(crate) moves: u64,
    pub(crate) optional_moves_milli: u64,
    pub(crate) refilled_at: Option<Duration>,
}

impl Fleet {
    /// An empty fleet. `seed` must be the same over restarts, or every guest ranks appliances
    /// anew; `term` rises with every placer that takes over.
    #[must_use]
    pub fn new(settings: Settings, seed: u64, term: u32) -> Self {
        Self {
            settings,
            seed,
            term,
            now: Duration::ZERO,
            warm_until: None,
            names: BTreeMap::new(),
            hosts: BTreeMap::new(),
            hosts_by_cluster: BTreeMap::new(),
            hosts_by_site: BTreeMap::new(),
            appliances: Vec::new(),
            slots: BTreeMap::new(),
            by_cluster: BTreeMap::new(),
            by_site: BTreeMap::new(),
            vms: BTreeMap::new(),
            rules: Vec::new(),
            load_total: 0,
            weight_total: 0,
            weights_stale: true,
            homeless: BTreeSet::new(),
            displaced: BTreeSet::new(),
            look_after: None,
            stale_lists: BTreeSet::new(),
            short_lists: BTreeSet::new(),
            changed: BTreeSet::new(),
            moves: 0,
            optional_moves_milli: 0,
            refilled_at: None,
        }
    }

    /// Brings the weights up to `now`. A clock that went back changes nothing.
    pub(crate) fn at(&mut self, now: Duration) {
        let warm = self.settings.slow_start;
        self.warm_until.get_or_insert(now.saturating_add(warm));
        self.now = self.now.max(now);
        if !self.weights_stale {
            return;
        }
        self.weights_stale = false;
        self.weight_total = 0;
        let (floor, slow) = (self.settings.slow_start_floor_percent, warm.as_millis());
        for appliance in &mut self.appliances {
            let full = appliance.facts.capacity.max(1);
            appliance.weight = match (appliance.availability, appliance.slow_since) {
                (Availability::Down, _) => 0,
                (_, None) => full,
                (_, Some(since)) => {
                    let age = self.now.saturating_sub(since).as_millis();
                    if age >= slow {
                        appliance.slow_since = None;
                        full
                    } else {
                        self.weights_stale = true;
                        let percent = u64::try_from(age * 100 / slow.max(1)).unwrap_or(100);
                        (full * percent.max(floor) / 100).max(1)
                    }
                }
            };
            // What drains goes on carrying, but counts no more as room.
            if appliance.availability == Availability::Up {
                self.weight_total += appliance.weight;
            }
        }
    }

    fn name(&mut self, name: Option<&String>) -> Option<u32> {
        let name = name.filter(|name| !name.is_empty())?;
        let next = u32::try_from(self.names.len()).ok()?;
        Some(*self.names.entry(name.clone()).or_insert(next))
    }

    // ---- Hosts.

    /// A host appeared or changed.
    pub fn put_host(&mut self, now: Duration, id: HostId, facts: HostFacts) {
        self.at(now);
        let location = Location {
            host: Some(id),
            cluster: self.name(facts.cluster.as_ref()),
            site: self.name(facts.site.as_ref()),
        };
        let host = self.hosts.entry(id).or_default();
        if host.facts == facts && host.location == location {
            return;
        }
        let old = std::mem::replace(&mut host.location, location);
        host.facts = facts;
        let (slots, vms) = (host.appliances.clone(), host.vms.clone());
        index(
            &mut self.hosts_by_cluster,
            old.cluster,
            location.cluster,
            id,
        );
        index(&mut self.hosts_by_site, old.site, location.site, id);
        if old == location {
            // Maintenance: the tick drains, or may place here again.
            self.stale_lists.extend(self.short_lists.iter().copied());
            return;
        }
        for slot in slots {
            self.locate(slot);
        }
        for vm in vms {
            self.place(vm, Cause::Migrated);
        }
    }

    /// A host is gone. Its VMs are nowhere for now, and keep their lists; its appliances stay
    /// what they are.
    pub fn remove_host(&mut self, now: Duration, id: HostId) {
        self.at(now);
        let Some(host) = self.hosts.remove(&id) else {
            return;
        };
        index(&mut self.hosts_by_cluster, host.location.cluster, None, id);
        index(&mut self.hosts_by_site, host.location.site, None, id);
        for vm in host.vms {
            if let Some(vm) = self.vms.get_mut(&vm) {
                vm.facts.host = None;
            }
        }
        for slot in host.appliances {
            self.appliances[slot].facts.host = None;
            self.locate(slot);
        }
    }

    // ---- Appliances.

    /// An appliance appeared (down, until [`Self::set_availability`]) or changed.
    pub fn put_appliance(&mut self, now: Duration, id: ApplianceId, facts: ApplianceFacts) {
        self.at(now);
        let slot = match self.slots.get(&id) {
            Some(slot) => *slot,
            None => {
                let slot = self.appliances.len();
                self.slots.insert(id, slot);
                self.appliances.push(Appliance {
                    id,
                    facts: facts.clone(),
                    location: Location::default(),
                    availability: Availability::Down,
                    queue_ms: 0,
                    slow_since: None,
                    weight: 0,
                    load: 0,
                    vms: BTreeSet::new(),
                    backs: BTreeSet::new(),
                });
                slot
            }
        };
        let old = self.appliances[slot].facts.host;
        if let Some(host) = old.and_then(|host| self.hosts.get_mut(&host)) {
            host.appliances.retain(|other| *other != slot);
        }
        if let Some(host) = facts.host {
            self.ensure_host(host).appliances.push(slot);
        }
        self.appliances[slot].facts = facts;
        self.weights_stale = true;
        self.locate(slot);
        self.at(now);
    }

    fn ensure_host(&mut self, id: HostId) -> &mut Host {
        let host = self.hosts.entry(id).or_default();
        host.location.host = Some(id);
        host
    }

    /// Puts an appliance where its host is.
    fn locate(&mut self, slot: Slot) {
        let facts = self.appliances[slot].facts.clone();
        let of_host = facts.host.and_then(|host| self.hosts.get(&host));
        let of_host = of_host.map(|host| host.location).unwrap_or_default();
        let location = Location {
            host: facts.host,
            cluster: of_host
                .cluster
                .or_else(|| self.name(facts.cluster.as_ref())),
            site: of_host.site.or_else(|| self.name(facts.site.as_ref())),
        };
        let old = std::mem::replace(&mut self.appliances[slot].location, location);
        for (by, old, new) in [
            (&mut self.by_cluster, old.cluster, location.cluster),
            (&mut self.by_site, old.site, location.site),
        ] {
            if let Some(slots) = old.and_then(|old| by.get_mut(&old)) {
                slots.retain(|other| *other != slot);
            }
            if let Some(new) = new {
                by.entry(new).or_default().push(slot);
            }
        }
    }

    /// Whether an appliance takes guests, as its stream or an administrator says. A death places
    /// its VMs anew at once; a drain goes on with [`Self::tick`].
    pub fn set_availability(&mut self, now: Duration, id: ApplianceId, to: Availability) {
        self.at(now);
        let Some(slot) = self.slots.get(&id).copied() else {
            return;
        };
        let from = std::mem::replace(&mut self.appliances[slot].availability, to);
        if from == to {
            return;
        }
        self.weights_stale = true;
        if from == Availability::Down {
            let is_late = self.warm_until.is_some_and(|until| self.now >= until);
            self.appliances[slot].slow_since = is_late.then_some(self.now);
        }
        self.at(now);
        match to {
            Availability::Down => self.lose(slot),
            Availability::Up => self.welcome(slot),
            Availability::Draining => {
                let backs = self.appliances[slot].backs.clone();
                self.stale_lists.extend(backs);
            }
        }
    }

    /// Its VMs go elsewhere; they have failed over by themselves meanwhile.
    fn lose(&mut self, slot: Slot) {
        for vm in self.appliances[slot].vms.clone() {
            self.place(vm, Cause::ApplianceDown);
        }
        let backs = self.appliances[slot].backs.clone();
        self.stale_lists.extend(backs);
    }

    /// Whoever has no appliance gets this one at once; whoever is nearer to it than to its own
    /// may come home, within the budget.
    fn welcome(&mut self, slot: Slot) {
        for vm in std::mem::take(&mut self.homeless) {
            self.place(vm, Cause::Started);
        }
        self.stale_lists.extend(self.short_lists.iter().copied());
        let here = self.appliances[slot].location;
        let others = |slots: Option<&Vec<Slot>>| slots.is_some_and(|slots| slots.len() > 1);
        let is_first_on_site = here
            .site
            .is_some_and(|site| !others(self.by_site.get(&site)));
        let hosts = if is_first_on_site {
            here.site.and_then(|site| self.hosts_by_site.get(&site))
        } else {
            here.cluster
                .and_then(|cluster| self.hosts_by_cluster.get(&cluster))
        };
        let own = here.host.filter(|_| hosts.is_none());
        let hosts: Vec<HostId> = hosts.into_iter().flatten().copied().chain(own).collect();
        for host in hosts {
            let vms = self.hosts.get(&host).map(|host| &host.vms);
            let vms: Vec<VmId> = vms.into_iter().flatten().copied().collect();
            for vm in vms {
                self.note_displaced(vm);
            }
        }
    }

    /// An appliance is gone for good.
    pub fn remove_appliance(&mut self, now: Duration, id: ApplianceId) {
        self.set_availability(now, id, Availability::Down);
        let Some(slot) = self.slots.get(&id).copied() else {
            return;
        };
        let host = self.appliances[slot].facts.host.take();
        if let Some(host) = host.and_then(|host| self.hosts.get_mut(&host)) {
            host.appliances.retain(|other| *other != slot);
        }
        (
            self.appliances[slot].facts.cluster,
            self.appliances[slot].facts.site,
        ) = (None, None);
        self.locate(slot);
    }

    /// How long an appliance's queue holds scans up.
    pub fn set_queue(&mut self, now: Duration, id: ApplianceId, queue_ms: u32) {
        self.at(now);
        if let Some(slot) = self.slots.get(&id).copied() {
            self.appliances[slot].queue_ms = queue_ms;
        }
    }

    // ---- VMs.

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
        vm.measured.retain(|old| old.slot != slot);
        if vm.measured.len() >= MEASURED_MAX {
            vm.measured.remove(0);
        }
        vm.measured.push(Measured { slot, rtt_us, at });
        self.place(id, Cause::Measured);
    }

    /// Replaces the rules. Whoever is out of scope by them moves at once.
    pub fn set_rules(&mut self, now: Duration, rules: Vec<Rule>) {
        self.at(now);
        if self.rules == rules {
            return;
        }
        self.rules = rules;
        let all: Vec<VmId> = self.vms.keys().copied().collect();
        for vm in all {
            self.place(vm, Cause::Rules);
        }
    }

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

    // ---- Answers.

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

    // ---- What choosing and settling share.

    pub(crate) fn wish<'a>(&'a self, id: VmId, vm: &'a Vm) -> Wish<'a> {
        let at = self.believed(vm);
        let host = vm.facts.host.and_then(|host| self.hosts.get(&host));
        let subject = Subject {
            tags: &vm.facts.tags,
            pool: vm.facts.pool.as_deref(),
            address: vm.facts.address,
            cluster: host.and_then(|host| host.facts.cluster.as_deref()),
            site: host.and_then(|host| host.facts.site.as_deref()),
        };
        Wish {
            vm: id,
            at,
            load: vm.facts.load(),
            own: vm.list.first().copied(),
            rule: self.rules.iter().find(|rule| rule.fits(&subject)),
        }
    }

    /// Gives a VM this list. Loads and indexes follow; an equal list is no change.
    pub(crate) fn assign(&mut self, id: VmId, list: Vec<Slot>) -> bool {
        let Some(vm) = self.vms.get_mut(&id) else {
            return false;
        };
        let is_short = list.len() < LIST_LEN
            || list
                .iter()
                .any(|slot| self.appliances[*slot].availability != Availability::Up);
        if is_short {
            self.short_lists.insert(id);
        } else {
            self.short_lists.remove(&id);
        }
        if vm.list == list {
            return false;
        }
        let load = vm.facts.load();
        let old = std::mem::replace(&mut vm.list, list.clone());
        vm.epoch = vm.epoch.next(self.term);
        for (place, slot) in old.iter().enumerate() {
            let appliance = &mut self.appliances[*slot];
            if place == 0 {
                appliance.load -= load;
                appliance.vms.remove(&id);
            } else {
                appliance.backs.remove(&id);
            }
        }
        for (place, slot) in list.iter().enumerate() {
            let appliance = &mut self.appliances[*slot];
            if place == 0 {
                appliance.load += load;
                appliance.vms.insert(id);
            } else {
                appliance.backs.insert(id);
            }
        }
        self.moves += u64::from(!old.is_empty() && !list.is_empty() && old[0] != list[0]);
        self.stale_lists.remove(&id);
        self.changed.insert(id);
        true
    }
}

fn index(
    by: &mut BTreeMap<u32, BTreeSet<HostId>>,
    old: Option<u32>,
    new: Option<u32>,
    host: HostId,
) {
    if let Some(hosts) = old.and_then(|old| by.get_mut(&old)) {
        hosts.remove(&host);
    }
    if let Some(new) = new {
        by.entry(new).or_default().insert(host);
    }
}
