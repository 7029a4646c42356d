//! Which session is the guest's own, and which is a copy's: by keys in their order, by boot ids, and
//! by what machines say of themselves.
//!
//! A session is judged when it begins. What another machine shows (another SMBIOS UUID) is a copy
//! at once. What could be the same machine, moved, restarted or restored, is one only if both
//! sessions are still there when the first must have been noticed to be dead.

use std::time::Duration;

use model::{GuestId, Machine, differ};
use placement::ApplianceId;

use crate::core::{Clock, Core, Order};
use crate::guests::GuestFacts;
use crate::sessions::{Boot, Doubt, Session, Suspect};

/// A key, as the first 16 bytes of the hash of its public half.
pub type Key = [u8; 16];

/// Two sessions of one machine may overlap for so long: the kernel ends those of dead
/// machines after 30 s.
const OVERLAP: Duration = Duration::from_secs(75);
/// A machine is taken for restored at most so often.
const RESTORED_EVERY: Duration = Duration::from_secs(60);

/// What is written down of a guest, as the sender of [`GuestFacts`] knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownGuest {
    /// The key in force. `None`: none was ever seen.
    pub key: Option<Key>,
    /// Keys that got certificates and were not seen, the latest last.
    pub issued: Vec<Key>,
    /// The machine that it is.
    pub machine: Machine,
}

impl KnownGuest {
    /// Where a key is in the order of keys; `None`: before them all.
    fn rank(&self, key: &Key) -> Option<usize> {
        if self.key.as_ref() == Some(key) {
            return Some(0);
        }
        self.issued
            .iter()
            .position(|issued| issued == key)
            .map(|at| at + 1)
    }
}

/// What is to be written down of guests, before anything else that came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A guest has shown this key: it is in force, and those before it are not.
    KeySeen(GuestId, Key),
    /// What its machine says of itself now.
    MachineIs(GuestId, Machine),
    /// A copy of it is told to ask for an identity of its own.
    CopyTold(CopyOf),
    /// A connector says that the VM it was in is deleted.
    VmDeleted(GuestId),
    /// A connector knows the VM that it is in.
    VmFound(GuestId),
}

/// A copy of a guest that is told to ask for an identity of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOf {
    /// Of whom it is a copy.
    pub guest: GuestId,
    /// The key that it shows. `None`: its appliance does not say.
    pub key: Option<Key>,
    /// What its machine says of itself.
    pub machine: Machine,
}

/// Why a certificate is not renewed for the same identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this machine is a copy and needs an identity of its own: {0}")]
pub struct IsCopy(pub String);

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn other_machine(known: &Machine, shown: &Machine) -> Option<String> {
    if !differ(known.system_uuid, shown.system_uuid) {
        return None;
    }
    let uuid = |machine: &Machine| machine.system_uuid.map(hex).unwrap_or_default();
    Some(format!(
        "its SMBIOS UUID is {}, the guest's is {}",
        uuid(shown),
        uuid(known)
    ))
}

impl Core {
    /// A session begins, or is told of again. True: it is a copy's.
    pub(crate) fn judge(
        &mut self,
        clock: Clock,
        via: ApplianceId,
        id: GuestId,
        facts: &GuestFacts,
    ) -> bool {
        let sessions = self.sessions.entry(id).or_default();
        let at = sessions.enter(clock.now, via, facts);
        if let Some(known) = &facts.known {
            self.judge_machine(clock, id, at, facts, known);
        }
        let sessions = self.sessions.get(&id);
        let session = sessions.and_then(|sessions| sessions.seen.get(at));
        session.is_some_and(|session| session.copy.is_some())
    }

    fn judge_machine(
        &mut self,
        clock: Clock,
        id: GuestId,
        at: usize,
        facts: &GuestFacts,
        known: &KnownGuest,
    ) {
        if let Some(why) = other_machine(&known.machine, &facts.machine) {
            self.conflict(clock, id, at, why);
            return;
        }
        let is_old = facts.key.is_some_and(|key| self.is_old(id, &key, known));
        let is_later = differ(known.machine.generation_id, facts.machine.generation_id);
        if !is_old {
            self.suspect_older(clock, id, at, is_later);
        }
        let sessions = self.sessions.entry(id).or_default();
        let boot = sessions.boots.standing(facts.machine.boot_id);
        let doubt = match boot {
            _ if is_old => Doubt::OldKey,
            _ if is_later => Doubt::Copied,
            Boot::Returned => Doubt::Returned,
            Boot::Next => Doubt::Booted,
            Boot::Same => {
                sessions.boots.take(facts.machine.boot_id);
                self.first_facts(id, facts, known);
                return;
            }
        };
        // From the same address it may be a snapshot that was resumed: what it was until then has a
        // session that nobody has noticed to be dead.
        if boot == Boot::Returned && sessions.is_beside_another_address(at, Doubt::Returned) {
            let why = Doubt::Returned.text().to_owned();
            self.conflict(clock, id, at, why);
        } else if sessions.together_since(at, doubt).is_some() {
            self.suspect(clock, id, at, doubt, is_later);
        } else {
            let machine = is_later.then(|| merged(&known.machine, &facts.machine));
            self.is_same(clock, id, doubt, facts.machine.boot_id, machine);
        }
    }

    fn suspect(&mut self, clock: Clock, id: GuestId, at: usize, doubt: Doubt, is_later: bool) {
        let suspect = Suspect {
            due: clock.now + OVERLAP,
            doubt,
            is_later,
        };
        self.suspect_until(id, at, suspect);
    }

    /// Unless it is one already, or known to be a copy.
    fn suspect_until(&mut self, id: GuestId, at: usize, suspect: Suspect) {
        let sessions = self.sessions.entry(id).or_default();
        if let Some(session) = sessions.seen.get_mut(at)
            && session.suspect.is_none()
            && session.copy.is_none()
        {
            session.suspect = Some(suspect);
            self.suspects.insert((suspect.due, id));
        }
    }

    /// The guest's newest key is shown: sessions with another one should end now. So should those of
    /// another generation, where this one's is the one that is known: they may have come first.
    fn suspect_older(&mut self, clock: Clock, id: GuestId, at: usize, is_later: bool) {
        let Some(sessions) = self.sessions.get(&id) else {
            return;
        };
        let Some(own) = sessions.seen.get(at) else {
            return;
        };
        let generation = own.machine.generation_id.filter(|_| !is_later);
        let doubt = |session: &Session| {
            if session.key.is_some() && session.key != own.key {
                return Some((Doubt::OldKey, false));
            }
            differ(generation, session.machine.generation_id).then_some((Doubt::Copied, true))
        };
        let others = sessions.seen.iter().enumerate();
        let others = others.filter(|(other, _)| *other != at);
        let doubts = others.filter_map(|(other, session)| Some((other, doubt(session)?)));
        for (other, (doubt, is_later)) in doubts.collect::<Vec<_>>() {
            self.suspect(clock, id, other, doubt, is_later);
        }
    }

    /// What a machine did not say before.
    fn first_facts(&mut self, id: GuestId, facts: &GuestFacts, known: &KnownGuest) {
        let (shown, old) = (&facts.machine, &known.machine);
        let is_news =
            |old: Option<[u8; 16]>, shown: Option<[u8; 16]>| old.is_none() && shown.is_some();
        if is_news(old.system_uuid, shown.system_uuid)
            || is_news(old.generation_id, shown.generation_id)
        {
            self.notes.push(Note::MachineIs(id, merged(old, shown)));
        }
    }

    /// Whether a key is older than the one in force; one that is newer is in force from now on.
    fn is_old(&mut self, id: GuestId, key: &Key, known: &KnownGuest) -> bool {
        let sessions = self.sessions.entry(id).or_default();
        if known.key.is_none() && known.issued.is_empty() && sessions.in_force.is_none() {
            sessions.in_force = Some(*key);
            self.notes.push(Note::KeySeen(id, *key));
            return false;
        }
        if sessions.in_force.as_ref() == Some(key) {
            return false;
        }
        let own = sessions.in_force.and_then(|own| known.rank(&own));
        match known.rank(key) {
            None => true,
            Some(rank) if own.is_some_and(|own| own > rank) => true,
            Some(rank) => {
                sessions.in_force = Some(*key);
                if rank > 0 {
                    self.notes.push(Note::KeySeen(id, *key));
                }
                false
            }
        }
    }

    /// The same machine, restarted or as it was once: nobody else is there. What it says of itself
    /// is noted where it is given.
    fn is_same(
        &mut self,
        clock: Clock,
        id: GuestId,
        doubt: Doubt,
        boot: Option<[u8; 16]>,
        machine: Option<Machine>,
    ) {
        let sessions = self.sessions.entry(id).or_default();
        sessions.boots.take(boot);
        let restored = &mut sessions.restored;
        let is_soon = |at: Duration| clock.now.saturating_sub(at) < RESTORED_EVERY;
        // That it was restarted is no news.
        if doubt == Doubt::Booted
            || restored.last().is_some_and(is_soon)
            || !restored.admit(clock.now, ())
        {
            return;
        }
        let note = machine.map(|machine| Note::MachineIs(id, machine));
        self.notes.extend(note);
        let text = format!("guest {id}: its machine was restored, or shows an older key");
        self.event(clock, "machine_restored", text);
    }

    /// A copy: it is told to ask for an identity of its own, and its session goes on.
    fn conflict(&mut self, clock: Clock, id: GuestId, at: usize, why: String) {
        let sessions = self.sessions.entry(id).or_default();
        let Some(session) = sessions.seen.get_mut(at) else {
            return;
        };
        session.copy = Some(why.clone());
        session.suspect = None;
        let (via, key, machine) = (session.via, session.key, session.machine.clone());
        self.orders.push(Order::Rekey {
            via,
            guest: id,
            key,
            machine: machine.clone(),
            reason: why.clone(),
        });
        let told = CopyOf {
            guest: id,
            key,
            machine,
        };
        self.note_copy(clock, told, &why);
    }

    /// Notes a copy, and makes an event of it where it is news. A liar fills neither the events nor
    /// the database: beyond a number of copies in an hour a person is to look.
    fn note_copy(&mut self, clock: Clock, told: CopyOf, why: &str) {
        let id = told.guest;
        let sessions = self.sessions.entry(id).or_default();
        let copy = (told.key, told.machine.clone());
        if !sessions.told.has(&copy) {
            if !sessions.told.admit(clock.now, copy) {
                return;
            }
            self.conflicts += 1;
            let guest = self.guests.get(&id);
            let name = guest.map_or("", |guest| guest.facts.hostname.as_str());
            let text = format!("guest {id} ({name}): {why}");
            self.event(clock, "identity_conflict", text);
        }
        self.notes.push(Note::CopyTold(told));
    }

    /// Sessions that could have been of one machine, and are still there beside another.
    pub(crate) fn overlapping(&mut self, clock: Clock) {
        while let Some((due, id)) = self.suspects.first().copied() {
            if due > clock.now {
                return;
            }
            self.suspects.pop_first();
            self.settle_suspects(clock, id);
        }
    }

    fn settle_suspects(&mut self, clock: Clock, id: GuestId) {
        loop {
            let Some(sessions) = self.sessions.get_mut(&id) else {
                return;
            };
            let is_due = |session: &Session| {
                let suspect = session.suspect.as_ref();
                suspect.is_some_and(|suspect| suspect.due <= clock.now)
            };
            let Some(at) = sessions.seen.iter().position(is_due) else {
                return;
            };
            let Some(session) = sessions.seen.get_mut(at) else {
                return;
            };
            let (Some(suspect), machine) = (session.suspect.take(), session.machine.clone()) else {
                return;
            };
            let together = sessions.together_since(at, suspect.doubt);
            match together.map(|since| since + OVERLAP) {
                Some(due) if due <= clock.now => {
                    self.conflict(clock, id, at, suspect.doubt.text().to_owned());
                }
                // It may be the dead one itself: its machine has just come back elsewhere.
                Some(due) => self.suspect_until(id, at, Suspect { due, ..suspect }),
                // The first one is gone: it was this machine.
                None => {
                    let known = suspect
                        .is_later
                        .then(|| merged(&Machine::default(), &machine));
                    self.is_same(clock, id, suspect.doubt, machine.boot_id, known);
                }
            }
        }
    }

    /// A guest's sessions through an appliance are over; an appliance where it has another one.
    pub(crate) fn session_ended(
        &mut self,
        now: Duration,
        via: ApplianceId,
        id: GuestId,
    ) -> Option<ApplianceId> {
        let sessions = self.sessions.get_mut(&id)?;
        sessions.end_via(via);
        let own = sessions.own();
        if sessions.is_forgettable(now) {
            self.sessions.remove(&id);
        }
        own
    }

    /// Every session through an appliance is over.
    pub(crate) fn sessions_ended_via(&mut self, now: Duration, via: ApplianceId) {
        self.sessions.retain(|_, sessions| {
            sessions.end_via(via);
            !sessions.is_forgettable(now)
        });
    }

    /// Whether a guest that shows this key on this machine may have its next certificate; if not, it
    /// may have one of its own. One without a session (its certificate has expired) is judged by those
    /// that others have.
    ///
    /// # Errors
    /// It is a copy.
    pub fn may_renew(
        &mut self,
        clock: Clock,
        id: GuestId,
        key: Option<Key>,
        machine: &Machine,
        known: &KnownGuest,
    ) -> Result<(), IsCopy> {
        let told = CopyOf {
            guest: id,
            key,
            machine: machine.clone(),
        };
        if let Some(why) = other_machine(&known.machine, machine) {
            self.note_copy(clock, told, &why);
            return Err(IsCopy(why));
        }
        let is_old = key.is_some_and(|key| self.is_old(id, &key, known));
        let sessions = self.sessions.entry(id).or_default();
        let is_it = |session: &Session| session.key == key && session.machine == *machine;
        let own = sessions.seen.iter().position(is_it);
        if let Some(why) = own.and_then(|at| sessions.seen.get(at)?.copy.clone()) {
            self.note_copy(clock, told, &why);
            return Err(IsCopy(why));
        }
        let is_another = |session: &Session| session.copy.is_none() && session.key != key;
        // The other one may be its own, from before it was restored, and not be noticed to be dead.
        let is_open =
            own.is_some_and(|at| sessions.seen.get(at).is_some_and(|it| it.suspect.is_some()));
        if !is_old || is_open || !sessions.seen.iter().any(is_another) {
            return Ok(());
        }
        let why = Doubt::OldKey.text().to_owned();
        match own {
            Some(at) => self.conflict(clock, id, at, why.clone()),
            None => self.note_copy(clock, told, &why),
        }
        Err(IsCopy(why))
    }

    /// Guests that have a session.
    #[must_use]
    pub fn has_session(&self, id: GuestId) -> bool {
        self.sessions
            .get(&id)
            .is_some_and(|sessions| !sessions.seen.is_empty())
    }

    /// Conflicts since the start of this term.
    #[must_use]
    pub fn conflicts_total(&self) -> u64 {
        self.conflicts
    }

    /// What is to be written down before anything that [`Self::take_writes`] gives.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }
}

/// What is known, with what is shown; boots are not written down.
fn merged(known: &Machine, shown: &Machine) -> Machine {
    Machine {
        generation_id: shown.generation_id.or(known.generation_id),
        system_uuid: shown.system_uuid.or(known.system_uuid),
        macs: shown.macs.clone(),
        boot_id: None,
    }
}
