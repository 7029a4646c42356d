//! Many VMs that start at once: recognised by host and by pool.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::HostId;

/// When starts are a storm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPolicy {
    /// Starts are counted over this time. 60 s.
    pub within: Duration,
    /// So many on one host are a storm. 8.
    pub host_starts: usize,
    /// So many of one pool are a storm. 24.
    pub pool_starts: usize,
    /// It is over after so long without a start. 120 s.
    pub calm_after: Duration,
    /// Hosts and pools that are watched. 100,000.
    pub groups_max: usize,
}

impl Default for BootPolicy {
    fn default() -> Self {
        Self {
            within: Duration::from_secs(60),
            host_starts: 8,
            pool_starts: 24,
            calm_after: Duration::from_secs(120),
            groups_max: 100_000,
        }
    }
}

/// What a start belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// Nothing in particular.
    Alone,
    /// With it a storm begins; it is told once.
    StormBegins {
        /// Background work on the host should wait until then; later starts put it off.
        calm_at: Duration,
    },
    /// It belongs to a storm that is known.
    InStorm {
        /// As above.
        calm_at: Duration,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Host(HostId),
    Pool(String),
}

#[derive(Debug, Default)]
struct Watched {
    starts: VecDeque<Duration>,
    is_storm: bool,
}

/// Recognises boot storms.
#[derive(Debug)]
pub struct BootStorms {
    policy: BootPolicy,
    groups: BTreeMap<Group, Watched>,
}

impl BootStorms {
    /// Nothing has started yet.
    #[must_use]
    pub fn new(policy: BootPolicy) -> Self {
        Self {
            policy,
            groups: BTreeMap::new(),
        }
    }

    /// A VM starts.
    pub fn started(&mut self, now: Duration, host: HostId, pool: Option<&str>) -> Started {
        let by_host = self.note(now, Group::Host(host), self.policy.host_starts);
        let pool = pool.map(|pool| Group::Pool(pool.to_owned()));
        let by_pool = pool.map(|pool| self.note(now, pool, self.policy.pool_starts));
        let calm_at = now.saturating_add(self.policy.calm_after);
        match (by_host, by_pool.unwrap_or((false, false))) {
            ((_, true), _) | (_, (_, true)) => Started::StormBegins { calm_at },
            ((true, _), _) | (_, (true, _)) => Started::InStorm { calm_at },
            _ => Started::Alone,
        }
    }

    /// Whether there is a storm, and whether it begins.
    fn note(&mut self, now: Duration, group: Group, limit: usize) -> (bool, bool) {
        if self.groups.len() >= self.policy.groups_max && !self.groups.contains_key(&group) {
            self.forget_calm(now);
            if self.groups.len() >= self.policy.groups_max {
                return (false, false);
            }
        }
        let watched = self.groups.entry(group).or_default();
        let since_last = watched.starts.back().map(|last| now.saturating_sub(*last));
        if since_last.is_some_and(|since| since >= self.policy.calm_after) {
            watched.is_storm = false;
        }
        watched.starts.push_back(now);
        let within = self.policy.within;
        let is_old = |at: &Duration| now.saturating_sub(*at) > within;
        while watched.starts.len() > limit || watched.starts.front().is_some_and(is_old) {
            watched.starts.pop_front();
        }
        let begins = !watched.is_storm && watched.starts.len() >= limit;
        watched.is_storm |= begins;
        (watched.is_storm, begins)
    }

    fn forget_calm(&mut self, now: Duration) {
        let calm_after = self.policy.calm_after;
        self.groups.retain(|_, watched| {
            let last = watched.starts.back().copied().unwrap_or_default();
            now.saturating_sub(last) < calm_after
        });
    }

    /// Storms that go on: hosts and pools.
    #[must_use]
    pub fn going_on(&self, now: Duration) -> usize {
        let goes_on = |watched: &&Watched| {
            let last = watched.starts.back().copied().unwrap_or_default();
            watched.is_storm && now.saturating_sub(last) < self.policy.calm_after
        };
        self.groups.values().filter(goes_on).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostId = HostId(1);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_storm_is_told_once_and_ends() {
        let mut storms = BootStorms::new(BootPolicy::default());
        for second in 0..7 {
            assert_eq!(storms.started(at(second), HOST, None), Started::Alone);
        }
        let begins = storms.started(at(7), HOST, None);
        assert_eq!(begins, Started::StormBegins { calm_at: at(127) });
        let goes_on = storms.started(at(100), HOST, None);
        assert_eq!(goes_on, Started::InStorm { calm_at: at(220) });
        assert_eq!(storms.going_on(at(219)), 1);
        assert_eq!(storms.going_on(at(220)), 0);
        assert_eq!(storms.started(at(300), HOST, None), Started::Alone);
    }

    #[test]
    fn a_pool_that_starts_on_many_hosts_is_a_storm() {
        let mut storms = BootStorms::new(BootPolicy::default());
        let starts = (0..30).map(|n| storms.started(at(n), HostId(n), Some("desktops")));
        let begun = starts.filter(|it| matches!(it, Started::StormBegins { .. }));
        assert_eq!(begun.count(), 1);
    }

    #[test]
    fn slow_starts_are_none() {
        let mut storms = BootStorms::new(BootPolicy::default());
        for n in 0..100 {
            assert_eq!(storms.started(at(n * 30), HOST, Some("p")), Started::Alone);
        }
    }

    #[test]
    fn no_more_groups_are_watched_than_may_be() {
        let mut storms = BootStorms::new(BootPolicy {
            groups_max: 10,
            ..BootPolicy::default()
        });
        for n in 0..1000 {
            storms.started(at(0), HostId(n), None);
        }
        assert_eq!(storms.groups.len(), 10);
        storms.started(at(1000), HostId(5000), None);
        assert_eq!(storms.groups.len(), 1);
    }
}
