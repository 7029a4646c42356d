//! A CA, appliances and agents for the tests.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use link::client::{Client, Config, Handler, Limits};
use link::server::{self, Listener};
use link::tls;
use model::{GuestId, Policy};
use pki::{Ca, GuestKey, Identity, LIFETIME, Validity};
use proto::v1;
use proto::v1::envelope::Body;

pub(crate) const GUEST: GuestId = GuestId([7; 16]);
/// What a test waits for something that must come; long, for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A fleet's CA.
pub(crate) struct Fleet {
    pub(crate) ca: Ca,
    _dir: tempfile::TempDir,
}

pub(crate) fn valid() -> Validity {
    Validity::starting(SystemTime::now(), LIFETIME)
}

pub(crate) fn expired() -> Validity {
    Validity {
        not_before: SystemTime::now() - 2 * LIFETIME,
        not_after: SystemTime::now() - LIFETIME,
    }
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            ca: Ca::init(dir.path()).unwrap(),
            _dir: dir,
        }
    }

    pub(crate) fn guest(&self, validity: Validity) -> Identity {
        let key = GuestKey::generate().unwrap();
        let cert = self.ca.sign_guest(key.csr(), GUEST, validity).unwrap();
        key.certified(vec![cert]).unwrap()
    }

    pub(crate) fn server_tls(&self) -> Arc<rustls::ServerConfig> {
        let identity = self.ca.issue_appliance("test", valid()).unwrap();
        tls::server_config(&identity, &[self.ca.cert().clone()]).unwrap()
    }

    pub(crate) fn client_tls(&self) -> Arc<rustls::ClientConfig> {
        tls::client_config(&self.guest(valid()), &[self.ca.cert().clone()]).unwrap()
    }

    pub(crate) async fn listener(&self, limits: server::Limits) -> Listener {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Listener::bind(address, self.server_tls(), limits)
            .await
            .unwrap()
    }

    pub(crate) fn config(&self, appliances: &[SocketAddr]) -> Config {
        Config {
            appliances: appliances.iter().map(ToString::to_string).collect(),
            epoch: 0,
            tls: self.client_tls(),
            hello: v1::Hello {
                agent_version: "test".into(),
                ..v1::Hello::default()
            },
            seed: 1,
            limits: Limits {
                backoff_min: Duration::from_millis(10),
                backoff_max: Duration::from_millis(100),
                ..Limits::default()
            },
        }
    }
}

/// What a handler was told.
#[derive(Debug)]
pub(crate) enum Event {
    Up(v1::Welcome),
    Moved,
    Lost(Vec<u64>),
    Down(String),
    Frame(v1::Envelope),
    Unreachable(String),
}

/// A handler that passes on what it is told.
pub(crate) struct Recorder(Mutex<Sender<Event>>);

impl Recorder {
    fn tell(&self, event: Event) {
        // The test may be over.
        let _ = self.0.lock().unwrap().send(event);
    }
}

impl Handler for Recorder {
    fn up(&self, welcome: &v1::Welcome) {
        self.tell(Event::Up(welcome.clone()));
    }
    fn moved(&self, _welcome: &v1::Welcome) {
        self.tell(Event::Moved);
    }
    fn lost(&self, request_ids: &[u64]) {
        self.tell(Event::Lost(request_ids.to_vec()));
    }
    fn down(&self, why: &str) {
        self.tell(Event::Down(why.to_owned()));
    }
    fn frame(&self, envelope: v1::Envelope) {
        self.tell(Event::Frame(envelope));
    }
    fn unreachable(&self, _appliance: &str, why: &str) {
        self.tell(Event::Unreachable(why.to_owned()));
    }
}

/// A client and what its handler was told.
pub(crate) struct Agent {
    pub(crate) client: Client,
    events: Receiver<Event>,
}

impl Agent {
    pub(crate) fn start(config: Config) -> Self {
        let (sender, events) = channel();
        let handler = Arc::new(Recorder(Mutex::new(sender)));
        let client = Client::start(config, handler).unwrap();
        Self { client, events }
    }

    pub(crate) fn next(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    /// The next event but for failed attempts.
    fn next_of_session(&self) -> Event {
        loop {
            match self.next() {
                Event::Unreachable(_) => {}
                other => return other,
            }
        }
    }

    #[track_caller]
    pub(crate) fn up(&self) -> v1::Welcome {
        match self.next_of_session() {
            Event::Up(welcome) => welcome,
            other => panic!("not up: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn down(&self) -> String {
        match self.next_of_session() {
            Event::Down(why) => why,
            other => panic!("not down: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn frame(&self) -> v1::Envelope {
        match self.next_of_session() {
            Event::Frame(envelope) => envelope,
            other => panic!("no frame: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn unreachable(&self) -> String {
        match self.next() {
            Event::Unreachable(why) => why,
            other => panic!("reachable: {other:?}"),
        }
    }

    /// What was told and not taken.
    pub(crate) fn rest(&self) -> Vec<Event> {
        self.events.try_iter().collect()
    }
}

pub(crate) fn welcome() -> v1::Welcome {
    v1::Welcome {
        version: 0,
        appliance: "test".into(),
        generation: vec![1; 16],
        policy: Some(v1::Policy::from(&Policy::default())),
        in_flight_max: 256,
    }
}

pub(crate) fn envelope(request_id: u64, body: Body) -> v1::Envelope {
    v1::Envelope {
        request_id,
        body: Some(body),
    }
}

pub(crate) fn check(request_id: u64, content: Option<Vec<u8>>) -> v1::Envelope {
    let content = content.map(Into::into);
    envelope(
        request_id,
        Body::Check(v1::Check {
            content,
            ..v1::Check::default()
        }),
    )
}

pub(crate) fn reply(request_id: u64) -> v1::Envelope {
    envelope(request_id, Body::CheckReply(v1::CheckReply::default()))
}

pub(crate) fn need(request_id: u64, credit_bytes: u32) -> v1::Envelope {
    let ranges = Vec::new();
    envelope(
        request_id,
        Body::Need(v1::Need {
            ranges,
            credit_bytes,
            ..v1::Need::default()
        }),
    )
}

/// Waits for a condition that must come true.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs a blocking part of a test beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
