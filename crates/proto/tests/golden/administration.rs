//! Values of `admin.proto`.

use proto::v1;
use proto::v1::order::Action;
use proto::v1::{admin_reply, admin_request};

use crate::Golden;
use crate::link::{order, order_result};
use crate::types::{detection, error};

fn token_request() -> v1::TokenRequest {
    v1::TokenRequest {
        uses_max: 5,
        valid_s: 3600,
        pool: "desktops".into(),
        vm: "v1".into(),
    }
}

fn guest_order() -> v1::GuestOrderRequest {
    v1::GuestOrderRequest {
        guest_id: vec![0x99; 16],
        order: Some(order(Action::List(v1::ListQuarantine {}))),
    }
}

fn release_request() -> v1::ReleaseRequest {
    v1::ReleaseRequest {
        blake3: vec![0x22; 32],
        revoke: true,
        reason: "false alarm, ticket 12".into(),
    }
}

fn engine_status() -> v1::EngineStatus {
    v1::EngineStatus {
        name: "yara".into(),
        version: "1.22.1".into(),
        rules: 1204,
        workers: 2,
        scanned_total: 100_000,
        killed_total: 3,
    }
}

fn guest_status() -> v1::GuestStatus {
    v1::GuestStatus {
        guest_id: vec![0x99; 16],
        hostname: "web-1".into(),
        address: "10.0.0.9:40000".into(),
        ledger_open: 4,
        bytes_received: 1 << 32,
    }
}

fn status_reply() -> v1::StatusReply {
    v1::StatusReply {
        version: "0.1.0".into(),
        generation: vec![0x11; 16],
        engines: vec![engine_status()],
        guests: vec![guest_status()],
    }
}

fn token_reply() -> v1::TokenReply {
    v1::TokenReply {
        token: "lzt1.aa.bb".into(),
    }
}

fn record() -> v1::DetectionRecord {
    v1::DetectionRecord {
        at_ms: 1_800_000_000_123,
        guest_id: vec![0x99; 16],
        path: b"/srv/a".to_vec(),
        blake3: vec![0x22; 32],
        sha256: vec![0x33; 32],
        detections: vec![detection()],
        removal: v1::OrderStatus::Done as i32,
    }
}

fn detections_reply() -> v1::DetectionsReply {
    v1::DetectionsReply {
        detections: vec![record()],
    }
}

fn reload_reply() -> v1::ReloadReply {
    v1::ReloadReply {
        generation: vec![0x11; 16],
    }
}

fn holders_request() -> v1::HoldersRequest {
    v1::HoldersRequest {
        blake3: vec![0x22; 32],
        limit: 100,
        after: vec![0x98; 16],
    }
}

fn holder() -> v1::HolderRecord {
    v1::HolderRecord {
        guest_id: vec![0x99; 16],
        hostname: "web-1".into(),
        first_seen_s: 1_800_000_000,
        last_seen_s: 1_800_000_100,
    }
}

fn holders_reply() -> v1::HoldersReply {
    v1::HoldersReply {
        holders: vec![holder()],
        more: true,
    }
}

fn requests(golden: &mut Golden) {
    use admin_request::Body;
    let limit = 50;
    golden.add("StatusRequest", &v1::StatusRequest {});
    golden.add("TokenRequest", &token_request());
    golden.add("DetectionsRequest", &v1::DetectionsRequest { limit });
    golden.add("GuestOrderRequest", &guest_order());
    golden.add("ReleaseRequest", &release_request());
    golden.add("ReloadRequest", &v1::ReloadRequest {});
    golden.add("HoldersRequest", &holders_request());
    let request = |body| v1::AdminRequest { body: Some(body) };
    golden.add("AdminRequest", &request(Body::Token(token_request())));
    let mut body = |name: &str, body| golden.add(&format!("AdminRequest.{name}"), &request(body));
    body("Status", Body::Status(v1::StatusRequest {}));
    body("Token", Body::Token(token_request()));
    body(
        "Detections",
        Body::Detections(v1::DetectionsRequest { limit }),
    );
    body("GuestOrder", Body::GuestOrder(guest_order()));
    body("Release", Body::Release(release_request()));
    body("Reload", Body::Reload(v1::ReloadRequest {}));
    body("Holders", Body::Holders(holders_request()));
}

fn replies(golden: &mut Golden) {
    use admin_reply::Body;
    golden.add("StatusReply", &status_reply());
    golden.add("EngineStatus", &engine_status());
    golden.add("GuestStatus", &guest_status());
    golden.add("TokenReply", &token_reply());
    golden.add("DetectionsReply", &detections_reply());
    golden.add("DetectionRecord", &record());
    golden.add("ReleaseReply", &v1::ReleaseReply {});
    golden.add("ReloadReply", &reload_reply());
    golden.add("HoldersReply", &holders_reply());
    golden.add("HolderRecord", &holder());
    let reply = |body| v1::AdminReply { body: Some(body) };
    golden.add("AdminReply", &reply(Body::Token(token_reply())));
    let mut body = |name: &str, body| golden.add(&format!("AdminReply.{name}"), &reply(body));
    body("Error", Body::Error(error()));
    body("Status", Body::Status(status_reply()));
    body("Token", Body::Token(token_reply()));
    body("Detections", Body::Detections(detections_reply()));
    body("OrderResult", Body::OrderResult(order_result()));
    body("Release", Body::Release(v1::ReleaseReply {}));
    body("Reload", Body::Reload(reload_reply()));
    body("Holders", Body::Holders(holders_reply()));
}

pub(crate) fn add(golden: &mut Golden) {
    requests(golden);
    replies(golden);
}
