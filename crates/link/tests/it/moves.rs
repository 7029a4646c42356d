//! From one appliance to another, without a moment between.

use std::time::Duration;

use link::Priority;
use link::client::RouteRefused;
use link::server;
use proto::v1;
use proto::v1::envelope::Body;

use crate::flow::patience;
use crate::rig::{
    Agent, Event, Fleet, blocking, check, envelope, eventually, need, reply, welcome,
};

/// An agent that is connected to the first of two appliances.
struct Two {
    second: server::Listener,
    /// The second one, then the first.
    addresses: [String; 2],
    agent: Agent,
    old: server::Conn,
    _first: (Fleet, server::Listener),
}

impl Two {
    async fn start() -> Self {
        let fleet = Fleet::new();
        let mut first = fleet.listener(server::Limits::default()).await;
        let second = fleet.listener(server::Limits::default()).await;
        let addresses = [&second, &first].map(|it| it.local_addr().to_string());
        let agent = Agent::start(fleet.config(&[first.local_addr()]));
        let old = first.accept().await.welcome(welcome());
        agent.up();
        Self {
            second,
            addresses,
            agent,
            old,
            _first: (fleet, first),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_link_is_up_before_the_old_one_is_left() {
    let Two {
        mut second,
        addresses,
        agent,
        mut old,
        _first,
    } = Two::start().await;
    let under_way = agent.client.next_request_id();
    agent
        .client
        .send(Priority::Open, check(under_way, None))
        .unwrap();
    assert_eq!(old.recv().await.unwrap().unwrap().request_id, under_way);

    agent.client.set_route(5, &addresses).unwrap();
    let accepted = second.accept().await;
    assert_eq!(accepted.hello.placement_epoch, 5);
    assert!(
        agent.client.is_up(),
        "the old link is up until the new one is"
    );
    let mut new = accepted.welcome(welcome());
    let agent = blocking(move || {
        assert!(matches!(agent.next(), Event::Moved));
        agent
    })
    .await;
    assert_eq!(agent.client.connected_to().as_ref(), Some(&addresses[0]));

    // New questions go to the new one, and the old one answers what it was asked.
    let next = agent.client.next_request_id();
    agent
        .client
        .send(Priority::Open, check(next, None))
        .unwrap();
    assert_eq!(new.recv().await.unwrap().unwrap().request_id, next);
    old.sender().send(Priority::Open, reply(under_way)).unwrap();
    let agent = blocking(move || {
        assert_eq!(agent.frame().request_id, under_way);
        agent
    })
    .await;
    // Nothing is under way there any more: it is left.
    assert!(matches!(old.recv().await, Ok(None) | Err(_)));
    new.sender().send(Priority::Open, reply(next)).unwrap();
    let agent = blocking(move || {
        assert_eq!(agent.frame().request_id, next);
        agent
    })
    .await;
    let stats = agent.client.stats();
    assert_eq!((stats.sessions, stats.moves), (2, 1));
    blocking(move || {
        agent.client.stop();
        let rest = agent.rest();
        assert!(matches!(rest[..], [Event::Down(_)]), "{rest:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_is_sent_to_whoever_asked() {
    let Two {
        mut second,
        addresses,
        agent,
        mut old,
        _first,
    } = Two::start().await;
    let ids = [(); 2].map(|()| agent.client.next_request_id());
    for id in ids {
        agent.client.send(Priority::Open, check(id, None)).unwrap();
        old.recv().await.unwrap();
    }
    agent.client.set_route(5, &addresses).unwrap();
    let _new = second.accept().await.welcome(welcome());
    let agent = blocking(move || {
        assert!(matches!(agent.next(), Event::Moved));
        agent
    })
    .await;
    let mut asks_report = need(ids[1], 0);
    if let Some(Body::Need(need)) = &mut asks_report.body {
        need.report = true;
    }
    old.sender().send(Priority::Open, need(ids[0], 10)).unwrap();
    old.sender().send(Priority::Open, asks_report).unwrap();
    let agent = blocking(move || {
        assert_eq!([(); 2].map(|()| agent.frame().request_id), ids);
        let data = v1::Data {
            bytes: b"small".to_vec().into(),
            plain_bytes: 10,
            ..v1::Data::default()
        };
        let (client, over) = (&agent.client, patience());
        let sent = client.send_compressed(ids[0], Priority::Open, &data, over, true);
        assert_eq!(sent, Ok(()));
        let end = Body::DataEnd(v1::DataEnd::default());
        let report = Body::FilterReport(v1::FilterReport::default());
        for (id, body) in [(ids[0], end), (ids[1], report)] {
            client.send(Priority::Open, envelope(id, body)).unwrap();
        }
        agent
    })
    .await;
    for id in [ids[0], ids[0], ids[1]] {
        assert_eq!(old.recv().await.unwrap().unwrap().request_id, id);
    }
    blocking(move || agent.client.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_epoch_is_refused() {
    let fleet = Fleet::new();
    let mut first = fleet.listener(server::Limits::default()).await;
    let second = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[first.local_addr()]);
    config.epoch = 9;
    let agent = Agent::start(config);
    let _conn = first.accept().await.welcome(welcome());
    agent.up();
    let elsewhere = [second.local_addr().to_string()];
    for epoch in [0, 8, 9] {
        let refused = agent.client.set_route(epoch, &elsewhere).unwrap_err();
        assert_eq!(
            refused,
            RouteRefused::Stale {
                offered: epoch,
                own: 9
            }
        );
    }
    let own = first.local_addr().to_string();
    assert_eq!(agent.client.connected_to(), Some(own));
    assert!(agent.rest().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_old_one_never_answered_is_told_to_be_lost() {
    let fleet = Fleet::new();
    let mut first = fleet.listener(server::Limits::default()).await;
    let mut second = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[first.local_addr()]);
    config.limits.leave_linger = Duration::from_millis(50);
    let agent = Agent::start(config);
    let mut old = first.accept().await.welcome(welcome());
    agent.up();
    let asked = agent.client.next_request_id();
    agent
        .client
        .send(Priority::Open, check(asked, None))
        .unwrap();
    old.recv().await.unwrap().unwrap();
    let to = [second.local_addr().to_string()];
    agent.client.set_route(1, &to).unwrap();
    let _new = second.accept().await.welcome(welcome());
    blocking(move || {
        assert!(matches!(agent.next(), Event::Moved));
        match agent.next() {
            Event::Lost(ids) => assert_eq!(ids, [asked]),
            other => panic!("not lost: {other:?}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_that_cannot_be_reached_moves_nobody() {
    let fleet = Fleet::new();
    let mut first = fleet.listener(server::Limits::default()).await;
    let gone = fleet.listener(server::Limits::default()).await;
    let list = [gone.local_addr(), first.local_addr()].map(|it| it.to_string());
    drop(gone);
    let agent = Agent::start(fleet.config(&[first.local_addr()]));
    let mut conn = first.accept().await.welcome(welcome());
    agent.up();
    agent.client.set_route(1, &list).unwrap();
    eventually("it is tried", || agent.client.stats().attempts_failed > 0).await;
    let id = agent.client.next_request_id();
    agent.client.send(Priority::Open, check(id, None)).unwrap();
    assert_eq!(conn.recv().await.unwrap().unwrap().request_id, id);
    let alert = Body::Alert(v1::Alert::default());
    let alert = v1::Envelope {
        request_id: 0,
        body: Some(alert),
    };
    agent.client.send(Priority::Control, alert).unwrap();
    assert!(agent.client.is_up());
}
