//! Whatever happens in whatever order.

use std::collections::BTreeMap;

use placement::{
    ApplianceId, Availability, Cause, Epoch, Fleet, HostFacts, HostId, Placement, VmFacts, VmId,
};
use proptest::prelude::*;

use crate::world::{World, at};

const HOSTS: u64 = 12;
const VMS: u64 = 40;

#[derive(Debug, Clone)]
enum Step {
    Vm(u64, Option<u64>, u64, bool),
    Gone(u64),
    Appliance(u64, u8),
    Maintenance(u64, bool),
    Queue(u64, u32),
    Measured(u64, u64, u32),
    Tick(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..VMS, proptest::option::weighted(0.9, 0..HOSTS), 1..40_u64, prop::bool::weighted(0.8))
            .prop_map(|(vm, host, weight, runs)| Step::Vm(vm, host, weight * 500, runs)),
        1 => (0..VMS).prop_map(Step::Gone),
        3 => (0..HOSTS, 0..3_u8).prop_map(|(id, to)| Step::Appliance(id, to)),
        1 => (0..HOSTS, any::<bool>()).prop_map(|(host, on)| Step::Maintenance(host, on)),
        1 => (0..HOSTS, 0..400_u32).prop_map(|(id, ms)| Step::Queue(id, ms)),
        2 => (0..VMS, 0..HOSTS, 20..2000_u32).prop_map(|(vm, id, us)| Step::Measured(vm, id, us)),
        4 => (0..200_u64).prop_map(Step::Tick),
    ];
    proptest::collection::vec(step, 1..150)
}

/// The fleet, and what the world knows of it besides.
struct Checked {
    fleet: Fleet,
    clock: u64,
    known: BTreeMap<VmId, VmFacts>,
    last: BTreeMap<VmId, Placement>,
}

impl Checked {
    fn new() -> Self {
        Self {
            fleet: World::new(1, 3, 4, 1).fleet,
            clock: 0,
            known: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        let now = at(self.clock);
        match step {
            Step::Vm(vm, host, weight, running) => {
                let facts = VmFacts {
                    host: host.map(HostId),
                    weight: *weight,
                    running: *running,
                    ..VmFacts::default()
                };
                self.known.insert(VmId(*vm), facts.clone());
                self.fleet.put_vm(now, VmId(*vm), facts);
            }
            Step::Gone(vm) => {
                self.known.remove(&VmId(*vm));
                self.last.remove(&VmId(*vm));
                self.fleet.remove_vm(now, VmId(*vm));
            }
            Step::Appliance(id, to) => {
                let to = [Availability::Up, Availability::Draining, Availability::Down]
                    [usize::from(*to)];
                self.fleet.set_availability(now, ApplianceId(*id), to);
            }
            Step::Maintenance(host, on) => {
                let facts = HostFacts {
                    cluster: Some(format!("c{}", host / 4)),
                    site: Some("s0".into()),
                    maintenance: *on,
                };
                self.fleet.put_host(now, HostId(*host), facts);
            }
            Step::Queue(id, ms) => self.fleet.set_queue(now, ApplianceId(*id), *ms),
            Step::Measured(vm, id, us) => {
                self.fleet.measured(now, VmId(*vm), ApplianceId(*id), *us);
            }
            Step::Tick(seconds) => {
                self.clock += seconds;
                self.fleet.tick(at(self.clock));
            }
        }
    }

    fn check(&mut self) {
        let fleet = &self.fleet;
        let views: Vec<_> = (0..HOSTS)
            .map(|id| fleet.appliance(ApplianceId(id)).unwrap())
            .collect();
        let reachable = views
            .iter()
            .any(|view| view.availability != Availability::Down);
        let mut loads = BTreeMap::<ApplianceId, u64>::new();
        let mut load = 0;
        for (id, facts) in &self.known {
            let placement = fleet.placement(*id).unwrap();
            let list = &placement.appliances;
            if facts.running {
                load += facts.weight;
                assert!(!reachable || !list.is_empty(), "{id} has no appliance");
                if let Some(first) = list.first() {
                    *loads.entry(*first).or_default() += facts.weight;
                    let view = &views[usize::try_from(first.0).unwrap()];
                    assert_ne!(view.availability, Availability::Down, "{id} {placement:?}");
                }
            }
            let distinct: std::collections::BTreeSet<_> = list.iter().collect();
            assert_eq!(distinct.len(), list.len());
            // Lists change only with their epoch, and epochs only rise.
            if let Some(last) = self.last.get(id) {
                assert!(placement.epoch >= last.epoch);
                assert!(placement.epoch > last.epoch || list == &last.appliances);
            }
            self.last.insert(*id, placement);
        }
        for view in &views {
            assert_eq!(view.load, loads.get(&view.id).copied().unwrap_or(0));
            assert!(view.bound <= view.capacity);
        }
        assert_eq!(fleet.totals().load, load);
        let homeless = self
            .known
            .iter()
            .filter(|(id, facts)| facts.running && self.last[id].appliances.is_empty());
        assert_eq!(fleet.totals().homeless, homeless.count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_running_vm_has_an_appliance_and_every_sum_is_right(steps in steps()) {
        let mut checked = Checked::new();
        for step in &steps {
            checked.step(step);
            checked.check();
        }
    }

    #[test]
    fn equal_courses_give_equal_lists(steps in steps()) {
        let (mut a, mut b) = (Checked::new(), Checked::new());
        for step in &steps {
            a.step(step);
            b.step(step);
        }
        prop_assert_eq!(a.fleet.take_changes(1000), b.fleet.take_changes(1000));
    }

    /// When all has settled, nobody is over the bound while another has room.
    #[test]
    fn bounds_hold_once_settled(steps in steps()) {
        let mut checked = Checked::new();
        for step in &steps {
            checked.step(step);
        }
        // Slow starts end, drains end, and shedding has had its budget.
        for _ in 0..200 {
            checked.step(&Step::Tick(60));
        }
        checked.check();
        let fleet = &checked.fleet;
        let open: Vec<_> = (0..HOSTS)
            .map(|id| fleet.appliance(ApplianceId(id)).unwrap())
            .filter(|view| view.availability == Availability::Up && view.queue_ms < 200)
            .collect();
        for over in open.iter().filter(|view| view.load > view.bound) {
            let own = checked.known.iter().filter(|(id, facts)| {
                facts.running && checked.last[id].appliances.first() == Some(&over.id)
            });
            for (id, facts) in own {
                let fits = |view: &&placement::ApplianceView| view.load + facts.weight <= view.bound;
                prop_assert!(
                    !open.iter().any(|view| fits(&view)),
                    "{} is on {:?}, over its bound, and fits elsewhere", id, over
                );
            }
        }
    }

    /// A change concerns those whom it must concern: an appliance that dies moves nobody else's.
    #[test]
    fn a_death_moves_only_its_own(steps in steps(), dead in 0..HOSTS) {
        let mut checked = Checked::new();
        for step in &steps {
            checked.step(step);
        }
        checked.check();
        let before = checked.last.clone();
        checked.step(&Step::Appliance(dead, 2));
        checked.check();
        for (id, old) in &before {
            let new = &checked.last[id];
            if old.appliances.first() != Some(&ApplianceId(dead)) {
                prop_assert_eq!(&old.appliances, &new.appliances);
            } else {
                prop_assert!(new.cause == Cause::ApplianceDown || new.appliances.is_empty());
                prop_assert!(new.epoch > old.epoch && old.epoch > Epoch::default());
            }
        }
    }
}
