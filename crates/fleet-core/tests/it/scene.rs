//! A small fleet.

use std::net::IpAddr;
use std::time::Duration;

use fleet_core::{
    ApplianceHello, Area, Clock, Core, CoreSettings, GuestFacts, HostRecord, InventoryChange,
    Loaded, Power, SiteRules, VmRecord,
};
use model::GuestId;

pub(crate) const CONNECTOR: &str = "kvm";
const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

pub(crate) fn at(seconds: u64) -> Clock {
    Clock {
        now: Duration::from_secs(seconds),
        wall_ms: seconds * 1000,
    }
}

/// One connector, whose VMs' disks all lie on one datastore; nothing in it.
pub(crate) fn core(term: u32) -> Core {
    core_after(term, 0)
}

/// The same, after a term whose turns may last for some seconds.
pub(crate) fn core_after(term: u32, turns_out_s: u32) -> Core {
    let sites = SiteRules {
        datastores: vec![Area {
            name: "san".into(),
            connectors: vec![CONNECTOR.into()],
            clusters: Vec::new(),
        }],
        ..SiteRules::default()
    };
    Core::new(
        at(0),
        CoreSettings::default(),
        sites,
        (1, term),
        Loaded {
            turns_out_s,
            ..Loaded::default()
        },
    )
}

pub(crate) fn host(id: &str) -> InventoryChange {
    InventoryChange::Host(HostRecord {
        id: id.into(),
        name: id.into(),
        cluster: Some("c".into()),
        maintenance: false,
        reachable: true,
    })
}

pub(crate) fn vm(number: u8, host: &str) -> InventoryChange {
    InventoryChange::Vm(VmRecord {
        id: format!("v{number}"),
        name: format!("v{number}"),
        host: Some(host.into()),
        power: Power::Running,
        migrating: false,
        uuid: Some([number; 16]),
        addresses: [ADDRESS].into(),
        tags: Default::default(),
        pool: None,
    })
}

pub(crate) fn guest(number: u8) -> GuestId {
    GuestId([number; 16])
}

/// An appliance on a host.
pub(crate) fn appliance(core: &mut Core, host: &str) -> placement::ApplianceId {
    core.appliance_up(
        at(0),
        ApplianceHello {
            name: format!("on-{host}"),
            address: format!("{host}:7443"),
            host_name: Some(host.into()),
            cluster: None,
            site: None,
            capacity: 100,
            labels: Vec::new(),
        },
    )
}

/// The agents of these VMs are connected.
pub(crate) fn connect(core: &mut Core, via: placement::ApplianceId, numbers: &[u8]) {
    for number in numbers {
        core.guest_up(at(0), via, guest(*number), facts(*number));
    }
}

/// What the agent in a VM says.
pub(crate) fn facts(number: u8) -> GuestFacts {
    GuestFacts {
        uuid: Some([number; 16]),
        address: ADDRESS,
        hostname: format!("v{number}"),
        epoch: 0,
        channel: None,
        key: None,
        machine: model::Machine::default(),
        known: None,
        vm: None,
    }
}
