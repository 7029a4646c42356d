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

use crate::looks::Looks;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const GENERATION: Generation = Generation([5; 16]);
/// The turns that are given.
pub(crate) const SWEEP: u64 = v1::TurnKind::Sweep as u64;
pub(crate) const UPDATE: u64 = v1::TurnKind::ContentUpdate as u64;
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
    pub(crate) fast_paths: Vec<v1::FastPaths>,
    /// Digests of contents that the agent says it has not.
    pub(crate) not_held: Vec<Vec<u8>>,
    /// Certificates asked for, and how those questions are answered.
    pub(crate) renewals: Vec<v1::Renew>,
    pub(crate) renewing: Renewing,
    /// Who came, and as what machine.
    pub(crate) guests: Vec<(model::GuestId, v1::Hello)>,
    /// Turns asked for, and given back.
    pub(crate) turns: Vec<v1::AskTurn>,
    pub(crate) turns_over: Vec<u64>,
    /// Work has to wait.
    pub(crate) busy: bool,
    /// Files of allowlists, by fingerprint, and how many pieces of them were sent.
    pub(crate) lists: HashMap<Vec<u8>, Vec<u8>>,
    pub(crate) pieces: usize,
    /// What agents look for.
    pub(crate) looks: Looks,
    /// Verdicts name no digest, as of content that never came whole.
    pub(crate) unproved: bool,
    /// Says of every verdict that it was known.
    pub(crate) knows: bool,
    /// Hold replies back.
    pub(crate) silent: bool,
    /// Order malicious files into quarantine.
    pub(crate) removes: bool,
    held_back: Vec<(Sender, v1::Envelope, AccessClass)>,
    sessions: Vec<Sender>,
    orders: u8,
}

/// What becomes of a question for a certificate.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Renewing {
    /// The same guest gets one, whatever it wants.
    #[default]
    Same,
    /// It gets one of this guest, whatever it wants.
    Other(model::GuestId),
    Refused,
    Silent,
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

    pub(crate) fn write(&self, change: impl FnOnce(&mut Book)) {
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

    /// Offers a pack to every session.
    pub(crate) fn offer_filter(&self, pack: Option<&[u8]>) {
        let offer = self.book().looks.offer(pack.map(<[u8]>::to_vec));
        self.say(&Body::FilterOffer(offer));
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
                        shared.write(|book| book.guests.push((guest, accepted.hello.clone())));
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
    if shared.book().looks.offered.is_some() {
        let offer = shared.book().looks.offer_again();
        let _ = sender.send(Priority::Control, enclose(0, Body::FilterOffer(offer)));
    }
    let mut waiting: HashMap<u64, Waiting> = HashMap::new();
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
                        let insists = shared.book().looks.insists;
                        let along = check.report.clone().filter(|_| !insists);
                        let mut asked = Waiting {
                            check,
                            content: Vec::new(),
                            is_partial: false,
                        };
                        let is_over = match along {
                            Some(report) => asked.reported(&shared, &sender, id, report),
                            None => {
                                asked.need_first(&shared, &sender, id);
                                false
                            }
                        };
                        if !is_over {
                            waiting.insert(id, asked);
                        }
                    }
                }
            }
            Some(Body::Data(data)) => {
                let asked = waiting.get_mut(&id).unwrap();
                let plain = plain_of(&data.bytes, data.plain_bytes);
                if asked.is_partial {
                    shared.write(|book| book.looks.ranges.push((data.offset, plain)));
                } else {
                    assert_eq!(data.offset, asked.content.len() as u64);
                    asked.content.extend_from_slice(&plain);
                }
            }
            Some(Body::FilterReport(report)) => {
                let asked = waiting.get_mut(&id).unwrap();
                if asked.reported(&shared, &sender, id, report) {
                    waiting.remove(&id);
                }
            }
            Some(Body::DataEnd(end)) => {
                let asked = waiting.remove(&id).unwrap();
                asked.ended(&shared, &sender, id, &end);
            }
            Some(Body::FetchFilter(fetch)) => {
                let part = shared.book().looks.part(fetch);
                let part = enclose(0, Body::FilterPart(part));
                let _ = sender.send(Priority::OnDemand, part);
                // Tells whoever waits for the book.
                shared.write(|_| {});
            }
            Some(Body::Renew(renew)) => {
                if let Some(renewed) = renewed(&shared, &ca, guest, &renew) {
                    let _ = sender.send(Priority::Control, enclose(id, Body::Renewed(renewed)));
                }
                shared.write(|book| book.renewals.push(renew));
            }
            Some(Body::AskTurn(ask)) => {
                let mut turn = v1::Turn {
                    turn_id: ask.kind() as u64,
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
            Some(Body::NotHeld(said)) => shared.write(|book| book.not_held.extend(said.digests)),
            Some(Body::Alert(alert)) => shared.write(|book| book.alerts.push(alert)),
            Some(Body::OrderResult(result)) => shared.write(|book| book.results.push(result)),
            Some(Body::FastPaths(found)) => shared.write(|book| book.fast_paths.push(found)),
            Some(Body::LedgerReport(report)) => shared.write(|book| book.reports.push(report)),
            _ => {}
        }
    }
}

fn renewed(
    shared: &Shared,
    ca: &Ca,
    guest: model::GuestId,
    renew: &v1::Renew,
) -> Option<v1::Renewed> {
    let guest = match shared.book().renewing {
        Renewing::Same => guest,
        Renewing::Other(other) => other,
        Renewing::Refused => {
            return Some(v1::Renewed {
                refused: "not now".to_owned(),
                ..v1::Renewed::default()
            });
        }
        Renewing::Silent => return None,
    };
    let validity = Validity::starting(SystemTime::now(), LIFETIME);
    let cert = ca.sign_guest(&renew.csr, guest, validity).unwrap();
    Some(v1::Renewed {
        chain: vec![cert.to_vec()],
        refused: String::new(),
    })
}

/// A check whose content is asked for.
struct Waiting {
    check: v1::Check,
    content: Vec<u8>,
    /// A report came, and ranges do.
    is_partial: bool,
}

impl Waiting {
    fn need(&self, sender: &Sender, id: u64, need: v1::Need) {
        let need = v1::Need {
            credit_bytes: if need.report { 0 } else { 64 << 20 },
            ..need
        };
        let priority = Priority::from(class_of(&self.check));
        let _ = sender.send(priority, enclose(id, Body::Need(need)));
    }

    /// A report where the agent can make one, or else everything.
    fn need_first(&mut self, shared: &Shared, sender: &Sender, id: u64) {
        let report = !self.check.filter.is_empty();
        if report && let Some((path, content)) = shared.book().looks.before_report.take() {
            std::fs::write(path, content).unwrap();
        }
        let need = v1::Need {
            report,
            ..v1::Need::default()
        };
        self.need(sender, id, need);
    }

    /// A report came: it will do, or raises a question, or is none. True: it did.
    fn reported(
        &mut self,
        shared: &Shared,
        sender: &Sender,
        id: u64,
        report: v1::FilterReport,
    ) -> bool {
        let is_none = report.filter.is_empty();
        let mut ranges = Vec::new();
        shared.write(|book| {
            book.looks.reports.push((self.check.clone(), report));
            if !is_none {
                ranges.clone_from(&book.looks.asks);
            }
        });
        if ranges.is_empty() && !is_none {
            self.partly_clean(shared, sender, id);
            return true;
        }
        if let Some((path, content)) = shared.book().looks.before_ranges.take() {
            std::fs::write(path, content).unwrap();
        }
        self.is_partial = !is_none;
        let need = v1::Need {
            ranges,
            ..v1::Need::default()
        };
        self.need(sender, id, need);
        false
    }

    fn ended(self, shared: &Shared, sender: &Sender, id: u64, end: &v1::DataEnd) {
        if end.failed != 0 {
            shared.write(|book| book.looks.failed.push(end.failed()));
            let reason = model::UnscannedReason::from(end.failed());
            let verdict = verdict(Outcome::unscanned(reason), None, self.check.size);
            return answer(shared, sender, id, &self.check, &verdict);
        }
        if self.is_partial {
            return self.partly_clean(shared, sender, id);
        }
        shared.write(|book| book.uploads.push(self.content.clone()));
        reply(shared, sender, id, &self.check, &self.content);
    }

    fn partly_clean(&self, shared: &Shared, sender: &Sender, id: u64) {
        let mut verdict = verdict(Outcome::Clean, None, self.check.size);
        verdict.coverage = Coverage {
            bytes_judged: 512,
            filter: model::FilterId::from_slice(&self.check.filter),
            ..Coverage::none(self.check.size)
        };
        answer(shared, sender, id, &self.check, &verdict);
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
    let unproved = shared.book().unproved;
    let verdict = verdict(outcome, (!unproved).then_some(digest), content.len() as u64);
    answer(shared, sender, id, check, &verdict);
}

fn verdict(outcome: Outcome, digest: Option<Digest>, size: u64) -> Verdict {
    Verdict {
        outcome,
        coverage: Coverage::whole(size),
        generation: GENERATION,
        digest,
        sha256: None,
    }
}

fn answer(shared: &Shared, sender: &Sender, id: u64, check: &v1::Check, verdict: &Verdict) {
    let is_bad = matches!(verdict.outcome, Outcome::Malicious { .. });
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
            verdict: Some(verdict.into()),
            order,
            cached: book.knows,
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
