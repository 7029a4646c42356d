//! A controller: the shipped core around the simulated disk. What is said is applied, then
//! written, then told; a crash may come between any two of these.

use fleet_core::{Clock, Core, CoreSettings, Order};

use crate::disk::Disk;
use crate::work;

const SEED: u64 = 42;

pub(crate) struct Controller {
    pub(crate) core: Core,
    pub(crate) term: u32,
    /// Its clock's zero, in the world's time: clocks of two controllers have nothing in common.
    began_ms: u64,
    /// It goes on, but nobody hears what it says to the disk or the world.
    pub(crate) is_paused: bool,
}

impl Controller {
    /// Takes the lease and goes on from the disk.
    pub(crate) fn lead(disk: &mut Disk, now_ms: u64) -> Self {
        disk.term += 1;
        let clock = Clock {
            now: std::time::Duration::ZERO,
            wall_ms: now_ms,
        };
        let ids = (SEED, disk.term);
        let settings = CoreSettings {
            storm: work::policy(),
            ..CoreSettings::default()
        };
        Self {
            core: Core::new(clock, settings, work::sites(), ids, disk.load()),
            term: disk.term,
            began_ms: now_ms,
            is_paused: false,
        }
    }

    /// The wall clock may jump; decisions use the other one.
    pub(crate) fn clock(&self, now_ms: u64, wall_jump_ms: i64) -> Clock {
        Clock {
            now: std::time::Duration::from_millis(now_ms.saturating_sub(self.began_ms)),
            wall_ms: now_ms.saturating_add_signed(wall_jump_ms),
        }
    }

    /// One round of the loop. `None`: another controller has the lease.
    pub(crate) fn settle(&mut self, disk: &mut Disk, clock: Clock) -> Option<Vec<Order>> {
        while self.core.tick(clock) {}
        disk.members.note(self.core.take_notes());
        let writes = self.core.take_writes();
        let orders = self.core.take_orders();
        disk.commit(self.term, writes).then_some(orders)
    }
}
