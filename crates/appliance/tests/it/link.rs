use proto::v1::envelope::Body;

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
