//! What is written down.

use model::GuestId;
use serde::{Deserialize, Serialize};

use crate::inventory::{HostRecord, VmRecord, VmState};

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHost {
    /// Our name for it.
    pub id: u64,
    /// Whose it is.
    pub connector: String,
    /// As its connector says.
    pub record: HostRecord,
    /// Where it is.
    pub site: Option<String>,
    /// An administrator put it into maintenance.
    pub ordered_maintenance: bool,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredVm {
    /// Our name for it.
    pub id: u64,
    /// Whose it is.
    pub connector: String,
    /// As its connector says.
    pub record: VmRecord,
    /// What it does.
    pub state: VmState,
    /// The agent in it.
    #[serde(with = "guest_hex")]
    pub guest: Option<GuestId>,
    /// Whether somebody works at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_session: Option<InSession>,
}

impl StoredVm {
    /// Whether somebody works at it, as far as that still counts. `None`: nobody says.
    #[must_use]
    pub fn in_session_at(&self, wall_ms: u64) -> Option<InSession> {
        self.in_session.filter(|said| wall_ms < said.until_ms)
    }
}

/// Whether somebody works at a VM, as an administrator or a desktop broker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InSession {
    /// Somebody does.
    pub is_so: bool,
    /// It counts until then, in milliseconds since 1970 UTC.
    pub until_ms: u64,
}

/// An appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAppliance {
    /// Our name for it.
    pub id: u64,
    /// Its name, from its certificate.
    pub name: String,
    /// How guests reach it, as host:port.
    pub address: String,
    /// The host it says it runs on, by name.
    pub host_name: Option<String>,
    /// Where it says it is.
    pub cluster: Option<String>,
    /// Where it says it is.
    pub site: Option<String>,
    /// Average VMs that it can carry.
    pub capacity: u64,
    /// What rules call it.
    pub labels: Vec<String>,
    /// An administrator drains it.
    pub draining: bool,
}

/// A list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPlacement {
    /// Whose.
    pub vm: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Appliances, first the best.
    pub appliances: Vec<u64>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises.
    pub id: u64,
    /// Milliseconds since 1970 UTC.
    pub at_ms: u64,
    /// A stable name.
    pub kind: String,
    /// For people; holds hostile text.
    pub text: String,
}

/// A change to what is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A host, new or changed.
    Host(StoredHost),
    /// A host that is no more.
    HostGone(u64),
    /// A VM, new or changed.
    Vm(StoredVm),
    /// A VM that is no more, and its list.
    VmGone(u64),
    /// An appliance, new or changed.
    Appliance(StoredAppliance),
    /// An appliance that is no more.
    ApplianceGone(u64),
    /// A list, new or changed.
    Placement(StoredPlacement),
    /// Something happened.
    Event(Event),
    /// Turns that were given end within so many seconds; 0: none is out.
    TurnsOut(u32),
}

/// A guest's id as its hexadecimal digits.
mod guest_hex {
    use model::GuestId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &Option<GuestId>, to: S) -> Result<S::Ok, S::Error> {
        id.map(|id| id.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<GuestId>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        let wrong = || serde::de::Error::custom("a guest's id has 32 hexadecimal digits");
        text.map(|text| GuestId::from_hex(&text).ok_or_else(wrong))
            .transpose()
    }
}
