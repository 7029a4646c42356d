//! Why this appliance.

use crate::choose::{Readiness, Slot, TIERS, Wish};
use crate::fleet::{Fleet, Vm};
use crate::{ApplianceId, HostId, Placement, VmId};

/// How an appliance stands for one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is the first of the list.
    First,
    /// It is second (1) or third (2).
    Backup(usize),
    /// It would be over its bound.
    OverBound,
    /// Its queue is long.
    Busy,
    /// It drains.
    Draining,
    /// It cannot be reached.
    Down,
    /// It is farther, or kept for others by a rule.
    Farther,
    /// It is as near, and ranks lower for this VM.
    RanksLower,
    /// It ranks higher or is nearer, and has room; moves for that alone are within a budget, and
    /// only to a better tier.
    NotWorthAMove,
}

impl Standing {
    /// A stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Backup(_) => "backup",
            Self::OverBound => "over_bound",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Farther => "farther",
            Self::RanksLower => "ranks_lower",
            Self::NotWorthAMove => "not_worth_a_move",
        }
    }
}

/// One appliance as it was weighed.
#[derive(Debug, Clone, PartialEq)]
pub struct Considered {
    /// Which.
    pub appliance: ApplianceId,
    /// 0 same host, 1 same cluster, 2 same site, 3 anywhere.
    pub tier: u8,
    /// The rule that fits the VM names it, or there is none.
    pub in_scope: bool,
    /// Its rank for this VM: higher is better within a tier.
    pub rank: f64,
    /// Its load.
    pub load: u64,
    /// What it takes at most.
    pub bound: u64,
    /// The round trip that the VM measured, in microseconds.
    pub rtt_us: Option<u32>,
    /// What came of it.
    pub standing: Standing,
}

/// Why a VM has its list.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The list.
    pub placement: Placement,
    /// Where the inventory says it is.
    pub host: Option<HostId>,
    /// Where measured round trips say it is, where that is another place.
    pub measured_host: Option<HostId>,
    /// The appliance that it reaches by a channel of the hypervisor, and so is on the host of.
    pub attached: Option<ApplianceId>,
    /// The rule that fits it.
    pub rule: Option<String>,
    /// The appliances, nearest first, best rank first; those of the list among them.
    pub considered: Vec<Considered>,
    /// How many more there are.
    pub omitted: usize,
}

impl Fleet {
    /// Why a VM has its list, with at most `max` appliances besides those of the list; `None`
    /// where the VM is not known.
    #[must_use]
    pub fn explain(&self, id: VmId, max: usize) -> Option<Explanation> {
        let vm = self.vms.get(&id)?;
        let wish = self.wish(id, vm);
        let mut slots: Vec<(u8, f64, Slot)> = (0..self.appliances.len())
            .map(|slot| (wish.level(self, slot), wish.score(self, slot), slot))
            .collect();
        slots.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let total = slots.len();
        let mut considered = Vec::new();
        let mut others = 0;
        for (level, rank, slot) in slots {
            let is_listed = vm.list.contains(&slot);
            others += usize::from(!is_listed);
            if is_listed || others <= max {
                considered.push(self.consider(&wish, vm, slot, level, rank));
            }
        }
        let measured = wish.at.host.filter(|host| vm.facts.host != Some(*host));
        let measured = measured.filter(|_| vm.attached.is_none());
        Some(Explanation {
            placement: self.placement(id)?,
            host: vm.facts.host,
            measured_host: measured,
            attached: vm.attached.map(|slot| self.appliances[slot].id),
            rule: wish.rule.map(|rule| rule.name.clone()),
            omitted: total - considered.len(),
            considered,
        })
    }

    fn consider(&self, wish: &Wish<'_>, vm: &Vm, slot: Slot, level: u8, rank: f64) -> Considered {
        let appliance = &self.appliances[slot];
        let measured = vm.measured.iter().find(|measured| measured.slot == slot);
        Considered {
            appliance: appliance.id,
            tier: level % TIERS,
            in_scope: level < TIERS,
            rank,
            load: appliance.load,
            bound: self.bound(slot),
            rtt_us: measured.map(|measured| measured.last.rtt_us),
            standing: self.standing(wish, vm, slot, level, rank),
        }
    }

    fn standing(&self, wish: &Wish<'_>, vm: &Vm, slot: Slot, level: u8, rank: f64) -> Standing {
        match vm.list.iter().position(|listed| *listed == slot) {
            Some(0) => return Standing::First,
            Some(place) => return Standing::Backup(place),
            None => {}
        }
        match self.readiness(slot) {
            Readiness::Down => return Standing::Down,
            Readiness::Draining => return Standing::Draining,
            Readiness::Busy => return Standing::Busy,
            Readiness::Ready => {}
        }
        let Some(first) = vm.list.first().copied() else {
            return Standing::NotWorthAMove;
        };
        let (own_level, own_rank) = (wish.level(self, first), wish.score(self, first));
        if level > own_level {
            Standing::Farther
        } else if level == own_level && rank < own_rank {
            Standing::RanksLower
        } else if !wish.fits(self, slot) {
            Standing::OverBound
        } else {
            Standing::NotWorthAMove
        }
    }
}
