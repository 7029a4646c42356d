//! What is kept of members, tokens, pools and of those who wait: one JSON body each.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use model::{GuestId, Machine};
use pki::{KeyId, SecretHash};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tpm::EkId;

/// A VM as its connector calls it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VmRef {
    /// The connector.
    pub connector: String,
    /// The connector's id of it.
    pub id: String,
    /// Its name, for people; hostile text.
    pub name: String,
}

impl VmRef {
    /// Whether both are the same VM, whatever it is called now.
    pub(crate) fn is(&self, connector: &str, id: &str) -> bool {
        self.connector == connector && self.id == id
    }
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
    /// The pool that its guests belong to.
    pub pool: Option<String>,
    /// The only VM that may join with it.
    pub vm: Option<VmRef>,
}

impl TokenInfo {
    pub(crate) fn is_good(&self, now: SystemTime) -> bool {
        self.uses_left > 0 && now <= self.expires_at
    }
}

/// A key that a certificate was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRecord {
    /// Which.
    pub id: KeyId,
    /// Last moment of its certificate, in seconds since 1970.
    pub until_s: u64,
}

/// A copy of a member that was told to ask for an identity of its own, and has none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldCopy {
    /// The key that it shows. `None`: its appliance does not say.
    pub key: Option<KeyId>,
    /// What its machine says of itself, without cards.
    pub machine: Machine,
    /// When, in seconds since 1970.
    pub at_s: u64,
}

/// Why a member has no certificate and no session any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// An administrator's word; else it was retired.
    pub revoked: bool,
    /// Why, for people.
    pub why: String,
}

/// A member of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: GuestId,
    /// What it said its host name is; hostile text.
    pub hostname: String,
    /// What it says it is; evidence, not proof.
    pub machine: Machine,
    /// Where it joined from.
    pub address: IpAddr,
    /// When it joined, in seconds since 1970.
    pub joined_s: u64,
    /// Hash of the token that it joined with.
    pub token: String,
    /// Its pool.
    pub pool: Option<String>,
    /// Its key is in memory only, and what has expired is not renewed.
    pub ephemeral: bool,
    /// The VM that it was proved to be in.
    pub vm: Option<VmRef>,
    /// The endorsement key of the TPM that it joined with.
    pub ek: Option<EkId>,
    /// Join sequence: certificates so far.
    pub serial: u64,
    /// The key in force. `None`: it joined before keys were noted, and has not been seen since.
    pub key: Option<KeyRecord>,
    /// Keys that got certificates and were not seen yet, the latest last.
    pub issued: Vec<KeyRecord>,
    /// The guest that it was a copy of.
    pub copy_of: Option<GuestId>,
    /// The first of all that it is a copy of.
    pub origin: Option<GuestId>,
    /// Its connector said that its VM is deleted, in seconds since 1970.
    pub vm_gone_s: Option<u64>,
    /// Copies of it that were told so, the latest last.
    pub told: Vec<ToldCopy>,
    /// It has left the fleet.
    pub ended: Option<Ended>,
}

impl Member {
    /// It has neither certificate nor session any more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether a certificate of it may not be over: none of them is known, it has not ended so long
    /// ago that the last one (a copy's is written down nowhere) would be, or clocks differ.
    pub(crate) fn may_be_certified(&self, now: SystemTime) -> bool {
        const CLOCKS_DIFFER: u64 = 3600;
        let until_s = self.certified_until_s();
        let ended = self.ended.as_ref();
        let last_s = ended.map_or(0, |it| it.at_s.saturating_add(pki::LIFETIME.as_secs()));
        until_s == 0 || until_s.max(last_s).saturating_add(CLOCKS_DIFFER) >= seconds(now)
    }

    /// The last moment of any of its certificates, in seconds since 1970; 0: none is known.
    pub(crate) fn certified_until_s(&self) -> u64 {
        let keys = self.key.iter().chain(&self.issued);
        keys.map(|key| key.until_s).max().unwrap_or(0)
    }
}

/// What became of a request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Nobody has decided.
    Waiting,
    /// It joins when it asks again; its use of the token is spent.
    Approved,
    /// It is refused when it asks again.
    Denied,
}

/// What a person says to a machine that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It is refused.
    No,
    /// It joins, beside whoever is in its VM or has its TPM.
    Yes,
    /// It joins in the place of those, which are retired then.
    YesInPlace,
}

/// A machine that waits for a person's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Which: made of the key and the token that it asks with; a copy's, of the machine.
    pub id: String,
    /// The pool that it wants to join.
    pub pool: Option<String>,
    /// Hash of its token. Empty: it is a copy of a member.
    pub token: String,
    /// The member that it is a copy of.
    pub copy_of: Option<GuestId>,
    /// What it said its host name is; hostile text.
    pub hostname: String,
    /// What it says it is.
    pub machine: Machine,
    /// Where it asked from.
    pub address: IpAddr,
    /// When it asked first, in seconds since 1970.
    pub asked_s: u64,
    /// Why it waits, for people.
    pub why: String,
    /// Guests that were in its VM or had its TPM when it asked: it waits because of them.
    pub rivals: Vec<GuestId>,
    /// What a person said.
    pub decision: Decision,
    /// It was approved in the place of its rivals.
    pub replaces: bool,
}

/// Seconds since 1970; 0 for a clock before that.
pub(crate) fn seconds(moment: SystemTime) -> u64 {
    let since_1970 = moment.duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |since| since.as_secs())
}

pub(crate) fn moment(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Bytes as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hex<const N: usize>([u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = || D::Error::custom(format!("not {} hexadecimal digits", 2 * N));
        if text.len() != 2 * N || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; N];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * at..2 * at + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

#[derive(Serialize, Deserialize)]
struct MachineBody {
    generation_id: Option<Hex<16>>,
    system_uuid: Option<Hex<16>>,
    macs: BTreeSet<HexMac>,
}

/// Ordered as its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct HexMac([u8; 6]);

impl Serialize for HexMac {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Hex(self.0).serialize(to)
    }
}

impl<'de> Deserialize<'de> for HexMac {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Hex::deserialize(from).map(|hex: Hex<6>| Self(hex.0))
    }
}

impl From<&Machine> for MachineBody {
    fn from(machine: &Machine) -> Self {
        Self {
            generation_id: machine.generation_id.map(Hex),
            system_uuid: machine.system_uuid.map(Hex),
            macs: machine.macs.iter().copied().map(HexMac).collect(),
        }
    }
}

impl From<MachineBody> for Machine {
    fn from(body: MachineBody) -> Self {
        Self {
            generation_id: body.generation_id.map(|id| id.0),
            system_uuid: body.system_uuid.map(|id| id.0),
            macs: body.macs.into_iter().map(|mac| mac.0).collect(),
            boot_id: None,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct KeyBody {
    id: Hex<16>,
    until_s: u64,
}

impl From<KeyRecord> for KeyBody {
    fn from(key: KeyRecord) -> Self {
        Self {
            id: Hex(key.id.0),
            until_s: key.until_s,
        }
    }
}

impl From<KeyBody> for KeyRecord {
    fn from(body: KeyBody) -> Self {
        Self {
            id: KeyId(body.id.0),
            until_s: body.until_s,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct ToldBody {
    key: Option<Hex<16>>,
    system_uuid: Option<Hex<16>>,
    generation_id: Option<Hex<16>>,
    boot_id: Option<Hex<16>>,
    at_s: u64,
}

impl From<&ToldCopy> for ToldBody {
    fn from(told: &ToldCopy) -> Self {
        Self {
            key: told.key.map(|key| Hex(key.0)),
            system_uuid: told.machine.system_uuid.map(Hex),
            generation_id: told.machine.generation_id.map(Hex),
            boot_id: told.machine.boot_id.map(Hex),
            at_s: told.at_s,
        }
    }
}

impl From<ToldBody> for ToldCopy {
    fn from(body: ToldBody) -> Self {
        Self {
            key: body.key.map(|key| KeyId(key.0)),
            machine: Machine {
                system_uuid: body.system_uuid.map(|id| id.0),
                generation_id: body.generation_id.map(|id| id.0),
                boot_id: body.boot_id.map(|id| id.0),
                macs: Vec::new(),
            },
            at_s: body.at_s,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct TokenBody {
    uses_left: u32,
    expires_s: u64,
    pool: Option<String>,
    vm: Option<VmRef>,
}

impl From<&TokenInfo> for TokenBody {
    fn from(token: &TokenInfo) -> Self {
        Self {
            uses_left: token.uses_left,
            expires_s: seconds(token.expires_at),
            pool: token.pool.clone(),
            vm: token.vm.clone(),
        }
    }
}

impl TokenBody {
    /// `None`: the row makes no sense.
    pub(super) fn token(self, id: &str) -> Option<TokenInfo> {
        Some(TokenInfo {
            hash: SecretHash::from_hex(id)?,
            uses_left: self.uses_left,
            expires_at: moment(self.expires_s)?,
            pool: self.pool,
            vm: self.vm,
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct MemberBody {
    hostname: String,
    machine: MachineBody,
    address: IpAddr,
    joined_s: u64,
    token: String,
    pool: Option<String>,
    ephemeral: bool,
    vm: Option<VmRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ek: Option<Hex<32>>,
    serial: u64,
    key: Option<KeyBody>,
    issued: Vec<KeyBody>,
    copy_of: Option<Hex<16>>,
    origin: Option<Hex<16>>,
    vm_gone_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    told: Vec<ToldBody>,
    ended: Option<Ended>,
}

impl From<&Member> for MemberBody {
    fn from(member: &Member) -> Self {
        Self {
            hostname: member.hostname.clone(),
            machine: (&member.machine).into(),
            address: member.address,
            joined_s: member.joined_s,
            token: member.token.clone(),
            pool: member.pool.clone(),
            ephemeral: member.ephemeral,
            vm: member.vm.clone(),
            ek: member.ek.map(|ek| Hex(ek.0)),
            serial: member.serial,
            key: member.key.map(Into::into),
            issued: member.issued.iter().copied().map(Into::into).collect(),
            copy_of: member.copy_of.map(|guest| Hex(guest.0)),
            origin: member.origin.map(|guest| Hex(guest.0)),
            vm_gone_s: member.vm_gone_s,
            told: member.told.iter().map(Into::into).collect(),
            ended: member.ended.clone(),
        }
    }
}

impl MemberBody {
    pub(super) fn member(self, id: GuestId) -> Member {
        Member {
            id,
            hostname: self.hostname,
            machine: self.machine.into(),
            address: self.address,
            joined_s: self.joined_s,
            token: self.token,
            pool: self.pool,
            ephemeral: self.ephemeral,
            vm: self.vm,
            ek: self.ek.map(|hex| EkId(hex.0)),
            serial: self.serial,
            key: self.key.map(Into::into),
            issued: self.issued.into_iter().map(Into::into).collect(),
            copy_of: self.copy_of.map(|hex| GuestId(hex.0)),
            origin: self.origin.map(|hex| GuestId(hex.0)),
            vm_gone_s: self.vm_gone_s,
            told: self.told.into_iter().map(Into::into).collect(),
            ended: self.ended,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct PendingBody {
    pool: Option<String>,
    token: String,
    copy_of: Option<Hex<16>>,
    hostname: String,
    machine: MachineBody,
    address: IpAddr,
    asked_s: u64,
    why: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rivals: Vec<Hex<16>>,
    decision: Decision,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    replaces: bool,
}

impl From<&Pending> for PendingBody {
    fn from(pending: &Pending) -> Self {
        Self {
            pool: pending.pool.clone(),
            token: pending.token.clone(),
            copy_of: pending.copy_of.map(|guest| Hex(guest.0)),
            hostname: pending.hostname.clone(),
            machine: (&pending.machine).into(),
            address: pending.address,
            asked_s: pending.asked_s,
            why: pending.why.clone(),
            rivals: pending.rivals.iter().map(|guest| Hex(guest.0)).collect(),
            decision: pending.decision.clone(),
            replaces: pending.replaces,
        }
    }
}

impl PendingBody {
    pub(super) fn pending(self, id: String) -> Pending {
        Pending {
            id,
            pool: self.pool,
            token: self.token,
            copy_of: self.copy_of.map(|hex| GuestId(hex.0)),
            hostname: self.hostname,
            machine: self.machine.into(),
            address: self.address,
            asked_s: self.asked_s,
            why: self.why,
            rivals: self.rivals.iter().map(|hex| GuestId(hex.0)).collect(),
            decision: self.decision,
            replaces: self.replaces,
        }
    }
}
