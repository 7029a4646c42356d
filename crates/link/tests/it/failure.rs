//! Appliances that stop, hang, or send away; handlers that panic.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use link::Priority;
use link::client::{self, Client, Config, Handler};
use link::server;
use proto::v1;
use proto::v1::envelope::Body;

use crate::rig::{
    Agent, Event, Fleet, PATIENCE, blocking, check, envelope, eventually, need, reply, welcome,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_is_down_once_and_comes_back() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    for _ in 0..3 {
        let conn = listener.accept().await.welcome(welcome());
        agent.up();
        drop(conn);
        agent.down();
    }
    agent.client.stop();
    let rest = agent.rest();
    let ups = rest.iter().filter(|e| matches!(e, Event::Up(_))).count();
    let downs = rest.iter().filter(|e| matches!(e, Event::Down(_))).count();
    assert_eq!(ups, downs, "{rest:?}");
    assert!(agent.client.stats().sessions >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_appliance_takes_over() {
    let fleet = Fleet::new();
    let mut first = fleet.listener(server::Limits::default()).await;
    let mut second = fleet.listener(server::Limits::default()).await;
    let config = fleet.config(&[first.local_addr(), second.local_addr()]);
    let agent = Agent::start(config);
    let conn = first.accept().await.welcome(welcome());
    agent.up();
    drop((conn, first));
    agent.down();
    let mut conn = second.accept().await.welcome(welcome());
    agent.up();
    let id = agent.client.next_request_id();
    agent.client.send(Priority::Open, check(id, None)).unwrap();
    assert_eq!(conn.recv().await.unwrap().unwrap().request_id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_that_hangs_is_found_dead() {
    let fleet = Fleet::new();
    let mut hanging = fleet.listener(server::Limits::default()).await;
    let mut healthy = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[hanging.local_addr(), healthy.local_addr()]);
    config.limits.ping_busy_after = Duration::from_millis(50);
    config.limits.ping_idle_after = Duration::from_millis(100);
    config.limits.dead_after = Duration::from_secs(3);
    let agent = Agent::start(config);
    // It never reads, as one that was stopped.
    let _conn = hanging.accept().await.welcome(welcome());
    agent.up();
    assert_eq!(agent.down(), "the appliance does not answer");
    // The one that hangs is not tried first.
    let mut conn = healthy.accept().await.welcome(welcome());
    agent.up();
    let answering = tokio::spawn(async move { conn.recv().await });
    // One that answers stays: pong after pong.
    let before = agent.client.stats().frames_received;
    eventually("pongs", || {
        agent.client.stats().frames_received >= before + 5
    })
    .await;
    assert!(agent.rest().is_empty());
    answering.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_that_accepts_and_says_nothing_is_given_up() {
    let fleet = Fleet::new();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = fleet.config(&[mute.local_addr().unwrap()]);
    config.limits.handshake_timeout = Duration::from_millis(50);
    let agent = Agent::start(config);
    let why = agent.unreachable();
    assert!(why.contains("did not answer in time"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_socket_blocks_no_caller_and_holds_bounded_memory() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[listener.local_addr()]);
    config.limits.queue_bytes_max = 1 << 20;
    let agent = Agent::start(config);
    let mut greeting = welcome();
    greeting.in_flight_max = 1_000_000;
    let mut conn = listener.accept().await.welcome(greeting);
    agent.up();
    // The appliance reads nothing. Kernel buffers are some megabytes at most.
    let mut taken = 0usize;
    loop {
        let id = agent.client.next_request_id();
        let asked = check(id, Some(vec![1; 50_000]));
        match agent.client.send(Priority::Open, asked) {
            Ok(()) => taken += 50_000,
            Err(error) => break assert_eq!(error, link::client::SendError::Backpressure),
        }
        assert!(taken < 100 << 20, "unbounded");
    }
    // A cancel still finds room, and a check that has not left is never heard of.
    let sent = agent.client.stats().frames_sent;
    let queued = agent.client.next_request_id() - 4;
    agent.client.cancel(queued);
    assert_eq!(agent.client.stats().frames_sent, sent);
    let mut got = 0;
    while got + 50_000 < taken {
        let next = conn.recv().await.unwrap().unwrap();
        assert_ne!(next.request_id, queued);
        got += 50_000;
    }
    assert!(agent.client.stats().backpressure > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn goodbye_lets_finish_what_is_under_way() {
    let fleet = Fleet::new();
    let mut leaving = fleet.listener(server::Limits::default()).await;
    let mut staying = fleet.listener(server::Limits::default()).await;
    let mut config = fleet.config(&[leaving.local_addr(), staying.local_addr()]);
    config.limits.goodbye_linger = PATIENCE;
    let agent = Agent::start(config);
    let mut conn = leaving.accept().await.welcome(welcome());
    agent.up();
    let id = agent.client.next_request_id();
    agent.client.send(Priority::Open, check(id, None)).unwrap();
    conn.recv().await.unwrap();
    conn.sender().goodbye("maintenance", PATIENCE);
    conn.sender().send(Priority::Open, need(id, 0)).unwrap();
    agent.frame();
    let new = agent.client.send(Priority::Open, check(3, None));
    assert!(new.is_err(), "nothing new");
    conn.sender().send(Priority::Open, reply(id)).unwrap();
    assert_eq!(agent.frame(), reply(id));
    assert_eq!(agent.down(), "the appliance said goodbye");
    let _conn = staying.accept().await.welcome(welcome());
    agent.up();
}

/// A guest that hangs once a frame has come, until it is let go.
struct Hanging {
    is_stuck: Receiver<()>,
    release: Sender<()>,
    client: Client,
}

struct Stuck(Sender<()>, Mutex<Receiver<()>>);

impl Handler for Stuck {
    fn up(&self, _: &v1::Welcome) {}
    fn down(&self, _: &str) {}
    fn frame(&self, _: v1::Envelope) {
        self.0.send(()).unwrap();
        // Until the test lets go of the other end.
        let _ = self.1.lock().unwrap().recv();
    }
}

impl Hanging {
    fn start(config: Config) -> Self {
        let (stuck, is_stuck) = channel();
        let (release, released) = channel();
        let handler = Arc::new(Stuck(stuck, Mutex::new(released)));
        Self {
            is_stuck,
            release,
            client: Client::start(config, handler).unwrap(),
        }
    }

    fn hang(&self, sender: &server::Sender, frame: v1::Envelope) {
        sender.send(Priority::Control, frame).unwrap();
        self.is_stuck.recv_timeout(PATIENCE).unwrap();
    }

    fn stop(self) {
        drop(self.release);
        self.client.stop();
    }
}

fn policy(bytes: usize) -> v1::Envelope {
    let revision = vec![0; bytes];
    let policy = v1::Policy {
        revision,
        ..v1::Policy::default()
    };
    envelope(0, Body::Policy(policy))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reads_nothing_is_closed() {
    let fleet = Fleet::new();
    let limits = server::Limits {
        queue_bytes_max: 1 << 20,
        ..server::Limits::default()
    };
    let mut listener = fleet.listener(limits).await;
    let guest = Hanging::start(fleet.config(&[listener.local_addr()]));
    let conn = listener.accept().await.welcome(welcome());
    let sender = conn.sender();
    let big = policy(100_000);
    guest.hang(&sender, big.clone());
    let mut queued = 0;
    while sender.send(Priority::Control, big.clone()).is_ok() {
        queued += 1;
        assert!(queued < 1000, "100 MB for one guest");
    }
    assert!(sender.is_closed());
    assert_eq!(listener.stats().slow_closed, 1);
    guest.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_hangs_is_closed() {
    let fleet = Fleet::new();
    let limits = server::Limits {
        ping_after: Duration::from_millis(200),
        dead_after: Duration::from_millis(50),
        ..server::Limits::default()
    };
    let mut listener = fleet.listener(limits).await;
    let guest = Hanging::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    guest.hang(&conn.sender(), policy(1));
    let ended = conn.recv().await.unwrap_err();
    assert!(ended.to_string().contains("silent"), "{ended}");
    assert_eq!(listener.stats().slow_closed, 1);
    guest.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_nothing_to_say_keeps_its_session() {
    let fleet = Fleet::new();
    let limits = server::Limits {
        ping_after: Duration::from_millis(20),
        dead_after: Duration::from_secs(3),
        ..server::Limits::default()
    };
    let mut listener = fleet.listener(limits).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut conn = listener.accept().await.welcome(welcome());
    agent.up();
    let receiving = tokio::spawn(async move { conn.recv().await });
    let before = agent.client.stats().frames_received;
    eventually("asked twice whether it is there", || {
        agent.client.stats().frames_received >= before + 2
    })
    .await;
    assert!(!receiving.is_finished());
    let stats = agent.client.stats();
    assert_eq!((stats.sessions, listener.stats().slow_closed), (1, 0));
    receiving.abort();
}

#[test]
fn an_idle_guest_is_not_woken_twice() {
    let (guest, appliance) = (client::Limits::default(), server::Limits::default());
    assert!(guest.ping_idle_after + guest.dead_after <= appliance.ping_after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_does_not_end_the_link() {
    struct Panics(AtomicUsize);
    impl Handler for Panics {
        fn up(&self, _: &v1::Welcome) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn down(&self, _: &str) {
            self.0.fetch_add(100, Ordering::Relaxed);
        }
        fn frame(&self, _: v1::Envelope) {
            panic!("on purpose, in a test");
        }
    }
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let handler = Arc::new(Panics(AtomicUsize::new(0)));
    let config = fleet.config(&[listener.local_addr()]);
    let client = Client::start(config, handler.clone()).unwrap();
    let conn = listener.accept().await.welcome(welcome());
    let order = envelope(2, Body::Order(v1::Order::default()));
    conn.sender().send(Priority::Control, order).unwrap();
    let _again = listener.accept().await.welcome(welcome());
    eventually("up again", || handler.0.load(Ordering::Relaxed) == 102).await;
    client.stop();
    assert_eq!(handler.0.load(Ordering::Relaxed), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_stops_at_once_while_nobody_answers() {
    let fleet = Fleet::new();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let mut config = fleet.config(&[address]);
    config.limits.backoff_min = 10 * PATIENCE;
    config.limits.backoff_max = 10 * PATIENCE;
    let agent = Agent::start(config);
    agent.unreachable();
    agent.client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_stops_at_once_while_an_appliance_says_nothing() {
    let fleet = Fleet::new();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = fleet.config(&[mute.local_addr().unwrap()]);
    config.limits.handshake_timeout = 10 * PATIENCE;
    let agent = Agent::start(config);
    let _connection = blocking(move || mute.accept().unwrap()).await;
    agent.client.stop();
}
