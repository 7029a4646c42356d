//! Who places: Lazaret, and the rules that known products follow.

use std::time::Duration;

use placement::{
    ApplianceFacts, ApplianceId, Availability, Fleet, HostFacts, HostId, Settings, VmFacts, VmId,
};

use super::trace::{Random, World, cluster, site};

/// Sees what happens and says who serves whom.
pub(crate) trait Placer {
    fn start(&mut self, vm: usize, host: usize, weight: u64);
    fn migrate(&mut self, vm: usize, host: usize);
    fn weigh(&mut self, vm: usize, weight: u64);
    fn appliance(&mut self, appliance: usize, up: bool);
    fn minutes(&mut self, minutes: u64);
    fn firsts(&self) -> Vec<Option<usize>>;
}

/// As it ships.
pub(crate) struct Lazaret {
    fleet: Fleet,
    vms: Vec<VmFacts>,
    now: Duration,
}

impl Lazaret {
    pub(crate) fn new(world: &World) -> Self {
        let mut fleet = Fleet::new(Settings::default(), 1, 1);
        let now = Duration::ZERO;
        for host in 0..world.size.hosts {
            let facts = HostFacts {
                cluster: Some(format!("cluster {}", cluster(host))),
                site: Some(format!("site {}", site(host))),
                maintenance: false,
            };
            fleet.put_host(now, HostId(host as u64), facts);
        }
        for (number, host) in world.appliance_host.iter().enumerate() {
            let id = ApplianceId(number as u64);
            let facts = ApplianceFacts {
                host: Some(HostId(*host as u64)),
                cluster: None,
                site: None,
                capacity: world.capacity,
                labels: Vec::new(),
            };
            fleet.put_appliance(now, id, facts);
            fleet.set_availability(now, id, Availability::Up);
        }
        Self {
            fleet,
            vms: vec![VmFacts::default(); world.size.vms],
            now,
        }
    }

    fn put(&mut self, vm: usize, change: impl FnOnce(&mut VmFacts)) {
        change(&mut self.vms[vm]);
        let facts = self.vms[vm].clone();
        self.fleet.put_vm(self.now, VmId(vm as u64), facts);
    }

    /// Lists that changed since this was asked last.
    pub(crate) fn changes(&mut self) -> usize {
        self.fleet.take_changes(usize::MAX).len()
    }
}

impl Placer for Lazaret {
    fn start(&mut self, vm: usize, host: usize, weight: u64) {
        self.put(vm, |facts| {
            facts.host = Some(HostId(host as u64));
            facts.weight = weight;
        });
    }

    fn migrate(&mut self, vm: usize, host: usize) {
        self.put(vm, |facts| facts.host = Some(HostId(host as u64)));
    }

    fn weigh(&mut self, vm: usize, weight: u64) {
        self.put(vm, |facts| facts.weight = weight);
    }

    fn appliance(&mut self, appliance: usize, up: bool) {
        let to = if up {
            Availability::Up
        } else {
            Availability::Down
        };
        self.fleet
            .set_availability(self.now, ApplianceId(appliance as u64), to);
    }

    fn minutes(&mut self, minutes: u64) {
        for _ in 0..minutes {
            self.now += Duration::from_secs(60);
            while self.fleet.tick(self.now) {}
        }
    }

    fn firsts(&self) -> Vec<Option<usize>> {
        let first = |vm: usize| {
            let list = self.fleet.placement(VmId(vm as u64))?.appliances;
            Some(list.first()?.0 as usize)
        };
        (0..self.vms.len()).map(first).collect()
    }
}

/// What is done where the VM's own host has no appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Of all, the one with the fewest agents.
    Fewest,
    /// Of two random ones of the nearest tier, the one with less load.
    BetterOfTwo,
}

/// The appliance on the same host, else by a rule; chosen anew at each migration and death, never
/// for another reason.
pub(crate) struct LocalElse {
    pick: Pick,
    appliance_host: Vec<usize>,
    up: Vec<bool>,
    agents: Vec<u64>,
    load: Vec<u64>,
    vms: Vec<(usize, u64, Option<usize>)>,
    random: Random,
}

impl LocalElse {
    pub(crate) fn new(world: &World, pick: Pick) -> Self {
        Self {
            pick,
            appliance_host: world.appliance_host.clone(),
            up: world.up.clone(),
            agents: vec![0; world.size.appliances],
            load: vec![0; world.size.appliances],
            vms: vec![(0, 0, None); world.size.vms],
            random: Random::new(9),
        }
    }

    fn choose(&mut self, host: usize) -> Option<usize> {
        let up = |appliance: &usize| self.up[*appliance];
        let all = (0..self.up.len()).filter(up);
        match self.pick {
            Pick::Fewest => {
                let local = all.clone().find(|it| self.appliance_host[*it] == host);
                local.or_else(|| all.min_by_key(|it| self.agents[*it]))
            }
            Pick::BetterOfTwo => {
                let tier = |it: &usize| {
                    let there = self.appliance_host[*it];
                    match () {
                        () if there == host => 0,
                        () if cluster(there) == cluster(host) => 1,
                        () if site(there) == site(host) => 2,
                        () => 3,
                    }
                };
                let nearest = all.clone().map(|it| tier(&it)).min()?;
                let near: Vec<usize> = all.filter(|it| tier(it) == nearest).collect();
                let (a, b) = (
                    near[self.random.below(near.len())],
                    near[self.random.below(near.len())],
                );
                Some(if self.load[a] <= self.load[b] { a } else { b })
            }
        }
    }

    fn place(&mut self, vm: usize) {
        let (host, weight, old) = self.vms[vm];
        if let Some(old) = old {
            self.agents[old] -= 1;
            self.load[old] -= weight;
        }
        let new = self.choose(host);
        if let Some(new) = new {
            self.agents[new] += 1;
            self.load[new] += weight;
        }
        self.vms[vm].2 = new;
    }
}

impl Placer for LocalElse {
    fn start(&mut self, vm: usize, host: usize, weight: u64) {
        self.vms[vm] = (host, weight, None);
        self.place(vm);
    }

    fn migrate(&mut self, vm: usize, host: usize) {
        self.vms[vm].0 = host;
        self.place(vm);
    }

    fn weigh(&mut self, vm: usize, weight: u64) {
        let (_, old, appliance) = self.vms[vm];
        if let Some(appliance) = appliance {
            self.load[appliance] = self.load[appliance] - old + weight;
        }
        self.vms[vm].1 = weight;
    }

    fn appliance(&mut self, appliance: usize, up: bool) {
        self.up[appliance] = up;
        if !up {
            for vm in 0..self.vms.len() {
                if self.vms[vm].2 == Some(appliance) {
                    self.place(vm);
                }
            }
        }
    }

    fn minutes(&mut self, _minutes: u64) {}

    fn firsts(&self) -> Vec<Option<usize>> {
        self.vms.iter().map(|(_, _, first)| *first).collect()
    }
}
