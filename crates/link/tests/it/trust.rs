//! Who lets whom in.

use link::Priority;
use link::server::{self, SendError};
use link::tls;
use pki::{GuestKey, Identity};
use proto::v1;
use proto::v1::envelope::Body;

use crate::rig::{Agent, Event, Fleet, check, envelope, eventually, expired, valid, welcome};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_lets_no_foreign_appliance_in() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let listener = theirs.listener(server::Limits::default()).await;
    let agent = Agent::start(ours.config(&[listener.local_addr()]));
    let why = agent.unreachable();
    assert!(why.contains("TLS failed"), "{why}");
    assert!(!agent.client.is_up());
    assert_eq!(listener.stats().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_lets_no_foreign_guest_in() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let listener = ours.listener(server::Limits::default()).await;
    let mut config = ours.config(&[listener.local_addr()]);
    let foreign = theirs.guest(valid());
    config.tls = tls::client_config(&foreign, &[ours.ca.cert().clone()]).unwrap();
    let agent = Agent::start(config);
    agent.unreachable();
    eventually("refused", || listener.stats().handshakes_failed > 0).await;
    assert_eq!(listener.stats().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_do_not_mix() {
    let fleet = Fleet::new();
    let anchors = [fleet.ca.cert().clone()];
    // An appliance that poses as a guest.
    let listener = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[listener.local_addr()]);
    let appliance = fleet.ca.issue_appliance("x", valid()).unwrap();
    config.tls = tls::client_config(&appliance, &anchors).unwrap();
    let agent = Agent::start(config);
    agent.unreachable();
    eventually("refused", || listener.stats().handshakes_failed > 0).await;
    assert_eq!(listener.stats().accepted, 0);

    // A guest that poses as an appliance.
    let guest = fleet.guest(valid());
    let tls = tls::server_config(&guest, &anchors).unwrap();
    let address = ([127, 0, 0, 1], 0).into();
    let impostor = server::Listener::bind(address, tls, server::Limits::default());
    let impostor = impostor.await.unwrap();
    let agent = Agent::start(fleet.config(&[impostor.local_addr()]));
    let why = agent.unreachable();
    assert!(why.contains("TLS failed"), "{why}");
    assert_eq!(impostor.stats().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_anchors_of_a_roll_are_trusted() {
    let (old, new) = (Fleet::new(), Fleet::new());
    let both = [old.ca.cert().clone(), new.ca.cert().clone()];
    let identity = new.ca.issue_appliance("new", valid()).unwrap();
    let tls = tls::server_config(&identity, &both).unwrap();
    let address = ([127, 0, 0, 1], 0).into();
    let mut listener = server::Listener::bind(address, tls, server::Limits::default())
        .await
        .unwrap();
    let mut config = old.config(&[listener.local_addr()]);
    config.tls = tls::client_config(&old.guest(valid()), &both).unwrap();
    let agent = Agent::start(config);
    let _conn = listener.accept().await.welcome(welcome());
    agent.up();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_guest_can_renew_and_then_comes_back_whole() {
    let fleet = Fleet::new();
    let anchors = [fleet.ca.cert().clone()];
    let mut listener = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[listener.local_addr()]);
    config.tls = tls::client_config(&fleet.guest(expired()), &anchors).unwrap();
    let agent = Agent::start(config);
    let accepted = listener.accept().await;
    assert!(accepted.expired);
    let guest = accepted.guest;
    let mut conn = accepted.welcome(welcome());
    agent.up();
    let order = envelope(2, Body::Order(v1::Order::default()));
    let refused = conn.sender().send(Priority::Control, order);
    assert_eq!(refused, Err(SendError::RenewOnly));

    let key = GuestKey::generate().unwrap();
    let id = agent.client.next_request_id();
    let renew = Body::Renew(v1::Renew {
        csr: key.csr().to_vec(),
        ..v1::Renew::default()
    });
    let renew = envelope(id, renew);
    agent.client.send(Priority::Control, renew).unwrap();
    let asked = conn.recv().await.unwrap().unwrap();
    let Some(Body::Renew(renew)) = asked.body else {
        panic!("{asked:?}");
    };
    let cert = fleet.ca.sign_guest(&renew.csr, guest, valid()).unwrap();
    let renewed = Body::Renewed(v1::Renewed {
        chain: vec![cert.to_vec()],
        refused: String::new(),
    });
    conn.sender()
        .send(Priority::Control, envelope(id, renewed))
        .unwrap();
    let Some(Body::Renewed(renewed)) = agent.frame().body else {
        panic!("no Renewed");
    };
    let chain: Vec<_> = renewed.chain.into_iter().map(Into::into).collect();
    let identity: Identity = key.certified(chain).unwrap();
    let tls = tls::client_config(&identity, &anchors).unwrap();
    agent.client.set_tls(tls);
    agent.client.reconnect("renewed");
    agent.down();
    assert!(!listener.accept().await.expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_guest_can_do_nothing_else() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[listener.local_addr()]);
    let anchors = [fleet.ca.cert().clone()];
    config.tls = tls::client_config(&fleet.guest(expired()), &anchors).unwrap();
    let agent = Agent::start(config);
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    agent.client.send(Priority::Open, check(1, None)).unwrap();
    let renew = envelope(3, Body::Renew(v1::Renew::default()));
    agent.client.send(Priority::Open, renew.clone()).unwrap();
    assert_eq!(conn.recv().await.unwrap(), Some(renew), "and not the check");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_guest_of_a_foreign_ca_is_not_let_in() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let listener = ours.listener(server::Limits::default()).await;
    let mut config = ours.config(&[listener.local_addr()]);
    let anchors = [ours.ca.cert().clone()];
    config.tls = tls::client_config(&theirs.guest(expired()), &anchors).unwrap();
    let agent = Agent::start(config);
    agent.unreachable();
    eventually("refused", || listener.stats().handshakes_failed > 0).await;
    assert_eq!(listener.stats().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expired_long_ago_is_not_let_in() {
    let fleet = Fleet::new();
    let listener = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[listener.local_addr()]);
    let mut ancient = expired();
    ancient.not_after -= pki::RENEW_GRACE;
    ancient.not_before = ancient.not_after - pki::LIFETIME;
    let anchors = [fleet.ca.cert().clone()];
    config.tls = tls::client_config(&fleet.guest(ancient), &anchors).unwrap();
    let agent = Agent::start(config);
    agent.unreachable();
    eventually("refused", || listener.stats().handshakes_failed > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_turned_away_hears_why_and_tries_again() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    listener
        .accept()
        .await
        .refuse("this guest has been revoked", None);
    let why = agent.unreachable();
    assert!(why.contains("this guest has been revoked"), "{why}");
    let _conn = listener.accept().await.welcome(welcome());
    assert!(matches!(agent.next(), Event::Up(_)));
}
