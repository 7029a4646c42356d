//! Frames between an agent and an appliance that both behave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use link::Priority;
use link::client::{SendDataError, SendError};
use link::server;
use proto::v1;
use proto::v1::envelope::Body;

use crate::rig::{Agent, Fleet, GUEST, PATIENCE, blocking, check, envelope, need, reply, welcome};

pub(crate) fn patience() -> Instant {
    Instant::now() + PATIENCE
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_is_answered() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let accepted = listener.accept().await;
    assert_eq!(accepted.guest, GUEST);
    assert_eq!(accepted.hello.agent_version, "test");
    assert!(!accepted.expired);
    let mut conn = accepted.welcome(welcome());
    let greeted = agent.up();
    assert_eq!(greeted.version, proto::VERSIONS.1);
    assert!(agent.client.is_up());

    let id = agent.client.next_request_id();
    assert_eq!(id % 2, 1);
    let sent = check(id, Some(vec![5; 60_000]));
    agent.client.send(Priority::Open, sent.clone()).unwrap();
    assert_eq!(conn.recv().await.unwrap(), Some(sent));
    conn.sender().send(Priority::Open, reply(id)).unwrap();
    assert_eq!(agent.frame(), reply(id));
    let (received, sent) = conn.sender().bytes();
    let stats = agent.client.stats();
    assert_eq!((stats.bytes_sent, stats.bytes_received), (received, sent));
    assert!(received > 60_000);

    agent.client.stop();
    assert_eq!(agent.down(), "the agent stops");
    let last = conn.recv().await.unwrap().unwrap();
    assert!(matches!(last.body, Some(Body::Goodbye(_))), "{last:?}");
    assert_eq!(conn.recv().await.unwrap(), None);
    assert!(agent.rest().is_empty());
    let late = agent.client.send(Priority::Open, check(99, None));
    assert_eq!(late, Err(SendError::NotConnected));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_waits_for_credit_and_arrives_whole() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    let id = agent.client.next_request_id();
    agent.client.send(Priority::Open, check(id, None)).unwrap();
    conn.recv().await.unwrap();
    let too_soon =
        agent
            .client
            .send_data(id, Priority::Open, 0, Bytes::from_static(b"x"), patience());
    assert_eq!(too_soon, Err(SendDataError::NotWanted));
    conn.sender()
        .send(Priority::Open, need(id, 100_000))
        .unwrap();
    agent.frame();

    let content: Bytes = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let (client, bytes) = (agent.client.clone(), content.clone());
    let upload = blocking(move || {
        // Held until its end comes, all but what credit cuts off.
        client.send_last_data(id, Priority::Open, 0, bytes, patience())?;
        let end = envelope(id, Body::DataEnd(v1::DataEnd::default()));
        client.send(Priority::Open, end).unwrap();
        Ok::<_, SendDataError>(())
    });
    let sender = conn.sender();
    let receive = async {
        let mut got = Vec::new();
        loop {
            match conn.recv().await.unwrap().unwrap().body.unwrap() {
                Body::Data(data) => {
                    assert_eq!(data.offset, got.len() as u64);
                    got.extend_from_slice(&data.bytes);
                    let bytes = u32::try_from(data.bytes.len()).unwrap();
                    let more = envelope(id, Body::Credit(v1::Credit { bytes }));
                    sender.send(Priority::Open, more).unwrap();
                }
                Body::DataEnd(_) => return got,
                other => panic!("{other:?}"),
            }
        }
    };
    let (uploaded, got) = tokio::join!(upload, receive);
    uploaded.unwrap();
    assert!(got == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_check_passes_a_big_upload() {
    const UPLOAD_BYTES: usize = 64 << 20;
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    let slow = agent.client.next_request_id();
    let scan = check(slow, None);
    agent.client.send(Priority::OnDemand, scan).unwrap();
    conn.recv().await.unwrap();
    let all = u32::try_from(UPLOAD_BYTES).unwrap();
    conn.sender()
        .send(Priority::OnDemand, need(slow, all))
        .unwrap();
    agent.frame();

    // The appliance reads nothing yet, so the upload fills every buffer on the way.
    let client = agent.client.clone();
    let upload = tokio::task::spawn_blocking(move || {
        let content = Bytes::from(vec![9; UPLOAD_BYTES]);
        client.send_data(slow, Priority::OnDemand, 0, content, patience())
    });
    let before = agent.client.stats().bytes_sent;
    crate::rig::eventually("the upload is under way", || {
        agent.client.stats().bytes_sent > before + (64 << 10)
    })
    .await;
    let urgent = agent.client.next_request_id();
    let open = check(urgent, None);
    agent.client.send(Priority::Open, open).unwrap();

    let mut before_it = 0;
    loop {
        let next = conn.recv().await.unwrap().unwrap();
        match next.body.unwrap() {
            Body::Data(data) => before_it += data.bytes.len(),
            Body::Check(_) => break assert_eq!(next.request_id, urgent),
            other => panic!("{other:?}"),
        }
    }
    // Only what was in the buffers came first.
    assert!(before_it < UPLOAD_BYTES / 2, "{before_it}");
    let mut after_it = 0;
    while before_it + after_it < UPLOAD_BYTES {
        match conn.recv().await.unwrap().unwrap().body.unwrap() {
            Body::Data(data) => after_it += data.bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    upload.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_an_upload_and_reaches_the_appliance() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    let id = agent.client.next_request_id();
    agent.client.send(Priority::Open, check(id, None)).unwrap();
    conn.recv().await.unwrap();
    conn.sender().send(Priority::Open, need(id, 10)).unwrap();
    agent.frame();
    let client = agent.client.clone();
    let upload = tokio::task::spawn_blocking(move || {
        let content = Bytes::from(vec![9; 100]);
        client.send_data(id, Priority::Open, 0, content, patience())
    });
    let first = conn.recv().await.unwrap().unwrap();
    assert!(matches!(&first.body, Some(Body::Data(d)) if d.bytes.len() == 10));
    agent.client.cancel(id);
    assert_eq!(upload.await.unwrap(), Err(SendDataError::NotWanted));
    let cancel = conn.recv().await.unwrap().unwrap();
    assert!(matches!(cancel.body, Some(Body::Cancel(_))));
    // The reply was on its way: nobody is told.
    conn.sender().send(Priority::Open, reply(id)).unwrap();
    agent.client.cancel(id);
    let next = agent.client.next_request_id();
    agent
        .client
        .send(Priority::Open, check(next, None))
        .unwrap();
    assert_eq!(conn.recv().await.unwrap().unwrap().request_id, next);
    conn.sender().send(Priority::Open, reply(next)).unwrap();
    assert_eq!(agent.frame(), reply(next));
    assert_eq!(agent.client.stats().frames_ignored, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_ends_an_upload_and_late_data_is_dropped() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    let id = agent.client.next_request_id();
    agent.client.send(Priority::Open, check(id, None)).unwrap();
    conn.recv().await.unwrap();
    conn.sender()
        .send(Priority::Open, need(id, 1 << 20))
        .unwrap();
    agent.frame();
    let content = Bytes::from(vec![9; 100_000]);
    let sent = agent
        .client
        .send_data(id, Priority::Open, 0, content.clone(), patience());
    sent.unwrap();
    conn.sender().send(Priority::Open, reply(id)).unwrap();
    assert_eq!(agent.frame(), reply(id));
    let more = agent
        .client
        .send_data(id, Priority::Open, 100_000, content, patience());
    assert_eq!(more, Err(SendDataError::NotWanted));
    let alert = envelope(0, Body::Alert(v1::Alert::default()));
    agent.client.send(Priority::Control, alert.clone()).unwrap();
    // The two pieces sent before the answer are not shown to the appliance.
    assert_eq!(conn.recv().await.unwrap(), Some(alert));
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_that_never_comes_is_given_up() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    let id = agent.client.next_request_id();
    agent.client.send(Priority::Open, check(id, None)).unwrap();
    conn.recv().await.unwrap();
    conn.sender().send(Priority::Open, need(id, 0)).unwrap();
    agent.frame();
    let soon = Instant::now() + Duration::from_millis(20);
    let piece = Bytes::from_static(b"x");
    let given_up = agent.client.send_data(id, Priority::Open, 0, piece, soon);
    assert_eq!(given_up, Err(SendDataError::TimedOut));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_threads_share_one_link() {
    const THREADS: usize = 8;
    const EACH: usize = 200;
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    let echo = tokio::spawn(async move {
        let sender = conn.sender();
        for _ in 0..THREADS * EACH {
            let asked = conn.recv().await.unwrap().unwrap();
            let Some(Body::Check(asked_for)) = asked.body else {
                panic!("{asked:?}");
            };
            let content = asked_for.content.unwrap_or_default();
            assert!(content.iter().all(|b| *b == asked_for.deadline_ms as u8));
            sender
                .send(Priority::Open, reply(asked.request_id))
                .unwrap();
        }
        conn
    });
    let client = Arc::new(agent.client.clone());
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let client = Arc::clone(&client);
            std::thread::spawn(move || {
                for i in 0..EACH {
                    let id = client.next_request_id();
                    let content = vec![thread as u8; i * 300];
                    let mut asked = check(id, Some(content));
                    if let Some(Body::Check(check)) = &mut asked.body {
                        check.deadline_ms = thread as u32;
                    }
                    let priority = Priority::ALL[1 + i % 3];
                    let until = patience();
                    while client.send(priority, asked.clone()) == Err(SendError::Backpressure) {
                        assert!(Instant::now() < until);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            })
        })
        .collect();
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..THREADS * EACH {
        assert!(answered.insert(agent.frame().request_id), "twice");
    }
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    echo.await.unwrap();
    assert_eq!(answered.len(), THREADS * EACH);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_appliance_says_unasked_is_heard() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let conn = listener.accept().await.welcome(welcome());
    agent.up();
    let said = [
        Body::ContentChanged(v1::ContentChanged::default()),
        Body::Policy(v1::Policy::default()),
        Body::Recall(v1::Recall::default()),
        Body::AllowlistOffers(v1::AllowlistOffers::default()),
        Body::FilterOffer(v1::FilterOffer::default()),
        Body::Placement(v1::Placement::default()),
        Body::Recheck(v1::Recheck::default()),
        Body::Rekey(v1::Rekey::default()),
        Body::TurnOver(v1::TurnOver::default()),
    ];
    for body in said {
        let frame = envelope(0, body);
        conn.sender()
            .send(Priority::Control, frame.clone())
            .unwrap();
        assert_eq!(agent.frame(), frame);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_appliance_can_ask_too() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    let sender = conn.sender();
    let id = sender.next_request_id();
    assert_eq!((id % 2, sender.next_request_id()), (0, id + 2));
    let order = envelope(id, Body::Order(v1::Order::default()));
    sender.send(Priority::Control, order.clone()).unwrap();
    assert_eq!(agent.frame(), order);
    let result = envelope(id, Body::OrderResult(v1::OrderResult::default()));
    agent
        .client
        .send(Priority::Control, result.clone())
        .unwrap();
    assert_eq!(conn.recv().await.unwrap(), Some(result));
}
