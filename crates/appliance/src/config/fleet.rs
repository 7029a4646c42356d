//! The appliance's place in the fleet, and the controller beside it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::Ranged;

/// This appliance's place in the fleet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetConfig {
    /// Average VMs that this appliance can carry. 200.
    pub capacity: Ranged<1, 1_000_000>,
    /// The host it runs on, by the name or id that its hypervisor's management gives it. Unset:
    /// unknown.
    pub host: Option<String>,
    /// Its cluster or rack, if no host says so. Unset: unknown.
    pub cluster: Option<String>,
    /// Its site, if no host says so. Unset: unknown.
    pub site: Option<String>,
    /// What rules call it.
    pub labels: Vec<String>,
    /// Controllers, as host:port, for `lazaret appliance`.
    pub controllers: Vec<String>,
    /// For `lazaret appliance`: its key and certificate, as `lazaret fleet identity` made them; kept
    /// fresh there. Unset: `identity.pem` in the state folder.
    pub identity: Option<PathBuf>,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            capacity: Ranged::new(200),
            host: None,
            cluster: None,
            site: None,
            labels: Vec::new(),
            controllers: Vec::new(),
            identity: None,
        }
    }
}

/// The controller that `lazaret up` runs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControllerConfig {
    /// PostgreSQL (15 or later), as postgres://USER@HOST/DATABASE. Unset: SQLite in the state
    /// folder.
    pub database: Option<String>,
    /// For appliances that run elsewhere. Port 0: any. Unset: none can.
    pub listen: Option<SocketAddr>,
    /// How those reach it, as host:port. Unset: the address of `listen`.
    pub advertise: Option<String>,
    /// Which clusters are on which site. Unset: each connector is a site.
    pub site: Vec<SiteConfig>,
    /// Which guests belong to which appliances. The first rule that fits counts; where none of
    /// its appliances can take the guest, the others do.
    pub rule: Vec<RuleConfig>,
}

/// Clusters on a site.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// The site.
    pub name: String,
    /// Its connectors, whole.
    #[serde(default)]
    pub connectors: Vec<String>,
    /// Its clusters.
    #[serde(default)]
    pub clusters: Vec<String>,
}

/// A rule of placement.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// For people.
    pub name: String,
    /// All must hold: tag:NAME, pool:NAME, range:ADDRESS/PREFIX, cluster:NAME, site:NAME.
    #[serde(default)]
    pub when: Vec<String>,
    /// Labels of the appliances.
    pub appliances: Vec<String>,
}
