//! Which VM of the inventory a guest is in, by what it shows.

use std::net::IpAddr;

use fleet_core::{Core, InventoryChange, Power, VmRecord};
use model::GuestId;
use placement::ApplianceId;

use crate::scene::{CONNECTOR, appliance, at, core, facts, guest, host, vm};

fn address(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

/// A VM of this number, whose connector knows these addresses.
fn record(number: u8, addresses: &[u8]) -> VmRecord {
    let InventoryChange::Vm(record) = vm(number, "ha") else {
        unreachable!();
    };
    VmRecord {
        addresses: addresses.iter().map(|it| address(*it)).collect(),
        ..record
    }
}

struct Scene {
    core: Core,
    a: ApplianceId,
}

impl Scene {
    fn new(vms: &[VmRecord]) -> Self {
        let mut core = core(1);
        core.inventory(at(0), CONNECTOR, host("ha"));
        let a = appliance(&mut core, "ha");
        let mut scene = Self { core, a };
        for vm in vms {
            scene.tell(vm.clone());
        }
        scene
    }

    fn tell(&mut self, vm: VmRecord) {
        self.core
            .inventory(at(1), CONNECTOR, InventoryChange::Vm(vm));
    }

    /// A guest comes that says it has the uuid of this number, from this address.
    fn up(&mut self, id: GuestId, uuid: u8, from: u8) {
        let mut facts = facts(uuid);
        facts.address = address(from);
        self.core.guest_up(at(2), self.a, id, facts);
    }

    /// The guest in the VM of this number.
    fn guest_of(&self, uuid: u8) -> Option<GuestId> {
        let seen = self.core.vms_with_uuid([uuid; 16]);
        assert_eq!(seen.len(), 1);
        seen[0].guest
    }
}

#[test]
fn a_uuid_that_comes_from_elsewhere_binds_to_nothing() {
    let mut scene = Scene::new(&[record(1, &[1])]);
    scene.up(guest(66), 1, 66);
    assert_eq!(scene.guest_of(1), None);
    let own = scene.core.find_vms(&guest(66).to_string());
    assert_eq!(own.len(), 1, "it has a place all the same");
    scene.up(guest(1), 1, 1);
    assert_eq!(scene.guest_of(1), Some(guest(1)));
    // Nobody takes its place, from wherever.
    scene.up(guest(66), 1, 1);
    assert_eq!(scene.guest_of(1), Some(guest(1)));
}

#[test]
fn a_guest_is_bound_when_the_evidence_comes_to_agree() {
    let off = VmRecord {
        power: Power::Off,
        ..record(1, &[1])
    };
    let mut scene = Scene::new(&[off]);
    scene.up(guest(1), 1, 1);
    assert_eq!(scene.guest_of(1), None, "it does not run");
    scene.tell(record(1, &[2]));
    assert_eq!(scene.guest_of(1), None, "another address");
    scene.up(guest(66), 1, 66);
    scene.tell(record(1, &[1, 2]));
    assert_eq!(scene.guest_of(1), Some(guest(1)));
    // By what the guest shows, too.
    let mut scene = Scene::new(&[record(1, &[1])]);
    scene.up(guest(1), 1, 9);
    assert_eq!(scene.guest_of(1), None);
    scene.up(guest(1), 1, 1);
    assert_eq!(scene.guest_of(1), Some(guest(1)));
}

#[test]
fn of_vms_with_one_uuid_the_address_says_which() {
    let twin = VmRecord {
        id: "twin".into(),
        ..record(1, &[2])
    };
    let mut scene = Scene::new(&[record(1, &[1]), twin]);
    scene.up(guest(1), 1, 2);
    let seen = scene.core.vms_with_uuid([1; 16]);
    let bound: Vec<_> = seen.iter().filter(|vm| vm.guest.is_some()).collect();
    assert_eq!((bound.len(), &*bound[0].id), (1, "twin"));
}

#[test]
fn where_no_connector_reads_addresses_the_uuid_of_one_vm_has_to_do() {
    let mut scene = Scene::new(&[record(1, &[])]);
    scene.up(guest(1), 1, 1);
    assert_eq!(scene.guest_of(1), Some(guest(1)));
    scene.up(guest(66), 1, 66);
    assert_eq!(scene.guest_of(1), Some(guest(1)), "the first has it");
    // Two that came before the VM was known.
    let mut scene = Scene::new(&[]);
    scene.up(guest(66), 1, 66);
    scene.up(guest(1), 1, 1);
    scene.tell(record(1, &[]));
    assert_eq!(scene.guest_of(1), None, "nobody knows which");
}
