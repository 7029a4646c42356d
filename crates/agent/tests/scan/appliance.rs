//! An appliance for tests: the link's own server half, and a brain that the test brings.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use link::Priority;
use link::server::{Conn, Limits, Listener, Sender};
use model::{
    Coverage, Detection, Digest, Generation, GuestId, Outcome, Policy, UnscannedReason, Verdict,
};
use pki::{Ca, GuestKey, Validity};
use proto::v1::{self, envelope::Body};

/// What the brain says to a check.
#[expect(clippy::large_enum_variant, reason = "one at a time, in tests")]
pub(crate) enum Say {
    Reply(v1::CheckReply),
    /// Send me the content, then ask me again with it.
    Need,
    /// Send what the filter finds; that, or else the content, will do.
    NeedReport,
    /// Never answer.
    Nothing,
    /// Close the session.
    HangUp,
}

/// Called with the content once it is there.
pub(crate) type Brain = dyn Fn(&v1::Check, Option<&[u8]>) -> Say + Send + Sync;

pub(crate) struct Appliance {
    runtime: Option<tokio::runtime::Runtime>,
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Arc<Seen>,
}

/// What came in.
#[derive(Default)]
pub(crate) struct Seen {
    /// Paths asked about, in the order of the checks.
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) results: Mutex<Vec<v1::OrderResult>>,
    pub(crate) reports: Mutex<Vec<v1::FilterReport>>,
    /// Ranges of content that came after a report.
    pub(crate) ranges: Mutex<Vec<(u64, Vec<u8>)>>,
    pub(crate) hellos: Mutex<Vec<v1::Hello>>,
    /// Turns asked for, and given back.
    pub(crate) turns: Mutex<Vec<v1::AskTurn>>,
    pub(crate) turns_over: Mutex<Vec<u64>>,
    /// Most checks unanswered at once.
    pub(crate) open_most: AtomicUsize,
}

/// How the appliance welcomes.
#[derive(Clone)]
pub(crate) struct Greeting {
    pub(crate) generation: Generation,
    pub(crate) policy: Policy,
    pub(crate) in_flight_max: u32,
    /// The filter that is offered, and the range that every report raises.
    pub(crate) filter: Option<v1::FilterOffer>,
    pub(crate) range: Option<v1::ByteRange>,
}

impl Default for Greeting {
    fn default() -> Self {
        Self {
            generation: Generation([1; 16]),
            policy: Policy::default(),
            in_flight_max: 64,
            filter: None,
            range: None,
        }
    }
}

/// The turn that is given.
pub(crate) const TURN: u64 = 5;
/// Where upload credit starts and what it is raised by.
const CREDIT_BYTES: u32 = 200_000;

impl Appliance {
    /// Starts one; writes the guest's credentials into the state directory.
    pub(crate) fn start(state_dir: &Path, greeting: Greeting, brain: Arc<Brain>) -> Self {
        let server = enrol(state_dir);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let seen = Arc::new(Seen::default());
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(any, server, Limits::default());
        let mut listener = runtime.block_on(listener).unwrap();
        let addr = listener.local_addr();
        let theirs = Arc::clone(&seen);
        runtime.spawn(async move {
            loop {
                let accepted = listener.accept().await;
                theirs.hellos.lock().unwrap().push(accepted.hello.clone());
                let conn = accepted.welcome(v1::Welcome {
                    appliance: "test".into(),
                    generation: greeting.generation.0.to_vec(),
                    policy: Some((&greeting.policy).into()),
                    in_flight_max: greeting.in_flight_max,
                    ..v1::Welcome::default()
                });
                if let Some(offer) = greeting.filter.clone() {
                    let request_id = 0;
                    let body = Some(Body::FilterOffer(offer));
                    let envelope = v1::Envelope { request_id, body };
                    let _closed = conn.sender().send(Priority::Control, envelope);
                }
                let session = Session {
                    range: greeting.range,
                    sender: conn.sender(),
                    brain: Arc::clone(&brain),
                    seen: Arc::clone(&theirs),
                    open: HashMap::new(),
                    partial: HashSet::new(),
                };
                tokio::spawn(session.run(conn));
            }
        });
        Self {
            runtime: Some(runtime),
            addr,
            seen,
        }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.seen.asked.lock().unwrap().clone()
    }

    /// How so many orders ended. The scan may be over before the last of these is heard.
    pub(crate) fn results(&self, count: usize) -> Vec<v1::OrderResult> {
        let heard = || self.seen.results.lock().unwrap().clone();
        let all = testbed::wait_until(Duration::from_secs(60), || heard().len() >= count);
        assert!(all, "of {count} results only {:?} came", heard());
        heard()
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// A CA, a guest's credentials in files, and the appliance's configuration.
fn enrol(state_dir: &Path) -> Arc<rustls::ServerConfig> {
    let ca_dir = state_dir.join("ca");
    let ca = if ca_dir.exists() {
        Ca::load(&ca_dir).unwrap()
    } else {
        Ca::init(&ca_dir).unwrap()
    };
    let validity = Validity::starting(SystemTime::now(), Duration::from_secs(3600));
    let key = GuestKey::generate().unwrap();
    let leaf = ca
        .sign_guest(key.csr(), GuestId([7; 16]), validity)
        .unwrap();
    let identity = key.certified(vec![leaf]).unwrap();
    identity.save(&state_dir.join("guest.pem")).unwrap();
    pki::save_anchors(&state_dir.join("anchors.pem"), &[ca.cert().clone()]).unwrap();
    let own = ca.issue_appliance("test", validity).unwrap();
    link::tls::server_config(&own, &[ca.cert().clone()]).unwrap()
}

struct Session {
    sender: Sender,
    brain: Arc<Brain>,
    seen: Arc<Seen>,
    open: HashMap<u64, (v1::Check, Vec<u8>)>,
    range: Option<v1::ByteRange>,
    /// Reported on; what else comes are ranges.
    partial: HashSet<u64>,
}

impl Session {
    async fn run(mut self, mut conn: Conn) {
        while let Ok(Some(envelope)) = conn.recv().await {
            let id = envelope.request_id;
            let goes_on = match envelope.body {
                Some(Body::Check(check)) => self.check(id, check),
                Some(Body::Data(data)) => self.data(id, &data),
                Some(Body::DataEnd(end)) => self.end(id, end),
                Some(Body::FilterReport(report)) => self.report(id, report),
                Some(Body::OrderResult(result)) => {
                    self.seen.results.lock().unwrap().push(result);
                    true
                }
                Some(Body::AskTurn(ask)) => {
                    self.turn(id, ask);
                    true
                }
                Some(Body::TurnOver(over)) => {
                    self.seen.turns_over.lock().unwrap().push(over.turn_id);
                    true
                }
                Some(Body::Cancel(_)) => {
                    self.open.remove(&id);
                    true
                }
                _ => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Others come first, twice.
    fn turn(&self, id: u64, ask: v1::AskTurn) {
        let mut turns = self.seen.turns.lock().unwrap();
        turns.push(ask);
        let turn = v1::Turn {
            turn_id: TURN,
            wait_ms: if turns.len() <= 2 { 10 } else { 0 },
            ends_in_ms: 60_000,
            ..v1::Turn::default()
        };
        self.send(id, Body::Turn(turn));
    }

    fn check(&mut self, id: u64, check: v1::Check) -> bool {
        let path = check.context.as_ref().unwrap().path.clone();
        let path = String::from_utf8_lossy(&path).into_owned();
        self.seen.asked.lock().unwrap().push(path);
        let content = check.content.as_ref().map(|content| {
            let plain = u32::from(check.content_compressed) * check.size as u32;
            plain_of(content, plain)
        });
        let say = (self.brain)(&check, content.as_deref());
        self.open.insert(id, (check, Vec::new()));
        self.seen
            .open_most
            .fetch_max(self.open.len(), Ordering::SeqCst);
        self.say(id, say)
    }

    fn data(&mut self, id: u64, data: &v1::Data) -> bool {
        let Some((_, content)) = self.open.get_mut(&id) else {
            return true;
        };
        let plain = plain_of(&data.bytes, data.plain_bytes);
        let bytes = plain.len() as u32;
        if self.partial.contains(&id) {
            let mut ranges = self.seen.ranges.lock().unwrap();
            ranges.push((data.offset, plain));
        } else {
            assert_eq!(data.offset, content.len() as u64, "a gap in the content");
            content.extend_from_slice(&plain);
        }
        self.send(id, Body::Credit(v1::Credit { bytes }));
        true
    }

    fn end(&mut self, id: u64, end: v1::DataEnd) -> bool {
        let Some((check, content)) = self.open.get(&id) else {
            return true;
        };
        let say = if end.failed == 0 && self.partial.contains(&id) {
            Say::Reply(partly_clean(check))
        } else if end.failed == 0 {
            (self.brain)(check, Some(content))
        } else {
            let reason = v1::UnscannedReason::try_from(end.failed).unwrap().into();
            Say::Reply(reply(check, Outcome::unscanned(reason)))
        };
        self.say(id, say)
    }

    /// A report raises a question, if any; without one the content is asked for.
    fn report(&mut self, id: u64, report: v1::FilterReport) -> bool {
        let is_none = report.filter.is_empty();
        self.seen.reports.lock().unwrap().push(report);
        let Some((check, _)) = self.open.get(&id) else {
            return true;
        };
        if is_none {
            return self.say(id, Say::Need);
        }
        let Some(range) = self.range else {
            let reply = partly_clean(check);
            return self.say(id, Say::Reply(reply));
        };
        self.partial.insert(id);
        let need = v1::Need {
            ranges: vec![range],
            credit_bytes: CREDIT_BYTES,
            ..v1::Need::default()
        };
        self.send(id, Body::Need(need));
        true
    }

    fn say(&mut self, id: u64, say: Say) -> bool {
        match say {
            Say::Reply(reply) => {
                self.open.remove(&id);
                self.send(id, Body::CheckReply(reply));
            }
            Say::Need => self.send(
                id,
                Body::Need(v1::Need {
                    credit_bytes: CREDIT_BYTES,
                    ..v1::Need::default()
                }),
            ),
            Say::NeedReport => {
                let report = true;
                let need = v1::Need {
                    report,
                    ..v1::Need::default()
                };
                self.send(id, Body::Need(need));
            }
            Say::Nothing => {}
            Say::HangUp => return false,
        }
        true
    }

    fn send(&self, request_id: u64, body: Body) {
        let body = Some(body);
        let _closed = self
            .sender
            .send(Priority::OnDemand, v1::Envelope { request_id, body });
    }
}

/// Content as it came; 0 plain bytes: not compressed.
fn plain_of(bytes: &[u8], plain_bytes: u32) -> Vec<u8> {
    match plain_bytes {
        0 => bytes.to_vec(),
        plain => chunks::decompress(bytes, plain as usize).unwrap(),
    }
}

/// A brain that calls content with `EVIL` in it malicious, and asks for content it has not got.
pub(crate) fn judge(check: &v1::Check, content: Option<&[u8]>) -> Say {
    let Some(content) = content else {
        return Say::Need;
    };
    if Digest::of(content).0[..] != check.blake3[..] {
        return Say::Reply(reply(check, Outcome::unscanned(UnscannedReason::Changed)));
    }
    if content.windows(4).any(|window| window == b"EVIL") {
        Say::Reply(malicious(check))
    } else {
        Say::Reply(reply(check, Outcome::Clean))
    }
}

pub(crate) fn reply(check: &v1::Check, outcome: Outcome) -> v1::CheckReply {
    let verdict = Verdict {
        outcome,
        coverage: Coverage::whole(check.size),
        generation: Generation([1; 16]),
        digest: Digest::from_slice(&check.blake3),
        sha256: None,
    };
    v1::CheckReply {
        verdict: Some((&verdict).into()),
        ..v1::CheckReply::default()
    }
}

/// Clean by a report: the content never came whole.
fn partly_clean(check: &v1::Check) -> v1::CheckReply {
    let mut reply = reply(check, Outcome::Clean);
    if let Some(verdict) = &mut reply.verdict {
        verdict.blake3 = Vec::new();
        let coverage = verdict.coverage.as_mut().unwrap();
        coverage.bytes_judged = 512;
        coverage.filter.clone_from(&check.filter);
    }
    reply
}

/// Malicious, with the order to quarantine the file.
pub(crate) fn malicious(check: &v1::Check) -> v1::CheckReply {
    let detection = Detection {
        name: "Test-Evil".into(),
        engine: "test".into(),
        path_inside: vec![b"in\xffside".to_vec()],
    };
    let order = v1::QuarantineFile {
        path: check.context.as_ref().unwrap().path.clone(),
        blake3: check.blake3.clone(),
        detections: vec![(&detection).into()],
    };
    let outcome = Outcome::Malicious {
        detections: vec![detection],
        omitted: 0,
    };
    v1::CheckReply {
        order: Some(v1::Order {
            order_id: vec![9; 16],
            action: Some(v1::order::Action::Quarantine(order)),
        }),
        ..reply(check, outcome)
    }
}
