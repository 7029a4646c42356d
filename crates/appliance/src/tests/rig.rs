//! An appliance on doubles.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use daemon::metrics::Registry;
use engine::host::Content;
use engine::sparse::SparseView;
use link::Priority;
use model::{
    Detection, Digest, FilterPack, Generation, GuestId, Outcome, Ranges, UnscannedReason, Verdict,
};
use parking_lot::Mutex;
use proto::v1;
use proto::v1::envelope::Body;
use scan_core::{
    Context, Engine, EngineCounts, EngineFacts, Finding, PartialFuture, PartialStep, PartialTask,
    ScanFuture, Task,
};
use tokio::sync::{Semaphore, mpsc};

use crate::appliance::build;
use crate::config::Config;
use crate::engines::{EngineSet, SharedEngine};
use crate::fleet::{FleetPort, NoFleet};
use crate::guests::Arrival;
use crate::identity::{Identity, RenewAnswer};
use crate::session::{Breach, Outbox, Session};
use crate::shared::Shared;
use crate::state_dir::StateDir;

pub(super) const A: GuestId = GuestId([0xa; 16]);
pub(super) const B: GuestId = GuestId([0xb; 16]);
/// Content that the double calls malicious.
pub(super) const EVIL: &[u8] = b"this is EVIL";

/// Calls content with "EVIL" (or what else it `finds`) in it malicious, crashes on "CRASH" (or what
/// else `crashes` it).
pub(super) struct Double {
    pub(super) generation: Generation,
    pub(super) context_sensitive: bool,
    pub(super) finds: &'static [u8],
    pub(super) crashes: &'static [u8],
    /// Calls files with this in their path malicious, too.
    pub(super) finds_name: Option<&'static [u8]>,
    /// A scan takes one permit and gives it back; without any, scans wait.
    pub(super) gate: Semaphore,
    pub(super) begun: AtomicU64,
    pub(super) contexts: Mutex<Vec<Option<Context>>>,
    /// Guests can report by this one.
    pub(super) filter: Option<Arc<FilterPack>>,
}

impl Double {
    pub(super) fn new() -> Self {
        Self {
            generation: Generation([1; 16]),
            context_sensitive: false,
            finds: b"EVIL",
            crashes: b"CRASH",
            finds_name: None,
            gate: Semaphore::new(1000),
            begun: AtomicU64::new(0),
            contexts: Mutex::default(),
            filter: None,
        }
    }

    pub(super) fn scans(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// A report is the offsets at which "EVIL" may begin, 8 bytes each.
    fn judge_places(&self, task: &PartialTask<Content>) -> PartialStep {
        let view = match &task.content {
            Content::Inline(packed) => SparseView::of_packed(packed, task.size, task.known.clone()),
            Content::Sealed { fd, .. } => {
                SparseView::open(fd.try_clone().unwrap(), task.size, task.known.clone())
            }
        };
        let view = view.unwrap();
        let places = task.report.chunks_exact(8).map(|place| {
            let at = u64::from_be_bytes(place.try_into().unwrap());
            at..(at + 4).min(task.size)
        });
        let ask = places.collect::<Ranges>().without(&task.known);
        match ask.is_empty() {
            true => PartialStep::Judged(self.judge(view.bytes())),
            false => PartialStep::Ask(ask),
        }
    }

    fn judge(&self, bytes: &[u8]) -> Finding {
        let has = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        if has(self.crashes) {
            return Finding::incomplete(
                self.generation,
                UnscannedReason::EngineCrashed,
                "signal 11",
            );
        }
        let found = has(self.finds).then(|| Detection {
            name: "Test.Evil".into(),
            engine: "double".into(),
            path_inside: vec![],
        });
        Finding {
            detections: found.into_iter().collect(),
            generation: self.generation,
            ..Finding::default()
        }
    }
}

pub(super) fn bytes_of(content: &Content) -> Vec<u8> {
    match content {
        Content::Inline(bytes) => bytes.to_vec(),
        Content::Sealed { fd, size } => {
            let mut bytes = vec![0; usize::try_from(*size).unwrap()];
            let file = File::from(fd.try_clone().unwrap());
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        }
    }
}

impl Engine<Content> for Double {
    fn facts(&self) -> EngineFacts {
        EngineFacts {
            name: "double".into(),
            version: "1".into(),
            generation: self.generation,
            rules: 1,
            context_sensitive: self.context_sensitive,
            workers: 4,
        }
    }
    fn counts(&self) -> EngineCounts {
        EngineCounts {
            scanned_total: self.scans(),
            ..EngineCounts::default()
        }
    }
    fn scan(&self, task: Task<Content>) -> ScanFuture<'_> {
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::SeqCst);
            let path = task.context.as_ref().map(|context| context.path.clone());
            self.contexts.lock().push(task.context);
            let _pass = self.gate.acquire().await.unwrap();
            let by_name = self
                .finds_name
                .zip(path)
                .is_some_and(|(name, path)| path.windows(name.len()).any(|window| window == name));
            match by_name {
                true => self.judge(self.finds),
                false => self.judge(&bytes_of(&task.content)),
            }
        })
    }
    fn filter(&self) -> Option<Arc<FilterPack>> {
        self.filter.clone()
    }
    fn judge_partial(&self, task: PartialTask<Content>) -> PartialFuture<'_> {
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::SeqCst);
            let _pass = self.gate.acquire().await.unwrap();
            match &task.report[..] {
                b"whole" => PartialStep::Whole("rule a".into()),
                b"crash" => PartialStep::Failed(self.judge(self.crashes)),
                b"more" => {
                    let at = task.known.iter().last().unwrap().end;
                    PartialStep::Ask(Ranges::of(at + 1..at + 2))
                }
                _ => self.judge_places(&task),
            }
        })
    }
}

pub(super) struct NoController;

impl Identity for NoController {
    fn renew(&self, ask: v1::RenewGuest, answer: RenewAnswer) {
        if ask.csr.is_empty() {
            return answer(Err("no request".into()));
        }
        answer(Ok(vec![ask.csr]));
    }
    fn is_revoked(&self, _: GuestId) -> bool {
        false
    }
    fn join_token(&self, _: &v1::TokenRequest) -> Result<String, String> {
        Err("no controller".into())
    }
}

/// What an agent received.
pub(super) struct Mailbox {
    frames: mpsc::UnboundedSender<v1::Envelope>,
    pub(super) ended: Mutex<Option<String>>,
    next_id: AtomicU64,
}

impl Outbox for Mailbox {
    fn send(&self, _: Priority, envelope: v1::Envelope) {
        let _test_over = self.frames.send(envelope);
    }
    fn next_request_id(&self) -> u64 {
        self.next_id.fetch_add(2, Ordering::SeqCst)
    }
    fn goodbye(&self, reason: &str) {
        *self.ended.lock() = Some(reason.to_owned());
    }
    fn refuse(&self, reason: &str) {
        *self.ended.lock() = Some(reason.to_owned());
    }
    fn bytes_received(&self) -> u64 {
        0
    }
}

/// A guest's session, by hand.
pub(super) struct Guest {
    pub(super) session: Session,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) received: mpsc::UnboundedReceiver<v1::Envelope>,
}

impl Guest {
    pub(super) fn send(&self, request_id: u64, body: Body) -> Result<(), Breach> {
        let body = Some(body);
        self.session.handle(v1::Envelope { request_id, body })
    }

    pub(super) fn check(&self, request_id: u64, check: v1::Check) {
        self.send(request_id, Body::Check(check)).unwrap();
    }

    /// Waits until no store is asked for it any more: stores answer in any order, and what comes
    /// next comes after this.
    pub(super) async fn settled(&self) {
        while Arc::strong_count(&self.session.asker.unknown) > 1 {
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn data(&self, request_id: u64, offset: u64, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        let data = v1::Data {
            offset,
            bytes,
            ..v1::Data::default()
        };
        self.send(request_id, Body::Data(data)).unwrap();
    }

    pub(super) fn end(&self, request_id: u64) {
        self.send(request_id, Body::DataEnd(v1::DataEnd { failed: 0 }))
            .unwrap();
    }

    pub(super) async fn next(&mut self) -> (u64, Body) {
        let frame = self.received.recv().await.unwrap();
        (frame.request_id, frame.body.unwrap())
    }

    /// The next reply, which must be to this request; credit on the way is passed over.
    pub(super) async fn reply(&mut self, request_id: u64) -> v1::CheckReply {
        loop {
            match self.next().await {
                (id, Body::CheckReply(reply)) => {
                    assert_eq!(id, request_id);
                    return reply;
                }
                (_, Body::Credit(_)) => {}
                (id, other) => panic!("not a reply, of {id}: {other:?}"),
            }
        }
    }

    /// The appliance asks for the content of this request.
    pub(super) async fn needed(&mut self, request_id: u64) -> v1::Need {
        match self.next().await {
            (id, Body::Need(need)) if id == request_id => need,
            other => panic!("not a need: {other:?}"),
        }
    }

    /// Nothing was sent.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.received.try_recv().is_err()
    }

    /// The whole exchange for content that is not known.
    pub(super) async fn upload(&mut self, request_id: u64, bytes: &[u8]) -> v1::CheckReply {
        self.check(request_id, claim(bytes));
        self.needed(request_id).await;
        for (n, piece) in bytes.chunks(64 * 1024).enumerate() {
            self.data(request_id, n as u64 * 64 * 1024, piece);
        }
        self.end(request_id);
        self.reply(request_id).await
    }
}

pub(super) struct Rig {
    pub(super) shared: Arc<Shared>,
    pub(super) double: Arc<Double>,
    pub(super) registry: Registry,
    pub(super) dir: tempfile::TempDir,
    _state: StateDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with("", Double::new())
    }

    pub(super) fn limited(text: &str) -> Self {
        Self::with(text, Double::new())
    }

    pub(super) fn with(text: &str, double: Double) -> Self {
        Self::at(tempfile::tempdir().unwrap(), text, double)
    }

    pub(super) fn at(dir: tempfile::TempDir, text: &str, double: Double) -> Self {
        Self::build(dir, text, double, Arc::new(NoFleet))
    }

    /// What it tells the fleet goes there.
    pub(super) fn in_fleet(fleet: Arc<dyn FleetPort>) -> Self {
        Self::build(tempfile::tempdir().unwrap(), "", Double::new(), fleet)
    }

    fn build(
        dir: tempfile::TempDir,
        text: &str,
        double: Double,
        fleet: Arc<dyn FleetPort>,
    ) -> Self {
        let config: Config = daemon::config::parse(text, "test.toml").unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let double = Arc::new(double);
        let engines = EngineSet {
            engines: vec![double.clone() as SharedEngine],
            settings: config.unpack.settings(),
        };
        let registry = Registry::new();
        let controller = (Arc::new(NoController) as _, fleet);
        let shared = build(&config, &state, engines, controller, &registry).unwrap();
        Self {
            shared,
            double,
            registry,
            dir,
            _state: state,
        }
    }

    /// Ends everything, and begins again on what was kept.
    pub(super) async fn restart(self, double: Double) -> Self {
        self.restart_as("", double).await
    }

    /// The same with another configuration.
    pub(super) async fn restart_as(self, text: &str, double: Double) -> Self {
        let Self {
            shared,
            dir,
            _state,
            ..
        } = self;
        // Scans that end just now still hold it.
        while Arc::strong_count(&shared) > 1 {
            tokio::task::yield_now().await;
        }
        shared.verdicts.flush().await;
        drop((shared, _state));
        Self::at(dir, text, double)
    }

    pub(super) fn guest(&self, guest: GuestId) -> Guest {
        self.join(guest, true)
    }

    pub(super) fn join(&self, guest: GuestId, is_gate: bool) -> Guest {
        self.join_on(guest, is_gate, model::Machine::default())
    }

    pub(super) fn join_on(&self, guest: GuestId, is_gate: bool, machine: model::Machine) -> Guest {
        self.join_with(guest, is_gate, machine, None)
    }

    pub(super) fn join_with(
        &self,
        guest: GuestId,
        is_gate: bool,
        machine: model::Machine,
        channel: Option<model::ChannelId>,
    ) -> Guest {
        let (frames, received) = mpsc::unbounded_channel();
        let mailbox = Arc::new(Mailbox {
            frames,
            ended: Mutex::default(),
            next_id: AtomicU64::new(2),
        });
        let arrival = Arrival {
            guest,
            hostname: "host".into(),
            address: ([127, 0, 0, 1], 1).into(),
            is_gate,
            placement_epoch: 0,
            channel,
            key: pki::KeyId([7; 16]),
            machine,
            outbox: mailbox.clone(),
        };
        Guest {
            session: Session::enter(self.shared.clone(), arrival),
            mailbox,
            received,
        }
    }

    pub(super) fn metric(&self, line: &str) -> bool {
        let text = self.registry.render();
        text.lines().any(|found| found == line)
    }
}

/// A check that carries its content.
pub(super) fn check(bytes: &[u8]) -> v1::Check {
    v1::Check {
        content: Some(Bytes::copy_from_slice(bytes)),
        ..claim(bytes)
    }
}

/// A check that only claims.
pub(super) fn claim(bytes: &[u8]) -> v1::Check {
    v1::Check {
        blake3: Digest::of(bytes).0.to_vec(),
        size: bytes.len() as u64,
        class: v1::AccessClass::Open as i32,
        deadline_ms: 1000,
        context: Some(v1::FileContext {
            path: b"/srv/file".to_vec(),
            uid: 1000,
            mode: 0o100_644,
            pid: 7,
        }),
        ..v1::Check::default()
    }
}

pub(super) fn verdict(reply: &v1::CheckReply) -> Verdict {
    Verdict::try_from(reply.verdict.clone().unwrap()).unwrap()
}

#[track_caller]
pub(super) fn clean(reply: &v1::CheckReply, cached: bool) {
    assert_eq!(verdict(reply).outcome, Outcome::Clean);
    assert_eq!(reply.cached, cached);
    assert!(reply.order.is_none() && !reply.released);
}

#[track_caller]
pub(super) fn malicious(reply: &v1::CheckReply, cached: bool) {
    let Outcome::Malicious { detections, .. } = verdict(reply).outcome else {
        panic!("not malicious: {reply:?}");
    };
    assert_eq!(detections[0].name, "Test.Evil");
    assert_eq!(reply.cached, cached);
}

#[track_caller]
pub(super) fn unscanned(reply: &v1::CheckReply, expected: UnscannedReason) {
    match verdict(reply).outcome {
        Outcome::Unscanned { reason, .. } => assert_eq!(reason, expected),
        other => panic!("not unscanned: {other:?}"),
    }
    assert!(!reply.cached && reply.order.is_none());
}
