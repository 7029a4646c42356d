//! Who belongs to the fleet, and for how long.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use model::GuestId;
use pki::{Ca, CertificateDer, JoinToken, LIFETIME, SignError, Validity};
use tokio::sync::{Mutex, broadcast};

use crate::fleet::{STALE_AFTER, Store, StoreError};
use crate::journal::{self, JournalError};
use crate::members::{Ended, Member, Members, POOL, Pool, Put, TOKEN, TokenInfo, VmRef, seconds};

/// Tokens that may be good at once: each attempt to join is compared with every one.
pub const TOKENS_MAX: usize = 10_000;
/// Pools at once.
pub const POOLS_MAX: usize = 1000;
/// Longest name of a pool.
const POOL_NAME_MAX_BYTES: usize = 64;
/// Ranges, tags and clusters of a pool, each.
const POOL_SCOPE_MAX: usize = 64;
/// What other controllers have changed is looked for so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Members that ended and that nobody has heard of yet; who is behind reads all of them anew.
const ENDED_QUEUE: usize = 10_000;

/// The fleet's members cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// No random bytes.
    #[error(transparent)]
    NoRandomness(#[from] pki::NoRandomness),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A journal of an earlier version cannot be taken over.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A token that nobody could use, or for ever.
    #[error("a join token needs at least one use and a life of at most 10 years")]
    TokenTerms,
    /// As many tokens are good as may be.
    #[error("there are {TOKENS_MAX} join tokens; let some expire first")]
    TooManyTokens,
    /// A pool that cannot be.
    #[error("{0}")]
    Pool(String),
    /// Nothing of that name.
    #[error("no {what} {name:?}")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// How it was called.
        name: String,
    },
    /// It may not be.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why a guest does not get a certificate; the text is for people and is sent to the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Unknown, used up or expired: a guest is not told which.
    #[error("the join token is not valid")]
    Token,
    /// Said to who approves.
    #[error(
        "the join token of this request is used up or forgotten; the machine needs another one"
    )]
    TokenSpent,
    /// The request for a certificate is not acceptable.
    #[error("the certificate request is not acceptable: {0}")]
    Request(String),
    /// A field of the request is not acceptable.
    #[error("{0} is not acceptable")]
    Field(&'static str),
    /// No such guest.
    #[error("this guest is not known")]
    UnknownGuest,
    /// It was revoked, or retired.
    #[error("this guest has been revoked")]
    Revoked,
    /// The token's pool was removed.
    #[error("the join token's pool is no more")]
    NoPool,
    /// It comes from an address that the pool does not take.
    #[error("this address is not one of the pool's")]
    Range,
    /// The pool has as many members as it may.
    #[error("the pool is full")]
    PoolFull,
    /// Too many wait for a person's word.
    #[error("too many machines wait for approval; try again later")]
    QueueFull,
    /// A person said no.
    #[error("a person has denied it")]
    Denied,
    /// The token is for a VM, and this is another one.
    #[error("the join token is for another machine")]
    OtherVm,
    /// The key is in memory only, and its certificate is over.
    #[error("the certificate has expired: enrol again")]
    Expired,
    /// Too many copies of a guest asked for identities: a person is to approve it.
    #[error("too many copies of this guest ask for an identity: a person is to approve this one")]
    Waits,
    /// Something of ours failed.
    #[error("the controller could not do it")]
    Internal,
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %crate::chain(&error), "the fleet's database: nothing is changed");
        Self::Internal
    }
}

/// On what terms a token is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenTerms {
    /// Guests that may join with it.
    pub uses_max: u32,
    /// For how long.
    pub valid: Duration,
    /// The pool that they belong to.
    pub pool: Option<String>,
    /// The only VM that may use it.
    pub vm: Option<VmRef>,
}

/// The fleet's CA and its members, as they are in the database. What changes something waits for
/// the database, the queries never do.
pub struct Authority {
    pub(crate) ca: Ca,
    pub(crate) store: Store,
    /// Held by whoever changes something or reads anew.
    gate: Mutex<()>,
    members: RwLock<Members>,
    ended: broadcast::Sender<GuestId>,
}

impl Authority {
    /// Reads the members from the database. A journal of an earlier version in `dir` is taken over.
    ///
    /// # Errors
    /// [`AuthorityError`]; another CA's database is refused.
    pub async fn open(store: Store, ca: Ca, dir: &Path) -> Result<Self, AuthorityError> {
        store.belongs_to(&ca.fingerprint().to_string()).await?;
        let (ended, _) = broadcast::channel(ENDED_QUEUE);
        let authority = Self {
            ca,
            store,
            gate: Mutex::new(()),
            members: RwLock::default(),
            ended,
        };
        authority.refresh().await?;
        if let Some(old) = journal::read(dir)? {
            let now = SystemTime::now();
            let (taken, fingerprint) = (&old, old.fingerprint.clone());
            let count = authority
                .change::<_, AuthorityError>(now, move |members| {
                    if members.has_journal(&fingerprint) {
                        return Ok((0, Vec::new()));
                    }
                    let puts = taken.puts(members)?;
                    Ok((puts.len(), puts))
                })
                .await?;
            old.set_aside()?;
            tracing::info!(count, "members and tokens were taken over from a journal");
        }
        Ok(authority)
    }

    /// Follows what other controllers change, until the last one else drops it.
    pub async fn follow(self: Arc<Self>) {
        let authority = Arc::downgrade(&self);
        drop(self);
        let mut looked = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(authority) = authority.upgrade() else {
                return;
            };
            if !authority.store.is_shared() {
                continue;
            }
            let stale = looked.elapsed() > STALE_AFTER;
            let read = if stale {
                authority.read_anew().await
            } else {
                authority.refresh().await
            };
            match read {
                Ok(()) => looked = tokio::time::Instant::now(),
                Err(error) => {
                    let error = crate::chain(&error);
                    tracing::warn!(error, "what other controllers changed is not known");
                }
            }
        }
    }

    pub(crate) fn members(&self) -> RwLockReadGuard<'_, Members> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, rows: &[crate::fleet::IdentityRow]) -> Result<(), StoreError> {
        let ended = {
            let members = self.members.write();
            members
                .unwrap_or_else(PoisonError::into_inner)
                .apply(rows)?
        };
        for guest in ended {
            // Nobody may listen.
            let _ = self.ended.send(guest);
        }
        Ok(())
    }

    /// Takes what is newer in the database.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let _gate = self.gate.lock().await;
        let seen = self.members().seen;
        if self.store.identity_last().await? > seen {
            self.apply(&self.store.identity_since(seen).await?)?;
        }
        Ok(())
    }

    /// Reads everything: what was deleted may be forgotten already.
    async fn read_anew(&self) -> Result<(), StoreError> {
        let _gate = self.gate.lock().await;
        let rows = self.store.identity_since(-1).await?;
        let mut members = Members::default();
        members.apply(&rows)?;
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
        Ok(())
    }

    /// One change: looks at the members as they are in the database, then writes, all or nothing.
    pub(crate) async fn change<T, E: From<StoreError>>(
        &self,
        now: SystemTime,
        decide: impl FnOnce(&Members) -> Result<(T, Vec<Put>), E> + Send,
    ) -> Result<T, E> {
        let _gate = self.gate.lock().await;
        let seen = self.members().seen;
        let now_s = i64::try_from(seconds(now)).unwrap_or(i64::MAX);
        let changed = self.store.change_identity(seen, now_s, |news| {
            self.apply(&news)?;
            decide(&self.members())
        });
        let (answer, rows) = changed.await?;
        self.apply(&rows)?;
        Ok(answer)
    }

    /// Members that end from now on: revoked or retired, here or at another controller.
    #[must_use]
    pub fn ended(&self) -> broadcast::Receiver<GuestId> {
        self.ended.subscribe()
    }

    /// The CA.
    #[must_use]
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// What guests shall trust.
    #[must_use]
    pub fn anchors(&self) -> Vec<CertificateDer<'static>> {
        vec![self.ca.cert().clone()]
    }

    /// Makes a join token, good until `now + terms.valid`.
    ///
    /// # Errors
    /// [`AuthorityError`]; no token was made then.
    pub async fn issue_token(
        &self,
        terms: TokenTerms,
        now: SystemTime,
    ) -> Result<JoinToken, AuthorityError> {
        let TokenTerms {
            uses_max, valid, ..
        } = terms;
        if uses_max == 0 || valid.is_zero() || valid > pki::CA_LIFETIME {
            return Err(AuthorityError::TokenTerms);
        }
        let token = JoinToken::generate(self.ca.fingerprint())?;
        let info = TokenInfo {
            hash: token.secret.hash(),
            uses_left: if terms.vm.is_some() { 1 } else { uses_max },
            expires_at: now + valid,
            pool: terms.pool,
            vm: terms.vm,
        };
        self.change(now, |members| {
            if let Some(name) = info.pool.as_ref().filter(|it| members.pool(it).is_none()) {
                let (what, name) = ("pool", name.clone());
                return Err(AuthorityError::Unknown { what, name });
            }
            if members.good_tokens(now).count() >= TOKENS_MAX {
                return Err(AuthorityError::TooManyTokens);
            }
            Ok(((), vec![Put::token(&info)]))
        })
        .await?;
        Ok(token)
    }

    /// Tokens that are still good.
    #[must_use]
    pub fn tokens(&self, now: SystemTime) -> Vec<TokenInfo> {
        self.members().good_tokens(now).cloned().collect()
    }

    /// Makes a pool, or changes it for those who join from now on.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed.
    pub async fn set_pool(&self, pool: Pool, now: SystemTime) -> Result<(), AuthorityError> {
        check_pool(&pool)?;
        self.change(now, |members| {
            if members.pool(&pool.name).is_none() && members.pools().count() >= POOLS_MAX {
                let problem = format!("there are {POOLS_MAX} pools");
                return Err(AuthorityError::Pool(problem));
            }
            Ok(((), vec![Put::pool(&pool)]))
        })
        .await
    }

    /// Removes a pool that has no members; its tokens go, too.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed.
    pub async fn remove_pool(&self, name: &str, now: SystemTime) -> Result<(), AuthorityError> {
        self.change(now, |members| {
            if members.pool(name).is_none() {
                let (what, name) = ("pool", name.to_owned());
                return Err(AuthorityError::Unknown { what, name });
            }
            let is_of_it = |pool: &Option<String>| pool.as_deref() == Some(name);
            let left = members.active().filter(|it| is_of_it(&it.pool)).count();
            if left > 0 {
                let problem = format!("the pool {name:?} has {left} members");
                return Err(AuthorityError::Pool(problem));
            }
            let tokens = members.tokens().filter(|it| is_of_it(&it.pool));
            let mut puts: Vec<Put> = tokens
                .map(|token| Put::gone(TOKEN, token.hash.to_string()))
                .collect();
            puts.push(Put::gone(POOL, name.to_owned()));
            Ok(((), puts))
        })
        .await
    }

    /// Every pool with the number of its members, by name.
    #[must_use]
    pub fn pools(&self) -> Vec<(Pool, usize)> {
        let members = self.members();
        let count = |pool: &Pool| {
            let of_it = members.active();
            of_it
                .filter(|member| member.pool.as_ref() == Some(&pool.name))
                .count()
        };
        members
            .pools()
            .map(|pool| (pool.clone(), count(pool)))
            .collect()
    }

    /// Whether a guest may have no session: it has ended, or is not known here. Where other
    /// controllers share the database, what is not known here may be known there:
    /// [`Self::look_up`].
    #[must_use]
    pub fn is_revoked(&self, guest: GuestId) -> bool {
        match self.members().member(guest) {
            Some(member) => member.is_ended(),
            None => !self.store.is_shared(),
        }
    }

    /// Looks for a guest that is not known here; one that nobody knows has ended.
    pub async fn look_up(&self, guest: GuestId) {
        if self.members().member(guest).is_some() {
            return;
        }
        let read = self.refresh().await;
        if read.is_ok() && self.members().member(guest).is_none() {
            let _ = self.ended.send(guest);
        }
    }

    /// Revokes a guest; `false` where it is not known.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed.
    pub async fn revoke(
        &self,
        guest: GuestId,
        why: &str,
        now: SystemTime,
    ) -> Result<bool, AuthorityError> {
        self.change(now, |members| match members.member(guest) {
            None => Ok((false, Vec::new())),
            Some(member) if member.ended.as_ref().is_some_and(|it| it.revoked) => {
                Ok((true, Vec::new()))
            }
            Some(member) => Ok((true, vec![end(member, true, why, now)])),
        })
        .await
    }

    /// A member; `None` where it is not known.
    #[must_use]
    pub fn guest(&self, guest: GuestId) -> Option<Member> {
        self.members().member(guest).cloned()
    }

    /// Members that were revoked or retired.
    #[must_use]
    pub fn revoked(&self) -> Vec<GuestId> {
        let members = self.members();
        let ended = members.members().filter(|member| member.is_ended());
        ended.map(|member| member.id).collect()
    }

    /// The next certificates of an appliance that has shown its own.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn renew_appliance(
        &self,
        name: &str,
        csr_der: &[u8],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        let signed = self
            .ca
            .sign_appliance(csr_der, name, Validity::starting(now, LIFETIME));
        signed.map_err(refused)
    }

    /// The fleet's members, those that have ended included, in the order they joined.
    #[must_use]
    pub fn guests(&self) -> Vec<Member> {
        self.members().members().cloned().collect()
    }

    /// At most `max` members after `skip`, of this pool only where one is named.
    #[must_use]
    pub fn guests_page(&self, pool: Option<&str>, skip: usize, max: usize) -> Vec<Member> {
        let members = self.members();
        let asked = members
            .members()
            .filter(|member| pool.is_none() || member.pool.as_deref() == pool);
        asked.skip(skip).take(max).cloned().collect()
    }
}

/// A member that leaves the fleet.
pub(crate) fn end(member: &Member, revoked: bool, why: &str, now: SystemTime) -> Put {
    let mut member = member.clone();
    member.ended = Some(Ended {
        at_s: seconds(now),
        revoked,
        why: why.to_owned(),
    });
    Put::member(&member)
}

fn check_pool(pool: &Pool) -> Result<(), AuthorityError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name = &pool.name;
    if name.is_empty() || name.len() > POOL_NAME_MAX_BYTES || !name.chars().all(is_plain) {
        let problem = format!(
            "a pool's name has 1 to {POOL_NAME_MAX_BYTES} letters, digits, dots, dashes and underscores"
        );
        return Err(AuthorityError::Pool(problem));
    }
    let counts = [pool.ranges.len(), pool.tags.len(), pool.clusters.len()];
    if counts.iter().any(|count| *count > POOL_SCOPE_MAX) {
        let problem = format!("a pool has at most {POOL_SCOPE_MAX} ranges, tags and clusters each");
        return Err(AuthorityError::Pool(problem));
    }
    Ok(())
}

pub(crate) fn refused(error: SignError) -> Refusal {
    match error {
        SignError::Request(request) => Refusal::Request(request.to_string()),
        other => {
            tracing::error!(error = %other, "a certificate could not be signed");
            Refusal::Internal
        }
    }
}
