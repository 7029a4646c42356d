use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use model::Digest;
use proto::v1;
use proto::v1::admin_reply::Body as Reply;
use proto::v1::admin_request::Body as Request;
use proto::v1::envelope::Body;

use crate::rig::{A, EVIL, Event, Fleet, outcome};

async fn call(fleet: &Fleet, request: Request) -> Result<Reply, String> {
    let socket = fleet.socket.clone();
    let called = tokio::task::spawn_blocking(move || appliance::admin_call(&socket, request));
    called.await.unwrap().map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tokens_and_reload() {
    let fleet = Fleet::start("").await;
    let agent = fleet.agent(A);
    agent.up();
    // Judged, so that its session is known to everybody.
    agent.judge(b"good", true);
    let mode = std::fs::metadata(&fleet.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let Ok(Reply::Status(status)) = call(&fleet, Request::Status(v1::StatusRequest {})).await
    else {
        panic!("no status");
    };
    assert_eq!(status.engines[0].name, "double");
    assert_eq!(status.guests[0].guest_id, A.0);
    assert_eq!(status.guests[0].hostname, "guest");
    let token = call(&fleet, Request::Token(v1::TokenRequest::default())).await;
    let expected = v1::TokenReply {
        token: "token 1 3600".into(),
    };
    assert_eq!(token, Ok(Reply::Token(expected)));
    let Ok(Reply::Reload(reload)) = call(&fleet, Request::Reload(v1::ReloadRequest {})).await
    else {
        panic!("no reload");
    };
    assert_ne!(reload.generation, status.generation);
    assert_eq!(reload.generation, fleet.appliance.generation().0);
    agent.client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn detections_are_listed_and_released() {
    let fleet = Fleet::start("").await;
    let agent = fleet.agent(A);
    agent.up();
    agent.judge(EVIL, true);
    let request = Request::Detections(v1::DetectionsRequest { limit: 0 });
    let Ok(Reply::Detections(list)) = call(&fleet, request).await else {
        panic!("no list");
    };
    let found = &list.detections[0];
    assert_eq!(found.path, b"/srv/file");
    assert_eq!(found.detections[0].name, "Test.Evil");
    assert_eq!(found.sha256.len(), 32);
    let mut release = v1::ReleaseRequest {
        blake3: Digest::of(EVIL).0.to_vec(),
        ..v1::ReleaseRequest::default()
    };
    let refused = call(&fleet, Request::Release(release.clone())).await;
    assert!(refused.unwrap_err().contains("reason"));
    release.reason = "a test".into();
    call(&fleet, Request::Release(release)).await.unwrap();
    let reply = agent.judge(EVIL, true);
    assert!(outcome(&reply) == "malicious" && reply.released && reply.order.is_none());
    agent.client.stop();
}

fn list_order() -> Request {
    Request::GuestOrder(v1::GuestOrderRequest {
        guest_id: vec![],
        order: Some(v1::Order {
            order_id: vec![],
            action: Some(v1::order::Action::List(v1::ListQuarantine {})),
        }),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_waits_for_its_guest() {
    let fleet = Fleet::start("").await;
    let nobody = call(&fleet, list_order()).await;
    assert_eq!(nobody, Err("no guest is connected".into()));
    let agent = fleet.agent(A);
    agent.up();
    // Judged, so that its session is known to everybody.
    agent.judge(b"good", true);
    let asked = call(&fleet, list_order());
    let answered = tokio::task::spawn_blocking(move || {
        let Event::Frame(id, Body::Order(order)) = agent.next() else {
            panic!("no order");
        };
        let result = v1::OrderResult {
            order_id: order.order_id,
            status: v1::OrderStatus::Done as i32,
            items: vec![v1::QuarantineItem::default()],
            ..v1::OrderResult::default()
        };
        agent.send(id, Body::OrderResult(result));
        agent
    });
    let (asked, agent) = tokio::join!(asked, answered);
    let Ok(Reply::OrderResult(result)) = asked else {
        panic!("no result: {asked:?}");
    };
    assert_eq!(result.items.len(), 1);
    agent.unwrap().client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_answer_is_not_waited_for_for_ever() {
    let fleet = Fleet::start("[limits]\norder_timeout_ms = 20\n").await;
    let agent = fleet.agent(A);
    agent.up();
    // Judged, so that its session is known to everybody.
    agent.judge(b"good", true);
    let error = call(&fleet, list_order()).await.unwrap_err();
    assert!(error.contains("did not answer"), "{error}");
    agent.client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_is_refused() {
    let fleet = Fleet::start("").await;
    let send = |bytes: &'static [u8]| {
        let mut stream = UnixStream::connect(&fleet.socket).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        reply
    };
    for junk in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x01\xff", b"\0\0\0\0"] {
        let reply = String::from_utf8_lossy(&send(junk)).into_owned();
        assert!(reply.contains("not a request"), "{reply:?}");
    }
    assert!(send(b"\0\0").is_empty());
}
