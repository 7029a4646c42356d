//! An appliance that does what a test tells it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use link::Priority;
use link::server::{Conn, Limits, Listener, Sender};
use link::tls;
use model::{AccessClass, Coverage, Detection, Digest, Generation, Outcome, Policy, Verdict};
use pki::{Ca, LIFETIME, Validity};
use proto::v1::{self, envelope::Body};
use tokio::sync::oneshot;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const GENERATION: Generation = Generation([5; 16]);
/// The turn that is given.
pub(crate) const TURN: u64 = 5;
/// Content with these bytes in it is malicious.
pub(crate) const BAD: &[u8] = b"this-is-bad";

/// What happened, and what is to happen.
#[derive(Default)]
pub(crate) struct Book {
    /// Checks received.
    pub(crate) checks: Vec<v1::Check>,
    /// Contents received after a Need.
    pub(crate) uploads: Vec<Vec<u8>>,
    pub(crate) alerts: Vec<v1::Alert>,
    pub(crate) results: Vec<v1::OrderResult>,
    pub(crate) reports: Vec<v1::LedgerReport>,
    pub(crate) renewals: usize,
    /// Turns asked for, and given back.
    pub(crate) turns: Vec<v1::AskTurn>,
    pub(crate) turns_over: Vec<u64>,
    /// Work has to wait.
    pub(crate) busy: bool,
    /// Files of allowlists, by fingerprint, and how many pieces of them were sent.
    pub(crate) lists: HashMap<Vec<u8>, Vec<u8>>,
    pub(crate) pieces: usize,
    /// Hold replies back.
    pub(crate) silent: bool,
    /// Order malicious files into quarantine.
    pub(crate) removes: bool,
    held_back: Vec<(Sender, v1::Envelope, AccessClass)>,
    sessions: Vec<Sender>,
    orders: u8,
}

#[derive(Default)]
pub(crate) struct Shared {
    book: Mutex<Book>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// Waits until the book is as wanted.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Book) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        let mut book = self.book();
        while !wanted(&book) {
            let left = give_up.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it never came: {what}");
            book = self.changed.wait_timeout(book, left).unwrap().0;
        }
    }

    fn write(&self, change: impl FnOnce(&mut Book)) {
        change(&mut self.book());
        self.changed.notify_all();
    }

    /// Sends all replies that were held back.
    pub(crate) fn speak(&self) {
        self.write(|book| {
            book.silent = false;
            for (sender, reply, class) in book.held_back.drain(..) {
                let _ = sender.send(Priority::from(class), reply);
            }
        });
    }

    /// A piece of a list, a small one.
    fn part(&self, fetch: &v1::FetchAllowlist) -> v1::AllowlistPart {
        let mut bytes = Vec::new();
        self.write(|book| {
            if let Some(list) = book.lists.get(&fetch.fingerprint) {
                bytes = list[fetch.offset as usize..].to_vec();
                bytes.truncate(100);
                book.pieces += 1;
            }
        });
        v1::AllowlistPart {
            fingerprint: fetch.fingerprint.clone(),
            offset: fetch.offset,
            bytes: bytes.into(),
        }
    }

    /// Says something to every session.
    pub(crate) fn say(&self, body: &Body) {
        for sender in &self.book().sessions {
            let envelope = v1::Envelope {
                request_id: 0,
                body: Some(body.clone()),
            };
            let _ = sender.send(Priority::Control, envelope);
        }
    }
}

/// A fleet's CA, and the policy of its appliance.
pub(crate) struct Fleet {
    pub(crate) ca: Arc<Ca>,
    pub(crate) policy: Policy,
    pub(crate) shared: Arc<Shared>,
    _dir: tempfile::TempDir,
}

/// A running appliance.
pub(crate) struct Puppet {
    pub(crate) address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    pub(crate) fn new(policy: Policy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            ca: Arc::new(Ca::init(dir.path()).unwrap()),
            policy,
            shared: Arc::default(),
            _dir: dir,
        }
    }

    pub(crate) fn appliance(&self, address: SocketAddr) -> Puppet {
        let validity = Validity::starting(SystemTime::now(), LIFETIME);
        let identity = self.ca.issue_appliance("puppet", validity).unwrap();
        let tls = tls::server_config(&identity, &[self.ca.cert().clone()]).unwrap();
        let (end, ended) = oneshot::channel();
        let (started, address_of) = std::sync::mpsc::channel();
        let (shared, policy) = (Arc::clone(&self.shared), self.policy.clone());
        let ca = Arc::clone(&self.ca);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let bound = Listener::bind(address, tls, Limits::default()).await;
                let mut listener = bound.unwrap();
                started.send(listener.local_addr()).unwrap();
                let accept = async {
                    loop {
                        let accepted = listener.accept().await;
                        let guest = accepted.guest;
                        let conn = accepted.welcome(welcome(&policy));
                        let (shared, ca) = (Arc::clone(&shared), Arc::clone(&ca));
                        tokio::spawn(serve(conn, shared, ca, guest));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = ended => {}
                }
            });
        });
        let address = address_of.recv_timeout(PATIENCE).unwrap();
        Puppet {
            address,
            end: Some(end),
            thread: Some(thread),
        }
    }
}

impl Puppet {
    /// Gone, with all its sessions.
    pub(crate) fn kill(mut self) {
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn welcome(policy: &Policy) -> v1::Welcome {
    v1::Welcome {
        version: 0,
        appliance: "puppet".into(),
        generation: GENERATION.0.to_vec(),
        policy: Some(policy.into()),
        in_flight_max: 64,
    }
}

async fn serve(mut conn: Conn, shared: Arc<Shared>, ca: Arc<Ca>, guest: model::GuestId) {
    let sender = conn.sender();
    shared.write(|book| book.sessions.push(sender.clone()));
    let mut waiting: HashMap<u64, (v1::Check, Vec<u8>)> = HashMap::new();
    while let Ok(Some(envelope)) = conn.recv().await {
        let id = envelope.request_id;
        match envelope.body {
            Some(Body::Check(check)) => {
                shared.write(|book| book.checks.push(check.clone()));
                match check.content.clone() {
                    Some(content) => {
                        let plain = u32::from(check.content_compressed) * check.size as u32;
                        let content = plain_of(&content, plain);
                        reply(&shared, &sender, id, &check, &content);
                    }
                    None => {
                        let need = Body::Need(v1::Need {
                            credit_bytes: 64 << 20,
                            ..v1::Need::default()
                        });
                        let priority = Priority::from(class_of(&check));
                        let _ = sender.send(priority, enclose(id, need));
                        waiting.insert(id, (check, Vec::new()));
                    }
                }
            }
            Some(Body::Data(data)) => {
                let (_, content) = waiting.get_mut(&id).unwrap();
                assert_eq!(data.offset, content.len() as u64);
                content.extend_from_slice(&plain_of(&data.bytes, data.plain_bytes));
            }
            Some(Body::DataEnd(_)) => {
                let (check, content) = waiting.remove(&id).unwrap();
                shared.write(|book| book.uploads.push(content.clone()));
                reply(&shared, &sender, id, &check, &content);
            }
            Some(Body::Renew(renew)) => {
                let validity = Validity::starting(SystemTime::now(), LIFETIME);
                let cert = ca.sign_guest(&renew.csr, guest, validity).unwrap();
                let renewed = Body::Renewed(v1::Renewed {
                    chain: vec![cert.to_vec()],
                    refused: String::new(),
                });
                shared.write(|book| book.renewals += 1);
                let _ = sender.send(Priority::Control, enclose(id, renewed));
            }
            Some(Body::AskTurn(ask)) => {
                let mut turn = v1::Turn {
                    turn_id: TURN,
                    ends_in_ms: 60_000,
                    ..v1::Turn::default()
                };
                shared.write(|book| {
                    book.turns.push(ask);
                    turn.wait_ms = if book.busy { 20 } else { 0 };
                });
                let _ = sender.send(Priority::Control, enclose(id, Body::Turn(turn)));
            }
            Some(Body::TurnOver(over)) => shared.write(|book| book.turns_over.push(over.turn_id)),
            Some(Body::FetchAllowlist(fetch)) => {
                let part = shared.part(&fetch);
                let _ = sender.send(Priority::OnDemand, enclose(0, Body::AllowlistPart(part)));
            }
            Some(Body::Alert(alert)) => shared.write(|book| book.alerts.push(alert)),
            Some(Body::OrderResult(result)) => shared.write(|book| book.results.push(result)),
            Some(Body::LedgerReport(report)) => shared.write(|book| book.reports.push(report)),
            _ => {}
        }
    }
}

fn class_of(check: &v1::Check) -> AccessClass {
    AccessClass::try_from(check.class()).unwrap()
}

fn enclose(request_id: u64, body: Body) -> v1::Envelope {
    v1::Envelope {
        request_id,
        body: Some(body),
    }
}

/// Content as it came; 0 plain bytes: not compressed.
fn plain_of(bytes: &[u8], plain_bytes: u32) -> Vec<u8> {
    match plain_bytes {
        0 => bytes.to_vec(),
        plain => chunks::decompress(bytes, plain as usize).unwrap(),
    }
}

fn reply(shared: &Shared, sender: &Sender, id: u64, check: &v1::Check, content: &[u8]) {
    let digest = Digest::of(content);
    let outcome = if digest.0[..] != check.blake3[..] {
        Outcome::unscanned(model::UnscannedReason::Changed)
    } else if content.windows(BAD.len()).any(|window| window == BAD) {
        Outcome::Malicious {
            detections: vec![Detection {
                name: "Bad".into(),
                engine: "puppet".into(),
                path_inside: Vec::new(),
            }],
            omitted: 0,
        }
    } else {
        Outcome::Clean
    };
    let is_bad = matches!(outcome, Outcome::Malicious { .. });
    let verdict = Verdict {
        outcome,
        coverage: Coverage::whole(content.len() as u64),
        generation: GENERATION,
        digest: Some(digest),
        sha256: None,
    };
    let class = class_of(check);
    shared.write(|book| {
        let order = (is_bad && book.removes).then(|| {
            book.orders += 1;
            v1::Order {
                order_id: vec![book.orders; 16],
                action: Some(v1::order::Action::Quarantine(v1::QuarantineFile {
                    path: check.context.clone().unwrap().path,
                    blake3: check.blake3.clone(),
                    detections: Vec::new(),
                })),
            }
        });
        let reply = v1::CheckReply {
            verdict: Some((&verdict).into()),
            order,
            ..v1::CheckReply::default()
        };
        let envelope = enclose(id, Body::CheckReply(reply));
        if book.silent {
            book.held_back.push((sender.clone(), envelope, class));
        } else {
            let _ = sender.send(Priority::from(class), envelope);
        }
    });
}
