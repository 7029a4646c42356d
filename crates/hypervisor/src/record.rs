//! Hosts and virtual machines as a hypervisor knows them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use daemon::log::escape;
use serde::{Deserialize, Serialize};

/// Longest id that a hypervisor may give to something.
pub const ID_MAX_BYTES: usize = 256;
/// Names are cut to this.
pub const NAME_MAX_BYTES: usize = 255;
/// Network cards of one VM that are looked at.
pub const MACS_MAX: usize = 64;
/// Addresses of one VM that are looked at.
pub const ADDRESSES_MAX: usize = 64;
/// Tags of one VM that are looked at.
pub const TAGS_MAX: usize = 128;

/// An id that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id of a host or VM has 1 to {ID_MAX_BYTES} bytes, this one has {0}")]
pub struct IdError(usize);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the hypervisor's own id.
            ///
            /// # Errors
            /// Empty, or longer than [`ID_MAX_BYTES`].
            pub fn new(id: &str) -> Result<Self, IdError> {
                if id.is_empty() || id.len() > ID_MAX_BYTES {
                    return Err(IdError(id.len()));
                }
                Ok(Self(id.into()))
            }

            /// As the hypervisor writes it. Hostile text: show it through `Display`.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(id: String) -> Result<Self, IdError> {
                Self::new(&id)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", escape(self.0.as_bytes()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

id! {
    /// A host, by the id that its hypervisor's management gives it (libvirt: the name in our
    /// configuration; vSphere: `host-12`; XAPI: the uuid; Proxmox: the node's name). Unique within a
    /// connector.
    HostId
}
id! {
    /// A virtual machine, by the id that does not change when it moves (libvirt, XAPI, Hyper-V: the
    /// uuid; vSphere: `vm-42`; Proxmox: the vmid). Unique within a connector.
    VmId
}

/// The address of a network card.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = ();

    /// `52:54:00:12:34:56`, with `-` or without separators too.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(|byte| !matches!(byte, b':' | b'-'))
            .map(|byte| char::from(byte).to_digit(16).map(|digit| digit as u8))
            .collect::<Option<_>>()
            .ok_or(())?;
        let digits: [u8; 12] = digits.try_into().map_err(|_| ())?;
        Ok(Self(std::array::from_fn(|i| {
            digits[2 * i] << 4 | digits[2 * i + 1]
        })))
    }
}

impl TryFrom<String> for Mac {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
            .map_err(|()| "not the address of a network card")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a host can be spoken to and may run VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It runs VMs.
    Up,
    /// Its VMs are to leave, or have left.
    Maintenance,
    /// It, or its management, does not answer. Its VMs may well run on.
    Unreachable,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// What people call it. Hostile text, at most [`NAME_MAX_BYTES`].
    pub name: String,
    /// The cluster, pool or rack it belongs to; VMs within one are near each other.
    pub cluster: Option<String>,
    /// Its state.
    pub state: HostState,
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It has no memory anywhere.
    Off,
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It has memory on its host and does not run: nothing of it may be waited for.
    Paused,
    /// Its memory is on a disk.
    Suspended,
    /// The hypervisor does not say.
    Unknown,
}

/// A move that has begun and has neither succeeded nor failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Where to, if the hypervisor says so before it is done.
    pub to: Option<HostId>,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// What people call it. Hostile text, at most [`NAME_MAX_BYTES`].
    pub name: String,
    /// Where it runs, or would; `None` where nothing is decided (XAPI: a halted VM).
    pub host: Option<HostId>,
    /// What it is doing.
    pub power: Power,
    /// The move it is in.
    pub migration: Option<Migration>,
    /// The uuid that its firmware shows to the guest, big-endian as printed.
    pub smbios_uuid: Option<[u8; 16]>,
    /// Its network cards, at most [`MACS_MAX`].
    pub macs: BTreeSet<Mac>,
    /// Addresses that the hypervisor knows of it, at most [`ADDRESSES_MAX`]. What tools inside the
    /// guest report is the guest's claim.
    pub addresses: BTreeSet<IpAddr>,
    /// Labels, at most [`TAGS_MAX`]. Hostile text.
    pub tags: BTreeSet<String>,
    /// It is a template: it never runs.
    pub is_template: bool,
    /// The VM it was made from, where the hypervisor says so.
    pub cloned_from: Option<VmId>,
}

impl Vm {
    /// A VM of which nothing but this is known.
    #[must_use]
    pub fn new(id: VmId, name: &str) -> Self {
        Self {
            id,
            name: bounded_name(name),
            host: None,
            power: Power::Unknown,
            migration: None,
            smbios_uuid: None,
            macs: BTreeSet::new(),
            addresses: BTreeSet::new(),
            tags: BTreeSet::new(),
            is_template: false,
            cloned_from: None,
        }
    }

    /// Cuts the lists to their limits: they come from other machines.
    pub(crate) fn bound(&mut self) {
        cut(&mut self.macs, MACS_MAX);
        cut(&mut self.addresses, ADDRESSES_MAX);
        cut(&mut self.tags, TAGS_MAX);
    }
}

fn cut<T: Ord>(set: &mut BTreeSet<T>, max: usize) {
    while set.len() > max {
        set.pop_last();
    }
}

/// A name, cut to [`NAME_MAX_BYTES`] at a character's border.
#[must_use]
pub fn bounded_name(name: &str) -> String {
    let mut end = name.len().min(NAME_MAX_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_in_every_spelling() {
        for text in ["52:54:00:aB:cd:ef", "52-54-00-AB-CD-EF", "525400abcdef"] {
            let mac: Mac = text.parse().expect(text);
            assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
        }
        for text in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:01", "xx5400abcdef"] {
            assert_eq!(text.parse::<Mac>(), Err(()), "{text}");
        }
    }

    #[test]
    fn ids_and_names_are_bounded() {
        assert_eq!(VmId::new(""), Err(IdError(0)));
        assert!(VmId::new(&"v".repeat(ID_MAX_BYTES + 1)).is_err());
        assert_eq!(bounded_name(&"é".repeat(200)).len(), 254);
    }

    #[test]
    fn hostile_ids_do_not_reach_a_terminal() {
        let id = HostId::new("a\u{1b}[31m").expect("an id");
        assert!(!id.to_string().contains('\u{1b}'));
    }
}
