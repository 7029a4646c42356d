//! One fleet and what happens in it; the same for everybody who places.

use super::rivals::Placer;

/// Hosts in a cluster, clusters on a site.
const HOSTS_PER_CLUSTER: usize = 20;
const CLUSTERS_PER_SITE: usize = 25;
/// Mean use of the appliances at the start, in percent.
const USE_PERCENT: u64 = 60;

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) hosts: usize,
    pub(crate) appliances: usize,
    pub(crate) vms: usize,
}

impl Size {
    pub(crate) fn of(hosts: usize, appliances: usize, vms: usize) -> Self {
        Self {
            hosts,
            appliances,
            vms,
        }
    }
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Start,
    Migrations,
    Evacuation,
    Deaths,
    Returns,
    Storm,
}

impl Phase {
    pub(crate) const ALL: [Self; 6] = [
        Self::Start,
        Self::Migrations,
        Self::Evacuation,
        Self::Deaths,
        Self::Returns,
        Self::Storm,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Migrations => "migrations",
            Self::Evacuation => "evacuation",
            Self::Deaths => "deaths",
            Self::Returns => "returns",
            Self::Storm => "storm",
        }
    }
}

/// splitmix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Log-normal around 1000: few VMs do much, many do little.
    fn weight(&mut self) -> u64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        ((normal * 0.8).exp() * 1000.0) as u64 + 1
    }
}

/// The fleet as it is; who places sees it through events.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) size: Size,
    pub(crate) vm_host: Vec<usize>,
    pub(crate) vm_weight: Vec<u64>,
    pub(crate) appliance_host: Vec<usize>,
    pub(crate) up: Vec<bool>,
    pub(crate) capacity: u64,
    random: Random,
}

/// How well the VMs are placed.
pub(crate) struct State {
    pub(crate) local_percent: f64,
    pub(crate) far_percent: f64,
    pub(crate) max_over_mean: f64,
}

pub(crate) fn cluster(host: usize) -> usize {
    host / HOSTS_PER_CLUSTER
}

pub(crate) fn site(host: usize) -> usize {
    cluster(host) / CLUSTERS_PER_SITE
}

impl World {
    pub(crate) fn new(size: Size) -> Self {
        let mut random = Random::new(1);
        let vm_weight: Vec<u64> = (0..size.vms).map(|_| random.weight()).collect();
        let total: u64 = vm_weight.iter().sum();
        let each = size.hosts / size.appliances;
        Self {
            size,
            vm_host: (0..size.vms).map(|vm| vm % size.hosts).collect(),
            vm_weight,
            appliance_host: (0..size.appliances).map(|number| number * each).collect(),
            up: vec![true; size.appliances],
            capacity: total * 100 / USE_PERCENT / size.appliances as u64,
            random,
        }
    }

    fn other_host(&mut self, host: usize) -> usize {
        let first = cluster(host) * HOSTS_PER_CLUSTER;
        loop {
            let other = first + self.random.below(HOSTS_PER_CLUSTER);
            if other != host {
                return other;
            }
        }
    }

    /// Where the VMs of a host go.
    pub(crate) fn evacuation(&mut self, host: usize) -> Vec<(usize, usize)> {
        let vms: Vec<usize> = (0..self.size.vms)
            .filter(|vm| self.vm_host[*vm] == host)
            .collect();
        vms.into_iter()
            .map(|vm| (vm, self.other_host(host)))
            .collect()
    }

    pub(crate) fn apply(&mut self, moves: &[(usize, usize)]) {
        for (vm, host) in moves {
            self.vm_host[*vm] = *host;
        }
    }

    fn migrate(&mut self, moves: &[(usize, usize)], placer: &mut dyn Placer) {
        for (vm, host) in moves {
            self.vm_host[*vm] = *host;
            placer.migrate(*vm, *host);
        }
        placer.minutes(1);
    }

    pub(crate) fn play(&mut self, phase: Phase, placer: &mut dyn Placer) {
        let dead = (self.size.appliances / 100).max(1);
        match phase {
            Phase::Start => {
                for vm in 0..self.size.vms {
                    placer.start(vm, self.vm_host[vm], self.vm_weight[vm]);
                }
            }
            Phase::Migrations => {
                for _ in 0..self.size.vms / 20 {
                    let vm = self.random.below(self.size.vms);
                    let to = self.other_host(self.vm_host[vm]);
                    self.migrate(&[(vm, to)], placer);
                }
            }
            Phase::Evacuation => {
                let moves = self.evacuation(self.size.hosts / 2);
                self.migrate(&moves, placer);
            }
            Phase::Deaths | Phase::Returns => {
                for number in 0..dead {
                    let appliance = number * (self.size.appliances / dead);
                    self.up[appliance] = phase == Phase::Returns;
                    placer.appliance(appliance, self.up[appliance]);
                }
                placer.minutes(60);
            }
            Phase::Storm => {
                for vm in 0..self.size.vms {
                    if cluster(self.vm_host[vm]) == 1 {
                        self.vm_weight[vm] *= 4;
                        placer.weigh(vm, self.vm_weight[vm]);
                    }
                }
                placer.minutes(60);
            }
        }
    }

    pub(crate) fn measure(&self, firsts: &[Option<usize>]) -> State {
        let mut load = vec![0_u64; self.size.appliances];
        let (mut local, mut far) = (0_u64, 0_u64);
        for (vm, first) in firsts.iter().enumerate() {
            let Some(first) = first else {
                far += 1;
                continue;
            };
            load[*first] += self.vm_weight[vm];
            let (here, there) = (self.vm_host[vm], self.appliance_host[*first]);
            local += u64::from(here == there);
            far += u64::from(cluster(here) != cluster(there));
        }
        let up = load
            .iter()
            .zip(&self.up)
            .filter(|(_, up)| **up)
            .map(|(load, _)| *load);
        let up: Vec<u64> = up.collect();
        let mean = up.iter().sum::<u64>() as f64 / up.len() as f64;
        let percent = |count: u64| count as f64 * 100.0 / firsts.len() as f64;
        State {
            local_percent: percent(local),
            far_percent: percent(far),
            max_over_mean: up.iter().max().copied().unwrap_or_default() as f64 / mean,
        }
    }
}
