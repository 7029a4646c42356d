use allowlist::{List, SigningKey};
use model::Digest;
use proto::v1::{self, envelope::Body};

use crate::rig::{A, B, EVIL, Event, Fleet, REVOKED, outcome};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gets_verdicts_over_tls() {
    let fleet = Fleet::start("").await;
    let agent = fleet.agent(A);
    let welcome = agent.up();
    assert_eq!(welcome.generation, fleet.appliance.generation().0);
    assert_eq!(welcome.in_flight_max, 256);
    assert_eq!(outcome(&agent.judge(b"good", true)), "clean");
    let evil = agent.judge(EVIL, true);
    assert_eq!(outcome(&evil), "malicious");
    assert!(evil.order.is_some());
    let large = vec![7; 12 << 20];
    let first = agent.judge(&large, false);
    assert_eq!((outcome(&first), first.cached), ("clean", false));
    let other = fleet.agent(B);
    other.up();
    let second = other.judge(&large, false);
    assert_eq!((outcome(&second), second.cached), ("clean", true));
    agent.client.stop();
    other.client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_guest_is_turned_away() {
    let fleet = Fleet::start("").await;
    let agent = fleet.agent(REVOKED);
    match agent.next() {
        Event::Unreachable(why) => assert!(why.contains("revoked"), "{why}"),
        other => panic!("let in: {other:?}"),
    }
    agent.client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_gate_of_the_same_guest_takes_over() {
    let fleet = Fleet::start("").await;
    let older = fleet.agent(A);
    older.up();
    let newer = fleet.agent(A);
    newer.up();
    loop {
        match older.next() {
            Event::Down => break,
            Event::Frame(..) | Event::Unreachable(_) => {}
            Event::Up(_) => panic!("two gates"),
        }
    }
    older.client.stop();
    newer.client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_reaches_agents_and_a_stop_ends_their_sessions() {
    let fleet = Fleet::start("").await;
    let agent = fleet.agent(A);
    agent.up();
    assert_eq!(outcome(&agent.judge(b"good", true)), "clean");
    let text = "[policy]\nopen_budget_ms = 77\n";
    let config = daemon::config::parse(text, "test.toml").unwrap();
    let generation = fleet.appliance.reload(config).await.unwrap();
    match agent.next() {
        Event::Frame(0, Body::ContentChanged(changed)) => {
            assert_eq!(changed.generation, generation.0);
        }
        other => panic!("not told: {other:?}"),
    }
    match agent.next() {
        Event::Frame(0, Body::Policy(policy)) => assert_eq!(policy.open_budget_ms, 77),
        other => panic!("not told: {other:?}"),
    }
    let again = agent.judge(b"good", true);
    assert_eq!((outcome(&again), again.cached), ("clean", false));
    fleet.appliance.stop().await;
    assert!(matches!(agent.next(), Event::Down));
    agent.client.stop();
}

/// Offers, pieces and recalls over TLS; the tick notices that a list's file came.
#[tokio::test(flavor = "multi_thread")]
async fn allowlists_are_offered_sent_and_overruled() {
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::create(&folder.path().join("key")).unwrap();
    let path = folder.path().join("list");
    let text = format!(
        "[allowlist]\nfiles = [{path:?}]\ntrusted_keys = ['{}']\n",
        key.public()
    );
    let fleet = Fleet::start(&text).await;
    let agent = fleet.agent(A);
    agent.up();
    // Judged, so that the session is known to everybody.
    assert_eq!(outcome(&agent.judge(b"good", true)), "clean");
    let listed = vec![Digest::of(EVIL).0];
    let list = List::new("gold", 1, 0, listed, Vec::new()).unwrap();
    list.write(&path, Some(&key)).unwrap();
    let Event::Frame(0, Body::AllowlistOffers(offers)) = agent.next() else {
        panic!("not offered");
    };
    let fetch = v1::FetchAllowlist {
        fingerprint: offers.offers[0].fingerprint.clone(),
        offset: 0,
    };
    agent.send(0, Body::FetchAllowlist(fetch));
    let Event::Frame(0, Body::AllowlistPart(part)) = agent.next() else {
        panic!("not sent");
    };
    assert_eq!(part.bytes, std::fs::read(&path).unwrap());
    let other = fleet.agent(B);
    other.up();
    assert!(matches!(
        other.next(),
        Event::Frame(0, Body::AllowlistOffers(_))
    ));
    let check = v1::Check {
        blake3: Digest::of(EVIL).0.to_vec(),
        size: EVIL.len() as u64,
        class: v1::AccessClass::OnDemand as i32,
        context: Some(v1::FileContext::default()),
        content: Some(EVIL.into()),
        ..v1::Check::default()
    };
    other.send(101, Body::Check(check));
    for told in [&agent, &other] {
        let Event::Frame(0, Body::Recall(recall)) = told.next() else {
            panic!("not recalled");
        };
        assert_eq!(recall.digests, [Digest::of(EVIL).0.to_vec()]);
    }
    assert!(matches!(
        other.next(),
        Event::Frame(101, Body::CheckReply(_))
    ));
    agent.client.stop();
    other.client.stop();
}
