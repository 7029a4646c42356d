//! What a guest reads from its channel to its host, as the controller is told.

use model::{ChannelId, GuestId, Machine};
use proto::v1;

use super::rig::Rig;

const GUEST: GuestId = GuestId([5; 16]);

#[tokio::test]
async fn a_session_begins_with_the_channel_of_its_hello_and_says_what_changes() {
    let rig = Rig::new();
    let channel = ChannelId([3; 16]);
    let guest = rig.join_with(GUEST, true, Machine::default(), Some(channel));
    let told = || rig.shared.guests.gates_of(GUEST)[0].channel.clone();
    assert_eq!(told(), channel.0);
    guest.session.attached(&v1::Attached {
        channel: vec![4; 16],
    });
    assert_eq!(told(), [4; 16]);
    // What makes no sense changes nothing.
    guest.session.attached(&v1::Attached {
        channel: vec![4; 15],
    });
    assert_eq!(told(), [4; 16]);
    guest.session.attached(&v1::Attached::default());
    assert!(told().is_empty(), "nobody is at the other end");
}
