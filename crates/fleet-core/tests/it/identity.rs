//! Whose session is a copy's: each case of decision 0020.

use fleet_core::{CopyOf, Core, GuestFacts, InventoryChange, Key, KnownGuest, Note, Order};
use model::{GuestId, Machine};
use placement::ApplianceId;

use crate::scene::{CONNECTOR, appliance, at, connect, core, guest, host, vm};

const K1: Key = [1; 16];
const K2: Key = [2; 16];
const K3: Key = [3; 16];

fn machine(uuid: u8, generation: u8) -> Machine {
    Machine {
        generation_id: Some([generation; 16]),
        system_uuid: Some([uuid; 16]),
        macs: Vec::new(),
        boot_id: None,
    }
}

/// What is written down: K1 is in force, K2 was issued, the machine is 7 of generation 1.
fn known() -> KnownGuest {
    KnownGuest {
        key: Some(K1),
        issued: vec![K2],
        machine: machine(7, 1),
    }
}

/// The guest's machine, in its boot of that number.
fn boot(number: u8) -> Machine {
    Machine {
        boot_id: Some([number; 16]),
        ..machine(7, 1)
    }
}

fn told(key: Key, machine: Machine) -> Note {
    Note::CopyTold(CopyOf {
        guest: Scene::id(),
        key: Some(key),
        machine,
    })
}

/// Two appliances and a guest.
struct Scene {
    core: Core,
    a: ApplianceId,
    b: ApplianceId,
    known: KnownGuest,
}

impl Scene {
    fn new() -> Self {
        let mut core = core(1);
        core.inventory(at(0), CONNECTOR, host("ha"));
        core.inventory(at(0), CONNECTOR, host("hb"));
        let (a, b) = (appliance(&mut core, "ha"), appliance(&mut core, "hb"));
        let known = known();
        Self { core, a, b, known }
    }

    fn id() -> GuestId {
        guest(7)
    }

    fn up(&mut self, seconds: u64, via: ApplianceId, key: Key, machine: Machine) {
        self.up_from(seconds, via, 1, key, machine);
    }

    /// From the address of this number.
    fn up_from(&mut self, seconds: u64, via: ApplianceId, from: u8, key: Key, machine: Machine) {
        let facts = GuestFacts {
            uuid: Some([7; 16]),
            address: [10, 0, 0, from].into(),
            hostname: "v7".into(),
            epoch: 0,
            channel: None,
            key: Some(key),
            machine,
            known: Some(self.known.clone()),
            vm: None,
        };
        self.core.guest_up(at(seconds), via, Self::id(), facts);
    }

    fn down(&mut self, seconds: u64, via: ApplianceId) {
        self.core.guest_down(at(seconds), via, Self::id());
    }

    /// Whom somebody was told to re-key, by now.
    fn rekeyed(&mut self, seconds: u64) -> Vec<(ApplianceId, Key)> {
        self.core.tick(at(seconds));
        let _rows = self.core.take_writes();
        let orders = self.core.take_orders().into_iter();
        let rekeyed = orders.filter_map(|order| match order {
            Order::Rekey {
                via, guest, key, ..
            } => {
                assert_eq!(guest, Self::id());
                Some((via, key.unwrap()))
            }
            _ => None,
        });
        rekeyed.collect()
    }

    fn events(&self, kind: &str) -> usize {
        let events = self.core.events_after(0, 1000);
        events.iter().filter(|event| event.kind == kind).count()
    }

    fn may_renew(&mut self, seconds: u64, key: Key, machine: &Machine) -> bool {
        let known = self.known.clone();
        let may = self
            .core
            .may_renew(at(seconds), Self::id(), Some(key), machine, &known);
        may.is_ok()
    }
}

#[test]
fn another_uuid_is_a_copy_at_once_and_takes_nothing_of_the_guest() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, machine(7, 1));
    scene.up(1, b, K1, machine(8, 2));
    assert_eq!(scene.rekeyed(1), [(b, K1)]);
    assert_eq!(scene.core.take_notes(), [told(K1, machine(8, 2))]);
    assert_eq!(scene.events("identity_conflict"), 1);
    assert!(scene.may_renew(2, K1, &machine(7, 1)));
    assert!(!scene.may_renew(2, K1, &machine(8, 2)));
    let vm = scene.core.find_vms(&Scene::id().to_string());
    let row = scene.core.why(vm[0], 1).unwrap().vm;
    assert_eq!(row.connected_to.as_deref(), Some("on-ha"));
    // Told again when it is told of again, without another event.
    scene.up(3, b, K1, machine(8, 2));
    assert_eq!(scene.rekeyed(3), [(b, K1)]);
    assert_eq!(scene.events("identity_conflict"), 1);
}

#[test]
fn another_uuid_is_a_copy_though_the_guest_is_off() {
    let mut scene = Scene::new();
    let b = scene.b;
    // With the newest key, too: it is not in force by that.
    scene.up(0, b, K2, machine(8, 1));
    assert_eq!(scene.rekeyed(0), [(b, K2)]);
    assert_eq!(scene.core.take_notes(), [told(K2, machine(8, 1))]);
}

#[test]
fn the_next_key_is_in_force_when_it_is_shown() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.up(0, a, K1, machine(7, 1));
    assert!(scene.core.take_notes().is_empty());
    scene.up(1, a, K2, machine(7, 1));
    assert_eq!(scene.core.take_notes(), [Note::KeySeen(Scene::id(), K2)]);
    // What was known may be from before that.
    assert!(!scene.may_renew(2, K1, &machine(9, 1)));
    assert_eq!(scene.core.take_notes(), [told(K1, machine(9, 1))]);
    scene.up(3, a, K2, machine(7, 1));
    assert!(scene.core.take_notes().is_empty());
}

#[test]
fn a_guest_that_moves_with_its_next_key_is_no_conflict() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, machine(7, 1));
    scene.up(10, b, K2, machine(7, 1));
    scene.down(11, a);
    assert_eq!(scene.rekeyed(200), []);
    assert_eq!(scene.events("identity_conflict"), 0);
    assert!(scene.may_renew(201, K2, &machine(7, 1)));
}

#[test]
fn an_old_key_beside_the_newer_one_is_a_copy_when_both_stay() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K2, machine(7, 1));
    scene.up(10, b, K1, machine(7, 1));
    assert_eq!(scene.rekeyed(84), [], "it may be the same machine");
    assert_eq!(scene.rekeyed(86), [(b, K1)]);
    assert_eq!(scene.events("identity_conflict"), 1);
    assert!(!scene.may_renew(87, K1, &machine(7, 1)));
    assert!(scene.may_renew(87, K2, &machine(7, 1)));
}

#[test]
fn a_session_whose_key_is_replaced_by_another_one_is_a_copy_when_both_stay() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, machine(7, 1));
    scene.up(10, b, K2, machine(7, 1));
    assert_eq!(scene.rekeyed(86), [(a, K1)]);
}

#[test]
fn a_renewal_with_an_old_key_finds_a_copy_too() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.up(0, a, K2, machine(7, 1));
    // Its certificate has expired: it has no session here.
    assert!(!scene.may_renew(1, K3, &machine(7, 1)));
    assert!(scene.may_renew(1, K2, &machine(7, 1)));
    scene.down(2, a);
    assert!(
        scene.may_renew(3, K3, &machine(7, 1)),
        "nobody else is there"
    );
}

#[test]
fn a_restored_machine_is_no_copy() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K2, machine(7, 1));
    let _seen = scene.core.take_notes();
    scene.down(100, a);
    scene.up(101, b, K3, machine(7, 2));
    assert_eq!(scene.rekeyed(300), []);
    let notes = scene.core.take_notes();
    assert_eq!(notes, [Note::MachineIs(Scene::id(), machine(7, 2))]);
    assert_eq!(scene.events("machine_restored"), 1);
    assert!(scene.may_renew(301, K3, &machine(7, 2)));
    // It is the older one where the newer shows up again.
    scene.known.machine = machine(7, 2);
    scene.up(302, a, K2, machine(7, 2));
    assert_eq!(scene.rekeyed(400), [(b, K3)]);
}

#[test]
fn a_restored_machine_whose_first_session_ends_late_is_no_copy() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, machine(7, 1));
    scene.up(10, b, K1, machine(7, 2));
    scene.down(60, a);
    assert_eq!(scene.rekeyed(90), []);
    let notes = scene.core.take_notes();
    assert_eq!(notes, [Note::MachineIs(Scene::id(), machine(7, 2))]);
}

#[test]
fn another_generation_is_a_copy_while_the_first_runs() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, machine(7, 1));
    scene.up(10, b, K1, machine(7, 2));
    assert_eq!(scene.rekeyed(86), [(b, K1)]);
    assert_eq!(scene.core.take_notes(), [told(K1, machine(7, 2))]);
}

#[test]
fn a_machine_that_is_restarted_is_no_copy_and_no_news() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, boot(1));
    scene.down(10, a);
    scene.up(30, a, K1, boot(2));
    // Again, at once: the session of the boot before is not noticed to be dead.
    scene.up(40, b, K1, boot(3));
    scene.up(50, b, K1, boot(4));
    scene.down(100, a);
    assert_eq!(scene.rekeyed(116), [], "all of them may be dead but one");
    scene.down(117, b);
    scene.up(117, b, K1, boot(4));
    assert_eq!(scene.rekeyed(600), []);
    assert!(scene.core.take_notes().is_empty());
    for kind in ["identity_conflict", "machine_restored"] {
        assert_eq!(scene.events(kind), 0, "{kind}");
    }
    assert!(scene.may_renew(601, K1, &boot(4)));
}

#[test]
fn another_boot_beside_the_first_is_a_copy_when_both_stay() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.up(0, a, K1, boot(1));
    scene.up(10, a, K1, boot(2));
    assert_eq!(scene.rekeyed(84), [], "it may be the same machine");
    assert_eq!(scene.rekeyed(86), [(a, K1)]);
    assert_eq!(scene.core.take_notes(), [told(K1, boot(2))]);
    assert_eq!(scene.events("identity_conflict"), 1);
    assert!(!scene.may_renew(87, K1, &boot(2)));
    assert!(scene.may_renew(87, K1, &boot(1)));
}

#[test]
fn a_boot_that_was_replaced_is_a_copy_at_once_from_another_address() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up_from(0, a, 1, K1, boot(1));
    scene.up_from(10, b, 2, K1, boot(2));
    scene.down(11, a);
    assert_eq!(scene.rekeyed(86), [], "so far it was restarted");
    scene.up_from(87, a, 1, K1, boot(1));
    assert_eq!(scene.rekeyed(87), [(a, K1)]);
    assert_eq!(scene.core.take_notes(), [told(K1, boot(1))]);
    assert!(scene.may_renew(88, K1, &boot(2)), "it goes on as the guest");
}

#[test]
fn a_snapshot_that_is_resumed_with_its_memory_is_no_copy() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, boot(1));
    scene.down(10, a);
    scene.up(20, a, K1, boot(2));
    scene.up(21, b, K1, boot(2));
    scene.down(22, a);
    // The session that the machine had is not noticed to be dead.
    scene.up(100, a, K1, boot(1));
    scene.down(150, b);
    assert_eq!(scene.rekeyed(300), []);
    assert!(scene.core.take_notes().is_empty());
    // Nor is one that is back where nobody else is.
    scene.down(301, a);
    scene.up(302, a, K1, boot(2));
    assert_eq!(scene.rekeyed(500), []);
    assert_eq!(scene.events("identity_conflict"), 0);
}

#[test]
fn a_boot_that_was_replaced_beside_the_later_one_is_a_copy_when_both_stay() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, boot(1));
    scene.up(10, b, K1, boot(2));
    scene.down(11, a);
    assert_eq!(scene.rekeyed(86), []);
    scene.up(90, a, K1, boot(1));
    assert_eq!(scene.rekeyed(164), [], "the same address");
    assert_eq!(scene.rekeyed(166), [(a, K1)]);
}

#[test]
fn restored_machines_make_few_events_within_an_hour() {
    let mut scene = Scene::new();
    let a = scene.a;
    for minute in 0..60 {
        scene.up(minute * 60, a, K1, machine(7, 2));
        scene.down(minute * 60 + 1, a);
    }
    assert_eq!(scene.events("machine_restored"), 20);
    assert_eq!(scene.core.take_notes().len(), 20);
    scene.up(3700, a, K1, machine(7, 2));
    assert_eq!(scene.events("machine_restored"), 21, "an hour later");
}

#[test]
fn another_generation_that_came_first_is_a_copy_too() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    // A controller that has just begun hears of the copy first.
    scene.up(0, b, K1, machine(7, 2));
    scene.up(1, a, K1, machine(7, 1));
    assert_eq!(scene.rekeyed(75), [], "it may be the same machine");
    assert_eq!(scene.rekeyed(77), [(b, K1)]);
}

#[test]
fn a_restored_machine_renews_while_its_first_session_is_not_noticed_to_be_dead() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K2, machine(7, 1));
    scene.up(10, b, K1, machine(7, 2));
    assert!(scene.may_renew(11, K1, &machine(7, 2)));
    scene.down(60, a);
    assert_eq!(scene.rekeyed(200), []);
}

#[test]
fn facts_that_were_not_known_are_noted_and_what_flaps_is_not() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.known.machine = Machine::default();
    scene.up(0, a, K1, machine(7, 1));
    let notes = scene.core.take_notes();
    assert_eq!(notes, [Note::MachineIs(Scene::id(), machine(7, 1))]);
    scene.known.machine = machine(7, 1);
    for second in 1..50 {
        let flapping = Machine {
            macs: vec![[second; 6]],
            ..machine(7, second)
        };
        scene.down(second.into(), a);
        scene.up(second.into(), a, K1, flapping);
    }
    // A liar does not fill the database.
    assert_eq!(scene.core.take_notes().len(), 1);
    assert_eq!(scene.events("machine_restored"), 1);
}

#[test]
fn a_member_of_before_keys_were_noted_shows_its_key_first() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.known = KnownGuest::default();
    scene.up(0, a, K3, Machine::default());
    assert_eq!(scene.core.take_notes(), [Note::KeySeen(Scene::id(), K3)]);
}

#[test]
fn many_copies_make_few_events_and_all_are_told() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, machine(7, 1));
    let mut told = 0;
    for uuid in 100..200 {
        scene.up(1, b, K1, machine(uuid, 1));
        told += scene.rekeyed(1).len();
        scene.down(1, b);
    }
    assert_eq!(told, 100);
    assert_eq!(scene.events("identity_conflict"), 20);
    scene.up(3700, b, K1, machine(99, 1));
    assert_eq!(scene.events("identity_conflict"), 21, "an hour later");
}

#[test]
fn an_appliance_that_dies_ends_its_sessions() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.up(0, a, K1, machine(7, 1));
    scene.core.appliance_lost(at(5), a, false);
    scene.up(6, b, K1, machine(7, 2));
    assert_eq!(scene.rekeyed(200), []);
    assert!(scene.core.has_session(Scene::id()));
    scene.core.appliance_lost(at(201), b, false);
    assert!(!scene.core.has_session(Scene::id()));
}

#[test]
fn a_deleted_vm_is_noted_and_one_that_is_found_again_is_too() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.core.inventory(at(0), CONNECTOR, vm(7, "ha"));
    connect(&mut scene.core, a, &[7]);
    assert_eq!(scene.core.take_notes(), [Note::VmFound(Scene::id())]);
    let gone = InventoryChange::VmGone("v7".into());
    scene.core.inventory(at(1), CONNECTOR, gone);
    assert_eq!(scene.core.take_notes(), [Note::VmDeleted(Scene::id())]);
    scene.core.inventory(at(2), CONNECTOR, vm(7, "ha"));
    assert_eq!(scene.core.take_notes(), [Note::VmFound(Scene::id())]);
}

#[test]
fn a_guest_that_ended_leaves_its_vm_to_the_next() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.core.inventory(at(0), CONNECTOR, vm(7, "ha"));
    connect(&mut scene.core, a, &[7]);
    let next = guest(70);
    let facts = GuestFacts {
        uuid: None,
        address: [10, 0, 0, 1].into(),
        hostname: "v7".into(),
        epoch: 0,
        channel: None,
        key: None,
        machine: Machine::default(),
        known: None,
        vm: Some((CONNECTOR.into(), "v7".into())),
    };
    let in_vm = |core: &Core| core.vms_with_uuid([7; 16])[0].guest;
    scene.core.guest_up(at(1), a, next, facts.clone());
    assert_eq!(in_vm(&scene.core), Some(Scene::id()), "it is taken");
    scene.core.guest_ended(at(2), Scene::id());
    assert_eq!(in_vm(&scene.core), None);
    scene.core.guest_up(at(3), a, next, facts);
    assert_eq!(in_vm(&scene.core), Some(next));
}
