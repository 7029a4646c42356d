//! Enrolment, renewal, and what a person says to those who wait: each one change of the database.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use model::{GuestId, Machine};
use pki::{CertificateDer, KeyId, LIFETIME, Secret, SecretHash, Validity};
use proto::v1;

use crate::authority::{Authority, AuthorityError, Refusal, end, refused};
use crate::endorsement::TpmShown;
use crate::fleet::Fleet;
use crate::members::{
    Asked, Decision, KeyRecord, Member, Members, PENDING, Pending, Plan, Pool, Proof, Put, Renewal,
    TokenInfo, TpmCa, Word, can_approve, plan, seconds,
};

/// Longest host name that a guest may have.
const HOSTNAME_MAX_BYTES: usize = 255;
/// Life of a certificate whose key is in memory only.
pub const EPHEMERAL_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// A machine that waits asks again after this.
pub(crate) const PENDING_RETRY: Duration = Duration::from_secs(30);

/// What became of a machine that asked to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrolled {
    /// It is a member.
    Joined {
        /// Its id.
        guest: GuestId,
        /// Its certificate.
        cert: CertificateDer<'static>,
        /// Its key is to stay in memory.
        ephemeral: bool,
    },
    /// It waits for a person's word, and asks again after this.
    Waits(Duration),
}

impl Authority {
    /// Takes a guest into the fleet, or has it wait. The use of the token is spent and the guest
    /// recorded in one step that a crash cannot split. `fleet` tells what connectors report, `tpm` what
    /// the machine showed where its pool asks for a TPM.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed.
    pub async fn enrol(
        &self,
        request: &v1::EnrolRequest,
        from: IpAddr,
        fleet: Option<&Fleet>,
        tpm: TpmShown,
        now: SystemTime,
    ) -> Result<Enrolled, Refusal> {
        let secret: Secret = request.token.parse().map_err(|_| Refusal::Token)?;
        if request.hostname.len() > HOSTNAME_MAX_BYTES {
            return Err(Refusal::Field("hostname"));
        }
        let machine = request.machine.as_ref().map(Machine::try_from).transpose();
        let machine = machine.map_err(|_| Refusal::Field("machine"))?;
        let machine = machine.unwrap_or_default();
        let token = secret.hash();
        // Whoever knows no token costs no signature.
        let terms = self.terms_of(&token).await?;
        let guest = GuestId(pki::random().map_err(|_| Refusal::Internal)?);
        let (cert, key) = self.sign(guest, &request.csr, terms.ephemeral, now)?;
        let vms = match (fleet, machine.system_uuid) {
            (Some(fleet), Some(uuid)) if terms.asks_inventory => fleet.vms_with_uuid(uuid).await?,
            _ => Vec::new(),
        };
        let asked = Asked {
            token,
            key: key.id,
            hostname: request.hostname.clone(),
            machine,
            from,
            vms,
            tpm,
            now,
        };
        // What waits already writes nothing.
        let first = plan(&self.members(), &asked)?;
        let planned = match first {
            Plan::Wait | Plan::Again { .. } => first,
            _ => {
                let puts = |members: &Members| {
                    let planned = plan(members, &asked)?;
                    let puts = puts(members, &asked, &planned, (guest, key));
                    Ok::<_, Refusal>((planned, puts))
                };
                self.change(now, puts).await?
            }
        };
        match planned {
            Plan::Join { pool, .. } => Ok(Enrolled::Joined {
                guest,
                cert,
                ephemeral: pool.is_some_and(|pool| pool.ephemeral),
            }),
            Plan::Again { guest, until_s } => {
                let ephemeral = self.guest(guest).is_some_and(|member| member.ephemeral);
                let life = Duration::from_secs(until_s.saturating_sub(seconds(now)));
                let (cert, _) = self.sign_for(guest, &request.csr, life, now)?;
                Ok(Enrolled::Joined {
                    guest,
                    cert,
                    ephemeral,
                })
            }
            Plan::Wait | Plan::Queue(_) => Ok(Enrolled::Waits(PENDING_RETRY)),
        }
    }

    /// What a token's guests need. One that is not known here may be known to another controller.
    async fn terms_of(&self, token: &SecretHash) -> Result<Terms, Refusal> {
        if self.members().token(token).is_none() {
            self.refresh().await?;
        }
        let members = self.members();
        let info = members.token(token).ok_or(Refusal::Token)?;
        let pool = info.pool.as_ref().and_then(|name| members.pool(name));
        Ok(Terms {
            ephemeral: pool.is_some_and(|pool| pool.ephemeral),
            asks_inventory: info.vm.is_some()
                || pool.is_some_and(|pool| matches!(pool.proof, Proof::Inventory | Proof::Tpm)),
        })
    }

    /// The CAs of TPMs, where a machine from there with this token has to show its own. What the token
    /// says of the VM itself comes before that; who is refused anyway is not asked.
    pub(crate) async fn tpm_cas(
        &self,
        token: &str,
        from: IpAddr,
        now: SystemTime,
    ) -> Option<Vec<TpmCa>> {
        let token = token.parse::<Secret>().ok()?.hash();
        if self.members().token(&token).is_none() {
            self.refresh().await.ok()?;
        }
        let members = self.members();
        let info = members.token(&token).filter(|info| info.vm.is_none())?;
        let pool = members.pool(info.pool.as_ref()?)?;
        let hash = token.to_string();
        let is_approved =
            |entry: &Pending| entry.token == hash && entry.decision == Decision::Approved;
        let may_join = info.is_good(now) || members.all_pending().any(is_approved);
        let is_asked = pool.proof == Proof::Tpm && may_join && pool.takes_from(from);
        is_asked.then(|| pool.tpm_cas.clone())
    }

    pub(crate) fn sign(
        &self,
        guest: GuestId,
        csr_der: &[u8],
        ephemeral: bool,
        now: SystemTime,
    ) -> Result<(CertificateDer<'static>, KeyRecord), Refusal> {
        let life = if ephemeral {
            EPHEMERAL_LIFETIME
        } else {
            LIFETIME
        };
        self.sign_for(guest, csr_der, life, now)
    }

    fn sign_for(
        &self,
        guest: GuestId,
        csr_der: &[u8],
        life: Duration,
        now: SystemTime,
    ) -> Result<(CertificateDer<'static>, KeyRecord), Refusal> {
        let signed = self
            .ca
            .sign_guest(csr_der, guest, Validity::starting(now, life));
        let cert = signed.map_err(refused)?;
        let id = KeyId::of(&cert).map_err(|_| Refusal::Internal)?;
        let until_s = seconds(now + life);
        Ok((cert, KeyRecord { id, until_s }))
    }

    /// A new certificate for a guest that has shown its (perhaps expired) one, with this key where
    /// that is known. It is written down before it is handed out: a key that nobody knows would be
    /// taken for an old one.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn renew(
        &self,
        guest: GuestId,
        shown: Option<KeyId>,
        csr_der: &[u8],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        if self.guest(guest).is_none() {
            self.refresh().await?;
        }
        let member = self.guest(guest).ok_or(Refusal::UnknownGuest)?;
        if member.is_ended() {
            return Err(Refusal::Revoked);
        }
        let (cert, next) = self.sign(guest, csr_der, member.ephemeral, now)?;
        let renewal = Renewal { shown, next, now };
        self.write_renewal(guest, renewal).await?;
        Ok(vec![cert])
    }

    /// A certificate for a copy that has no identity of its own yet: it keeps what it has, and is
    /// protected. It is written down nowhere, so that it is never in force: whoever shows it is the
    /// copy still.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn renew_copy(
        &self,
        guest: GuestId,
        csr_der: &[u8],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        let member = self.guest(guest).ok_or(Refusal::UnknownGuest)?;
        if member.is_ended() {
            return Err(Refusal::Revoked);
        }
        let (cert, _) = self.sign(guest, csr_der, member.ephemeral, now)?;
        Ok(vec![cert])
    }

    /// Machines that wait for a person's word, and those about which it was said, by pool.
    #[must_use]
    pub fn pending(&self, now: SystemTime) -> Vec<Pending> {
        let members = self.members();
        let waiting = members
            .all_pending()
            .filter(|entry| !crate::members::is_over(entry, now));
        let mut waiting: Vec<Pending> = waiting.cloned().collect();
        waiting.sort_by(|a, b| (&a.pool, a.asked_s, &a.id).cmp(&(&b.pool, b.asked_s, &b.id)));
        waiting
    }

    /// Says yes or no to a machine that waits. The first yes spends the use of its token.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed.
    pub async fn decide(
        &self,
        id: &str,
        word: Word,
        now: SystemTime,
    ) -> Result<(), AuthorityError> {
        self.change(now, |members| {
            let entry = members.pending(id);
            let entry = entry.filter(|entry| !crate::members::is_over(entry, now));
            let Some(entry) = entry else {
                let (what, name) = ("request", id.to_owned());
                return Err(AuthorityError::Unknown { what, name });
            };
            if word == Word::No {
                let denied = Pending {
                    decision: Decision::Denied,
                    replaces: false,
                    ..entry.clone()
                };
                let mut puts = vec![Put::pending(&denied)];
                puts.extend(unspent(members, entry).iter().map(Put::token));
                return Ok(((), puts));
            }
            let (approved, token) = can_approve(members, entry, word == Word::YesInPlace)?;
            let mut puts = vec![Put::pending(&approved)];
            puts.extend(token.iter().map(Put::token));
            Ok(((), puts))
        })
        .await
    }
}

/// A person takes a yes back: the token with the use that it spent, if it is still there.
fn unspent(members: &Members, entry: &Pending) -> Option<TokenInfo> {
    if entry.decision != Decision::Approved || entry.copy_of.is_some() {
        return None;
    }
    let token = members.token(&SecretHash::from_hex(&entry.token)?)?;
    Some(TokenInfo {
        uses_left: token.uses_left.saturating_add(1),
        ..token.clone()
    })
}

struct Terms {
    ephemeral: bool,
    asks_inventory: bool,
}

/// What a plan writes.
fn puts(
    members: &Members,
    asked: &Asked,
    plan: &Plan,
    (guest, key): (GuestId, KeyRecord),
) -> Vec<Put> {
    match plan {
        Plan::Again { .. } | Plan::Wait => Vec::new(),
        Plan::Queue(entry) => vec![Put::pending(entry)],
        Plan::Join {
            pool,
            vm,
            token,
            replaced,
            ..
        } => {
            let member = Member {
                vm: vm.clone(),
                ..new_member(asked, pool.as_ref(), (guest, key))
            };
            let mut puts = vec![Put::member(&member)];
            puts.extend(token.iter().map(Put::token));
            // It waits no more, whether a person said so or what it lacked has come.
            let waited = asked.waits_as();
            if members.pending(&waited).is_some() {
                puts.push(Put::gone(PENDING, waited));
            }
            let replaced = replaced.iter().filter_map(|guest| members.member(*guest));
            puts.extend(replaced.map(|old| {
                let why = format!("guest {guest} has taken its place");
                end(old, false, &why, asked.now)
            }));
            puts
        }
    }
}

fn new_member(asked: &Asked, pool: Option<&Pool>, (id, key): (GuestId, KeyRecord)) -> Member {
    Member {
        id,
        hostname: asked.hostname.clone(),
        machine: asked.machine.clone(),
        address: asked.from,
        joined_s: seconds(asked.now),
        token: asked.token.to_string(),
        pool: pool.map(|pool| pool.name.clone()),
        ephemeral: pool.is_some_and(|pool| pool.ephemeral),
        vm: None,
        ek: match &asked.tpm {
            TpmShown::Proved(tpm) => Some(tpm.ek),
            _ => None,
        },
        serial: 1,
        key: Some(key),
        issued: Vec::new(),
        copy_of: None,
        origin: None,
        vm_gone_s: None,
        told: Vec::new(),
        ended: None,
    }
}
