//! Who belongs to the fleet, and for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use model::GuestId;
use pki::{Ca, CertificateDer, LIFETIME, SignError, Validity};
use tokio::sync::{Mutex, MutexGuard, broadcast, oneshot};

use crate::fleet::{STALE_AFTER, Store, StoreError};
use crate::journal::{self, JournalError};
use crate::members::{Ended, Member, Members, PENDING, Pending, Put, Renewal, renewed, seconds};
use crate::terms::TOKENS_MAX;

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
    /// Said to who approves.
    #[error("this request names no guest whose place the machine could take")]
    NoRivals,
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
    /// A copy that nobody told that it is one, or one of too many.
    #[error("a person is to approve an identity of its own for this machine")]
    Waits,
    /// Sessions are known to the placer alone, and this controller is not the placer.
    #[error("this controller does not place: try again")]
    NotPlacer,
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

/// A renewal that is to be written down, and who waits for that.
type WaitingRenewal = (GuestId, Renewal, oneshot::Sender<Result<(), Refusal>>);

/// The fleet's CA and its members, as they are in the database. What changes something waits for
/// the database, the queries never do.
pub struct Authority {
    pub(crate) ca: Ca,
    pub(crate) store: Store,
    /// Held by whoever changes something or reads anew.
    gate: Mutex<()>,
    members: RwLock<Members>,
    renewals: std::sync::Mutex<Vec<WaitingRenewal>>,
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
            renewals: std::sync::Mutex::default(),
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
        self.tell_ended(ended);
        Ok(())
    }

    fn tell_ended(&self, ended: impl IntoIterator<Item = GuestId>) {
        for guest in ended {
            // Nobody may listen.
            let _ = self.ended.send(guest);
        }
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
        let before = std::mem::replace(
            &mut *self.members.write().unwrap_or_else(PoisonError::into_inner),
            members,
        );
        // Who ended meanwhile, or was ended and forgotten.
        let went = before.active().filter(|member| {
            let members = self.members();
            members.member(member.id).is_none_or(Member::is_ended)
        });
        self.tell_ended(went.map(|member| member.id));
        Ok(())
    }

    /// One change: looks at the members as they are in the database, then writes, all or nothing.
    pub(crate) async fn change<T, E: From<StoreError>>(
        &self,
        now: SystemTime,
        decide: impl FnOnce(&Members) -> Result<(T, Vec<Put>), E> + Send,
    ) -> Result<T, E> {
        let gate = self.gate.lock().await;
        self.change_held(&gate, now, decide).await
    }

    async fn change_held<T, E: From<StoreError>>(
        &self,
        _gate: &MutexGuard<'_, ()>,
        now: SystemTime,
        decide: impl FnOnce(&Members) -> Result<(T, Vec<Put>), E> + Send,
    ) -> Result<T, E> {
        let seen = self.members().seen;
        let now_s = i64::try_from(seconds(now)).unwrap_or(i64::MAX);
        let changed = self.store.change_identity(seen, now_s, |news| {
            self.apply(&news)?;
            decide(&self.members())
        });
        let (answer, rows) = Box::pin(changed).await?;
        self.apply(&rows)?;
        Ok(answer)
    }

    /// Writes a renewal down, together with all that wait for the database meanwhile: after an
    /// outage a whole fleet renews at once.
    pub(crate) async fn write_renewal(
        &self,
        guest: GuestId,
        renewal: Renewal,
    ) -> Result<(), Refusal> {
        let (done, written) = oneshot::channel();
        self.lock_renewals().push((guest, renewal, done));
        let gate = self.gate.lock().await;
        // Nothing: whoever held the gate has written this one, too.
        let waiting = std::mem::take(&mut *self.lock_renewals());
        if !waiting.is_empty() {
            let asked = waiting.iter().map(|(guest, renewal, _)| (*guest, renewal));
            let asked: Vec<(GuestId, &Renewal)> = asked.collect();
            let all = self.change_held(&gate, renewal.now, |members| {
                Ok::<_, StoreError>(all_renewed(members, &asked))
            });
            let results = all.await?;
            for ((_, _, done), result) in waiting.into_iter().zip(results) {
                // Who asked may have gone.
                let _ = done.send(result);
            }
        }
        drop(gate);
        // Whoever wrote it down failed.
        written.await.unwrap_or(Err(Refusal::Internal))
    }

    fn lock_renewals(&self) -> std::sync::MutexGuard<'_, Vec<WaitingRenewal>> {
        let renewals = self.renewals.lock();
        renewals.unwrap_or_else(PoisonError::into_inner)
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

    /// Where other controllers share the database, guests that are not known here may be known there.
    pub(crate) async fn know(&self, guests: Vec<GuestId>) {
        if self.knows(&guests) {
            return;
        }
        if let Err(error) = self.refresh().await {
            let error = crate::chain(&error);
            tracing::warn!(error, "what other controllers changed is not known");
        }
    }

    fn knows(&self, guests: &[GuestId]) -> bool {
        let members = self.members();
        let is_known = |guest: &GuestId| members.member(*guest).is_some();
        !self.store.is_shared() || guests.iter().all(is_known)
    }

    /// Looks for a guest that is not known here; one that nobody knows has ended.
    pub async fn look_up(&self, guest: GuestId) {
        if self.knows(&[guest]) {
            return;
        }
        let read = self.refresh().await;
        if read.is_ok() && self.members().member(guest).is_none() {
            self.tell_ended([guest]);
        }
    }

    /// Revokes a guest, and with it all that came of it by re-keying, if these are to go, too: in one
    /// change. Those that are revoked by it; `None` where the guest is not known.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed.
    pub async fn revoke(
        &self,
        guest: GuestId,
        with_copies: bool,
        why: &str,
        now: SystemTime,
    ) -> Result<Option<Vec<GuestId>>, AuthorityError> {
        self.change(now, |members| {
            if members.member(guest).is_none() {
                return Ok((None, Vec::new()));
            }
            let meant = match with_copies {
                true => members.with_copies(guest),
                false => BTreeSet::from([guest]),
            };
            let is_revoked = |member: &&Member| member.ended.as_ref().is_some_and(|it| it.revoked);
            let known = meant.iter().filter_map(|id| members.member(*id));
            let revoked: Vec<&Member> = known.filter(|member| !is_revoked(member)).collect();
            let mut puts: Vec<Put> = revoked
                .iter()
                .map(|member| end(member, true, why, now))
                .collect();
            // Their copies get nothing any more.
            let is_of_them = |entry: &&Pending| entry.copy_of.is_some_and(|it| meant.contains(&it));
            let waiting = members.all_pending().filter(is_of_them);
            puts.extend(waiting.map(|entry| Put::gone(PENDING, entry.id.clone())));
            Ok((Some(revoked.iter().map(|member| member.id).collect()), puts))
        })
        .await
    }

    /// A member; `None` where it is not known.
    #[must_use]
    pub fn guest(&self, guest: GuestId) -> Option<Member> {
        self.members().member(guest).cloned()
    }

    /// Members that have ended and could still begin a session: whose certificates are all over can
    /// only ask for a new one, and get none. So the list stays short where desktops come and go.
    #[must_use]
    pub fn revoked(&self, now: SystemTime) -> Vec<GuestId> {
        let members = self.members();
        let ended = members
            .members()
            .filter(|member| member.is_ended() && member.may_be_certified(now));
        ended.map(|member| member.id).collect()
    }

    /// Members that are active, were revoked, and were retired.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for member in self.members().members() {
            let [active, revoked, retired] = &mut counts;
            let count = match &member.ended {
                None => active,
                Some(ended) if ended.revoked => revoked,
                Some(_) => retired,
            };
            *count += 1;
        }
        counts
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

/// What each renewal comes to, and what they write.
fn all_renewed(
    members: &Members,
    asked: &[(GuestId, &Renewal)],
) -> (Vec<Result<(), Refusal>>, Vec<Put>) {
    let mut next: BTreeMap<GuestId, Member> = BTreeMap::new();
    let results = asked.iter().map(|(guest, renewal)| {
        let member = next.get(guest).or_else(|| members.member(*guest));
        let member = renewed(member.ok_or(Refusal::UnknownGuest)?, renewal)?;
        next.insert(*guest, member);
        Ok(())
    });
    let results = results.collect();
    (results, next.values().map(Put::member).collect())
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

pub(crate) fn refused(error: SignError) -> Refusal {
    match error {
        SignError::Request(request) => Refusal::Request(request.to_string()),
        other => {
            tracing::error!(error = %other, "a certificate could not be signed");
            Refusal::Internal
        }
    }
}
