//! Both ends of a hypervisor's channel tell of it, in any order.

use std::collections::BTreeSet;

use fleet_core::{Core, GuestFacts};
use model::ChannelId;
use placement::ApplianceId;

use crate::scene::{CONNECTOR, appliance, at, connect, core, facts, guest, host, vm};

/// Two hosts with an appliance each; a VM on the first, as the inventory says.
fn scene() -> (Core, [ApplianceId; 2]) {
    let mut core = core(1);
    for name in ["h0", "h1"] {
        core.inventory(at(0), CONNECTOR, host(name));
    }
    let appliances = ["h0", "h1"].map(|name| appliance(&mut core, name));
    core.inventory(at(0), CONNECTOR, vm(1, "h0"));
    connect(&mut core, appliances[0], &[1]);
    (core, appliances)
}

fn attached(core: &Core) -> Option<String> {
    let found = core.find_vms("v1");
    core.why(found[0], 10).unwrap().attached
}

fn reads(core: &mut Core, via: ApplianceId, number: u8, channel: Option<u8>) {
    let facts = GuestFacts {
        channel: channel.map(|id| ChannelId([id; 16])),
        ..facts(number)
    };
    core.guest_up(at(1), via, guest(number), facts);
}

fn holds(core: &mut Core, id: ApplianceId, channels: &[u8]) {
    let held: BTreeSet<_> = channels.iter().map(|id| ChannelId([*id; 16])).collect();
    core.appliance_channels(at(1), id, &held);
}

#[test]
fn where_both_ends_agree_the_guest_is_there() {
    let (mut core, [a, b]) = scene();
    holds(&mut core, a, &[1]);
    assert_eq!(attached(&core), None, "the guest says nothing");
    reads(&mut core, a, 1, Some(1));
    assert_eq!(attached(&core).as_deref(), Some("on-h0"));
    // It migrates; the guest says so before the appliance.
    reads(&mut core, a, 1, Some(2));
    assert_eq!(attached(&core), None);
    holds(&mut core, b, &[2, 9]);
    assert_eq!(attached(&core).as_deref(), Some("on-h1"));
    // A stream that ends moves nobody; what it tells anew counts.
    core.appliance_lost(at(2), b, false);
    assert_eq!(attached(&core).as_deref(), Some("on-h1"));
    holds(&mut core, b, &[9]);
    assert_eq!(attached(&core), None);
    reads(&mut core, a, 1, None);
    holds(&mut core, b, &[2]);
    assert_eq!(attached(&core), None, "the guest reads it no more");
}

#[test]
fn a_claim_moves_nobody_else() {
    let (mut core, [a, b]) = scene();
    core.inventory(at(0), CONNECTOR, vm(2, "h0"));
    holds(&mut core, b, &[1]);
    reads(&mut core, a, 1, Some(1));
    reads(&mut core, a, 2, Some(1));
    assert_eq!(attached(&core).as_deref(), Some("on-h1"));
    reads(&mut core, a, 2, None);
    assert_eq!(attached(&core).as_deref(), Some("on-h1"));
    holds(&mut core, b, &[]);
    assert_eq!(attached(&core), None);
    holds(&mut core, b, &[1]);
    assert_eq!(attached(&core).as_deref(), Some("on-h1"), "told late");
    // One that is no more holds none.
    holds(&mut core, b, &[3]);
    reads(&mut core, a, 1, Some(3));
    core.appliance_lost(at(2), b, true);
    assert_eq!(attached(&core).as_deref(), Some("on-h1"));
    assert!(core.forget_appliance(at(3), b));
    assert_eq!(attached(&core), None);
}
