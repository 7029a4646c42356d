//! Two machines with one guest's certificate: both are protected until the copy has its own.

use model::{GuestId, Machine};
use proto::v1;
use proto::v1::envelope::Body;

use super::rig::{Guest, Rig};

const GUEST: GuestId = GuestId([5; 16]);

fn machine(uuid: u8, generation: u8) -> Machine {
    Machine {
        generation_id: Some([generation; 16]),
        system_uuid: Some([uuid; 16]),
        macs: Vec::new(),
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
