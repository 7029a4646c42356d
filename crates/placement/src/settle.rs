//! What time does: drains, sheds, brings home, renews lists; each within its budget.

use std::time::Duration;

use crate::choose::{Choice, Readiness, Slot};
use crate::fleet::Fleet;
use crate::lists::Cause;
use crate::{Availability, VmId};

impl Fleet {
    /// Goes on with what is not done at once. True: there is more to do right now.
    pub fn tick(&mut self, now: Duration) -> bool {
        self.at(now);
        self.refill();
        self.take_in_homeless();
        let drains_left = self.drain();
        self.shed();
        self.bring_home();
        self.renew_lists();
        drains_left || !self.stale_lists.is_empty()
    }

    /// Whoever has no appliance gets one as soon as there is any.
    fn take_in_homeless(&mut self) {
        let is_there = |slot| self.availability(slot) != Availability::Down;
        if self.homeless.is_empty() || !(0..self.appliances.len()).any(is_there) {
            return;
        }
        for vm in std::mem::take(&mut self.homeless) {
            self.place(vm, Cause::Started);
        }
    }

    fn refill(&mut self) {
        let vms = u64::try_from(self.vms.len()).unwrap_or(u64::MAX);
        let per_mille = self.settings.optional_moves_per_mille_minute;
        let per_minute_milli = match per_mille {
            0 => 0,
            _ => vms.saturating_mul(per_mille).max(10_000),
        };
        let since = self.refilled_at.replace(self.now);
        let gained = match since {
            None => u128::from(per_minute_milli),
            Some(since) => {
                let elapsed = self.now.saturating_sub(since).as_millis();
                u128::from(per_minute_milli) * elapsed / 60_000
            }
        };
        let gained = u64::try_from(gained).unwrap_or(u64::MAX);
        if gained == 0 && since.is_some() {
            // What is less than a thousandth of a move is not lost.
            self.refilled_at = since;
        }
        let filled = self.optional_moves_milli.saturating_add(gained);
        self.optional_moves_milli = filled.min(per_minute_milli);
    }

    /// Takes one optional move from the budget.
    fn may_move(&mut self) -> bool {
        let left = self.optional_moves_milli.checked_sub(1000);
        self.optional_moves_milli = left.unwrap_or(self.optional_moves_milli);
        left.is_some()
    }

    /// True: some are still to move, and can.
    fn drain(&mut self) -> bool {
        let mut left = self.settings.drain_moves_max;
        for slot in 0..self.appliances.len() {
            if self.availability(slot) != Availability::Draining {
                continue;
            }
            let vms: Vec<VmId> = self.appliances[slot].vms.iter().copied().collect();
            for vm in vms {
                if self.vms.get(&vm).is_some_and(|vm| !vm.facts.running) {
                    // It gets a list when it starts.
                    self.assign(vm, Vec::new());
                    continue;
                }
                if left == 0 {
                    return true;
                }
                self.place(vm, Cause::Drain);
                let first = self.vms.get(&vm).and_then(|vm| vm.list.first().copied());
                if first == Some(slot) {
                    // Nowhere else to go, and so it is for the others.
                    break;
                }
                left -= 1;
            }
        }
        false
    }

    fn shed(&mut self) {
        for slot in 0..self.appliances.len() {
            if self.availability(slot) == Availability::Up
                && self.appliances[slot].load > self.bound(slot)
            {
                self.shed_from(slot);
            }
        }
    }

    /// The farthest first, then the heaviest: fewest moves, least nearness lost.
    fn shed_from(&mut self, slot: Slot) {
        let mut vms: Vec<(u8, u64, VmId)> = Vec::new();
        for id in &self.appliances[slot].vms {
            let Some(vm) = self.vms.get(id).filter(|vm| vm.facts.load() > 0) else {
                continue;
            };
            let level = self.wish(*id, vm).level(self, slot);
            vms.push((level, vm.facts.load(), *id));
        }
        vms.sort_by(|a, b| b.cmp(a));
        let target = u128::from(self.bound(slot)) * u128::from(self.settings.shed_to_percent) / 100;
        for (_, _, id) in vms {
            if u128::from(self.appliances[slot].load) <= target {
                return;
            }
            let Some(vm) = self.vms.get(&id) else {
                continue;
            };
            let wish = self.wish(id, vm);
            let Some(to) = wish.choose(self).filter(|to| is_relief(to, slot)) else {
                continue;
            };
            if !self.may_move() {
                return;
            }
            self.move_to(id, to.slot, Cause::Shed);
        }
    }

    fn bring_home(&mut self) {
        let looks = self.settings.homecoming_looks_max.min(self.displaced.len());
        for _ in 0..looks {
            let after = self.look_after.and_then(|after| {
                let later = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
                self.displaced.range(later).next().copied()
            });
            let Some(id) = after.or_else(|| self.displaced.first().copied()) else {
                return;
            };
            self.look_after = Some(id);
            let Some(vm) = self.vms.get(&id) else {
                self.displaced.remove(&id);
                continue;
            };
            let wish = self.wish(id, vm);
            let level = vm.list.first().map(|first| wish.level(self, *first));
            let home = level.and_then(|level| wish.home(self, level));
            match home {
                Some(home) if self.may_move() => self.move_to(id, home, Cause::Homecoming),
                Some(_) => return,
                None => self.note_displaced(id),
            }
        }
    }

    fn renew_lists(&mut self) {
        for _ in 0..self.settings.list_renewals_max {
            let Some(id) = self.stale_lists.pop_first() else {
                return;
            };
            let Some(vm) = self.vms.get(&id) else {
                continue;
            };
            let first = vm.list.first().copied();
            let stays = first.filter(|slot| self.readiness(*slot) != Readiness::Down);
            if let Some(first) = stays {
                self.move_to(id, first, Cause::Backup);
            }
        }
    }

    fn move_to(&mut self, id: VmId, first: Slot, cause: Cause) {
        let Some(vm) = self.vms.get(&id) else {
            return;
        };
        let list = self.wish(id, vm).list(self, first);
        if self.assign(id, list)
            && let Some(vm) = self.vms.get_mut(&id)
        {
            vm.cause = cause;
        }
        self.note_displaced(id);
    }
}

/// Whether a move there takes load off `from` and puts nobody else over the bound.
fn is_relief(to: &Choice, from: Slot) -> bool {
    to.slot != from && !to.crowded
}
