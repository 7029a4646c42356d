//! When work that nobody waits for may be done: the fleet gives turns, so that the guests of one host
//! do not all work at once. No I/O. Whoever gets no answer works all the same: what was not scanned
//! is a greater risk than a busy host.

use std::time::{Duration, Instant};

use proto::v1::{AskTurn, Turn, TurnKind};

/// An answer that takes longer does not come.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// After a refusal that does not say when the work could be done.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// Longest time that work is put off for before it is asked for again: the fleet changes.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// A question that could not be sent is tried again.
const GLANCE: Duration = Duration::from_millis(250);

/// What the fleet says of turns.
#[derive(Debug)]
pub(crate) enum Said {
    /// The answer to a question, by its request.
    Answer(u64, Turn),
    /// A turn is taken back.
    Over(u64),
}

/// Work of one kind, and its turn.
#[derive(Debug)]
pub(crate) struct Work {
    kind: TurnKind,
    takes: Duration,
    within: Duration,
    /// After a refusal it is not put off for longer than this, where there is room earlier.
    at_most: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was not asked for.
    None,
    /// Asked, under this request.
    Asked { request_id: u64, at: Instant },
    /// To be asked for again then; 0: anew.
    Later {
        turn_id: u64,
        at: Instant,
        /// Longer than usual, after a refusal.
        within: Option<Duration>,
    },
    /// Work may be done until then. 0: nothing was reserved.
    Begun { turn_id: u64, until: Instant },
}

impl Work {
    /// Work that takes so long at most, and is to be done within that time.
    pub(crate) fn new(kind: TurnKind, takes: Duration, within: Duration) -> Self {
        Self {
            kind,
            takes,
            within,
            at_most: Duration::MAX,
            state: State::None,
        }
    }

    /// How long nothing changes, unless an answer comes: until it may be done, or its turn ends.
    pub(crate) fn until_change(&self, now: Instant) -> Duration {
        match self.state {
            State::Begun { until, .. } if now < until => until - now,
            _ => self.until_look(now),
        }
    }

    /// How long it is of no use to look whether it may be done, unless an answer comes.
    pub(crate) fn until_look(&self, now: Instant) -> Duration {
        let at = match self.state {
            State::Begun { until, .. } if now < until => return Duration::ZERO,
            State::Asked { at, .. } => at + ANSWER_WAIT,
            State::Later { at, .. } => at,
            // The link took no question.
            State::None | State::Begun { .. } => now,
        };
        at.saturating_duration_since(now).max(GLANCE)
    }

    /// It is to be done within another time from now on.
    pub(crate) fn set_within(&mut self, within: Duration) {
        self.within = within;
    }

    /// All of it has to be done within that time from now on.
    pub(crate) fn set_at_most(&mut self, at_most: Duration) {
        self.at_most = at_most;
    }

    /// Whether it may be done now. Where that has to be asked, `ask` sends the question and gives
    /// its request, if the link took it.
    pub(crate) fn may(&mut self, now: Instant, ask: impl FnOnce(AskTurn) -> Option<u64>) -> bool {
        let (turn_id, within) = match self.state {
            State::Begun { until, .. } if now < until => return true,
            State::Asked { at, .. } if now.saturating_duration_since(at) < ANSWER_WAIT => {
                return false;
            }
            State::Asked { .. } => {
                self.begin(0, now + self.takes);
                return true;
            }
            State::Later { at, .. } if now < at => return false,
            State::Later {
                turn_id, within, ..
            } => (turn_id, within),
            State::None | State::Begun { .. } => (0, None),
        };
        let question = AskTurn {
            kind: self.kind.into(),
            turn_id,
            takes_s: seconds(self.takes).max(1),
            within_s: seconds(within.unwrap_or(self.within)),
        };
        // Where there is no link, there is nobody to judge anything either.
        if let Some(request_id) = ask(question) {
            let at = now;
            self.state = State::Asked { request_id, at };
        }
        false
    }

    /// Takes what the fleet says, where it is of this work.
    pub(crate) fn take(&mut self, said: &Said, now: Instant) {
        match said {
            Said::Answer(request_id, turn) => self.answered(*request_id, turn, now),
            Said::Over(turn_id) => self.taken_back(*turn_id),
        }
    }

    fn answered(&mut self, request_id: u64, turn: &Turn, now: Instant) {
        let State::Asked {
            request_id: own,
            at: asked_at,
        } = self.state
        else {
            return;
        };
        if own != request_id {
            return;
        }
        if !turn.refused.is_empty() {
            self.refused(turn, now);
        } else if turn.wait_ms > 0 {
            let wait = Duration::from_millis(turn.wait_ms.into());
            self.state = State::Later {
                turn_id: turn.turn_id,
                at: now + wait.min(PAUSE_MAX),
                within: None,
            };
        } else {
            let left = Duration::from_millis(turn.ends_in_ms.into());
            // It began some time after the question: counted from there it does not end late.
            self.begin(turn.turn_id, asked_at + left.min(self.takes));
        }
    }

    /// A turn is taken back: what is to be done is asked for anew.
    fn taken_back(&mut self, turn: u64) {
        let own = match self.state {
            State::Begun { turn_id, .. } | State::Later { turn_id, .. } => turn_id,
            State::None | State::Asked { .. } => 0,
        };
        if own == turn && turn != 0 {
            self.state = State::None;
        }
    }

    fn refused(&mut self, turn: &Turn, now: Instant) {
        let possible = Duration::from_secs(turn.possible_within_s.into());
        let pause = if possible.is_zero() {
            REFUSED_PAUSE
        } else {
            // At once, with the time that it needs.
            Duration::ZERO
        };
        self.state = State::Later {
            turn_id: 0,
            at: now + pause,
            // Some time more, so that not all of those who are refused come at one moment.
            within: (!possible.is_zero())
                .then(|| (possible + self.takes).min(self.at_most.max(possible))),
        };
    }

    fn begin(&mut self, turn_id: u64, until: Instant) {
        self.state = State::Begun { turn_id, until };
    }

    /// It is done. The turn that is to be given back, if there is one.
    pub(crate) fn done(&mut self) -> Option<u64> {
        let state = std::mem::replace(&mut self.state, State::None);
        let turn_id = match state {
            State::Begun { turn_id, .. } | State::Later { turn_id, .. } => turn_id,
            State::None | State::Asked { .. } => 0,
        };
        (turn_id != 0).then_some(turn_id)
    }
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKES: Duration = Duration::from_secs(30);

    fn work() -> Work {
        Work::new(TurnKind::Sweep, TAKES, Duration::from_secs(60))
    }

    /// What is asked at this moment, under request 7; `Err`: whether it may be done without.
    fn asked(work: &mut Work, now: Instant) -> Result<AskTurn, bool> {
        let mut question = None;
        let may = work.may(now, |it| {
            question = Some(it);
            Some(7)
        });
        question.ok_or(may)
    }

    #[test]
    fn work_waits_for_its_turn_and_ends_with_it() {
        let (mut work, now) = (work(), Instant::now());
        let question = asked(&mut work, now).unwrap();
        assert_eq!(
            (question.turn_id, question.takes_s, question.within_s),
            (0, 30, 60)
        );
        let wait = Turn {
            turn_id: 5,
            wait_ms: 2000,
            ..Turn::default()
        };
        work.take(&Said::Answer(9, wait.clone()), now);
        assert_eq!(asked(&mut work, now), Err(false), "another's answer");
        work.take(&Said::Answer(7, wait.clone()), now);
        assert_eq!(asked(&mut work, now + Duration::from_secs(1)), Err(false));
        assert_eq!(work.until_look(now), Duration::from_secs(2));
        let now = now + Duration::from_secs(2);
        assert_eq!(asked(&mut work, now).unwrap().turn_id, 5);
        let begin = Turn {
            turn_id: 5,
            ends_in_ms: 10_000,
            ..Turn::default()
        };
        work.take(&Said::Answer(7, begin.clone()), now);
        assert_eq!(work.until_look(now), Duration::ZERO);
        assert_eq!(work.until_change(now), Duration::from_secs(10));
        assert_eq!(asked(&mut work, now + Duration::from_secs(9)), Err(true));
        let question = asked(&mut work, now + Duration::from_secs(10)).unwrap();
        assert_eq!(question.turn_id, 0, "a new one");
    }

    #[test]
    fn what_the_link_did_not_take_is_not_tried_all_the_time() {
        let (mut work, now) = (work(), Instant::now());
        for _ in 0..2 {
            assert!(!work.may(now, |_| None));
            assert_eq!(work.until_look(now), GLANCE);
        }
        assert!(asked(&mut work, now).is_ok());
        assert_eq!(work.until_look(now), ANSWER_WAIT);
    }

    #[test]
    fn without_an_answer_it_is_done_all_the_same() {
        let (mut work, now) = (work(), Instant::now());
        assert!(asked(&mut work, now).is_ok());
        assert_eq!(asked(&mut work, now + ANSWER_WAIT / 2), Err(false));
        assert_eq!(asked(&mut work, now + ANSWER_WAIT), Err(true));
        assert_eq!(work.done(), None, "nothing was reserved");
    }

    #[test]
    fn what_is_refused_is_asked_for_with_the_time_it_needs() {
        let (mut work, now) = (work(), Instant::now());
        assert!(asked(&mut work, now).is_ok());
        let refused = Turn {
            refused: "full".into(),
            possible_within_s: 500,
            ..Turn::default()
        };
        work.take(&Said::Answer(7, refused.clone()), now);
        assert_eq!(asked(&mut work, now).unwrap().within_s, 530);
        work.set_at_most(Duration::from_secs(510));
        work.take(&Said::Answer(7, refused.clone()), now);
        assert_eq!(
            asked(&mut work, now).unwrap().within_s,
            510,
            "by its deadline"
        );
        work.set_at_most(Duration::from_secs(400));
        work.take(&Said::Answer(7, refused), now);
        assert_eq!(
            asked(&mut work, now).unwrap().within_s,
            500,
            "or as soon as can be"
        );
        let never = Turn {
            refused: "too much".into(),
            ..Turn::default()
        };
        work.take(&Said::Answer(7, never.clone()), now);
        assert_eq!(asked(&mut work, now), Err(false));
        assert!(asked(&mut work, now + REFUSED_PAUSE).is_ok());
    }

    #[test]
    fn a_turn_that_is_taken_back_is_asked_for_anew() {
        let (mut work, now) = (work(), Instant::now());
        assert!(asked(&mut work, now).is_ok());
        let begin = Turn {
            turn_id: 5,
            ends_in_ms: 10_000,
            ..Turn::default()
        };
        work.take(&Said::Answer(7, begin), now);
        work.take(&Said::Over(6), now);
        work.take(&Said::Over(0), now);
        assert_eq!(asked(&mut work, now), Err(true), "another's");
        work.take(&Said::Over(5), now);
        assert_eq!(asked(&mut work, now).unwrap().turn_id, 0);
        work.take(&Said::Over(5), now);
        assert_eq!(asked(&mut work, now), Err(false), "it is asked for already");
    }

    #[test]
    fn a_turn_is_given_back_once() {
        let (mut work, now) = (work(), Instant::now());
        assert!(asked(&mut work, now).is_ok());
        let begin = Turn {
            turn_id: 5,
            ends_in_ms: 10_000,
            ..Turn::default()
        };
        work.take(&Said::Answer(7, begin.clone()), now);
        assert_eq!(work.done(), Some(5));
        assert_eq!(work.done(), None);
    }
}
