//! Each rule of placement by itself.

use placement::{
    ApplianceFacts, ApplianceId, Availability, Cause, Epoch, HostFacts, HostId, Rule, Standing,
    VmFacts, VmId,
};

use crate::world::{World, appliance_on, at, on};

#[test]
fn the_same_host_comes_first_then_the_cluster() {
    let mut world = World::new(2, 2, 4, 2);
    world.fill(4);
    for vm in 0..world.hosts * 4 {
        let host = vm % world.hosts;
        let first = world.first(vm).unwrap();
        if host.is_multiple_of(2) {
            assert_eq!(first, host, "VM {vm}");
        } else {
            assert_eq!(first / 4, host / 4, "VM {vm} stays in its cluster");
        }
    }
    assert_eq!(world.fleet.totals().moves, 0);
}

#[test]
fn lists_have_three_appliances_on_three_hosts() {
    let mut world = World::new(2, 2, 4, 1);
    world.fill(2);
    for vm in 0..world.hosts * 2 {
        let list = world.fleet.placement(VmId(vm)).unwrap().appliances;
        assert_eq!(list.len(), 3);
        assert!(list[0] != list[1] && list[1] != list[2] && list[0] != list[2]);
    }
}

#[test]
fn a_migration_to_a_better_tier_moves_and_any_other_does_not() {
    let mut world = World::new(1, 2, 4, 2);
    world.fleet.put_vm(at(1), VmId(1), on(0));
    let before = world.fleet.placement(VmId(1)).unwrap();
    // Host 1 has no appliance: the old one is as near as any.
    world.fleet.put_vm(at(2), VmId(1), on(1));
    assert_eq!(world.first(1), Some(0));
    world.fleet.put_vm(at(3), VmId(1), on(2));
    assert_eq!(world.first(1), Some(2));
    let after = world.fleet.placement(VmId(1)).unwrap();
    assert!(after.epoch > before.epoch);
    assert_eq!(after.cause, Cause::Migrated);
    assert_eq!(world.fleet.totals().moves, 1);
}

#[test]
fn a_death_moves_only_its_own_and_to_where_they_have_gone_already() {
    let mut world = World::new(1, 2, 4, 1);
    world.fill(10);
    let before: Vec<_> = (0..80)
        .map(|vm| world.fleet.placement(VmId(vm)).unwrap())
        .collect();
    world
        .fleet
        .set_availability(at(9), ApplianceId(3), Availability::Down);
    for old in before {
        let new = world.fleet.placement(old.vm).unwrap();
        if old.appliances[0] == ApplianceId(3) {
            assert_eq!(new.appliances[0], old.appliances[1]);
            assert_eq!(new.cause, Cause::ApplianceDown);
        } else {
            assert_eq!(new.appliances[0], old.appliances[0]);
        }
    }
    // Those that had it in reserve get another reserve, and go nowhere.
    let moves = world.fleet.totals().moves;
    while world.fleet.tick(at(10)) {}
    assert_eq!(world.fleet.totals().moves, moves);
    for vm in 0..80 {
        let list = world.fleet.placement(VmId(vm)).unwrap().appliances;
        assert!(!list.contains(&ApplianceId(3)), "{list:?}");
    }
}

#[test]
fn one_that_returns_starts_slowly_and_its_guests_come_home_within_the_budget() {
    let mut world = World::new(1, 1, 8, 1);
    world.fill(40);
    let (late, id) = (at(1000), ApplianceId(3));
    world.fleet.tick(late);
    world.fleet.set_availability(late, id, Availability::Down);
    world.fleet.set_availability(late, id, Availability::Up);
    let view = world.fleet.appliance(id).unwrap();
    assert!(view.bound <= view.capacity / 10, "{view:?}");
    assert_eq!(world.fleet.totals().displaced, 40);
    world.fleet.tick(late);
    let home = world.fleet.appliance(id).unwrap().vms;
    assert!(home <= 10, "{home} came home at once");
    for minute in 1..20 {
        world.fleet.tick(late + at(60) * minute);
    }
    assert_eq!(world.fleet.appliance(id).unwrap().vms, 40);
    assert_eq!(world.fleet.totals().displaced, 0);
}

#[test]
fn maintenance_drains_the_appliance_before_the_guests_leave() {
    let mut world = World::new(1, 1, 4, 1);
    world.fill(5);
    let facts = HostFacts {
        cluster: Some("c0".into()),
        site: Some("s0".into()),
        maintenance: true,
    };
    // One of them does not run, and is the first to be looked at.
    let off = VmFacts {
        running: false,
        ..on(2)
    };
    world.fleet.put_vm(at(4), VmId(2), off);
    world.fleet.put_host(at(5), HostId(2), facts);
    let view = world.fleet.appliance(ApplianceId(2)).unwrap();
    assert_eq!(view.availability, Availability::Draining);
    assert_eq!(view.vms, 5, "nobody is left alone meanwhile");
    while world.fleet.tick(at(6)) {}
    assert_eq!(world.fleet.appliance(ApplianceId(2)).unwrap().vms, 0);
    assert_eq!(world.fleet.totals().homeless, 0);
    world.fleet.put_vm(at(7), VmId(2), on(2));
    assert!(world.first(2).is_some_and(|first| first != 2));
}

#[test]
fn the_last_appliance_keeps_its_guests_though_it_drains() {
    let mut world = World::new(1, 1, 1, 1);
    world.fill(3);
    world
        .fleet
        .set_availability(at(5), ApplianceId(0), Availability::Draining);
    while world.fleet.tick(at(6)) {}
    assert_eq!(world.fleet.appliance(ApplianceId(0)).unwrap().vms, 3);
    // And takes new ones: there is no other.
    world.fleet.put_vm(at(7), VmId(99), on(0));
    assert_eq!(world.first(99), Some(0));
}

#[test]
fn too_many_for_one_go_to_the_next_tier_and_nobody_stays_without() {
    let mut world = World::new(1, 2, 2, 2);
    // 36 fit below 60 % of 60; the others go to the other cluster, then anywhere.
    for vm in 0..500 {
        world.fleet.put_vm(at(1), VmId(vm), on(0));
    }
    assert!((0..500).all(|vm| world.first(vm).is_some()));
    assert!(world.fleet.totals().displaced > 200);
    let loads: Vec<u64> = [0, 2]
        .map(|id| world.fleet.appliance(ApplianceId(id)).unwrap().load)
        .into();
    assert!(loads[0].abs_diff(loads[1]) <= 2000, "{loads:?}");
}

#[test]
fn a_rule_narrows_and_never_removes_protection() {
    let mut world = World::new(1, 1, 4, 1);
    world.fleet.set_rules(
        at(0),
        vec![Rule {
            name: "desktops".into(),
            when: vec![
                "tag:vdi".parse().unwrap(),
                "range:10.0.0.0/8".parse().unwrap(),
            ],
            appliances: vec!["odd".into()],
        }],
    );
    let desktop = VmFacts {
        tags: vec!["vdi".into()],
        address: Some("10.1.2.3".parse().unwrap()),
        ..on(0)
    };
    world.fleet.put_vm(at(1), VmId(1), desktop.clone());
    world.fleet.put_vm(at(1), VmId(2), on(0));
    assert_eq!(world.first(1).unwrap() % 2, 1);
    assert_eq!(world.first(2), Some(0));
    let why = world.fleet.explain(VmId(1), 10).unwrap();
    assert_eq!(why.rule.as_deref(), Some("desktops"));
    for id in [1, 3] {
        world
            .fleet
            .set_availability(at(2), ApplianceId(id), Availability::Down);
    }
    assert_eq!(world.first(1), Some(0), "out of scope, and protected");
    world.fleet.set_rules(at(3), Vec::new());
    assert_eq!(world.fleet.explain(VmId(1), 10).unwrap().rule, None);
}

#[test]
fn measured_round_trips_correct_a_wrong_inventory() {
    let mut world = World::new(1, 1, 4, 1);
    let vm = VmId(1);
    world.fleet.put_vm(at(1), vm, on(0));
    // Noise: nearer, but not by enough.
    world.fleet.measured(at(2), vm, ApplianceId(0), 150);
    world.fleet.measured(at(2), vm, ApplianceId(2), 120);
    assert_eq!(world.first(1), Some(0));
    // Held up once: another round tells.
    world.fleet.measured(at(3), vm, ApplianceId(0), 400);
    world.fleet.measured(at(3), vm, ApplianceId(2), 60);
    assert_eq!(world.first(1), Some(0));
    world.fleet.measured(at(4), vm, ApplianceId(0), 140);
    world.fleet.measured(at(4), vm, ApplianceId(2), 60);
    assert_eq!(world.first(1), Some(0), "it was held up");
    for n in 5..7 {
        world.fleet.measured(at(n), vm, ApplianceId(0), 400);
        world.fleet.measured(at(n), vm, ApplianceId(2), 60);
    }
    assert_eq!(world.first(1), Some(2));
    let why = world.fleet.explain(vm, 10).unwrap();
    assert_eq!(
        (why.host, why.measured_host),
        (Some(HostId(0)), Some(HostId(2)))
    );
    assert_eq!(why.placement.cause, Cause::Measured);
    // One round that was held up takes nothing back; two that agree do.
    world.fleet.measured(at(7), vm, ApplianceId(2), 390);
    world.fleet.measured(at(7), vm, ApplianceId(0), 400);
    assert_eq!(world.first(1), Some(2), "it was held up");
    for n in 8..10 {
        world.fleet.measured(at(n), vm, ApplianceId(2), 60);
        world.fleet.measured(at(n), vm, ApplianceId(0), 400);
    }
    assert_eq!(world.first(1), Some(2));
    for n in 10..12 {
        world.fleet.measured(at(n), vm, ApplianceId(2), 390);
        world.fleet.measured(at(n), vm, ApplianceId(0), 60);
    }
    assert_eq!(world.first(1), Some(0), "it went back");
    // The inventory has caught up: what was measured before counts no more.
    world.fleet.put_vm(at(14), vm, on(1));
    assert_eq!(world.first(1), Some(1));
    // Nor does what was measured before and arrives only now.
    let measure = |world: &mut World, now: u64| {
        for (appliance, rtt_us) in [(1, 400), (2, 60)] {
            let to = ApplianceId(appliance);
            world.fleet.measured(at(now), vm, to, rtt_us);
        }
    };
    measure(&mut world, 15);
    measure(&mut world, 16);
    assert_eq!(world.first(1), Some(1));
    measure(&mut world, 17);
    assert_eq!(world.first(1), Some(2));
    // Two rounds that lie too far apart agree on nothing.
    world.fleet.put_vm(at(20), vm, on(1));
    measure(&mut world, 30);
    measure(&mut world, 30 + 901);
    assert_eq!(world.first(1), Some(1));
}

#[test]
fn what_was_measured_once_hides_no_nearer_appliance() {
    // Two clusters of two hosts, in one site.
    let mut world = World::new(1, 2, 2, 1);
    world.fleet.put_vm(at(1), VmId(1), on(0));
    let measure = |world: &mut World, vm: u64, now: u64, rounds: &[(u64, u32)]| {
        for (appliance, rtt_us) in rounds {
            let (vm, to) = (VmId(vm), ApplianceId(*appliance));
            world.fleet.measured(at(now), vm, to, *rtt_us);
        }
    };
    // The appliance of the host that the inventory tells drains, and is in no list any more.
    measure(&mut world, 1, 2, &[(0, 2000), (1, 2000), (3, 100)]);
    let drained = Availability::Draining;
    world.fleet.set_availability(at(3), ApplianceId(0), drained);
    assert_ne!(world.first(1), Some(3));
    measure(&mut world, 1, 4, &[(1, 2000), (3, 100)]);
    assert_eq!(world.first(1), Some(3));
    // Nor does what was near before the VM moved, and is measured no more.
    world.fleet.put_vm(at(5), VmId(2), on(2));
    measure(&mut world, 2, 10, &[(2, 90), (3, 400), (1, 2000)]);
    measure(&mut world, 2, 70, &[(2, 90), (3, 400), (1, 2000)]);
    assert_eq!(world.first(2), Some(2));
    world
        .fleet
        .set_availability(at(71), ApplianceId(2), drained);
    for now in [130, 190, 250] {
        measure(&mut world, 2, now, &[(3, 2000), (1, 100)]);
    }
    assert_eq!(world.first(2), Some(1));
}

#[test]
fn a_channel_of_the_hypervisor_beats_the_inventory_and_what_is_measured() {
    let mut world = World::new(1, 1, 4, 1);
    let vm = VmId(1);
    world.fleet.put_vm(at(1), vm, on(0));
    world.fleet.attached(at(2), vm, Some(ApplianceId(3)));
    assert_eq!(world.first(1), Some(3));
    let why = world.fleet.explain(vm, 10).unwrap();
    assert_eq!(why.attached, Some(ApplianceId(3)));
    assert_eq!(why.placement.cause, Cause::Attached);
    world.fleet.put_vm(at(3), vm, on(1));
    for n in 10..13 {
        world.fleet.measured(at(n), vm, ApplianceId(3), 900);
        world.fleet.measured(at(n), vm, ApplianceId(2), 10);
    }
    assert_eq!(world.first(1), Some(3));
    // One that dies protects nobody, wherever its channel leads.
    let (down, up) = (Availability::Down, Availability::Up);
    world.fleet.set_availability(at(14), ApplianceId(3), down);
    assert_ne!(world.first(1), Some(3));
    world.fleet.set_availability(at(15), ApplianceId(3), up);
    world.fleet.attached(at(16), vm, None);
    assert_eq!(world.first(1), Some(1), "as the inventory says");
    world.fleet.attached(at(17), vm, Some(ApplianceId(99)));
    assert_eq!(world.first(1), Some(1), "nobody knows that one");
}

#[test]
fn an_appliance_that_knows_no_host_is_beside_those_whose_channels_it_holds() {
    let mut world = World::new(1, 1, 1, 1);
    let facts = ApplianceFacts {
        host: None,
        cluster: None,
        site: None,
        capacity: 100_000,
        labels: Vec::new(),
    };
    let lonely = ApplianceId(7);
    world.fleet.put_appliance(at(0), lonely, facts);
    world
        .fleet
        .set_availability(at(0), lonely, Availability::Up);
    world.fleet.put_vm(at(1), VmId(1), on(0));
    assert_eq!(world.first(1), Some(0));
    world.fleet.attached(at(2), VmId(1), Some(lonely));
    assert_eq!(world.first(1), Some(7));
    world.fleet.remove_appliance(at(3), lonely);
    assert_eq!(world.first(1), Some(0));
    assert_eq!(world.fleet.explain(VmId(1), 10).unwrap().attached, None);
}

#[test]
fn a_guest_whose_host_nobody_knows_goes_where_it_measures() {
    let mut world = World::new(1, 2, 2, 1);
    let vm = VmId(1);
    let nowhere = VmFacts {
        host: None,
        ..VmFacts::default()
    };
    world.fleet.put_vm(at(1), vm, nowhere);
    assert!(world.first(1).is_some());
    let other = (world.first(1).unwrap() + 1) % 4;
    world.fleet.measured(at(2), vm, ApplianceId(other), 40);
    assert_eq!(world.first(1), Some(other));
    // Another one that is a little nearer now is not worth a move.
    let third = (other + 1) % 4;
    for n in 3..6 {
        world.fleet.measured(at(n), vm, ApplianceId(third), 35);
        world.fleet.measured(at(n), vm, ApplianceId(other), 40);
    }
    assert_eq!(world.first(1), Some(other));
}

#[test]
fn a_long_queue_takes_no_further_guests() {
    let mut world = World::new(1, 1, 2, 1);
    world.fleet.set_queue(at(1), ApplianceId(0), 5_000);
    world.fleet.put_vm(at(2), VmId(1), on(0));
    assert_eq!(world.first(1), Some(1));
    let why = world.fleet.explain(VmId(1), 10).unwrap();
    let busy = why
        .considered
        .iter()
        .find(|one| one.appliance == ApplianceId(0))
        .unwrap();
    assert_eq!(busy.standing, Standing::Backup(1));
    world.fleet.set_queue(at(3), ApplianceId(0), 0);
    world.fleet.tick(at(4));
    assert_eq!(world.first(1), Some(0));
}

#[test]
fn a_restart_changes_no_list() {
    let mut world = World::new(1, 2, 4, 2);
    world.fill(6);
    let lists: Vec<_> = (0..48)
        .map(|vm| world.fleet.placement(VmId(vm)).unwrap())
        .collect();
    let mut again = World::new(1, 2, 4, 2);
    for list in &lists {
        let facts = on(list.vm.0 % 8);
        again
            .fleet
            .restore(at(1), list.vm, facts, &list.appliances, list.epoch);
    }
    while again.fleet.tick(at(2)) {}
    assert!(again.fleet.take_changes(100).is_empty());
    for list in &lists {
        let now = again.fleet.placement(list.vm).unwrap();
        assert_eq!((&now.appliances, now.epoch), (&list.appliances, list.epoch));
    }
}

#[test]
fn a_machine_that_is_off_makes_no_load_and_keeps_its_list() {
    let mut world = World::new(1, 1, 2, 1);
    world.fleet.put_vm(at(1), VmId(1), on(0));
    let off = VmFacts {
        running: false,
        ..on(0)
    };
    world.fleet.put_vm(at(2), VmId(1), off.clone());
    assert_eq!(world.fleet.totals().load, 0);
    assert_eq!(world.first(1), Some(0));
    world
        .fleet
        .set_availability(at(3), ApplianceId(0), Availability::Down);
    assert_eq!(world.fleet.totals().homeless, 0);
    world.fleet.put_vm(at(4), VmId(1), on(0));
    assert_eq!(world.first(1), Some(1));
    world.fleet.remove_vm(at(5), VmId(1));
    assert_eq!(world.fleet.totals().load, 0);
    assert!(world.fleet.placement(VmId(1)).is_none());
}

#[test]
fn an_appliance_that_comes_takes_whoever_has_none() {
    let mut world = World::new(1, 1, 2, 5);
    world.fleet.remove_appliance(at(1), ApplianceId(0));
    world.fleet.put_vm(at(1), VmId(1), on(1));
    assert_eq!(world.first(1), None);
    assert_eq!(world.fleet.totals().homeless, 1);
    let facts = ApplianceFacts {
        host: None,
        cluster: Some("elsewhere".into()),
        ..appliance_on(0)
    };
    world.fleet.put_appliance(at(2), ApplianceId(7), facts);
    assert_eq!(world.first(1), None, "it is not up yet");
    world
        .fleet
        .set_availability(at(3), ApplianceId(7), Availability::Up);
    assert_eq!(world.first(1), Some(7));
    assert_eq!(world.fleet.tier(VmId(1)), Some(3));
    assert!(world.fleet.placement(VmId(1)).unwrap().epoch > Epoch::default());
}

#[test]
fn every_appliance_has_a_reason() {
    let mut world = World::new(1, 2, 4, 1);
    world.fill(1);
    world
        .fleet
        .set_availability(at(1), ApplianceId(1), Availability::Down);
    world
        .fleet
        .set_availability(at(1), ApplianceId(2), Availability::Draining);
    while world.fleet.tick(at(1)) {}
    let why = world.fleet.explain(VmId(0), 100).unwrap();
    assert_eq!(why.considered.len(), 8);
    assert_eq!(why.considered[0].standing, Standing::First);
    let of = |id| {
        let mut all = why.considered.iter();
        all.find(|one| one.appliance == ApplianceId(id))
            .unwrap()
            .standing
    };
    assert_eq!((of(1), of(2)), (Standing::Down, Standing::Draining));
    assert_eq!(why.considered.iter().filter(|one| one.tier == 1).count(), 3);
    assert_eq!(world.fleet.explain(VmId(0), 0).unwrap().considered.len(), 3);
    assert_eq!(world.fleet.explain(VmId(999), 1), None);
    assert_eq!(world.hosts_per_cluster, 4);
}

/// Found by the simulation: a list that was written down empty, read back while an appliance is
/// taken to be up.
#[test]
fn who_had_none_before_a_restart_gets_one_after_it() {
    let mut world = World::new(1, 1, 2, 1);
    world.fleet.restore(at(1), VmId(1), on(0), &[], Epoch(5));
    assert_eq!(world.fleet.totals().homeless, 1);
    world.fleet.tick(at(2));
    assert_eq!(world.first(1), Some(0));
    assert!(world.fleet.placement(VmId(1)).unwrap().epoch > Epoch(5));
    assert_eq!(world.fleet.totals().homeless, 0);
}
