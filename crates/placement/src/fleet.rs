//! The fleet's state, and what all that changes it shares.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::choose::{Slot, Wish};
use crate::lists::Cause;
use crate::rules::{Rule, Subject};
use crate::{
    ApplianceFacts, ApplianceId, Availability, Epoch, HostFacts, HostId, LIST_LEN, Settings,
    VmFacts, VmId,
};

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
    pub(crate) last: Reading,
    /// Of the round before. `None`: this is the first.
    pub(crate) before: Option<Reading>,
}

/// A round trip, and when it was told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) rtt_us: u32,
    pub(crate) at: Duration,
}

impl Measured {
    /// The longer one of the last two.
    pub(crate) fn worst_us(&self) -> u32 {
        let before = self.before.map_or(0, |before| before.rtt_us);
        self.last.rtt_us.max(before)
    }

    /// The shorter one of the last two.
    pub(crate) fn best_us(&self) -> u32 {
        let before = self.before.map_or(u32::MAX, |before| before.rtt_us);
        self.last.rtt_us.min(before)
    }
}

#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) facts: VmFacts,
    pub(crate) list: Vec<Slot>,
    pub(crate) epoch: Epoch,
    pub(crate) cause: Cause,
    pub(crate) measured: Vec<Measured>,
    /// The appliance that it was last believed to be beside by what it has measured.
    pub(crate) shown: Option<Slot>,
    /// The appliance on its host, which it reaches by a channel of the hypervisor.
    pub(crate) attached: Option<Slot>,
    /// When the inventory moved it last.
    pub(crate) moved_at: Option<Duration>,
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
    pub(crate) weights_stale: bool,
    pub(crate) homeless: BTreeSet<VmId>,
    pub(crate) displaced: BTreeSet<VmId>,
    pub(crate) look_after: Option<VmId>,
    pub(crate) stale_lists: BTreeSet<VmId>,
    /// Lists that had fewer appliances than they should, or ones that drained, when they were made.
    pub(crate) short_lists: BTreeSet<VmId>,
    pub(crate) changed: BTreeSet<VmId>,
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

    pub(crate) fn name(&mut self, name: Option<&String>) -> Option<u32> {
        let name = name.filter(|name| !name.is_empty())?;
        let next = u32::try_from(self.names.len()).ok()?;
        Some(*self.names.entry(name.clone()).or_insert(next))
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
            beside: vm.attached,
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
