//! Who belongs to the fleet, and for how long.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use model::{GuestId, Machine};
use pki::{Ca, CertificateDer, JoinToken, LIFETIME, Secret, SecretHash, SignError, Validity};
use proto::v1;

use crate::journal::{Change, Journal, JournalError};

/// Longest host name that a guest may have.
const HOSTNAME_MAX_BYTES: usize = 255;
/// Tokens that may be good at once: each attempt to join is compared with every one.
pub const TOKENS_MAX: usize = 10_000;

/// The fleet's members cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// No random bytes.
    #[error(transparent)]
    NoRandomness(#[from] pki::NoRandomness),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A change in the journal makes no sense.
    #[error("the journal holds {0}, which makes no sense")]
    Change(String),
    /// A token that nobody could use, or for ever.
    #[error("a join token needs at least one use and a life of at most 10 years")]
    TokenTerms,
    /// As many tokens are good as may be.
    #[error("there are {TOKENS_MAX} join tokens; let some expire first")]
    TooManyTokens,
}

/// Why a guest does not get a certificate; the text is for people and is sent to the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Unknown, used up or expired: a guest is not told which.
    #[error("the join token is not valid")]
    Token,
    /// The request for a certificate is not acceptable.
    #[error("the certificate request is not acceptable: {0}")]
    Request(String),
    /// A field of the request is not acceptable.
    #[error("{0} is not acceptable")]
    Field(&'static str),
    /// No such guest.
    #[error("this guest is not known")]
    UnknownGuest,
    /// It was revoked.
    #[error("this guest has been revoked")]
    Revoked,
    /// Something of ours failed.
    #[error("the controller could not do it")]
    Internal,
}

/// A member of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its id.
    pub id: GuestId,
    /// What it said its host name is; hostile text.
    pub hostname: String,
    /// What it said its SMBIOS UUID is.
    pub system_uuid: Option<[u8; 16]>,
    /// Where it enrolled from.
    pub address: IpAddr,
    /// When it enrolled.
    pub enrolled_at: SystemTime,
    /// It gets no certificate and no session any more.
    pub revoked: bool,
}

/// A join token, as far as the controller knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Hash of its secret.
    pub hash: SecretHash,
    /// Guests that may still join with it.
    pub uses_left: u32,
    /// Last moment it is good for.
    pub expires_at: SystemTime,
}

/// The fleet's CA and its members. What changes something waits for the disk (call it from
/// `spawn_blocking`); `renew` and the queries never do.
pub struct Authority {
    ca: Ca,
    /// Held by whoever changes something, from the look at the members until the change is on
    /// disk and in memory.
    journal: Mutex<Journal>,
    members: RwLock<Members>,
}

#[derive(Default)]
struct Members {
    guests: Vec<Guest>,
    by_id: HashMap<GuestId, usize>,
    tokens: Vec<TokenInfo>,
}

impl Authority {
    /// Opens the state in `dir` (made where missing) for one process at a time.
    ///
    /// # Errors
    /// [`AuthorityError`], naming the file and line.
    pub fn open(dir: &Path, ca: Ca) -> Result<Self, AuthorityError> {
        let (journal, changes) = Journal::open(dir)?;
        let mut members = Members::default();
        for change in &changes {
            members.apply(change)?;
        }
        Ok(Self {
            ca,
            journal: Mutex::new(journal),
            members: RwLock::new(members),
        })
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn members(&self) -> RwLockReadGuard<'_, Members> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn members_mut(&self) -> RwLockWriteGuard<'_, Members> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// First the disk, then memory.
    fn record(&self, journal: &mut Journal, change: &Change) -> Result<(), AuthorityError> {
        journal.append(change)?;
        self.members_mut().apply(change)
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

    /// Makes a join token, good for `uses_max` guests until `now + valid`.
    ///
    /// # Errors
    /// [`AuthorityError`]; no token was made then.
    pub fn issue_token(
        &self,
        uses_max: u32,
        valid: Duration,
        now: SystemTime,
    ) -> Result<JoinToken, AuthorityError> {
        if uses_max == 0 || valid.is_zero() || valid > pki::CA_LIFETIME {
            return Err(AuthorityError::TokenTerms);
        }
        let token = JoinToken::generate(self.ca.fingerprint())?;
        let change = Change::Token {
            hash: token.secret.hash().to_string(),
            uses_max,
            expires_at_s: seconds(now + valid),
        };
        let mut journal = self.journal();
        let count = {
            let mut members = self.members_mut();
            members.tokens.retain(|token| token.is_good(now));
            members.tokens.len()
        };
        if count >= TOKENS_MAX {
            return Err(AuthorityError::TooManyTokens);
        }
        self.record(&mut journal, &change)?;
        Ok(token)
    }

    /// Tokens that are still good.
    #[must_use]
    pub fn tokens(&self, now: SystemTime) -> Vec<TokenInfo> {
        let members = self.members();
        let good = members.tokens.iter().filter(|token| token.is_good(now));
        good.cloned().collect()
    }

    /// Takes a guest into the fleet: spends one use of the token, names the guest, signs its
    /// key. The use is spent and the guest recorded in one step that a crash cannot split.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed.
    pub fn enrol(
        &self,
        request: &v1::EnrolRequest,
        from: IpAddr,
        now: SystemTime,
    ) -> Result<(GuestId, CertificateDer<'static>), Refusal> {
        let secret: Secret = request.token.parse().map_err(|_| Refusal::Token)?;
        let offered = secret.hash();
        if request.hostname.len() > HOSTNAME_MAX_BYTES {
            return Err(Refusal::Field("hostname"));
        }
        let machine = request.machine.as_ref().map(Machine::try_from).transpose();
        let machine = machine.map_err(|_| Refusal::Field("machine"))?;
        let mut journal = self.journal();
        if !self.members().has_use_of(&offered, now) {
            return Err(Refusal::Token);
        }
        let guest = GuestId(pki::random().map_err(|_| Refusal::Internal)?);
        let cert = self.sign(guest, &request.csr, now)?;
        let change = Change::Joined {
            guest: guest.to_string(),
            token_hash: offered.to_string(),
            hostname: request.hostname.clone(),
            system_uuid: machine.and_then(|machine| machine.system_uuid),
            address: from,
            at_s: seconds(now),
        };
        self.record(&mut journal, &change).map_err(|error| {
            tracing::error!(%error, "a guest could not be recorded");
            Refusal::Internal
        })?;
        Ok((guest, cert))
    }

    /// A new certificate for a guest that has shown its (perhaps expired) one. Touches no disk.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn renew(
        &self,
        guest: GuestId,
        csr_der: &[u8],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        let is_revoked = self.members().find(guest).map(|guest| guest.revoked);
        match is_revoked {
            None => Err(Refusal::UnknownGuest),
            Some(true) => Err(Refusal::Revoked),
            Some(false) => Ok(vec![self.sign(guest, csr_der, now)?]),
        }
    }

    /// Whether a guest may have no session: revoked, or never enrolled here.
    #[must_use]
    pub fn is_revoked(&self, guest: GuestId) -> bool {
        self.members().find(guest).is_none_or(|guest| guest.revoked)
    }

    /// Revokes a guest; `false` where it is not known. Its open sessions are the caller's to end.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed.
    pub fn revoke(&self, guest: GuestId, now: SystemTime) -> Result<bool, AuthorityError> {
        let mut journal = self.journal();
        match self.members().find(guest).map(|guest| guest.revoked) {
            None => return Ok(false),
            Some(true) => return Ok(true),
            Some(false) => {}
        }
        let change = Change::Revoked {
            guest: guest.to_string(),
            at_s: seconds(now),
        };
        self.record(&mut journal, &change)?;
        Ok(true)
    }

    /// A member; `None` where it is not known.
    #[must_use]
    pub fn guest(&self, guest: GuestId) -> Option<Guest> {
        self.members().find(guest).cloned()
    }

    /// Members that were revoked.
    #[must_use]
    pub fn revoked(&self) -> Vec<GuestId> {
        let members = self.members();
        let revoked = members.guests.iter().filter(|guest| guest.revoked);
        revoked.map(|guest| guest.id).collect()
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

    /// The fleet's members, in the order they joined.
    #[must_use]
    pub fn guests(&self) -> Vec<Guest> {
        self.members().guests.clone()
    }

    fn sign(
        &self,
        guest: GuestId,
        csr_der: &[u8],
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, Refusal> {
        let validity = Validity::starting(now, LIFETIME);
        let signed = self.ca.sign_guest(csr_der, guest, validity);
        signed.map_err(refused)
    }
}

fn refused(error: SignError) -> Refusal {
    match error {
        SignError::Request(request) => Refusal::Request(request.to_string()),
        other => {
            tracing::error!(error = %other, "a certificate could not be signed");
            Refusal::Internal
        }
    }
}

impl TokenInfo {
    fn is_good(&self, now: SystemTime) -> bool {
        self.uses_left > 0 && now <= self.expires_at
    }
}

impl Members {
    fn find(&self, guest: GuestId) -> Option<&Guest> {
        let index = self.by_id.get(&guest)?;
        self.guests.get(*index)
    }

    /// Looks at every token, so that the time tells nothing of which one it was.
    fn has_use_of(&self, offered: &SecretHash, now: SystemTime) -> bool {
        let tokens = self.tokens.iter();
        let matches = tokens.filter(|token| (token.hash == *offered) & token.is_good(now));
        matches.count() > 0
    }

    fn apply(&mut self, change: &Change) -> Result<(), AuthorityError> {
        let applied = self.try_apply(change);
        applied.ok_or_else(|| AuthorityError::Change(format!("{change:?}")))
    }

    /// `None` where the change makes no sense.
    fn try_apply(&mut self, change: &Change) -> Option<()> {
        match change {
            Change::Token {
                hash,
                uses_max,
                expires_at_s,
            } => self.tokens.push(TokenInfo {
                hash: SecretHash::from_hex(hash)?,
                uses_left: *uses_max,
                expires_at: moment(*expires_at_s)?,
            }),
            Change::Joined {
                guest,
                token_hash,
                hostname,
                system_uuid,
                address,
                at_s,
            } => {
                let hash = SecretHash::from_hex(token_hash)?;
                // Gone from memory where it was used up or has expired.
                if let Some(token) = self.tokens.iter_mut().find(|token| token.hash == hash) {
                    token.uses_left = token.uses_left.saturating_sub(1);
                }
                let id = GuestId::from_hex(guest)?;
                self.by_id.insert(id, self.guests.len());
                self.guests.push(Guest {
                    id,
                    hostname: hostname.clone(),
                    system_uuid: *system_uuid,
                    address: *address,
                    enrolled_at: moment(*at_s)?,
                    revoked: false,
                });
            }
            Change::Revoked { guest, .. } => {
                let index = *self.by_id.get(&GuestId::from_hex(guest)?)?;
                self.guests.get_mut(index)?.revoked = true;
            }
        }
        Some(())
    }
}

/// Seconds since 1970; 0 for a clock before that.
fn seconds(moment: SystemTime) -> u64 {
    let since_1970 = moment.duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |since| since.as_secs())
}

fn moment(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
