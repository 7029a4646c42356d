//! What Prometheus sees of who belongs to the fleet: looked at every few seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use controller::fleet::Fleet;
use controller::{Authority, Decision, Enrolment, EnrolmentStats};
use daemon::metrics::{Counter, Counters, Gauge, Gauges, Registry};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);

struct MemberMetrics {
    enrolments: Counters<1>,
    members: Gauges<1>,
    pending: Gauge,
    conflicts: Counter,
}

impl MemberMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            enrolments: registry.counters(
                "lazaret_enrolments",
                "Machines that asked to join, by what came of it.",
                ["result"],
            ),
            members: registry.gauges("lazaret_members", "Members of the fleet.", ["state"]),
            pending: registry.gauge("lazaret_pending", "Machines that wait for a person's word."),
            conflicts: registry.counter(
                "lazaret_identity_conflicts",
                "Copies of guests that were found while this controller places.",
            ),
        }
    }

    fn enrolled(&self, before: &EnrolmentStats, now: &EnrolmentStats) {
        for (result, before, now) in [
            ("joined", before.enrolled, now.enrolled),
            ("waiting", before.waiting, now.waiting),
            ("refused", before.refused, now.refused),
            ("failed", before.failed, now.failed),
            ("rate_limited", before.rate_limited, now.rate_limited),
        ] {
            let more = now.saturating_sub(before);
            self.enrolments.with([result]).inc_by(more);
        }
    }

    fn counted(&self, authority: &Authority) {
        let set = |gauge: &Gauge, count: usize| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        let [active, revoked, retired] = authority.counts();
        set(&self.members.with(["active"]), active);
        set(&self.members.with(["revoked"]), revoked);
        set(&self.members.with(["retired"]), retired);
        let pending = authority.pending(SystemTime::now());
        let waiting = pending.iter();
        let waiting = waiting.filter(|entry| entry.decision == Decision::Waiting);
        set(&self.pending, waiting.count());
    }
}

/// Keeps them, for ever.
pub(crate) async fn keep(
    registry: Registry,
    authority: Arc<Authority>,
    fleet: Fleet,
    enrolment: Arc<Enrolment>,
) {
    let metrics = MemberMetrics::new(&registry);
    let (mut stats, mut conflicts) = (EnrolmentStats::default(), 0);
    loop {
        let now = enrolment.stats();
        metrics.enrolled(&stats, &now);
        stats = now;
        metrics.counted(&authority);
        let found = fleet.with(|lead, _| lead.core.conflicts_total()).await;
        // Another term counts from the beginning.
        let found = found.unwrap_or(0);
        let more = found.checked_sub(conflicts).unwrap_or(found);
        metrics.conflicts.inc_by(more);
        conflicts = found;
        tokio::time::sleep(LOOK).await;
    }
}
