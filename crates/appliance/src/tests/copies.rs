//! Two machines with one guest's certificate: both are protected until the copy has its own.

use std::sync::Arc;

use link::Priority;
use model::{GuestId, Machine};
use parking_lot::Mutex;
use proto::v1;
use proto::v1::envelope::Body;

use crate::fleet::{FleetPort, TurnAnswer};

use super::rig::{Guest, Rig};

const GUEST: GuestId = GuestId([5; 16]);

fn machine(uuid: u8, generation: u8) -> Machine {
    Machine {
        generation_id: Some([generation; 16]),
        system_uuid: Some([uuid; 16]),
        macs: Vec::new(),
        boot_id: None,
    }
}

/// What the fleet is told of one guest's gates.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    GuestDown,
    /// The UUIDs of their machines.
    GuestsUp(Vec<[u8; 16]>),
}

#[derive(Default)]
struct Told(Mutex<Vec<Said>>);

impl Told {
    fn take(&self) -> Vec<Said> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl FleetPort for Told {
    fn tell(&self, said: v1::fleet_said::Body) {
        use v1::fleet_said::Body;
        let said = match said {
            Body::GuestDown(guest) => {
                assert_eq!(guest, GUEST.0);
                Said::GuestDown
            }
            Body::GuestsUp(up) => {
                let machines = up.guests.into_iter().map(|up| up.machine.unwrap());
                let uuids = machines.map(|it| it.system_uuid.try_into().unwrap());
                Said::GuestsUp(uuids.collect())
            }
            _ => return,
        };
        self.0.lock().push(said);
    }

    fn ask_turn(&self, _guest: GuestId, _ask: v1::AskTurn, answer: TurnAnswer) {
        answer(None);
    }
}

fn has_ended(guest: &Guest) -> bool {
    guest.mailbox.ended.lock().is_some()
}

fn is_rekeyed(guest: &mut Guest) -> bool {
    let mut frames = std::iter::from_fn(|| guest.received.try_recv().ok());
    frames.any(|envelope| matches!(envelope.body, Some(Body::Rekey(_))))
}

#[tokio::test]
async fn a_copy_throws_nobody_out_and_a_machine_that_comes_back_takes_its_place() {
    let rig = Rig::new();
    let first = rig.join_on(GUEST, true, machine(1, 1));
    let copy = rig.join_on(GUEST, true, machine(2, 1));
    let restored = rig.join_on(GUEST, true, machine(1, 2));
    assert!(!has_ended(&first) && !has_ended(&copy));
    assert_eq!(rig.shared.guests.gates().len(), 3, "the fleet hears of all");
    let again = rig.join_on(GUEST, true, machine(2, 1));
    assert!(has_ended(&copy), "the same machine");
    assert!(!has_ended(&first) && !has_ended(&restored));
    drop(copy.session);
    assert_eq!(rig.shared.guests.gates().len(), 3);
    drop(again.session);
    let left = rig.shared.guests.gates_of(GUEST);
    assert_eq!(left.len(), 2);
    assert!(
        left.iter()
            .all(|up| up.machine.as_ref().unwrap().system_uuid == [1; 16])
    );
    drop((first.session, restored.session));
    assert!(rig.shared.guests.gates().is_empty());
}

#[tokio::test]
async fn a_gate_of_another_boot_has_a_place_beside_and_is_the_one_that_is_told() {
    let rig = Rig::new();
    let boot = |number: u8| Machine {
        boot_id: Some([number; 16]),
        ..machine(1, 1)
    };
    let mut first = rig.join_on(GUEST, true, boot(1));
    let mut second = rig.join_on(GUEST, true, boot(2));
    let mut copy = rig.join_on(GUEST, true, machine(2, 1));
    assert!(!has_ended(&first), "it may be another machine");
    assert_eq!(rig.shared.guests.gates().len(), 3);
    let list = v1::Envelope {
        request_id: 0,
        body: Some(Body::Placement(v1::Placement::default())),
    };
    let gate = rig.shared.guests.gate(GUEST).unwrap();
    gate.send(Priority::Control, list);
    let told = [&mut first, &mut second, &mut copy].map(|guest| {
        let mut frames = std::iter::from_fn(|| guest.received.try_recv().ok());
        frames.any(|envelope| matches!(envelope.body, Some(Body::Placement(_))))
    });
    assert_eq!(told, [false, true, false]);
    let again = rig.join_on(GUEST, true, boot(2));
    assert!(has_ended(&second), "the same boot: its agent has come back");
    assert!(!has_ended(&first) && !has_ended(&again));
}

/// What is told of a guest's end counts for all its sessions at the appliance.
#[tokio::test]
async fn of_a_gate_that_is_replaced_the_end_is_told_and_then_all_that_are_there() {
    let told = Arc::new(Told::default());
    let rig = Rig::in_fleet(told.clone());
    let first = rig.join_on(GUEST, true, machine(1, 1));
    let copy = rig.join_on(GUEST, true, machine(2, 1));
    let up = |uuids: &[u8]| Said::GuestsUp(uuids.iter().map(|uuid| [*uuid; 16]).collect());
    assert_eq!(told.take(), [up(&[1]), up(&[2])]);
    let again = rig.join_on(GUEST, true, machine(1, 1));
    assert!(has_ended(&first));
    assert_eq!(told.take(), [Said::GuestDown, up(&[2, 1])]);
    drop(first.session);
    assert_eq!(told.take(), [], "its place was taken before");
    drop(copy.session);
    assert_eq!(told.take(), [Said::GuestDown, up(&[1])]);
    drop(again.session);
    assert_eq!(told.take(), [Said::GuestDown]);
}

#[tokio::test]
async fn the_copy_alone_is_told_to_rekey() {
    let rig = Rig::new();
    let mut first = rig.join_on(GUEST, true, machine(1, 1));
    let mut copy = rig.join_on(GUEST, true, machine(2, 1));
    let order = |key: u8, machine: Option<&Machine>| v1::RekeyGuest {
        guest_id: GUEST.0.to_vec(),
        key_id: vec![key; 16],
        machine: machine.map(Into::into),
        reason: "a copy".into(),
    };
    rig.shared.rekey(&order(7, Some(&machine(2, 1))));
    assert!(is_rekeyed(&mut copy) && !is_rekeyed(&mut first));
    rig.shared.rekey(&order(8, Some(&machine(2, 1))));
    assert!(!is_rekeyed(&mut copy), "another key");
    rig.shared.rekey(&order(7, None));
    assert!(is_rekeyed(&mut copy) && is_rekeyed(&mut first));
    assert!(!has_ended(&copy), "its session goes on");
}
