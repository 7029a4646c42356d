//! What the placer sees of members is written down here: keys that are shown, machines, VMs that
//! are gone; and who leaves the fleet by it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use fleet_core::{CopyOf, KnownGuest, Note};
use model::GuestId;
use pki::KeyId;

use crate::authority::{Authority, end};
use crate::fleet::{Retirement, StoreError};
use crate::members::{
    MEMBER, Member, Members, PENDING, Put, TOKEN, is_over, seconds, seen_with, told_with,
};

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
        | Note::CopyTold(CopyOf { guest: id, .. })
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
        Note::CopyTold(copy) => return told_with(member, copy, now),
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
