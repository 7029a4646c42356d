//! Copies of members get identities of their own: those that were told so, without a person.

use std::time::{Duration, SystemTime};

use model::{GuestId, Machine};
use pki::{CertificateDer, KeyId};

use crate::authority::{Authority, Refusal};
use crate::members::{
    Decision, KeyRecord, Member, Members, PENDING, Pending, Put, has_room, is_over, may_wait,
    seconds, waiting_id,
};

/// Copies of one machine that get an identity within an hour, without a person.
pub const REKEYS_PER_HOUR: usize = 16;
const HOUR: Duration = Duration::from_secs(3600);

/// A member's session that asks for an identity of its own.
#[derive(Debug, Clone, Copy)]
pub struct Rekey<'a> {
    /// Of whom it says that it is a copy: whose certificate it has.
    pub of: GuestId,
    /// The key that its session has shown. `None`: it is not known.
    pub shown: Option<KeyId>,
    /// What its machine says of itself.
    pub machine: &'a Machine,
    /// The placer sees that it is a copy. Else it counts whether that was told before.
    pub is_seen: bool,
}

/// The same, with the key that the certificate is for.
struct Copy<'a> {
    asks: Rekey<'a>,
    key: KeyRecord,
    now: SystemTime,
}

/// What is to become of it.
enum CopyPlan {
    Again(GuestId),
    Join(Vec<Put>),
    Queue(Vec<Put>),
}

impl Authority {
    /// Gives a copy of a member an identity of its own.
    ///
    /// # Errors
    /// [`Refusal`]; with [`Refusal::Waits`] a person is to approve it.
    pub async fn rekey(
        &self,
        asks: Rekey<'_>,
        csr_der: &[u8],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        let of = asks.of;
        if self.guest(of).is_none() {
            self.refresh().await?;
        }
        let member = self.guest(of).ok_or(Refusal::UnknownGuest)?;
        let guest = GuestId(pki::random().map_err(|_| Refusal::Internal)?);
        let (cert, key) = self.sign(guest, csr_der, member.ephemeral, now)?;
        let copy = Copy { asks, key, now };
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
}

impl Copy<'_> {
    fn plan(&self, members: &Members, guest: GuestId) -> Result<CopyPlan, Refusal> {
        let of = self.asks.of;
        let parent = members.member(of).ok_or(Refusal::UnknownGuest)?;
        if parent.is_ended() {
            return Err(Refusal::Revoked);
        }
        if let Some(member) = members.with_key(self.key.id) {
            // Its answer was lost on the way.
            return match member.copy_of {
                Some(its) if its == of && !member.is_ended() => Ok(CopyPlan::Again(member.id)),
                _ => Err(Refusal::Request("its key is another guest's".to_owned())),
            };
        }
        let origin = parent.origin.unwrap_or(parent.id);
        let entry_id = self.entry_id(origin);
        let entry = members.pending(&entry_id);
        let entry = entry.filter(|entry| !is_over(entry, self.now));
        let told = self.told(parent);
        let decision = entry.map(|entry| &entry.decision);
        let doubt = self.doubt(members, origin, told.is_some());
        match (decision, doubt) {
            (Some(Decision::Denied), _) => return Err(Refusal::Denied),
            (Some(Decision::Waiting), Some(_)) => return Ok(CopyPlan::Queue(Vec::new())),
            (None, Some(why)) => {
                let waiting = self.waiting(parent, entry_id, why);
                may_wait(members, &waiting, self.now)?;
                return Ok(CopyPlan::Queue(vec![Put::pending(&waiting)]));
            }
            (Some(Decision::Approved), _) | (_, None) => {}
        }
        let pool = parent.pool.as_ref().and_then(|name| members.pool(name));
        has_room(members, pool, &[])?;
        let mut puts = vec![Put::member(&self.member(parent, guest, origin))];
        if entry.is_some() {
            puts.push(Put::gone(PENDING, entry_id));
        }
        if let Some(at) = told {
            // One that was told gets one identity.
            let mut parent = parent.clone();
            parent.told.remove(at);
            puts.push(Put::member(&parent));
        }
        Ok(CopyPlan::Join(puts))
    }

    /// Where the parent's record has that this one was told: the one that is the same in all, or one
    /// that it may be.
    fn told(&self, parent: &Member) -> Option<usize> {
        let Rekey { shown, machine, .. } = self.asks;
        let open = parent.told.iter().enumerate();
        let open = open.filter(|(_, told)| told.is_open(self.now) && told.is(shown, machine));
        let is_exact = |told: &Machine| {
            told.boot_id == machine.boot_id && told.generation_id == machine.generation_id
        };
        let best = open.max_by_key(|(_, told)| is_exact(&told.machine));
        best.map(|(at, _)| at)
    }

    /// Why a person is to say yes; `None`: nobody need.
    fn doubt(&self, members: &Members, origin: GuestId, is_told: bool) -> Option<String> {
        if !is_told && !self.asks.is_seen {
            return Some("it was not told that it is a copy".to_owned());
        }
        let is_many = self.lately(members, origin) >= REKEYS_PER_HOUR;
        is_many.then(|| format!("more than {REKEYS_PER_HOUR} copies of this guest within an hour"))
    }

    /// One machine waits once, whatever keys it asks with.
    fn entry_id(&self, origin: GuestId) -> String {
        let Some(uuid) = self.asks.machine.system_uuid else {
            return self.key.id.to_string();
        };
        waiting_id(&[origin.0, uuid].concat())
    }

    /// Copies of one machine, and copies of those, that joined within an hour.
    fn lately(&self, members: &Members, origin: GuestId) -> usize {
        let since_s = seconds(self.now).saturating_sub(HOUR.as_secs());
        let lately = members
            .members()
            .filter(|member| member.origin == Some(origin) && member.joined_s > since_s);
        lately.count()
    }

    fn waiting(&self, parent: &Member, id: String, why: String) -> Pending {
        Pending {
            id,
            pool: parent.pool.clone(),
            token: String::new(),
            copy_of: Some(parent.id),
            hostname: parent.hostname.clone(),
            machine: self.asks.machine.clone(),
            address: parent.address,
            asked_s: seconds(self.now),
            why,
            rivals: Vec::new(),
            decision: Decision::Waiting,
            replaces: false,
        }
    }

    fn member(&self, parent: &Member, id: GuestId, origin: GuestId) -> Member {
        Member {
            id,
            machine: self.asks.machine.clone(),
            joined_s: seconds(self.now),
            vm: None,
            ek: None,
            serial: 1,
            key: Some(self.key),
            issued: Vec::new(),
            copy_of: Some(parent.id),
            origin: Some(origin),
            vm_gone_s: None,
            told: Vec::new(),
            ..parent.clone()
        }
    }
}
