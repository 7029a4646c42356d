//! Contents that guests were asked to have judged again, and what came of each. A guest's answer is
//! an ordinary check; what it says counts as it would of any other.

use std::collections::HashMap;
use std::time::Duration;

use daemon::metrics::{Counter, Counters, Gauge, Registry};
use model::{Digest, GuestId, Outcome, Verdict};
use parking_lot::Mutex;
use proto::v1;
use proto::v1::envelope::Body;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::session::Session;
use crate::shared::Shared;

/// Digests of one frame that are looked at, as the contract says.
pub(crate) const DIGESTS_MAX: usize = 64;
/// What a content costs, of the bytes a second, besides its own: frames and a hashing.
const COST_BYTES: u64 = 4096;
/// A guest that said nothing so often is asked no more in this round: it would hold up the others.
const LATE_MAX: u32 = 8;

/// How asking a guest for a content ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Its bytes were proved, now or before, and are clean.
    Clean,
    /// They are malicious.
    Malicious,
    /// Clean by what the guest reports, which counts for that guest.
    Reported,
    /// The guest has it no more, or is gone.
    NotHeld,
    /// It said nothing in time.
    Late,
    /// It was not judged.
    Unscanned,
}

impl End {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Malicious => "malicious",
            Self::Reported => "reported",
            Self::NotHeld => "not_held",
            Self::Late => "late",
            Self::Unscanned => "unscanned",
        }
    }
}

/// Who was asked for which content; without a sender once a check of it came.
type Open = HashMap<(GuestId, Digest), Option<oneshot::Sender<End>>>;

/// What guests were asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    open: Mutex<Open>,
    /// One of them ended.
    ended: Notify,
    /// When the bytes that came so far will have been paid for.
    paid_at: Mutex<Instant>,
    /// How often guests said nothing in this round.
    late: Mutex<HashMap<GuestId, u32>>,
    pub(crate) results: Counters<1>,
    bytes: Counter,
    pub(crate) left: Gauge,
}

impl Asked {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            open: Mutex::default(),
            ended: Notify::new(),
            paid_at: Mutex::new(Instant::now()),
            late: Mutex::default(),
            results: registry.counters(
                "lazaret_rechecks",
                "Contents that guests were asked for because rules changed: clean, malicious, reported (clean for that guest), not_held, late, unscanned; absent (no guest that had it is here), told (guests with what became malicious).",
                ["result"],
            ),
            bytes: registry.counter(
                "lazaret_recheck_bytes",
                "Bytes of contents that guests sent for that.",
            ),
            left: registry.gauge(
                "lazaret_rechecks_left",
                "Contents that no guest could give so far.",
            ),
        }
    }

    /// Whoever was asked for this content checks it: what is told the outcome.
    pub(crate) fn take(&self, guest: GuestId, digest: Digest) -> Option<Awaited> {
        let sender = self.open.lock().get_mut(&(guest, digest))?.take()?;
        Some(Awaited(sender))
    }

    /// Nobody knew the content: its bytes, or a report on them, are asked for.
    pub(crate) fn costs(&self, bytes_per_s: u64) {
        self.pays(COST_BYTES, bytes_per_s);
    }

    /// So many bytes of it came; what a guest only says of its size costs nobody anything.
    pub(crate) fn came(&self, bytes: u64, bytes_per_s: u64) {
        self.bytes.inc_by(bytes);
        self.pays(bytes, bytes_per_s);
    }

    fn pays(&self, bytes: u64, bytes_per_s: u64) {
        let time = Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64);
        let mut paid_at = self.paid_at.lock();
        *paid_at = (*paid_at).max(Instant::now()) + time;
    }

    /// Another round: whoever said nothing may have found its voice.
    pub(crate) fn forgive(&self) {
        self.late.lock().clear();
    }

    /// The guest let the time for its answer pass.
    pub(crate) fn said_nothing(&self, guest: GuestId) {
        *self.late.lock().entry(guest).or_default() += 1;
    }

    /// The guest said nothing too often in this round.
    pub(crate) fn is_mute(&self, guest: GuestId) -> bool {
        let late = self.late.lock();
        late.get(&guest).is_some_and(|times| *times >= LATE_MAX)
    }

    /// Waits until what came is paid for.
    pub(crate) async fn paid(&self) {
        let paid_at = *self.paid_at.lock();
        tokio::time::sleep_until(paid_at).await;
    }

    /// Contents that this guest is asked for now.
    fn of(&self, guest: GuestId) -> usize {
        let open = self.open.lock();
        open.keys().filter(|(of, _)| *of == guest).count()
    }

    /// The guest says that it has them no more; what it was not asked for is nobody's concern.
    fn not_held(&self, guest: GuestId, digests: impl Iterator<Item = Digest>) {
        let mut open = self.open.lock();
        for digest in digests {
            let sender = open.get_mut(&(guest, digest)).and_then(Option::take);
            if let Some(sender) = sender {
                // Whoever waited may have stopped to.
                let _ = sender.send(End::NotHeld);
            }
        }
    }

    /// The guest is gone.
    pub(crate) fn gone(&self, guest: GuestId) {
        let mut open = self.open.lock();
        let own = open.iter_mut().filter(|((of, _), _)| *of == guest);
        for sender in own.filter_map(|(_, sender)| sender.take()) {
            let _ = sender.send(End::NotHeld);
        }
    }
}

/// Somebody waits for the outcome of a check.
pub(crate) struct Awaited(oneshot::Sender<End>);

impl Awaited {
    pub(crate) fn tell(self, verdict: &Verdict) {
        let end = match (&verdict.outcome, verdict.digest) {
            (Outcome::Clean, Some(_)) => End::Clean,
            (Outcome::Clean, None) => End::Reported,
            (Outcome::Malicious { .. }, _) => End::Malicious,
            (Outcome::Unscanned { .. } | Outcome::Error { .. }, _) => End::Unscanned,
        };
        // Too late is told already.
        let _ = self.0.send(end);
    }
}

/// A content that a guest is asked for; its place is free again with its drop.
struct Place<'a> {
    asked: &'a Asked,
    key: (GuestId, Digest),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.asked.open.lock().remove(&self.key);
        self.asked.ended.notify_waiters();
    }
}

/// Asks one guest for a content, once it is asked for fewer than `guest_max`, and waits for what
/// comes of it.
pub(crate) async fn ask(
    shared: &Shared,
    (guest, digest): (GuestId, Digest),
    guest_max: usize,
    answer: Duration,
) -> End {
    let asked = &shared.asked;
    loop {
        let ended = asked.ended.notified();
        if asked.is_mute(guest) {
            return End::Late;
        }
        if asked.of(guest) < guest_max {
            break;
        }
        ended.await;
    }
    let (sender, outcome) = oneshot::channel();
    let key = (guest, digest);
    asked.open.lock().insert(key, Some(sender));
    let _place = Place { asked, key };
    if !tell(shared, guest, digest) {
        return End::NotHeld;
    }
    match tokio::time::timeout(answer, outcome).await {
        Ok(Ok(end)) => end,
        // The check was cancelled, or its session ended.
        Ok(Err(_)) => End::Unscanned,
        Err(_) => {
            asked.said_nothing(guest);
            End::Late
        }
    }
}

/// False: the guest is not here.
pub(crate) fn tell(shared: &Shared, guest: GuestId, digest: Digest) -> bool {
    let Some(gate) = shared.guests.gate(guest) else {
        return false;
    };
    let envelope = v1::Envelope {
        request_id: 0,
        body: Some(Body::Recheck(v1::Recheck {
            digests: vec![digest.0.to_vec()],
        })),
    };
    // Everything else goes first.
    gate.send(link::Priority::OnDemand, envelope);
    true
}

impl Session {
    pub(crate) fn not_held(&self, not_held: &v1::NotHeld) {
        let digests = not_held.digests.iter().take(DIGESTS_MAX);
        let digests = digests.filter_map(|it| Digest::from_slice(it));
        self.shared.asked.not_held(self.guest(), digests);
    }
}
