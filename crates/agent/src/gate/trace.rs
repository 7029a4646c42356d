//! Where the time of the last opens went, for people who ask why one was slow.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use agent_core::{Source, Why};
use daemon::log::escape;
use model::{Coverage, Disposition};
use serde_json::{Value, json};

/// Bytes of a path that are told.
const PATH_BYTES_MAX: usize = 160;

/// When a file came to each stage, since the gate's start. Written where it happens.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    hashing: Stage,
    hashed: Stage,
    asked: Stage,
    replied: Stage,
    /// Bytes that engines saw, of how many.
    judged: AtomicU64,
    total: AtomicU64,
}

/// A moment, in nanoseconds; 0: it has not come.
#[derive(Debug, Default)]
pub(crate) struct Stage(AtomicU64);

impl Stage {
    fn reached(&self, now: Duration) {
        let ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.0.store(ns, Ordering::Relaxed);
    }

    fn at(&self) -> Option<Duration> {
        let ns = self.0.load(Ordering::Relaxed);
        (ns > 0).then(|| Duration::from_nanos(ns))
    }
}

impl Stages {
    pub(crate) fn hashing(&self, now: Duration) {
        self.hashing.reached(now);
    }

    pub(crate) fn hashed(&self, now: Duration) {
        self.hashed.reached(now);
    }

    pub(crate) fn asked(&self, now: Duration) {
        self.asked.reached(now);
    }

    pub(crate) fn replied(&self, now: Duration) {
        self.replied.reached(now);
    }

    /// What engines saw of it.
    pub(crate) fn covered(&self, coverage: &Coverage) {
        self.judged.store(coverage.bytes_judged, Ordering::Relaxed);
        self.total.store(coverage.bytes_total, Ordering::Relaxed);
    }

    /// Bytes that engines saw, of how many.
    fn coverage(&self) -> (u64, u64) {
        let load = |from: &AtomicU64| from.load(Ordering::Relaxed);
        (load(&self.judged), load(&self.total))
    }
}

/// One answered open.
#[derive(Debug)]
pub(crate) struct Traced {
    path: Vec<u8>,
    pid: i32,
    disposition: Disposition,
    why: Why,
    at: SystemTime,
    total: Duration,
    parts: Parts,
    /// Bytes that engines saw, of how many; none of none: nobody told.
    coverage: (u64, u64),
}

/// Its time by stage; what did not happen took none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parts {
    /// Until it was hashed, and after that until it could be asked about.
    queue: Duration,
    digest: Duration,
    /// To the appliance, there, and back: link and engines.
    appliance: Duration,
    /// From the reply, or what else decided, to the kernel's taking it.
    answer: Duration,
}

/// How a wait from `opened` to `answered` divides up.
fn parts(stages: &Stages, opened: Duration, answered: Duration) -> Parts {
    let mut parts = Parts::default();
    let mut from = opened;
    let mut until = |at: Duration| {
        let took = at.saturating_sub(from);
        from = from.max(at);
        took
    };
    if let Some(at) = stages.hashing.at() {
        parts.queue += until(at);
    }
    if let Some(at) = stages.hashed.at() {
        parts.digest = until(at);
    }
    if let Some(at) = stages.asked.at() {
        parts.queue += until(at);
    }
    if let Some(at) = stages.replied.at() {
        parts.appliance = until(at);
    }
    parts.answer = until(answered);
    parts
}

/// The last opens that were not answered from the cache; the newest last.
pub(crate) struct Trace {
    ring: Mutex<VecDeque<Traced>>,
    entries_max: usize,
}

impl Trace {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            ring: Mutex::default(),
            entries_max,
        }
    }

    /// Whether an answer of this source is kept: those from the cache took no way at all.
    pub(crate) fn wants(&self, source: Source) -> bool {
        self.entries_max > 0 && source != Source::Cache
    }

    /// Notes an open that was answered just now.
    pub(crate) fn note(
        &self,
        (path, pid): (Vec<u8>, i32),
        (disposition, why): (Disposition, Why),
        stages: Option<&Stages>,
        (opened, answered): (Duration, Duration),
    ) {
        let mut path = path;
        path.truncate(PATH_BYTES_MAX);
        let total = answered.saturating_sub(opened);
        let joined = Parts {
            queue: total,
            ..Parts::default()
        };
        let traced = Traced {
            path,
            pid,
            disposition,
            why,
            at: SystemTime::now(),
            total,
            parts: stages.map_or(joined, |stages| parts(stages, opened, answered)),
            coverage: stages.map_or((0, 0), Stages::coverage),
        };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        while ring.len() >= self.entries_max {
            ring.pop_front();
        }
        ring.push_back(traced);
    }

    /// For the control socket.
    pub(crate) fn json(&self) -> Value {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().map(Traced::json).collect()
    }
}

impl Traced {
    fn json(&self) -> Value {
        let since = self.at.duration_since(SystemTime::UNIX_EPOCH);
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let Parts {
            queue,
            digest,
            appliance,
            answer,
        } = self.parts;
        json!({
            "at_ms": since.map_or(0, |since| us(since) / 1000),
            "path": escape(&self.path).to_string(),
            "pid": self.pid,
            "answer": if self.disposition == Disposition::Allow { "allow" } else { "deny" },
            "outcome": self.why.answered.outcome_name(),
            "total_us": us(self.total),
            "queue_us": us(queue),
            "digest_us": us(digest),
            "appliance_us": us(appliance),
            "answer_us": us(answer),
            "bytes_judged": self.coverage.0,
            "bytes_total": self.coverage.1,
        })
    }
}

/// The trace for people.
#[must_use]
pub(crate) fn render(trace: &Value) -> String {
    use std::fmt::Write as _;
    let mut out = String::from(
        "    total    queue   digest appliance  answer  (µs)  answer  outcome    path\n",
    );
    for traced in trace.as_array().into_iter().flatten() {
        let number = |key: &str| traced[key].as_u64().unwrap_or(0);
        for key in [
            "total_us",
            "queue_us",
            "digest_us",
            "appliance_us",
            "answer_us",
        ] {
            let _ = write!(out, "{:>9}", number(key));
        }
        let text = |key: &str| traced[key].as_str().unwrap_or("");
        let (answer, outcome) = (text("answer"), text("outcome"));
        let path = escape(text("path").as_bytes());
        let _ = writeln!(out, "        {answer:7} {outcome:10} {path}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_core::Answered;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn why(source: Source) -> Why {
        Why {
            answered: Answered::Clean,
            source,
        }
    }

    #[test]
    fn a_wait_divides_up_without_rest() {
        let stages = Stages::default();
        stages.hashing(us(15));
        stages.hashed(us(35));
        stages.asked(us(38));
        stages.replied(us(138));
        let parts = parts(&stages, us(10), us(140));
        assert_eq!(parts.queue, us(8));
        assert_eq!(parts.digest, us(20));
        assert_eq!(parts.appliance, us(100));
        assert_eq!(parts.answer, us(2));
    }

    #[test]
    fn what_did_not_happen_took_no_time() {
        let stages = Stages::default();
        let nothing = parts(&stages, us(10), us(30));
        assert_eq!(nothing.answer, us(20));
        stages.asked(us(11));
        stages.replied(us(21));
        // A file that was hashed before this opener came.
        let late = parts(&stages, us(15), us(25));
        assert_eq!((late.appliance, late.answer), (us(6), us(4)));
    }

    #[test]
    fn the_last_ones_are_kept() {
        let trace = Trace::new(2);
        assert!(trace.wants(Source::Verdict) && !trace.wants(Source::Cache));
        for name in [b"a", b"b", b"c"] {
            let how = (Disposition::Allow, why(Source::Verdict));
            trace.note((name.to_vec(), 1), how, None, (us(1), us(5)));
        }
        let told = trace.json();
        assert_eq!(told.as_array().map(Vec::len), Some(2));
        assert_eq!(
            (&told[0]["path"], &told[1]["queue_us"]),
            (&json!("b"), &json!(4))
        );
        assert!(
            render(&told).contains("allow   clean      c"),
            "{}",
            render(&told)
        );
        assert!(!Trace::new(0).wants(Source::Verdict));
    }
}
