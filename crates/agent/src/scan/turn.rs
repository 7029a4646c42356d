//! A scan that has time works in turns with the other guests of its host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::v1::TurnKind;

use super::halt::Halt;
use super::session::Session;
use crate::turns::Work;

/// One turn is so long at least and at most; between them, a sixteenth of the whole time.
const TURN_MIN: Duration = Duration::from_secs(60);
const TURN_MAX: Duration = Duration::from_secs(300);
const TURNS: u32 = 16;
/// Each has so much time: where there is room, a scan works half of the whole time.
const WITHIN_TURNS: u32 = 2;
/// How often a waiting scan looks whether it may go on.
const GLANCE: Duration = Duration::from_millis(100);

/// The turns of one scan.
pub(crate) struct ScanTurns {
    /// `None`: somebody waits for it, so it goes on all the time.
    work: Option<Mutex<Work>>,
    takes: Duration,
    deadline: Instant,
    is_waiting: AtomicBool,
}

impl ScanTurns {
    /// For a scan that is to be done `within` that time; `None`: now.
    pub(crate) fn new(within: Option<Duration>) -> Self {
        let whole = within.unwrap_or_default();
        let takes = (whole / TURNS).clamp(TURN_MIN, TURN_MAX);
        Self {
            work: within.map(|_| Mutex::new(Work::new(TurnKind::Scan, takes, whole))),
            takes,
            deadline: Instant::now() + whole,
            is_waiting: AtomicBool::new(false),
        }
    }

    /// Whether it waits for its turn now.
    pub(crate) fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    /// Returns when the scan may go on, or is halted.
    pub(crate) fn wait(&self, session: &Session, halt: &Halt) {
        let Some(work) = &self.work else {
            return;
        };
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            for said in session.take_turns() {
                work.take(&said, now);
            }
            let left = self.deadline.saturating_duration_since(now);
            work.set_within(left.min(self.takes * WITHIN_TURNS));
            work.set_at_most(left);
            if work.may(now, |ask| session.ask_turn(ask)) {
                break;
            }
            self.is_waiting.store(true, Ordering::Relaxed);
            // Without an appliance there are no turns, and nothing to be scanned with.
            if session.appliance(halt).is_err() {
                break;
            }
            halt.sleep(GLANCE);
            if halt.is_set() {
                break;
            }
        }
        self.is_waiting.store(false, Ordering::Relaxed);
    }

    /// Gives back what is left.
    pub(crate) fn done(&self, session: &Session) {
        let work = self.work.as_ref();
        let work = work.map(|work| work.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(turn_id) = work.and_then(|mut work| work.done()) {
            session.turn_over(turn_id);
        }
    }
}
