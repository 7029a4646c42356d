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
    /// Folders in which the hypervisor of this appliance's host makes a unix socket for each guest's
    /// virtio-serial port `org.lazaret.0`: of that name, of a name that ends so, or so within a
    /// folder for each guest. Unset: there are none.
    pub channels: Vec<PathBuf>,
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
            channels: Vec::new(),
            controllers: Vec::new(),
            identity: None,
        }
    }
}

/// The controller that `lazaret up` runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControllerConfig {
    /// PostgreSQL (15 or later), as postgres://USER@HOST/DATABASE. Unset: SQLite in the state
    /// folder.
    pub database: Option<String>,
    /// For appliances that run elsewhere. Port 0: any. Unset: none can.
    pub listen: Option<SocketAddr>,
    /// How those reach it, as host:port. Unset: the address of `listen`.
    pub advertise: Option<String>,
    /// Attempts to join that one address may make at once. Many guests may stand behind one. 32.
    pub joins_burst: Ranged<1, 1_000_000>,
    /// Attempts to join that one address may make each minute after that. 120.
    pub joins_per_minute: Ranged<1, 1_000_000>,
    /// What is said of somebody working at a VM (`lazaret fleet session`) counts so long, in seconds,
    /// unless it is said how long. 43,200.
    pub session_valid_s: Ranged<60, 604_800>,
    /// Which clusters are on which site. Unset: each connector is a site.
    pub site: Vec<AreaConfig>,
    /// Which clusters' disks lie on which datastore. Unset: nobody says, and none is spared.
    pub datastore: Vec<AreaConfig>,
    /// What background work of guests may use of what they share.
    pub storm: StormConfig,
    /// Which guests belong to which appliances. The first rule that fits counts; where none of
    /// its appliances can take the guest, the others do.
    pub rule: Vec<RuleConfig>,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            database: None,
            listen: None,
            advertise: None,
            joins_burst: Ranged::new(32),
            joins_per_minute: Ranged::new(120),
            session_valid_s: Ranged::new(43_200),
            site: Vec::new(),
            datastore: Vec::new(),
            storm: StormConfig::default(),
            rule: Vec::new(),
        }
    }
}

/// What background work of guests (scans that have time, sweeps, updates) may use together. None of
/// these may be less than what one guest's work is taken to use, or nobody could ever work.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StormConfig {
    /// Thousandths of a processor, of each host. 2000.
    pub host_cpu_milli: Ranged<500, 1_000_000>,
    /// Reads, in MiB a second, of each host. 200.
    pub host_read_mib_s: Ranged<40, 1_000_000>,
    /// On its network, in MiB a second, of each host. 100.
    pub host_link_mib_s: Ranged<20, 1_000_000>,
    /// Reads, in MiB a second, of each datastore. 800.
    pub datastore_read_mib_s: Ranged<40, 1_000_000>,
    /// On each site's link, in MiB a second. 400.
    pub site_link_mib_s: Ranged<20, 1_000_000>,
}

impl Default for StormConfig {
    fn default() -> Self {
        Self {
            host_cpu_milli: Ranged::new(2000),
            host_read_mib_s: Ranged::new(200),
            host_link_mib_s: Ranged::new(100),
            datastore_read_mib_s: Ranged::new(800),
            site_link_mib_s: Ranged::new(400),
        }
    }
}

/// Clusters that have something in common: a site, or a datastore.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AreaConfig {
    /// What it is called.
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
