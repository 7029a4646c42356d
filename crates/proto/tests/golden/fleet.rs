//! fleet.proto, and the fleet's part of link.proto and admin.proto.

use proto::v1;
use proto::v1::{admin_reply, admin_request, envelope, fleet_order, fleet_request, fleet_said};

use crate::types::{machine_facts, unscanned, verdict};
use crate::{Golden, membership};

fn appliances() -> Vec<String> {
    vec!["10.0.0.1:7443".into(), "10.0.0.2:7443".into()]
}

fn placement() -> v1::Placement {
    v1::Placement {
        epoch: 1 << 40,
        appliances: appliances(),
    }
}

fn round_trip() -> v1::RoundTrip {
    v1::RoundTrip {
        appliance: "10.0.0.1:7443".into(),
        rtt_us: 150,
    }
}

fn nearness() -> v1::Nearness {
    v1::Nearness {
        round_trips: vec![round_trip()],
    }
}

fn ask_turn() -> v1::AskTurn {
    v1::AskTurn {
        kind: v1::TurnKind::Sweep as i32,
        turn_id: (1 << 32) + 5,
        takes_s: 30,
        within_s: 600,
    }
}

fn turn() -> v1::Turn {
    v1::Turn {
        turn_id: (1 << 32) + 5,
        wait_ms: 2500,
        ends_in_ms: 30_000,
        refused: "all is taken".into(),
        possible_within_s: 900,
    }
}

fn turn_over() -> v1::TurnOver {
    v1::TurnOver {
        turn_id: (1 << 32) + 5,
    }
}

fn link(golden: &mut Golden) {
    golden.add("AskTurn", &ask_turn());
    golden.add("Turn", &turn());
    golden.add("TurnOver", &turn_over());
    golden.add("Placement", &placement());
    golden.add("Nearness", &nearness());
    golden.add("RoundTrip", &round_trip());
    let mut body = |name: &str, body| {
        let envelope = v1::Envelope {
            request_id: 2,
            body: Some(body),
        };
        golden.add(&format!("Envelope.{name}"), &envelope);
    };
    body("Placement", envelope::Body::Placement(placement()));
    body("Nearness", envelope::Body::Nearness(nearness()));
    body("AskTurn", envelope::Body::AskTurn(ask_turn()));
    body("Turn", envelope::Body::Turn(turn()));
    body("TurnOver", envelope::Body::TurnOver(turn_over()));
}

fn list() -> v1::FleetList {
    v1::FleetList {
        host: "h1".into(),
        skip: 1000,
    }
}

fn drain() -> v1::FleetDrain {
    v1::FleetDrain {
        appliance: "a1".into(),
        host: "h1".into(),
        undo: true,
    }
}

fn events() -> v1::FleetEvents {
    v1::FleetEvents {
        after: 7,
        limit: 100,
    }
}

fn request() -> v1::FleetRequest {
    v1::FleetRequest {
        ask: Some(fleet_request::Ask::Why("v1".into())),
    }
}

fn requests(golden: &mut Golden) {
    use fleet_request::Ask;
    golden.add("FleetList", &list());
    golden.add("FleetDrain", &drain());
    golden.add("FleetEvents", &events());
    golden.add("FleetRequest", &request());
    membership::add(golden);
    let mut ask = |name: &str, ask| {
        let request = v1::FleetRequest { ask: Some(ask) };
        golden.add(&format!("FleetRequest.{name}"), &request);
    };
    ask("Hosts", Ask::Hosts(list()));
    ask("Vms", Ask::Vms(list()));
    ask("Appliances", Ask::Appliances(list()));
    ask("Turns", Ask::Turns(list()));
    ask("Pools", Ask::Pools(list()));
    ask("PoolSet", Ask::PoolSet(membership::pool()));
    ask("PoolRemove", Ask::PoolRemove("desktops".into()));
    ask("Pending", Ask::Pending(list()));
    ask("Decide", Ask::Decide(membership::decision()));
    ask("Members", Ask::Members(membership::members()));
    ask("Revoke", Ask::Revoke(membership::revoke()));
    ask("Why", Ask::Why("v1".into()));
    ask("Drain", Ask::Drain(drain()));
    ask("Events", Ask::Events(events()));
    ask("InSession", Ask::InSession(membership::in_session()));
    ask("ApplianceIdentity", Ask::ApplianceIdentity("a2".into()));
    let body = Some(admin_request::Body::Fleet(request()));
    golden.add("AdminRequest.Fleet", &v1::AdminRequest { body });
}

fn host() -> v1::FleetHost {
    v1::FleetHost {
        name: "h1".into(),
        id: "host-12".into(),
        connector: "vc".into(),
        cluster: "c".into(),
        site: "s".into(),
        maintenance: true,
        reachable: true,
        vms: 50,
        vms_awake: 40,
        appliances: vec!["a1".into()],
    }
}

fn turn_row() -> v1::FleetTurn {
    v1::FleetTurn {
        vm: "vm-42".into(),
        host: "h1".into(),
        kind: "scan".into(),
        begins_in_ms: 500,
        ends_in_ms: 30_500,
    }
}

fn vm() -> v1::FleetVm {
    v1::FleetVm {
        number: 9,
        name: "v1".into(),
        id: "vm-42".into(),
        connector: "vc".into(),
        host: "h1".into(),
        state: "running".into(),
        guest_id: vec![0x99; 16],
        appliances: vec!["a1".into(), "a2".into()],
        epoch: 5,
        cause: "migrated".into(),
        tier: Some(1),
        connected_to: "a1".into(),
        session: "in_session".into(),
        session_until_ms: 1_700_000_000_000,
    }
}

fn appliance() -> v1::FleetAppliance {
    v1::FleetAppliance {
        name: "a1".into(),
        address: "10.0.0.1:7443".into(),
        host: "h1".into(),
        availability: "up".into(),
        connected: true,
        load: 40_000,
        bound: 60_000,
        capacity: 200,
        vms: 40,
        queue_ms: 3,
        labels: vec!["fast".into()],
    }
}

fn considered() -> v1::FleetConsidered {
    v1::FleetConsidered {
        appliance: "a1".into(),
        tier: 1,
        in_scope: true,
        rank: 1.5,
        load: 40_000,
        bound: 60_000,
        rtt_us: 150,
        standing: "first".into(),
    }
}

fn why() -> v1::FleetWhy {
    v1::FleetWhy {
        vm: Some(vm()),
        measured_host: "h2".into(),
        attached: "a2".into(),
        rule: "desktops".into(),
        considered: vec![considered()],
        omitted: 12,
    }
}

fn event() -> v1::FleetEvent {
    v1::FleetEvent {
        id: 8,
        at_ms: 1_700_000_000_000,
        kind: "vm_moved".into(),
        text: "v1 to h2".into(),
    }
}

fn replies(golden: &mut Golden) {
    golden.add("FleetHost", &host());
    golden.add("FleetVm", &vm());
    golden.add("FleetAppliance", &appliance());
    golden.add("FleetConsidered", &considered());
    golden.add("FleetWhy", &why());
    golden.add("FleetEvent", &event());
    golden.add("FleetTurn", &turn_row());
    let reply = v1::FleetReply {
        hosts: vec![host()],
        vms: vec![vm()],
        appliances: vec![appliance()],
        why: Some(why()),
        events: vec![event()],
        more: true,
        identity: "-----BEGIN".into(),
        turns: vec![turn_row()],
        pools: vec![membership::pool()],
        pending: vec![membership::pending()],
        members: vec![membership::member()],
        revoked: 3,
    };
    golden.add("FleetReply", &reply);
    let body = Some(admin_reply::Body::Fleet(reply));
    golden.add("AdminReply.Fleet", &v1::AdminReply { body });
}

fn hello() -> v1::FleetHello {
    v1::FleetHello {
        address: "10.0.0.1:7443".into(),
        host: "h1".into(),
        cluster: "c".into(),
        site: "s".into(),
        capacity: 200,
        labels: vec!["fast".into()],
    }
}

fn guest_up() -> v1::GuestUp {
    v1::GuestUp {
        guest_id: vec![0x99; 16],
        hostname: "web-1".into(),
        address: "10.0.0.9".into(),
        placement_epoch: 5,
        key_id: vec![0x66; 16],
        machine: Some(machine_facts()),
        channel: vec![0x44; 16],
    }
}

fn host_channels() -> v1::HostChannels {
    v1::HostChannels {
        channels: vec![vec![0x44; 16]],
    }
}

fn guest_nearness() -> v1::GuestNearness {
    v1::GuestNearness {
        guest_id: vec![0x99; 16],
        appliance: "10.0.0.1:7443".into(),
        rtt_us: 150,
    }
}

fn warmth() -> v1::Warmth {
    v1::Warmth {
        guest_id: vec![0x99; 16],
        appliance: "a2".into(),
        verdicts: vec![warm_verdict()],
    }
}

fn warm_verdict() -> v1::WarmVerdict {
    v1::WarmVerdict {
        key: vec![0x11; 80],
        verdict: Some(verdict(v1::verdict::Outcome::Unscanned(unscanned()))),
    }
}

fn renew_guest() -> v1::RenewGuest {
    v1::RenewGuest {
        guest_id: vec![0x99; 16],
        ticket: 3,
        csr: vec![0x30],
        key_id: vec![0x66; 16],
        rekey: true,
        machine: Some(machine_facts()),
    }
}

fn guests_up() -> v1::GuestsUp {
    v1::GuestsUp {
        guests: vec![guest_up()],
    }
}

fn ask_guest_turn() -> v1::AskGuestTurn {
    v1::AskGuestTurn {
        guest_id: vec![0x99; 16],
        ticket: 4,
        ask: Some(ask_turn()),
    }
}

fn guest_turn_over() -> v1::GuestTurnOver {
    v1::GuestTurnOver {
        guest_id: vec![0x99; 16],
        turn_id: (1 << 32) + 5,
    }
}

fn said(golden: &mut Golden) {
    use fleet_said::Body;
    golden.add("FleetHello", &hello());
    golden.add("GuestsUp", &guests_up());
    golden.add("GuestUp", &guest_up());
    golden.add("GuestNearness", &guest_nearness());
    golden.add("HostChannels", &host_channels());
    golden.add("Warmth", &warmth());
    golden.add("WarmVerdict", &warm_verdict());
    golden.add("RenewGuest", &renew_guest());
    golden.add("AskGuestTurn", &ask_guest_turn());
    golden.add("GuestTurnOver", &guest_turn_over());
    let said = |body| v1::FleetSaid { body: Some(body) };
    golden.add("FleetSaid", &said(Body::QueueMs(7)));
    let mut body = |name: &str, body| golden.add(&format!("FleetSaid.{name}"), &said(body));
    body("Hello", Body::Hello(hello()));
    body("GuestsUp", Body::GuestsUp(guests_up()));
    body("GuestDown", Body::GuestDown(vec![0x99; 16]));
    body("Nearness", Body::Nearness(guest_nearness()));
    body("QueueMs", Body::QueueMs(7));
    body("Warmth", Body::Warmth(warmth()));
    body("RenewGuest", Body::RenewGuest(renew_guest()));
    body("RenewSelf", Body::RenewSelf(vec![0x30]));
    body("Leaving", Body::Leaving(true));
    body("AskTurn", Body::AskTurn(ask_guest_turn()));
    body("TurnOver", Body::TurnOver(guest_turn_over()));
    body("Channels", Body::Channels(host_channels()));
}

fn place() -> v1::PlaceGuest {
    v1::PlaceGuest {
        guest_id: vec![0x99; 16],
        epoch: 5,
        appliances: appliances(),
    }
}

fn warm() -> v1::WarmGuest {
    v1::WarmGuest {
        guest_id: vec![0x99; 16],
        appliance: "a2".into(),
    }
}

fn renewal() -> v1::Renewal {
    v1::Renewal {
        ticket: 3,
        chain: vec![vec![0x30]],
        refused: "revoked".into(),
    }
}

fn rekey_guest() -> v1::RekeyGuest {
    v1::RekeyGuest {
        guest_id: vec![0x99; 16],
        key_id: vec![0x66; 16],
        machine: Some(machine_facts()),
        reason: "a copy".into(),
    }
}

fn told(golden: &mut Golden) {
    use fleet_order::Body;
    let welcome = v1::FleetWelcome {
        revoked: vec![vec![0x99; 16]],
    };
    let elsewhere = v1::FleetElsewhere {
        address: "10.0.0.3:7445".into(),
    };
    golden.add("FleetWelcome", &welcome);
    golden.add("FleetElsewhere", &elsewhere);
    golden.add("PlaceGuest", &place());
    golden.add("WarmGuest", &warm());
    golden.add("Renewal", &renewal());
    golden.add("RekeyGuest", &rekey_guest());
    let guest_turn = v1::GuestTurn {
        ticket: 4,
        turn: Some(turn()),
    };
    golden.add("GuestTurn", &guest_turn);
    let order = |body| v1::FleetOrder { body: Some(body) };
    golden.add("FleetOrder", &order(Body::Alive(true)));
    let mut body = |name: &str, body| golden.add(&format!("FleetOrder.{name}"), &order(body));
    body("Welcome", Body::Welcome(welcome));
    body("Elsewhere", Body::Elsewhere(elsewhere));
    body("Place", Body::Place(place()));
    body("Warm", Body::Warm(warm()));
    body("Warmth", Body::Warmth(warmth()));
    body("Renewal", Body::Renewal(renewal()));
    body("Revoked", Body::Revoked(vec![0x99; 16]));
    body("RenewedSelf", Body::RenewedSelf(renewal()));
    body("Alive", Body::Alive(true));
    body("Turn", Body::Turn(guest_turn));
    body("TurnOver", Body::TurnOver(guest_turn_over()));
    body("Rekey", Body::Rekey(rekey_guest()));
}

pub(crate) fn add(golden: &mut Golden) {
    link(golden);
    requests(golden);
    replies(golden);
    said(golden);
    told(golden);
}
