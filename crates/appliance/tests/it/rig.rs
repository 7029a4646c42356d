//! A fleet of one appliance on a double engine, and agents that speak to it over TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use appliance::{
    AdminServer, Appliance, Config, EngineSource, Identity, LoadFuture, Setup, StateDir,
};
use engine::host::Content;
use link::Priority;
use link::client::{Client, Handler};
use model::{Detection, Digest, Generation, GuestId};
use pki::{Ca, GuestKey, LIFETIME, Validity};
use proto::v1;
use proto::v1::envelope::Body;
use scan_core::{Engine, EngineCounts, EngineFacts, Finding, ScanFuture, Task};

pub(crate) const A: GuestId = GuestId([0xa; 16]);
pub(crate) const B: GuestId = GuestId([0xb; 16]);
pub(crate) const REVOKED: GuestId = GuestId([0xe; 16]);
pub(crate) const EVIL: &[u8] = b"this is EVIL";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Calls inline content with "EVIL" in it malicious, and whatever is larger clean.
struct Double(Generation);

impl Engine<Content> for Double {
    fn facts(&self) -> EngineFacts {
        EngineFacts {
            name: "double".into(),
            version: "1".into(),
            generation: self.0,
            rules: 1,
            context_sensitive: false,
            workers: 2,
        }
    }
    fn counts(&self) -> EngineCounts {
        EngineCounts::default()
    }
    fn scan(&self, task: Task<Content>) -> ScanFuture<'_> {
        let is_evil = match &task.content {
            Content::Inline(bytes) => bytes.windows(4).any(|window| window == b"EVIL"),
            Content::Sealed { .. } => false,
        };
        let found = Detection {
            name: "Test.Evil".into(),
            engine: "double".into(),
            path_inside: vec![],
        };
        Box::pin(async move {
            Finding {
                detections: is_evil.then_some(found).into_iter().collect(),
                generation: self.0,
                ..Finding::default()
            }
        })
    }
}

/// Every load makes engines of another generation.
struct Doubles(Mutex<u8>);

impl EngineSource for Doubles {
    fn load<'a>(&'a self, _: &'a Config) -> LoadFuture<'a> {
        let mut loads = self.0.lock().unwrap();
        *loads += 1;
        let engine: Arc<dyn Engine<Content>> = Arc::new(Double(Generation([*loads; 16])));
        Box::pin(async move { Ok(vec![engine]) })
    }
}

struct Controller;

impl Identity for Controller {
    fn renew(&self, _: v1::RenewGuest, answer: appliance::RenewAnswer) {
        answer(Err("not today".into()));
    }
    fn is_revoked(&self, guest: GuestId) -> bool {
        guest == REVOKED
    }
    fn join_token(&self, request: &v1::TokenRequest) -> Result<String, String> {
        Ok(format!("token {} {}", request.uses_max, request.valid_s))
    }
}

pub(crate) struct Fleet {
    pub(crate) appliance: Arc<Appliance>,
    pub(crate) socket: PathBuf,
    ca: Ca,
    _admin: AdminServer,
    _dir: tempfile::TempDir,
}

impl Fleet {
    pub(crate) async fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::init(&dir.path().join("ca")).unwrap();
        let state_dir = dir.path().join("state");
        let validity = Validity::starting(SystemTime::now(), LIFETIME);
        let identity = ca.issue_appliance("test", validity).unwrap();
        let text = format!("{config}\n[listen]\nlink = '127.0.0.1:0'\n");
        let setup = Setup {
            config: daemon::config::parse(&text, "test.toml").unwrap(),
            state: StateDir::open(&state_dir).unwrap(),
            engines: Arc::new(Doubles(Mutex::new(0))),
            identity: Arc::new(Controller),
            fleet: Arc::new(appliance::NoFleet),
            tls: link::tls::server_config(&identity, &[ca.cert().clone()]).unwrap(),
            registry: daemon::metrics::Registry::new(),
            progress: daemon::notify::Progress::new(),
        };
        let appliance = Arc::new(Appliance::start(setup).await.unwrap());
        let socket = appliance::admin_socket(&state_dir, None);
        let reloaded = appliance.clone();
        let reload: Arc<appliance::Reload> = Arc::new(move || {
            let appliance = reloaded.clone();
            Box::pin(async move {
                let generation = appliance.reload(Config::default()).await;
                generation.map_err(|error| error.to_string())
            })
        });
        let admin = AdminServer::start(
            &socket,
            appliance.clone(),
            reload,
            Arc::new(|_| Box::pin(async { Err("no fleet".to_owned()) })),
        )
        .unwrap();
        Self {
            appliance,
            socket,
            ca,
            _admin: admin,
            _dir: dir,
        }
    }

    pub(crate) fn agent(&self, guest: GuestId) -> Agent {
        let key = GuestKey::generate().unwrap();
        let validity = Validity::starting(SystemTime::now(), LIFETIME);
        let cert = self.ca.sign_guest(key.csr(), guest, validity).unwrap();
        let identity = key.certified(vec![cert]).unwrap();
        let tls = link::tls::client_config(&identity, &[self.ca.cert().clone()]).unwrap();
        Agent::start(self.appliance.local_addr(), tls)
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Up(v1::Welcome),
    Down,
    Frame(u64, Body),
    Unreachable(String),
}

struct Recorder(Mutex<Sender<Event>>);

impl Recorder {
    fn tell(&self, event: Event) {
        let _test_over = self.0.lock().unwrap().send(event);
    }
}

impl Handler for Recorder {
    fn up(&self, welcome: &v1::Welcome) {
        self.tell(Event::Up(welcome.clone()));
    }
    fn down(&self, _: &str) {
        self.tell(Event::Down);
    }
    fn frame(&self, envelope: v1::Envelope) {
        self.tell(Event::Frame(envelope.request_id, envelope.body.unwrap()));
    }
    fn unreachable(&self, _: &str, why: &str) {
        self.tell(Event::Unreachable(why.to_owned()));
    }
}

/// An agent's link and what it was told.
pub(crate) struct Agent {
    pub(crate) client: Client,
    events: Receiver<Event>,
}

impl Agent {
    fn start(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Self {
        let (sender, events) = channel();
        let config = link::client::Config {
            appliances: vec![address.to_string()],
            epoch: 0,
            tls,
            hello: v1::Hello {
                agent_version: "test".into(),
                hostname: "guest".into(),
                ..v1::Hello::default()
            },
            seed: 1,
            limits: link::client::Limits::default(),
        };
        let client = Client::start(config, Arc::new(Recorder(Mutex::new(sender)))).unwrap();
        Self { client, events }
    }

    pub(crate) fn next(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    pub(crate) fn up(&self) -> v1::Welcome {
        match self.next() {
            Event::Up(welcome) => welcome,
            other => panic!("not up: {other:?}"),
        }
    }

    pub(crate) fn send(&self, request_id: u64, body: Body) {
        let envelope = v1::Envelope {
            request_id,
            body: Some(body),
        };
        self.client.send(Priority::Open, envelope).unwrap();
    }

    /// Has content judged, sent along or after the check.
    pub(crate) fn judge(&self, bytes: &[u8], along: bool) -> v1::CheckReply {
        let id = self.client.next_request_id();
        let check = v1::Check {
            blake3: Digest::of(bytes).0.to_vec(),
            size: bytes.len() as u64,
            class: v1::AccessClass::Open as i32,
            context: Some(v1::FileContext {
                path: b"/srv/file".to_vec(),
                ..v1::FileContext::default()
            }),
            content: along.then(|| bytes.to_vec().into()),
            ..v1::Check::default()
        };
        self.send(id, Body::Check(check));
        loop {
            match self.next() {
                Event::Frame(of, Body::CheckReply(reply)) if of == id => return reply,
                Event::Frame(of, Body::Need(_)) if of == id => self.upload(id, bytes),
                other => panic!("not an answer: {other:?}"),
            }
        }
    }

    fn upload(&self, id: u64, bytes: &[u8]) {
        let give_up = std::time::Instant::now() + PATIENCE;
        for (n, piece) in bytes.chunks(proto::DATA_MAX_BYTES).enumerate() {
            let offset = (n * proto::DATA_MAX_BYTES) as u64;
            self.client
                .send_data(id, Priority::Open, offset, piece.to_vec().into(), give_up)
                .unwrap();
        }
        self.send(id, Body::DataEnd(v1::DataEnd { failed: 0 }));
    }
}

pub(crate) fn outcome(reply: &v1::CheckReply) -> &'static str {
    let verdict = model::Verdict::try_from(reply.verdict.clone().unwrap()).unwrap();
    verdict.outcome.name()
}
