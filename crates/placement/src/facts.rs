//! What the inventory and the appliances say.

use std::net::IpAddr;

use crate::HostId;

/// A host as its connector reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Its cluster or rack. Unset: unknown, near nobody for that.
    pub cluster: Option<String>,
    /// Its site. Unset: unknown.
    pub site: Option<String>,
    /// It is to be emptied: appliances on it are drained before its VMs leave.
    pub maintenance: bool,
}

/// An appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplianceFacts {
    /// The host it runs on. Unset: it serves no host in particular.
    pub host: Option<HostId>,
    /// Where it is, if no host says so.
    pub cluster: Option<String>,
    /// Where it is, if no host says so.
    pub site: Option<String>,
    /// Load it can carry: 1000 for each average VM. Never 0.
    pub capacity: u64,
    /// What rules call it.
    pub labels: Vec<String>,
}

/// Whether an appliance takes guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It takes guests.
    Up,
    /// It keeps those it has until they have gone elsewhere, and takes no new ones.
    Draining,
    /// It cannot be reached.
    Down,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFacts {
    /// Where it runs, as the inventory says. Unset: unknown.
    pub host: Option<HostId>,
    /// The image it came from.
    pub pool: Option<String>,
    /// What the hypervisor's people call it.
    pub tags: Vec<String>,
    /// Its address, for rules. Unset: unknown.
    pub address: Option<IpAddr>,
    /// The load it makes while it runs: 1000 for an average one.
    pub weight: u64,
    /// It runs (or starts, or migrates): it needs an appliance and makes load.
    pub running: bool,
}

impl Default for VmFacts {
    fn default() -> Self {
        Self {
            host: None,
            pool: None,
            tags: Vec::new(),
            address: None,
            weight: 1000,
            running: true,
        }
    }
}

impl VmFacts {
    /// The load it makes now.
    pub(crate) fn load(&self) -> u64 {
        if self.running { self.weight } else { 0 }
    }
}
