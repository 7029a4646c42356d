//! Pools: on what terms their machines join.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use pki::Fingerprint;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a pool wants to see before a machine belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The token alone.
    Token,
    /// A running VM that a connector reports, without a guest yet, agrees with the SMBIOS UUID that
    /// the machine shows and with the address that it comes from.
    Inventory,
    /// The machine's TPM, which one of the pool's CAs has certified; where the certificate names a
    /// VM, that one.
    Tpm,
    /// A person's word for each machine.
    Approval,
}

impl Proof {
    /// A stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Inventory => "inventory",
            Self::Tpm => "tpm",
            Self::Approval => "approval",
        }
    }
}

impl FromStr for Proof {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Token, Self::Inventory, Self::Tpm, Self::Approval]
            .into_iter()
            .find(|proof| proof.name() == text)
            .ok_or_else(|| "a pool's proof is token, inventory, tpm or approval".to_owned())
    }
}

/// Machines that join under one set of terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its machines do not outlive their users: keys in memory, short certificates.
    pub ephemeral: bool,
    /// What it wants to see.
    pub proof: Proof,
    /// Where its machines may come from. Empty: from anywhere.
    #[serde(with = "ranges")]
    pub ranges: Vec<IpNet>,
    /// With [`Proof::Inventory`] and [`Proof::Tpm`]: VMs with one of these tags. Empty: any.
    pub tags: Vec<String>,
    /// With [`Proof::Inventory`] and [`Proof::Tpm`]: VMs in one of these clusters. Empty: any.
    pub clusters: Vec<String>,
    /// Members at once. 0: any number.
    pub guests_max: u32,
    /// With [`Proof::Tpm`]: the CAs that issue the certificates of its TPMs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tpm_cas: Vec<TpmCa>,
}

impl Pool {
    /// Whether its machines may come from this address.
    pub(crate) fn takes_from(&self, address: IpAddr) -> bool {
        self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(&address))
    }
}

/// The certificate (DER) of a CA that issues those of endorsement keys.
#[derive(Clone, PartialEq, Eq)]
pub struct TpmCa(pub Arc<[u8]>);

impl TpmCa {
    /// What it is called in lists: SHA-256 of the certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0)
    }
}

impl AsRef<[u8]> for TpmCa {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for TpmCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TpmCa({})", self.fingerprint())
    }
}

impl Serialize for TpmCa {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let digits = self.0.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>().serialize(to)
    }
}

impl<'de> Deserialize<'de> for TpmCa {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let pairs = text.as_bytes().chunks(2).map(|pair| {
            let is_hex = pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(pair).ok().filter(|_| is_hex);
            digits.and_then(|it| u8::from_str_radix(it, 16).ok())
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        let bytes = bytes.ok_or_else(|| D::Error::custom("not hexadecimal digits"))?;
        Ok(Self(bytes.into()))
    }
}

/// Ranges of addresses as people write them.
mod ranges {
    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(ranges: &[IpNet], to: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        texts.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
        let texts: Vec<String> = Vec::deserialize(from)?;
        let wrong = serde::de::Error::custom;
        let ranges = texts.iter().map(|text| text.parse().map_err(wrong));
        ranges.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_of_before_there_were_tpms_is_read_and_cas_come_through() {
        let before = r#"{"name":"p","ephemeral":false,"proof":"token","ranges":["10.0.0.0/8"],
            "tags":[],"clusters":[],"guests_max":0}"#;
        let mut pool: Pool = serde_json::from_str(before).unwrap();
        assert!(pool.tpm_cas.is_empty());
        assert!(!serde_json::to_string(&pool).unwrap().contains("tpm"));
        pool.proof = Proof::Tpm;
        pool.tpm_cas = vec![TpmCa([0x30, 0, 0xff].into())];
        let text = serde_json::to_string(&pool).unwrap();
        assert!(text.contains("3000ff"), "{text}");
        assert_eq!(serde_json::from_str::<Pool>(&text).unwrap(), pool);
        for wrong in ["3000f", "3000fx", "+300ff"] {
            let text = text.replace("3000ff", wrong);
            assert!(serde_json::from_str::<Pool>(&text).is_err(), "{wrong}");
        }
    }
}
