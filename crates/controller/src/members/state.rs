//! Everything of the fleet's identity, in memory, as the database had it at one change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use model::GuestId;
use pki::{KeyId, SecretHash};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tpm::EkId;

use super::pool::Pool;
use super::records::{Member, MemberBody, Pending, PendingBody, TokenBody, TokenInfo};
use crate::fleet::{IdentityRow, StoreError};

/// Kinds of rows.
pub(crate) const MEMBER: &str = "member";
pub(crate) const TOKEN: &str = "token";
pub(crate) const POOL: &str = "pool";
pub(crate) const PENDING: &str = "pending";
/// A journal that was taken over.
pub(crate) const JOURNAL: &str = "journal";

/// Something to write down. Without a body it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) kind: &'static str,
    pub(crate) id: String,
    pub(crate) body: Option<String>,
}

impl Put {
    fn of<T: Serialize>(kind: &'static str, id: String, body: &T) -> Self {
        // Plain data: this cannot fail.
        let body = serde_json::to_string(body).unwrap_or_default();
        Self {
            kind,
            id,
            body: Some(body),
        }
    }

    pub(crate) fn member(member: &Member) -> Self {
        Self::of(MEMBER, member.id.to_string(), &MemberBody::from(member))
    }

    pub(crate) fn token(token: &TokenInfo) -> Self {
        Self::of(TOKEN, token.hash.to_string(), &TokenBody::from(token))
    }

    pub(crate) fn pool(pool: &Pool) -> Self {
        Self::of(POOL, pool.name.clone(), pool)
    }

    pub(crate) fn pending(pending: &Pending) -> Self {
        Self::of(PENDING, pending.id.clone(), &PendingBody::from(pending))
    }

    pub(crate) fn journal(fingerprint: String) -> Self {
        Self::of(JOURNAL, fingerprint, &true)
    }

    pub(crate) fn gone(kind: &'static str, id: String) -> Self {
        Self {
            kind,
            id,
            body: None,
        }
    }
}

/// The picture. Changed by rows alone, so that every controller has the same.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// The last change that is in it.
    pub(crate) seen: i64,
    members: HashMap<GuestId, Member>,
    /// In the order they joined, oldest first.
    order: BTreeSet<(u64, GuestId)>,
    by_key: HashMap<KeyId, GuestId>,
    tokens: BTreeMap<String, TokenInfo>,
    pools: BTreeMap<String, Pool>,
    pending: BTreeMap<String, Pending>,
    journals: BTreeSet<String>,
}

impl Members {
    /// Takes rows, in the order of their changes. Members that have ended with them are returned.
    ///
    /// # Errors
    /// A row makes no sense.
    pub(crate) fn apply(&mut self, rows: &[IdentityRow]) -> Result<Vec<GuestId>, StoreError> {
        let mut ended = Vec::new();
        for row in rows {
            match row.kind.as_str() {
                MEMBER => ended.extend(self.apply_member(row)?),
                TOKEN => {
                    self.tokens.remove(&row.id);
                    if let Some(body) = parse::<TokenBody>(row)? {
                        let token = body.token(&row.id).ok_or_else(|| senseless(row))?;
                        self.tokens.insert(row.id.clone(), token);
                    }
                }
                POOL => {
                    self.pools.remove(&row.id);
                    if let Some(pool) = parse(row)? {
                        self.pools.insert(row.id.clone(), pool);
                    }
                }
                PENDING => {
                    self.pending.remove(&row.id);
                    if let Some(body) = parse::<PendingBody>(row)? {
                        let pending = body.pending(row.id.clone());
                        self.pending.insert(row.id.clone(), pending);
                    }
                }
                JOURNAL => {
                    self.journals.insert(row.id.clone());
                }
                _ => return Err(senseless(row)),
            }
            self.seen = self.seen.max(row.change);
        }
        Ok(ended)
    }

    fn apply_member(&mut self, row: &IdentityRow) -> Result<Option<GuestId>, StoreError> {
        let id = GuestId::from_hex(&row.id).ok_or_else(|| senseless(row))?;
        let old = self.members.remove(&id);
        if let Some(old) = &old {
            self.order.remove(&(old.joined_s, id));
            for key in old.key.iter().chain(&old.issued) {
                self.by_key.remove(&key.id);
            }
        }
        let was_there = old.is_some_and(|old| !old.is_ended());
        let Some(body) = parse::<MemberBody>(row)? else {
            return Ok(was_there.then_some(id));
        };
        let member = body.member(id);
        self.order.insert((member.joined_s, id));
        for key in member.key.iter().chain(&member.issued) {
            self.by_key.insert(key.id, id);
        }
        let has_ended = was_there && member.is_ended();
        self.members.insert(id, member);
        Ok(has_ended.then_some(id))
    }

    pub(crate) fn member(&self, guest: GuestId) -> Option<&Member> {
        self.members.get(&guest)
    }

    /// The member that has a certificate for this key, or will show one.
    pub(crate) fn with_key(&self, key: KeyId) -> Option<&Member> {
        self.members.get(self.by_key.get(&key)?)
    }

    /// In the order they joined.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.order.iter().filter_map(|(_, id)| self.members.get(id))
    }

    /// Members that joined with this TPM.
    pub(crate) fn active_with(&self, ek: EkId) -> impl Iterator<Item = &Member> {
        self.active().filter(move |member| member.ek == Some(ek))
    }

    /// One that joined with this TPM and was revoked, as long as its record is kept.
    pub(crate) fn revoked_with(&self, ek: EkId) -> Option<GuestId> {
        let mut with_it = self.members.values().filter(|it| it.ek == Some(ek));
        let revoked = |it: &&Member| it.ended.as_ref().is_some_and(|ended| ended.revoked);
        with_it.find(revoked).map(|member| member.id)
    }

    /// Those that have not ended.
    pub(crate) fn active(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| !member.is_ended())
    }

    /// A member, and those that came of it by re-keying, and of those. A record between may have been
    /// forgotten: the first of all is known to each.
    pub(crate) fn with_copies(&self, guest: GuestId) -> BTreeSet<GuestId> {
        let mut copies: BTreeMap<GuestId, Vec<GuestId>> = BTreeMap::new();
        let mut found = BTreeSet::new();
        let mut next = vec![guest];
        for member in self.members.values() {
            if let Some(of) = member.copy_of {
                copies.entry(of).or_default().push(member.id);
            }
            next.extend((member.origin == Some(guest)).then_some(member.id));
        }
        while let Some(one) = next.pop() {
            if found.insert(one) {
                next.extend(copies.get(&one).into_iter().flatten());
            }
        }
        found
    }

    /// Those of a pool that have not ended.
    pub(crate) fn of_pool<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Member> {
        self.active()
            .filter(move |member| member.pool.as_deref() == Some(name))
    }

    /// Looks at every token, so that the time tells nothing of which one it was.
    pub(crate) fn token(&self, offered: &SecretHash) -> Option<&TokenInfo> {
        let mut found = None;
        for token in self.tokens.values() {
            if token.hash == *offered {
                found = Some(token);
            }
        }
        found
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = &TokenInfo> {
        self.tokens.values()
    }

    pub(crate) fn good_tokens(&self, now: SystemTime) -> impl Iterator<Item = &TokenInfo> {
        self.tokens.values().filter(move |token| token.is_good(now))
    }

    pub(crate) fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    pub(crate) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
    }

    pub(crate) fn pending(&self, id: &str) -> Option<&Pending> {
        self.pending.get(id)
    }

    pub(crate) fn all_pending(&self) -> impl Iterator<Item = &Pending> {
        self.pending.values()
    }

    pub(crate) fn has_journal(&self, fingerprint: &str) -> bool {
        self.journals.contains(fingerprint)
    }
}

fn parse<T: DeserializeOwned>(row: &IdentityRow) -> Result<Option<T>, StoreError> {
    let body = row.body.as_deref().map(serde_json::from_str).transpose();
    body.map_err(|source| StoreError::Identity {
        kind: row.kind.clone(),
        id: row.id.clone(),
        why: source.to_string(),
    })
}

fn senseless(row: &IdentityRow) -> StoreError {
    StoreError::Identity {
        kind: row.kind.clone(),
        id: row.id.clone(),
        why: "it makes no sense".to_owned(),
    }
}
