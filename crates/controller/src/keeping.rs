//! What the placer sees of members is written down here: keys that are shown, machines, VMs that
//! are gone; and who leaves the fleet by it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use fleet_core::{Key, KnownGuest, Note};
use model::{GuestId, Machine};
use pki::{CertificateDer, KeyId};

use crate::authority::{Authority, Refusal, end};
use crate::fleet::{Retirement, StoreError};
use crate::members::{
    Decision, KeyRecord, MEMBER, Member, Members, PENDING, Pending, Put, TOKEN, has_room, is_over,
    may_wait, seconds, seen_with,
};

/// Copies of one machine that get an identity within an hour, without a person.
pub const REKEYS_PER_HOUR: usize = 16;
const HOUR: Duration = Duration::from_secs(3600);
/// Records of members that ended are kept for so long.
const RECORD_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Tokens are remembered for so long after they ended: a request that waits may need one.
const TOKEN_RECORD_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates that are over are given so long to be seen.
const EPHEMERAL_GRACE: Duration = Duration::from_secs(3600);
/// Rows that one tidying removes.
const TIDIED_AT_ONCE: usize = 1000;

impl Member {
    /// As the placer judges its sessions.
    #[must_use]
    pub fn known(&self) -> KnownGuest {
        KnownGuest {
            key: self.key.map(|key| key.id.0),
            issued: self.issued.iter().map(|key| key.id.0).collect(),
            machine: self.machine.clone(),
        }
    }
}

/// A copy of a member that asks for an identity of its own.
struct Copy<'a> {
    of: GuestId,
    key: KeyRecord,
    machine: &'a Machine,
    now: SystemTime,
}

/// What is to become of it.
enum CopyPlan {
    Again(GuestId),
    Join(Vec<Put>),
    Queue(Vec<Put>),
}

impl Authority {
    /// Writes down what the placer saw.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is written.
    pub(crate) async fn note(&self, notes: &[Note], now: SystemTime) -> Result<(), StoreError> {
        // Most of what is seen changes nothing.
        if noted(&self.members(), notes, now).is_empty() {
            return Ok(());
        }
        self.change(now, |members| Ok(((), noted(members, notes, now))))
            .await
    }

    /// Gives a copy of a member an identity of its own.
    ///
    /// # Errors
    /// [`Refusal`]; with [`Refusal::Waits`] a person is to approve it.
    pub async fn rekey(
        &self,
        of: GuestId,
        csr_der: &[u8],
        machine: &Machine,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        if self.guest(of).is_none() {
            self.refresh().await?;
        }
        let member = self.guest(of).ok_or(Refusal::UnknownGuest)?;
        let guest = GuestId(pki::random().map_err(|_| Refusal::Internal)?);
        let (cert, key) = self.sign(guest, csr_der, member.ephemeral, now)?;
        let copy = Copy {
            of,
            key,
            machine,
            now,
        };
        let planned = self.change(now, |members| {
            let planned = copy.plan(members, guest)?;
            let puts = match &planned {
                CopyPlan::Again(_) => Vec::new(),
                CopyPlan::Join(puts) | CopyPlan::Queue(puts) => puts.clone(),
            };
            Ok::<_, Refusal>((planned, puts))
        });
        match planned.await? {
            CopyPlan::Join(_) => {
                tracing::info!(%guest, copy_of = %of, "a copy has an identity of its own");
                Ok(vec![cert])
            }
            CopyPlan::Again(guest) => {
                let (cert, _) = self.sign(guest, csr_der, member.ephemeral, now)?;
                Ok(vec![cert])
            }
            CopyPlan::Queue(_) => Err(Refusal::Waits),
        }
    }

    /// Members that are to be retired unless they have a session: their VM was deleted for so long,
    /// or nothing of theirs can be renewed any more.
    #[must_use]
    pub(crate) fn may_retire(&self, terms: &Retirement, now: SystemTime) -> Vec<GuestId> {
        let members = self.members();
        let may = members
            .active()
            .filter(|member| retires(member, terms, now).is_some());
        may.map(|member| member.id).collect()
    }

    /// Retires members, where the reason still holds.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is written.
    pub(crate) async fn retire(
        &self,
        guests: &[GuestId],
        terms: &Retirement,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        if guests.is_empty() {
            return Ok(());
        }
        let retired = self.change(now, |members| {
            let puts = guests.iter().filter_map(|guest| {
                let member = members.member(*guest).filter(|member| !member.is_ended())?;
                let why = retires(member, terms, now)?;
                Some(end(member, false, why, now))
            });
            let puts: Vec<Put> = puts.collect();
            Ok::<_, StoreError>((puts.len(), puts))
        });
        let retired = retired.await?;
        tracing::info!(retired, "members were retired");
        Ok(())
    }

    /// Removes what has been kept long enough.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn tidy(&self, now: SystemTime) -> Result<(), StoreError> {
        if !tidied(&self.members(), now).is_empty() {
            self.change(now, |members| {
                Ok::<_, StoreError>(((), tidied(members, now)))
            })
            .await?;
        }
        let now_s = i64::try_from(seconds(now)).unwrap_or(i64::MAX);
        self.store.forget_deleted(now_s).await
    }
}

/// Why a member leaves, if it has no session.
fn retires(member: &Member, terms: &Retirement, now: SystemTime) -> Option<&'static str> {
    let deleted_for = match member.ephemeral {
        true => terms.deleted_for,
        false => terms.kept_deleted_for,
    };
    let is_past = |at_s: u64, by: Duration| seconds(now) >= at_s.saturating_add(by.as_secs());
    if member
        .vm_gone_s
        .is_some_and(|at_s| is_past(at_s, deleted_for))
    {
        return Some("its VM was deleted");
    }
    let until_s = member.certified_until_s();
    if member.ephemeral && is_past(until_s, EPHEMERAL_GRACE) {
        return Some("its last certificate is over");
    }
    None
}

fn noted(members: &Members, notes: &[Note], now: SystemTime) -> Vec<Put> {
    let mut changed: BTreeMap<GuestId, Member> = BTreeMap::new();
    for note in notes {
        let (Note::KeySeen(id, _)
        | Note::MachineIs(id, _)
        | Note::VmDeleted(id)
        | Note::VmFound(id)) = note;
        let known = changed.get(id).or_else(|| members.member(*id));
        let next = known
            .filter(|member| !member.is_ended())
            .and_then(|member| with_note(member, note, now));
        if let Some(next) = next {
            changed.insert(*id, next);
        }
    }
    changed.values().map(Put::member).collect()
}

/// `None`: nothing changes.
fn with_note(member: &Member, note: &Note, now: SystemTime) -> Option<Member> {
    let mut next = member.clone();
    match note {
        Note::KeySeen(_, key) => return seen_with(member, KeyId(*key)),
        Note::MachineIs(_, machine) => next.machine = machine.clone(),
        Note::VmDeleted(_) => {
            let at_s = member.vm_gone_s.unwrap_or_else(|| seconds(now));
            next.vm_gone_s = Some(at_s);
        }
        Note::VmFound(_) => next.vm_gone_s = None,
    }
    (next != *member).then_some(next)
}

fn tidied(members: &Members, now: SystemTime) -> Vec<Put> {
    let is_past = |at_s: u64, by: Duration| seconds(now) >= at_s.saturating_add(by.as_secs());
    let ended = members.members().filter(|member| {
        let ended = member.ended.as_ref();
        ended.is_some_and(|ended| is_past(ended.at_s, RECORD_LIFE))
    });
    let ended = ended.map(|member| Put::gone(MEMBER, member.id.to_string()));
    let tokens = members
        .tokens()
        .filter(|token| is_past(seconds(token.expires_at), TOKEN_RECORD_LIFE));
    let tokens = tokens.map(|token| Put::gone(TOKEN, token.hash.to_string()));
    let waiting = members.all_pending().filter(|entry| is_over(entry, now));
    let waiting = waiting.map(|entry| Put::gone(PENDING, entry.id.clone()));
    ended
        .chain(tokens)
        .chain(waiting)
        .take(TIDIED_AT_ONCE)
        .collect()
}

impl Copy<'_> {
    fn plan(&self, members: &Members, guest: GuestId) -> Result<CopyPlan, Refusal> {
        let parent = members.member(self.of).ok_or(Refusal::UnknownGuest)?;
        if parent.is_ended() {
            return Err(Refusal::Revoked);
        }
        if let Some(member) = members.with_key(self.key.id) {
            // Its answer was lost on the way.
            return match member.copy_of {
                Some(of) if of == self.of && !member.is_ended() => Ok(CopyPlan::Again(member.id)),
                _ => Err(Refusal::Request("its key is another guest's".to_owned())),
            };
        }
        let pool = parent.pool.as_ref().and_then(|name| members.pool(name));
        let origin = parent.origin.unwrap_or(parent.id);
        let entry_id = self.entry_id(origin);
        let entry = members.pending(&entry_id);
        let entry = entry.filter(|entry| !is_over(entry, self.now));
        let mut puts = Vec::new();
        match entry.map(|entry| &entry.decision) {
            Some(Decision::Denied) => return Err(Refusal::Denied),
            Some(Decision::Approved) => puts.push(Put::gone(PENDING, entry_id)),
            Some(Decision::Waiting) => return Ok(CopyPlan::Queue(Vec::new())),
            None if self.lately(members, origin) >= REKEYS_PER_HOUR => {
                let waiting = self.waiting(parent, entry_id);
                may_wait(members, &waiting, self.now)?;
                return Ok(CopyPlan::Queue(vec![Put::pending(&waiting)]));
            }
            None => {}
        }
        has_room(members, pool, &[])?;
        puts.push(Put::member(&self.member(parent, guest, origin)));
        Ok(CopyPlan::Join(puts))
    }

    /// One machine waits once, whatever keys it asks with.
    fn entry_id(&self, origin: GuestId) -> String {
        let Some(uuid) = self.machine.system_uuid else {
            return self.key.id.to_string();
        };
        let what = [origin.0, uuid].concat();
        let mut id = pki::Fingerprint::of(&what).to_string();
        id.truncate(2 * size_of::<Key>());
        id
    }

    /// Copies of one machine, and copies of those, that joined within an hour.
    fn lately(&self, members: &Members, origin: GuestId) -> usize {
        let since_s = seconds(self.now).saturating_sub(HOUR.as_secs());
        let lately = members
            .members()
            .filter(|member| member.origin == Some(origin) && member.joined_s > since_s);
        lately.count()
    }

    fn waiting(&self, parent: &Member, id: String) -> Pending {
        Pending {
            id,
            pool: parent.pool.clone(),
            token: String::new(),
            copy_of: Some(parent.id),
            hostname: parent.hostname.clone(),
            machine: self.machine.clone(),
            address: parent.address,
            asked_s: seconds(self.now),
            why: format!("more than {REKEYS_PER_HOUR} copies of this guest within an hour"),
            decision: Decision::Waiting,
        }
    }

    fn member(&self, parent: &Member, id: GuestId, origin: GuestId) -> Member {
        Member {
            id,
            machine: self.machine.clone(),
            joined_s: seconds(self.now),
            vm: None,
            serial: 1,
            key: Some(self.key),
            issued: Vec::new(),
            copy_of: Some(parent.id),
            origin: Some(origin),
            vm_gone_s: None,
            ..parent.clone()
        }
    }
}
