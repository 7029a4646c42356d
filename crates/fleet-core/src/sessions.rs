//! Sessions of one guest, and what is remembered to tell its own from a copy's. All of it is bounded.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use model::{Machine, differ};
use placement::ApplianceId;

use crate::guests::GuestFacts;
use crate::identity::Key;

/// Sessions of one guest that are looked at; the oldest is forgotten for the next.
const SESSIONS_MAX: usize = 16;
/// Boot ids of one guest that are remembered.
const BOOTS_MAX: usize = 8;
/// Events of one kind that one guest makes within an hour.
const EVENTS_MAX: usize = 20;
const HOUR: Duration = Duration::from_secs(3600);

/// Why a session may be a copy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// It shows a key before the one in force.
    OldKey,
    /// It shows another generation id.
    Copied,
    /// It shows a boot id that was replaced.
    Returned,
    /// It shows a boot id that is new.
    Booted,
}

impl Doubt {
    /// What it is if the other session stays.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::OldKey => "its key was replaced, and the guest uses the newer one",
            Self::Copied => "the hypervisor has copied the machine, and the first still runs",
            Self::Returned => "it is of a boot that was over, and the later one still runs",
            Self::Booted => "it is of another boot, and the first still runs",
        }
    }
}

/// A session that is a copy's if another one is still there then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) due: Duration,
    pub(crate) doubt: Doubt,
    /// If it is none, what its machine says of itself is to be noted.
    pub(crate) is_later: bool,
}

/// A session of a guest, as an appliance tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) via: ApplianceId,
    pub(crate) since: Duration,
    pub(crate) address: IpAddr,
    pub(crate) key: Option<Key>,
    pub(crate) machine: Machine,
    /// Why it is a copy's.
    pub(crate) copy: Option<String>,
    pub(crate) suspect: Option<Suspect>,
}

/// How a boot id stands to those that the guest has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    /// It is the present one, or unknown.
    Same,
    /// It was never seen.
    Next,
    /// Another one has replaced it: a machine that restarts never comes back to it.
    Returned,
}

/// Boot ids of a guest, as long as it has a session.
#[derive(Debug, Default)]
pub(crate) struct Boots {
    present: Option<[u8; 16]>,
    /// The latest last.
    replaced: VecDeque<[u8; 16]>,
}

impl Boots {
    pub(crate) fn standing(&self, shown: Option<[u8; 16]>) -> Boot {
        match shown {
            Some(shown) if differ(self.present, Some(shown)) => {
                match self.replaced.contains(&shown) {
                    true => Boot::Returned,
                    false => Boot::Next,
                }
            }
            _ => Boot::Same,
        }
    }

    /// The guest is of this boot now.
    pub(crate) fn take(&mut self, shown: Option<[u8; 16]>) {
        if shown.is_none() || shown == self.present {
            return;
        }
        self.replaced.retain(|boot| Some(*boot) != shown);
        if self.replaced.len() >= BOOTS_MAX {
            self.replaced.pop_front();
        }
        self.replaced.extend(self.present);
        self.present = shown;
    }
}

/// What happened within an hour.
#[derive(Debug)]
pub(crate) struct Lately<T>(VecDeque<(Duration, T)>);

impl<T> Default for Lately<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: PartialEq> Lately<T> {
    fn forget(&mut self, now: Duration) {
        let is_over = |(at, _): &(Duration, T)| now.saturating_sub(*at) >= HOUR;
        while self.0.front().is_some_and(is_over) {
            self.0.pop_front();
        }
    }

    pub(crate) fn has(&self, what: &T) -> bool {
        self.0.iter().any(|(_, it)| it == what)
    }

    pub(crate) fn last(&self) -> Option<Duration> {
        self.0.back().map(|(at, _)| *at)
    }

    /// Whether one more may happen in this hour; it has then.
    pub(crate) fn admit(&mut self, now: Duration, what: T) -> bool {
        self.forget(now);
        let is_within = self.0.len() < EVENTS_MAX;
        if is_within {
            self.0.push_back((now, what));
        }
        is_within
    }
}

/// Sessions of a guest and what was made of them.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    pub(crate) seen: Vec<Session>,
    /// The newest key that was shown.
    pub(crate) in_force: Option<Key>,
    pub(crate) boots: Boots,
    /// Copies that made an event.
    pub(crate) told: Lately<(Option<Key>, Machine)>,
    pub(crate) restored: Lately<()>,
}

impl Sessions {
    /// A session begins, or is told of again; its place.
    pub(crate) fn enter(&mut self, now: Duration, via: ApplianceId, facts: &GuestFacts) -> usize {
        let is_it = |session: &Session| {
            session.via == via && session.key == facts.key && session.machine == facts.machine
        };
        if let Some(at) = self.seen.iter().position(is_it) {
            return at;
        }
        if self.seen.len() >= SESSIONS_MAX {
            self.seen.remove(0);
        }
        self.seen.push(Session {
            via,
            since: now,
            address: facts.address,
            key: facts.key,
            machine: facts.machine.clone(),
            copy: None,
            suspect: None,
        });
        self.seen.len() - 1
    }

    /// Every session through an appliance is over.
    pub(crate) fn end_via(&mut self, via: ApplianceId) {
        self.seen.retain(|session| session.via != via);
    }

    /// An appliance that has a session of the guest itself, the latest.
    pub(crate) fn own(&self) -> Option<ApplianceId> {
        let own = self.seen.iter().rev().find(|it| it.copy.is_none());
        own.map(|session| session.via)
    }

    /// Nothing of it is needed: the keys that were seen are written down, boots matter beside another
    /// session alone, and nobody made events.
    pub(crate) fn is_forgettable(&mut self, now: Duration) -> bool {
        self.told.forget(now);
        self.restored.forget(now);
        self.seen.is_empty() && self.told.0.is_empty() && self.restored.0.is_empty()
    }

    /// Sessions of the guest itself that are another machine's than this one, if the doubt is right.
    fn others(&self, at: usize, doubt: Doubt) -> impl Iterator<Item = &Session> {
        let boot = self.seen.get(at).and_then(|own| own.machine.boot_id);
        let is_other = move |session: &Session| match doubt {
            Doubt::OldKey | Doubt::Copied => true,
            Doubt::Returned | Doubt::Booted => differ(boot, session.machine.boot_id),
        };
        let others = self.seen.iter().enumerate();
        let others = others.filter(move |(other, _)| *other != at);
        others.map(|(_, session)| session).filter(move |session| {
            session.copy.is_none() && session.suspect.is_none() && is_other(session)
        })
    }

    /// Since when this session has been there together with one of another machine, if the doubt is
    /// right; `None`: there is none.
    pub(crate) fn together_since(&self, at: usize, doubt: Doubt) -> Option<Duration> {
        let since = self.seen.get(at)?.since;
        let others = self.others(at, doubt);
        others.map(|other| other.since.max(since)).min()
    }

    /// Whether one of them comes from elsewhere, so that it is not this machine's own that nobody has
    /// noticed to be dead.
    pub(crate) fn is_beside_another_address(&self, at: usize, doubt: Doubt) -> bool {
        let address = self.seen.get(at).map(|own| own.address);
        self.others(at, doubt)
            .any(|other| Some(other.address) != address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_was_replaced_comes_back_and_few_are_remembered() {
        let mut boots = Boots::default();
        let boot = |n: u8| Some([n; 16]);
        assert_eq!(boots.standing(boot(0)), Boot::Same, "the first");
        for n in 0..100 {
            boots.take(boot(n));
            boots.take(None);
            assert!(boots.replaced.len() <= BOOTS_MAX);
        }
        assert_eq!(boots.standing(None), Boot::Same);
        assert_eq!(boots.standing(boot(99)), Boot::Same);
        assert_eq!(boots.standing(boot(98)), Boot::Returned);
        assert_eq!(boots.standing(boot(1)), Boot::Next, "forgotten");
        boots.take(boot(98));
        assert_eq!(boots.standing(boot(99)), Boot::Returned);
        assert_eq!(boots.standing(boot(98)), Boot::Same);
    }

    #[test]
    fn an_hour_has_so_many() {
        let mut lately = Lately::default();
        let at = Duration::from_secs;
        let admitted = (0..100).filter(|n| lately.admit(at(*n), *n)).count();
        assert_eq!(admitted, EVENTS_MAX);
        assert!(lately.has(&3) && !lately.has(&50));
        assert!(lately.admit(at(3605), 200));
        assert!(!lately.has(&3) && lately.has(&6));
        assert_eq!(lately.last(), Some(at(3605)));
    }
}
