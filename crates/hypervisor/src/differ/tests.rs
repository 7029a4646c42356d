use proptest::prelude::*;

use super::*;
use crate::record::{HostState, Migration, Power};

fn host_id(n: u8) -> HostId {
    HostId::new(&format!("h{n}")).expect("an id")
}

fn vm_id(n: u8) -> VmId {
    VmId::new(&format!("v{n}")).expect("an id")
}

fn host(n: u8, state: HostState) -> Host {
    Host {
        id: host_id(n),
        name: format!("host {n}"),
        cluster: None,
        state,
    }
}

fn vm(n: u8, on: u8, power: Power) -> Vm {
    let mut vm = Vm::new(vm_id(n), "a name");
    vm.host = Some(host_id(on));
    vm.power = power;
    vm
}

fn moving(mut vm: Vm, to: Option<u8>) -> Vm {
    let to = to.map(host_id);
    vm.migration = Some(Migration { to });
    vm
}

fn moved(from: u8, to: Option<u8>, phase: MovePhase) -> Change {
    Change::VmMoved {
        vm: vm_id(1),
        from: Some(host_id(from)),
        to: to.map(host_id),
        phase,
    }
}

fn with_one() -> Differ {
    let mut differ = Differ::new();
    let mut snapshot = Snapshot::default();
    snapshot.add_host(host(1, HostState::Up));
    snapshot.add_host(host(2, HostState::Up));
    snapshot.add_vm(vm(1, 1, Power::Running));
    let changes = differ.observe(Observation::Everything(snapshot));
    assert_eq!(changes.len(), 4);
    assert_eq!(changes.last(), Some(&Change::Synced));
    differ
}

fn see(differ: &mut Differ, vm: Vm) -> Vec<Change> {
    differ.observe(Observation::Vm(vm))
}

#[test]
fn the_same_record_again_is_no_event() {
    let mut differ = with_one();
    assert_eq!(see(&mut differ, vm(1, 1, Power::Running)), []);
    let again = Observation::Everything(differ.snapshot());
    assert_eq!(differ.observe(again), [Change::Synced]);
}

#[test]
fn a_move_has_each_phase_once() {
    use MovePhase::{Started, Switched};
    let mut differ = with_one();
    let on_its_way = moving(vm(1, 1, Power::Running), Some(2));
    assert_eq!(see(&mut differ, on_its_way), [moved(1, Some(2), Started)]);
    let there = moving(vm(1, 2, Power::Running), Some(2));
    assert_eq!(see(&mut differ, there), [moved(1, Some(2), Switched)]);
    // The end of a move that has switched is neither a failure nor a second switch.
    assert_eq!(see(&mut differ, vm(1, 2, Power::Running)), []);
}

#[test]
fn a_move_that_fails_is_told_and_the_next_one_too() {
    use MovePhase::{Failed, Started, Switched};
    let mut differ = with_one();
    let on_its_way = || moving(vm(1, 1, Power::Running), Some(2));
    assert_eq!(see(&mut differ, on_its_way()), [moved(1, Some(2), Started)]);
    let back = vm(1, 1, Power::Running);
    assert_eq!(see(&mut differ, back), [moved(1, Some(2), Failed)]);
    assert_eq!(see(&mut differ, on_its_way()), [moved(1, Some(2), Started)]);
    let there = vm(1, 2, Power::Running);
    assert_eq!(see(&mut differ, there), [moved(1, Some(2), Switched)]);
}

#[test]
fn what_happened_during_an_outage_is_told_once_by_its_result() {
    let mut differ = with_one();
    let mut snapshot = differ.snapshot();
    snapshot.hosts.remove(&host_id(1));
    snapshot.add_vm(vm(1, 2, Power::Paused));
    snapshot.add_vm(vm(2, 2, Power::Off));
    let changes = differ.observe(Observation::Everything(snapshot));
    let expected = [
        moved(1, Some(2), MovePhase::Switched),
        Change::VmPowered {
            vm: vm_id(1),
            from: Power::Running,
            to: Power::Paused,
        },
        Change::VmAppeared(vm(2, 2, Power::Off)),
        Change::HostGone(host_id(1)),
        Change::Synced,
    ];
    assert_eq!(changes, expected);
}

#[test]
fn a_clone_is_told_only_of_what_appears_later() {
    let mut copy = vm(2, 1, Power::Off);
    copy.cloned_from = Some(vm_id(1));
    let mut first = Snapshot::default();
    first.add_vm(copy.clone());
    let changes = Differ::new().observe(Observation::Everything(first));
    assert_eq!(changes, [Change::VmAppeared(copy.clone()), Change::Synced]);

    let cloned = Change::VmCloned {
        vm: vm_id(2),
        from: vm_id(1),
    };
    let changes = see(&mut with_one(), copy.clone());
    assert_eq!(changes, [Change::VmAppeared(copy), cloned]);
}

#[test]
fn lists_of_a_vm_are_cut_to_their_limits() {
    let mut long = vm(1, 1, Power::Running);
    long.tags = (0..1000).map(|n| format!("t{n}")).collect();
    let mut differ = with_one();
    see(&mut differ, long);
    let known = differ.vm(&vm_id(1)).expect("known");
    assert_eq!(known.tags.len(), crate::TAGS_MAX);
}

/// What a consumer that only reads the changes knows.
#[derive(Default, Debug, PartialEq, Eq)]
struct Mirror {
    hosts: BTreeMap<HostId, Host>,
    vms: BTreeMap<VmId, (Option<HostId>, Power, String)>,
}

impl Mirror {
    fn take(&mut self, change: Change) {
        match change {
            Change::HostAppeared(host) => {
                let old = self.hosts.insert(host.id.clone(), host);
                assert!(old.is_none(), "appeared twice: {old:?}");
            }
            Change::HostChanged(host) => {
                let old = self.hosts.insert(host.id.clone(), host.clone());
                assert!(old.is_some_and(|old| old != host), "an invented event");
            }
            Change::HostGone(id) => assert!(self.hosts.remove(&id).is_some(), "{id}"),
            Change::VmAppeared(vm) => {
                let row = (vm.host, vm.power, vm.name);
                let old = self.vms.insert(vm.id, row);
                assert!(old.is_none(), "appeared twice: {old:?}");
            }
            Change::VmChanged(vm) => {
                let row = self.vms.get_mut(&vm.id).expect("known");
                row.0 = vm.host;
                row.2 = vm.name;
            }
            Change::VmMoved {
                vm,
                from,
                to,
                phase,
            } => {
                let row = self.vms.get_mut(&vm).expect("known");
                if phase == MovePhase::Switched {
                    assert_ne!(row.0, to, "an invented move");
                    assert_eq!(row.0, from);
                    row.0 = to;
                }
            }
            Change::VmPowered { vm, from, to } => {
                let row = self.vms.get_mut(&vm).expect("known");
                assert_eq!(row.1, from);
                assert_ne!(row.1, to, "an invented event");
                row.1 = to;
            }
            Change::VmGone(id) => assert!(self.vms.remove(&id).is_some(), "{id}"),
            Change::VmCloned { .. } | Change::Synced | Change::Lost { .. } => {}
        }
    }

    fn of(differ: &Differ) -> Self {
        let snapshot = differ.snapshot();
        let row = |vm: Vm| (vm.id, (vm.host, vm.power, vm.name));
        Self {
            hosts: snapshot.hosts,
            vms: snapshot.vms.into_values().map(row).collect(),
        }
    }
}

fn any_vm() -> impl Strategy<Value = Vm> {
    let power = prop_oneof![
        Just(Power::Off),
        Just(Power::Running),
        Just(Power::Paused),
        Just(Power::Unknown)
    ];
    let place = proptest::option::of(0_u8..3);
    let migration = proptest::option::of(proptest::option::of(0_u8..3));
    (0_u8..4, place, power, migration, "[ab]").prop_map(|(n, on, power, to, name)| {
        let mut vm = Vm::new(vm_id(n), &name);
        vm.host = on.map(host_id);
        vm.power = power;
        vm.migration = to.map(|to| Migration {
            to: to.map(host_id),
        });
        vm
    })
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let state = prop_oneof![Just(HostState::Up), Just(HostState::Maintenance)];
    let any_host = (0_u8..3, state).prop_map(|(n, state)| host(n, state));
    let hosts = proptest::collection::vec(any_host.clone(), 0..3);
    let everything = (hosts, proptest::collection::vec(any_vm(), 0..4)).prop_map(|(hosts, vms)| {
        let mut snapshot = Snapshot::default();
        hosts.into_iter().for_each(|host| snapshot.add_host(host));
        vms.into_iter().for_each(|vm| snapshot.add_vm(vm));
        Observation::Everything(snapshot)
    });
    prop_oneof![
        6 => any_vm().prop_map(Observation::Vm),
        2 => any_host.prop_map(Observation::Host),
        1 => (0_u8..3).prop_map(|n| Observation::HostGone(host_id(n))),
        1 => (0_u8..4).prop_map(|n| Observation::VmGone(vm_id(n))),
        1 => everything,
    ]
}

proptest! {
    /// Whoever reads only the changes knows what the differ knows, and no change says nothing.
    #[test]
    fn changes_tell_everything(observations in proptest::collection::vec(any_observation(), 0..60)) {
        let mut differ = Differ::new();
        let mut mirror = Mirror::default();
        for observation in observations {
            for change in differ.observe(observation) {
                mirror.take(change);
            }
            prop_assert_eq!(&mirror, &Mirror::of(&differ));
        }
    }
}
