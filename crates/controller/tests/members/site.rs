//! A controller that places and keeps members, and what is looked at in its tests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use controller::fleet::Fleet;
use controller::{Authority, Member};
use fleet_core::{ApplianceHello, GuestFacts};
use model::{GuestId, Machine};
use pki::{CertificateDer, KeyId};
use proto::v1::fleet_order::Body as Told;

use crate::scene::{PATIENCE, address, embedded, placer_with};

pub(crate) fn machine(uuid: u8) -> Machine {
    Machine {
        system_uuid: Some([uuid; 16]),
        ..Machine::default()
    }
}

pub(crate) fn key_of(chain: &[CertificateDer<'static>]) -> KeyId {
    KeyId::of(&chain[0]).unwrap()
}

pub(crate) fn guest_of(chain: &[CertificateDer<'static>]) -> GuestId {
    pki::guest_id_of(&chain[0]).unwrap()
}

pub(crate) fn member(authority: &Authority, guest: GuestId) -> Member {
    authority.guest(guest).unwrap()
}

/// An appliance whose orders are kept.
pub(crate) async fn attach(fleet: &Fleet) -> tokio::sync::mpsc::UnboundedReceiver<Told> {
    let (sink, told) = tokio::sync::mpsc::unbounded_channel();
    let attached = fleet.with(move |lead, clock| {
        let hello = ApplianceHello {
            name: "a".into(),
            address: "a:7443".into(),
            host_name: None,
            cluster: None,
            site: None,
            capacity: 100,
            labels: Vec::new(),
        };
        let id = lead.core.appliance_up(clock, hello);
        lead.attach(id, Box::new(move |body| sink.send(body).is_ok()));
    });
    attached.await.unwrap();
    told
}

pub(crate) async fn up(fleet: &Fleet, member: Member, key: KeyId, uuid: u8) {
    let up = fleet.with(move |lead, clock| {
        let via = lead.core.find_appliance("a").unwrap();
        let facts = GuestFacts {
            uuid: member.machine.system_uuid,
            address: address(uuid),
            hostname: member.hostname.clone(),
            epoch: 0,
            channel: None,
            key: Some(key.0),
            machine: machine(uuid),
            known: Some(member.known()),
            vm: None,
        };
        lead.core.guest_up(clock, via, member.id, facts);
    });
    up.await.unwrap();
}

pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < patience, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) struct Site {
    pub(crate) authority: Arc<Authority>,
    pub(crate) fleet: Fleet,
    pub(crate) dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = embedded(dir.path()).await;
        let fleet = placer_with(dir.path(), Some(authority.clone())).await;
        Self {
            authority,
            fleet,
            dir,
        }
    }
}
