//! What connectors tell, in whatever order.

use fleet_core::{Core, InventoryChange, MovePhase, Order, Power, VmRecord};

use crate::scene::{CONNECTOR, appliance, at, connect, core, facts, guest, host, vm};

fn told(core: &mut Core, changes: Vec<InventoryChange>) {
    for change in changes {
        core.inventory(at(1), CONNECTOR, change);
    }
    core.tick(at(1));
}

/// The first appliance of the only VM, and its host's name.
fn only_vm(core: &Core) -> (Option<String>, Option<String>) {
    let rows = core.vm_rows(None, 0, 10);
    assert_eq!(rows.len(), 1);
    (rows[0].appliances.first().cloned(), rows[0].host.clone())
}

fn on(host: &str) -> (Option<String>, Option<String>) {
    (Some(format!("on-{host}")), Some(host.to_owned()))
}

#[test]
fn a_vm_that_moves_is_sent_to_the_appliance_beside_it() {
    let mut core = core(1);
    appliance(&mut core, "h1");
    appliance(&mut core, "h2");
    told(&mut core, vec![host("h1"), host("h2"), vm(1, "h1")]);
    assert_eq!(only_vm(&core), on("h1"));
    let moves = |phase| InventoryChange::VmMoved {
        vm: "v1".into(),
        to: Some("h2".into()),
        phase,
    };
    told(&mut core, vec![moves(MovePhase::Started)]);
    assert_eq!(only_vm(&core), on("h1"), "it runs where it was");
    told(&mut core, vec![moves(MovePhase::Switched)]);
    assert_eq!(only_vm(&core), on("h2"));
}

#[test]
fn a_list_that_went_to_a_dead_session_is_sent_again() {
    let mut core = core(1);
    let (h1, h2) = (appliance(&mut core, "h1"), appliance(&mut core, "h2"));
    told(&mut core, vec![host("h1"), host("h2"), vm(1, "h1")]);
    let lists = |core: &mut Core| {
        core.take_writes();
        let orders = core.take_orders().into_iter();
        let lists = orders.filter_map(|order| match order {
            Order::Place { via, epoch, .. } => Some((via, epoch)),
            _ => None,
        });
        lists.collect::<Vec<_>>()
    };
    connect(&mut core, h1, &[1]);
    lists(&mut core);
    // It is on the other one by now. The first has not noticed, and tells of it again.
    core.guest_up(at(2), h2, guest(1), facts(1));
    core.guest_up(at(3), h1, guest(1), facts(1));
    lists(&mut core);
    told(&mut core, vec![vm(1, "h2")]);
    let [(via, epoch)] = lists(&mut core)[..] else {
        panic!("one list");
    };
    assert_eq!(via, h1);
    core.guest_down(at(60), h1, guest(1));
    assert_eq!(lists(&mut core), [(h2, epoch)]);
    // The same where the appliance of the dead one is lost with it.
    core.guest_up(at(61), h1, guest(1), facts(1));
    lists(&mut core);
    core.appliance_lost(at(62), h1, false);
    assert_eq!(lists(&mut core), [(h2, epoch)]);
}

#[test]
fn a_guest_that_is_connected_is_placed_though_its_vm_is_said_to_be_off() {
    let mut core = core(1);
    let h1 = appliance(&mut core, "h1");
    appliance(&mut core, "h2");
    told(&mut core, vec![host("h1"), host("h2"), vm(1, "h1")]);
    connect(&mut core, h1, &[1]);
    let off = |host| match vm(1, host) {
        InventoryChange::Vm(record) => InventoryChange::Vm(VmRecord {
            power: Power::Off,
            ..record
        }),
        other => other,
    };
    // That it was switched on again nobody tells.
    told(&mut core, vec![off("h2")]);
    assert_eq!(only_vm(&core), on("h2"));
    core.guest_down(at(2), h1, guest(1));
    told(&mut core, vec![off("h1")]);
    assert_eq!(only_vm(&core).0.as_deref(), Some("on-h2"), "it is off");
    // Whoever comes then is one that runs.
    connect(&mut core, h1, &[1]);
    core.tick(at(3));
    assert_eq!(only_vm(&core), on("h1"));
}

#[test]
fn a_vm_may_be_told_of_before_its_host() {
    let mut core = core(1);
    appliance(&mut core, "h1");
    appliance(&mut core, "h2");
    told(&mut core, vec![host("h1"), vm(1, "h2")]);
    assert_eq!(only_vm(&core).1, None);
    told(&mut core, vec![host("h2")]);
    assert_eq!(only_vm(&core), on("h2"));
    // It goes and comes back, and the VM was there all the time.
    told(&mut core, vec![InventoryChange::HostGone("h2".into())]);
    told(&mut core, vec![host("h2")]);
    assert_eq!(only_vm(&core), on("h2"));
}

#[test]
fn lists_of_vms_come_by_the_page() {
    let mut core = core(1);
    told(&mut core, vec![host("h1"), host("h2")]);
    told(&mut core, (1..=9).map(|n| vm(n, "h1")).collect());
    told(&mut core, vec![vm(10, "h2")]);
    let names = |host, skip, max| -> Vec<String> {
        let rows = core.vm_rows(host, skip, max);
        rows.into_iter().map(|row| row.stored.record.name).collect()
    };
    assert_eq!(names(None, 0, 3), ["v1", "v10", "v2"]);
    assert_eq!(names(None, 8, 3), ["v8", "v9"]);
    assert_eq!(names(Some("h1"), 1, 2), ["v2", "v3"]);
    assert_eq!(names(Some("h2"), 0, 5), ["v10"]);
    assert_eq!(names(Some("h3"), 0, 5), [""; 0]);
}
