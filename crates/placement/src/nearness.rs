//! Where a VM is believed to be.

use std::time::Duration;

use crate::VmId;
use crate::choose::{Readiness, Slot, Wish};
use crate::fleet::{Fleet, Location, Measured, Vm};

/// A round of measuring takes no longer: what is older than the last but one is of another list.
const ROUND_TIME: Duration = Duration::from_secs(30);

impl Fleet {
    /// Where a VM is: beside the appliance that it reaches by the hypervisor itself; else as the
    /// inventory says, unless round trips measured since show another place to be clearly nearer.
    pub(crate) fn believed(&self, vm: &Vm) -> Location {
        let shown = vm.attached.or_else(|| self.shown_by_measuring(vm));
        shown.map_or_else(|| self.told(vm), |slot| self.appliances[slot].location)
    }

    /// As the inventory says.
    fn told(&self, vm: &Vm) -> Location {
        let host = vm.facts.host.and_then(|host| self.hosts.get(&host));
        host.map(|host| host.location).unwrap_or_default()
    }

    /// The appliance that is clearly nearer than those which the inventory lets expect to be near;
    /// with an inventory that knows no host, the nearest. A round trip counts twice, since one may
    /// have been held up: a place is believed when the least favourable reading of the last two
    /// rounds shows it, and until the most favourable one does not.
    pub(crate) fn shown_by_measuring(&self, vm: &Vm) -> Option<Slot> {
        let told = self.told(vm);
        let valid = self.settings.measured_valid;
        let counts = |m: &&Measured| {
            self.now.saturating_sub(m.last.at) <= valid && self.readiness(m.slot) != Readiness::Down
        };
        let counting: Vec<&Measured> = vm.measured.iter().filter(counts).collect();
        // What is in the list no more is measured no more, and says nothing of where the VM is now.
        let latest = vm.measured.iter().max_by_key(|m| m.last.at)?;
        let since = latest.before.map_or(Duration::ZERO, |before| before.at);
        let since = since.saturating_sub(ROUND_TIME);
        let recent = || counting.iter().filter(|m| m.last.at >= since);
        let nearest = recent().min_by_key(|m| (m.worst_us(), m.slot))?;
        let from_told = Wish {
            vm: VmId(0),
            at: told,
            load: 0,
            own: None,
            beside: None,
            rule: None,
        };
        let tier = |slot: Slot| from_told.tier(self, slot);
        let is_known = told.host.is_some();
        // One that was measured once may be in no list any more, and would be waited for in vain.
        let twice = recent().filter(|m| m.before.is_some());
        let expected = twice.min_by_key(|m| (tier(m.slot), m.best_us()));
        // One that is expected to be nearer than this one.
        let rival = |of: &Measured| expected.filter(|m| is_known && tier(m.slot) < tier(of.slot));
        let is_clear = |near_us, far_us| self.is_clearly_nearer(near_us, far_us);

        let shown = counting.iter().find(|m| Some(m.slot) == vm.shown);
        let shown = shown.filter(|shown| {
            rival(shown).is_none_or(|rival| is_clear(shown.best_us(), rival.worst_us()))
        });
        let (than, is_new) = match shown {
            Some(shown) => (*shown, nearest.slot != shown.slot),
            None if !is_known => return Some(nearest.slot),
            None => (*rival(nearest)?, true),
        };
        let is_agreed = nearest.before.is_some() && than.before.is_some();
        let is_nearer = is_new && is_agreed && is_clear(nearest.worst_us(), than.best_us());
        if is_nearer {
            Some(nearest.slot)
        } else {
            shown.map(|shown| shown.slot)
        }
    }

    fn is_clearly_nearer(&self, near_us: u32, far_us: u32) -> bool {
        let (near, far) = (u64::from(near_us), u64::from(far_us));
        let by = u64::from(self.settings.nearer_by_us);
        near * self.settings.nearer_percent <= far * 100 && near + by <= far
    }
}
