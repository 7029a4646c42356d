//! The choice for one VM.

use crate::fleet::{Fleet, Location, Vm};
use crate::lists::Cause;
use crate::rules::Rule;
use crate::{Availability, LIST_LEN, VmId};

/// Place of an appliance in the fleet's table.
pub(crate) type Slot = usize;

/// Same host, same cluster, same site, anywhere; after them the same again for appliances that a
/// rule keeps for others.
pub(crate) const TIERS: u8 = 4;

/// A part in a million.
const MILLION: u128 = 1_000_000;

/// What a VM wants.
pub(crate) struct Wish<'a> {
    pub(crate) vm: VmId,
    pub(crate) at: Location,
    pub(crate) load: u64,
    /// Where its load is counted already.
    pub(crate) own: Option<Slot>,
    /// The appliance on its host, where the hypervisor itself shows it.
    pub(crate) beside: Option<Slot>,
    pub(crate) rule: Option<&'a Rule>,
}

/// Which appliances may be chosen: those that take guests; else those whose queue is long; else
/// those that drain, for they still protect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    Ready,
    Busy,
    Draining,
    Down,
}

/// A choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) slot: Slot,
    pub(crate) level: u8,
    /// Nobody had room, so the least loaded took it.
    pub(crate) crowded: bool,
}

impl Wish<'_> {
    pub(crate) fn tier(&self, fleet: &Fleet, slot: Slot) -> u8 {
        let there = &fleet.appliances[slot].location;
        let same = |a: Option<u32>, b: Option<u32>| a.is_some() && a == b;
        let is_on_host = self.at.host.is_some() && self.at.host == there.host;
        if is_on_host || self.beside == Some(slot) {
            0
        } else if same(self.at.cluster, there.cluster) {
            1
        } else if same(self.at.site, there.site) {
            2
        } else {
            3
        }
    }

    fn is_in_scope(&self, fleet: &Fleet, slot: Slot) -> bool {
        let labels = &fleet.appliances[slot].facts.labels;
        self.rule.is_none_or(|rule| rule.names(labels))
    }

    /// Tier, behind all tiers in scope where it is out of scope.
    pub(crate) fn level(&self, fleet: &Fleet, slot: Slot) -> u8 {
        let tier = self.tier(fleet, slot);
        if self.is_in_scope(fleet, slot) {
            tier
        } else {
            tier + TIERS
        }
    }

    pub(crate) fn score(&self, fleet: &Fleet, slot: Slot) -> f64 {
        let appliance = &fleet.appliances[slot];
        let weight = appliance.weight.max(1);
        crate::rendezvous::score(fleet.seed, self.vm.0, appliance.id.0, weight)
    }

    /// Appliances of one level, best first.
    fn ranked(&self, fleet: &Fleet, level: u8, worst: Readiness) -> Vec<Slot> {
        let (tier, in_scope) = (level % TIERS, level < TIERS);
        let fits = |slot: &Slot| {
            fleet.readiness(*slot) <= worst
                && self.is_in_scope(fleet, *slot) == in_scope
                && self.tier(fleet, *slot) == tier
        };
        let mut found: Vec<(Slot, f64)> = match tier {
            0 => {
                let host = self.at.host.and_then(|host| fleet.hosts.get(&host));
                let there = host.map(|host| host.appliances.as_slice());
                let there = there.unwrap_or_default().iter().copied();
                // It may have told nobody which host it is on.
                let beside = self
                    .beside
                    .filter(|it| !there.clone().any(|slot| slot == *it));
                self.scored(fleet, there.chain(beside).filter(fits))
            }
            1 => {
                let slots = self.at.cluster.and_then(|it| fleet.by_cluster.get(&it));
                let slots = slots.map(Vec::as_slice).unwrap_or_default();
                self.scored(fleet, slots.iter().copied().filter(fits))
            }
            2 => {
                let slots = self.at.site.and_then(|it| fleet.by_site.get(&it));
                let slots = slots.map(Vec::as_slice).unwrap_or_default();
                self.scored(fleet, slots.iter().copied().filter(fits))
            }
            _ => self.scored(fleet, (0..fleet.appliances.len()).filter(fits)),
        };
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.into_iter().map(|(slot, _)| slot).collect()
    }

    fn scored(&self, fleet: &Fleet, slots: impl Iterator<Item = Slot>) -> Vec<(Slot, f64)> {
        slots.map(|slot| (slot, self.score(fleet, slot))).collect()
    }

    fn levels(&self) -> std::ops::Range<u8> {
        // Without a rule everything is in scope.
        0..if self.rule.is_some() {
            2 * TIERS
        } else {
            TIERS
        }
    }

    /// Whether its load fits below the bound.
    pub(crate) fn fits(&self, fleet: &Fleet, slot: Slot) -> bool {
        self.fits_below(fleet, slot, 100)
    }

    /// … below this percentage of it.
    fn fits_below(&self, fleet: &Fleet, slot: Slot, percent: u64) -> bool {
        let bound = u128::from(fleet.bound(slot)) * u128::from(percent) / 100;
        let own = if self.own == Some(slot) { self.load } else { 0 };
        u128::from(fleet.appliances[slot].load - own + self.load) <= bound
    }

    /// The nearest level on which there is an appliance that would take guests if it had room.
    fn nearest(&self, fleet: &Fleet) -> Option<u8> {
        self.levels()
            .find(|level| !self.ranked(fleet, *level, Readiness::Busy).is_empty())
    }

    /// The best appliance.
    pub(crate) fn choose(&self, fleet: &Fleet) -> Option<Choice> {
        for level in self.levels() {
            let ranked = self.ranked(fleet, level, Readiness::Ready);
            if let Some(slot) = ranked.into_iter().find(|slot| self.fits(fleet, *slot)) {
                let crowded = false;
                return Some(Choice {
                    slot,
                    level,
                    crowded,
                });
            }
        }
        self.least_loaded(fleet)
    }

    /// A nearer appliance than that of `level`, with room to spare: one that has just shed does
    /// not take its guests back at once.
    pub(crate) fn home(&self, fleet: &Fleet, level: u8) -> Option<Slot> {
        let below = fleet.settings.home_below_percent;
        let nearer = self.levels().take_while(|nearer| *nearer < level);
        let mut ranked = nearer.flat_map(|level| self.ranked(fleet, level, Readiness::Ready));
        ranked.find(|slot| self.fits_below(fleet, *slot, below))
    }

    /// All are over their bound (or busy, or drain): the least loaded of the readiest.
    fn least_loaded(&self, fleet: &Fleet) -> Option<Choice> {
        let slots = (0..fleet.appliances.len()).map(|slot| (fleet.readiness(slot), slot));
        let slots = slots.filter(|(readiness, _)| *readiness != Readiness::Down);
        let used = |slot: Slot| {
            let own = if self.own == Some(slot) { self.load } else { 0 };
            let load = fleet.appliances[slot].load - own + self.load;
            u128::from(load) * MILLION / u128::from(fleet.appliances[slot].weight.max(1))
        };
        let least = slots.min_by_key(|(readiness, slot)| {
            (*readiness, used(*slot), self.level(fleet, *slot), *slot)
        });
        least.map(|(_, slot)| Choice {
            slot,
            level: self.level(fleet, slot),
            crowded: true,
        })
    }

    /// The list that begins with `first`: after it the next in rank, on other hosts where there
    /// are any, for a host may die with its appliance.
    pub(crate) fn list(&self, fleet: &Fleet, first: Slot) -> Vec<Slot> {
        let mut list = vec![first];
        // One that drains is better than nobody, and goes before it is switched off.
        for worst in [Readiness::Busy, Readiness::Draining] {
            let mut shares_a_host = Vec::new();
            for level in self.levels() {
                for slot in self.ranked(fleet, level, worst) {
                    if list.len() == LIST_LEN {
                        return list;
                    }
                    let host = fleet.appliances[slot].location.host;
                    let is_there = |other: &Slot| {
                        host.is_some() && fleet.appliances[*other].location.host == host
                    };
                    if list.contains(&slot) {
                    } else if list.iter().any(is_there) {
                        shares_a_host.push(slot);
                    } else {
                        list.push(slot);
                    }
                }
            }
            list.extend(shares_a_host);
            list.truncate(LIST_LEN);
        }
        list
    }
}

impl Fleet {
    /// What an appliance may carry: capacity × max(0.6, min(1, 1.25 × mean use)).
    pub(crate) fn bound(&self, slot: Slot) -> u64 {
        let percent = |share: u64| u128::from(share) * MILLION / 100;
        let used = u128::from(self.load_total) * percent(self.settings.bound_mean_percent)
            / u128::from(self.weight_total.max(1));
        let floor = percent(self.settings.bound_floor_percent);
        let share = used.min(MILLION).max(floor);
        let bound = u128::from(self.appliances[slot].weight) * share / MILLION;
        u64::try_from(bound).unwrap_or(u64::MAX)
    }

    /// What an appliance says of itself, and its host's maintenance.
    pub(crate) fn availability(&self, slot: Slot) -> Availability {
        let appliance = &self.appliances[slot];
        let host = appliance.facts.host.and_then(|host| self.hosts.get(&host));
        let is_leaving = host.is_some_and(|host| host.facts.maintenance);
        match appliance.availability {
            Availability::Up if is_leaving => Availability::Draining,
            as_told => as_told,
        }
    }

    pub(crate) fn readiness(&self, slot: Slot) -> Readiness {
        match self.availability(slot) {
            Availability::Down => Readiness::Down,
            Availability::Draining => Readiness::Draining,
            Availability::Up if self.appliances[slot].queue_ms >= self.settings.queue_busy_ms => {
                Readiness::Busy
            }
            Availability::Up => Readiness::Ready,
        }
    }

    /// Places a VM where it must be or is better placed, and keeps it where it is otherwise.
    pub(crate) fn place(&mut self, id: VmId, cause: Cause) {
        let Some(vm) = self.vms.get(&id) else {
            return;
        };
        if !vm.facts.running {
            // A list to a dead appliance helps nobody when it starts.
            let first = vm.list.first();
            if first.is_some_and(|slot| self.readiness(*slot) == Readiness::Down) {
                self.assign(id, Vec::new());
            }
            self.homeless.remove(&id);
            self.displaced.remove(&id);
            return;
        }
        let wish = self.wish(id, vm);
        let first = self.first_for(&wish, vm, cause);
        let list = first.map_or_else(Vec::new, |first| wish.list(self, first));
        let (before, is_homeless) = (vm.list.first().copied(), list.is_empty());
        let moved = before != list.first().copied();
        if self.assign(id, list)
            && let Some(vm) = self.vms.get_mut(&id)
        {
            vm.cause = if moved { cause } else { Cause::Backup };
        }
        if is_homeless {
            self.homeless.insert(id);
        } else {
            self.homeless.remove(&id);
        }
        self.note_displaced(id);
    }

    fn first_for(&self, wish: &Wish<'_>, vm: &Vm, cause: Cause) -> Option<Slot> {
        let choice = wish.choose(self);
        let current = vm.list.first().copied();
        let stays = current.filter(|slot| self.readiness(*slot) <= Readiness::Busy);
        if let Some(current) = stays {
            let is_better =
                |choice: &Choice| !choice.crowded && choice.level < wish.level(self, current);
            return Some(
                choice
                    .filter(is_better)
                    .map_or(current, |choice| choice.slot),
            );
        }
        let choice = choice?;
        if cause == Cause::ApplianceDown {
            // It has failed over by itself: where that is as good, it stays there.
            let is_as_good = |slot: &&Slot| {
                self.readiness(**slot) == Readiness::Ready
                    && wish.level(self, **slot) <= choice.level
                    && wish.fits(self, **slot)
            };
            if let Some(slot) = vm.list.iter().skip(1).find(is_as_good) {
                return Some(*slot);
            }
        }
        Some(choice.slot)
    }

    /// Notes whether a nearer appliance would serve a VM if it had room.
    pub(crate) fn note_displaced(&mut self, id: VmId) {
        let is_displaced = self.vms.get(&id).is_some_and(|vm| {
            let wish = self.wish(id, vm);
            let first = vm.list.first().filter(|_| vm.facts.running);
            first.is_some_and(|first| {
                let level = wish.level(self, *first);
                level > 0 && wish.nearest(self).is_some_and(|nearest| nearest < level)
            })
        });
        if is_displaced {
            self.displaced.insert(id);
        } else {
            self.displaced.remove(&id);
        }
    }
}
