//! Whether the other side is alive. No clock: `now` comes in.

use std::time::{Duration, Instant};

/// Silences and what they mean.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Silence {
    /// Ping while something is outstanding.
    pub(crate) busy: Duration,
    /// Ping otherwise.
    pub(crate) idle: Duration,
    /// After a ping: dead.
    pub(crate) dead: Duration,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulse {
    /// Nothing before this moment.
    Wait(Instant),
    /// Send a ping, then ask again.
    Ping,
    /// The other side is gone.
    Dead,
}

/// Watches one connection.
#[derive(Debug)]
pub(crate) struct Liveness {
    silence: Silence,
    received_at: Instant,
    pinged_at: Option<Instant>,
}

impl Liveness {
    pub(crate) fn new(silence: Silence, now: Instant) -> Self {
        Self {
            silence,
            received_at: now,
            pinged_at: None,
        }
    }

    /// Something came; anything counts.
    pub(crate) fn received(&mut self, now: Instant) {
        self.received_at = now;
        self.pinged_at = None;
    }

    /// What the time asks for. `outstanding`: we wait for something.
    pub(crate) fn pulse(&mut self, now: Instant, outstanding: bool) -> Pulse {
        if let Some(pinged_at) = self.pinged_at {
            let end = pinged_at + self.silence.dead;
            return if now >= end {
                Pulse::Dead
            } else {
                Pulse::Wait(end)
            };
        }
        let quiet = if outstanding {
            self.silence.busy
        } else {
            self.silence.idle
        };
        let due = self.received_at + quiet;
        if now >= due {
            self.pinged_at = Some(now);
            return Pulse::Ping;
        }
        // Whoever makes an idle connection busy has to ask again.
        Pulse::Wait(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Silence = Silence {
        busy: Duration::from_secs(5),
        idle: Duration::from_secs(15),
        dead: Duration::from_secs(4),
    };

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_busy_peer_is_found_dead() {
        let start = Instant::now();
        let mut liveness = Liveness::new(SILENCE, start);
        assert_eq!(
            liveness.pulse(at(start, 4), true),
            Pulse::Wait(at(start, 5))
        );
        assert_eq!(liveness.pulse(at(start, 5), true), Pulse::Ping);
        assert_eq!(
            liveness.pulse(at(start, 6), true),
            Pulse::Wait(at(start, 9))
        );
        assert_eq!(liveness.pulse(at(start, 9), true), Pulse::Dead);
    }

    #[test]
    fn an_idle_peer_is_pinged_later_and_any_answer_is_life() {
        let start = Instant::now();
        let mut liveness = Liveness::new(SILENCE, start);
        assert_eq!(
            liveness.pulse(at(start, 9), false),
            Pulse::Wait(at(start, 15))
        );
        assert_eq!(
            liveness.pulse(at(start, 9), true),
            Pulse::Ping,
            "what became busy is asked again"
        );
        liveness.received(at(start, 0));
        assert_eq!(liveness.pulse(at(start, 15), false), Pulse::Ping);
        liveness.received(at(start, 18));
        assert_eq!(
            liveness.pulse(at(start, 19), false),
            Pulse::Wait(at(start, 33))
        );
    }
}
