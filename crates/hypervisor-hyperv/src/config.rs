//! Which hosts, and how they are reached.

use std::time::Duration;

use hypervisor::{ConnectorError, HostId};
use hypervisor_transport::{Endpoint, SecretSource, Trust, tls_config};
use serde::Deserialize;
use url::Url;

/// WinRM's port for HTTPS.
const PORT: u16 = 5986;
/// Shortest time between two polls.
pub const POLL_MIN_S: u64 = 1;
/// Longest.
pub const POLL_MAX_S: u64 = 300;

/// Hosts of one connector.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HypervConfig {
    /// The hosts; of a cluster, all nodes.
    pub hosts: Vec<HypervHost>,
    /// `DOMAIN\user`, or `user` for an account of each host.
    pub user: String,
    /// Its password.
    pub password: SecretSource,
    /// The CA of their certificates.
    #[serde(default)]
    pub trust: Trust,
    /// Seconds between two polls.
    #[serde(default = "poll_s")]
    pub poll_s: u64,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HypervHost {
    /// `https://hv1.example:5986`.
    pub url: Url,
    /// What the fleet calls it; the URL's host where it is missing.
    pub name: Option<String>,
    /// The cluster that it is a node of.
    pub cluster: Option<String>,
}

fn poll_s() -> u64 {
    2
}

/// A host, checked.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) id: HostId,
    pub(crate) cluster: Option<String>,
    pub(crate) endpoint: Endpoint,
}

impl HypervConfig {
    pub(crate) fn targets(&self) -> Result<Vec<Target>, ConnectorError> {
        let bad = |why: &str| ConnectorError::Config(format!("hyperv: {why}"));
        if !(POLL_MIN_S..=POLL_MAX_S).contains(&self.poll_s) {
            return Err(bad(&format!("poll_s is {POLL_MIN_S} to {POLL_MAX_S}")));
        }
        let tls = tls_config(&self.trust, None)?;
        let target = |host: &HypervHost| {
            let bad = |why: &str| bad(&format!("{}: {why}", host.url));
            if host.url.scheme() != "https" {
                return Err(bad("only https is spoken"));
            }
            let address = host
                .url
                .host_str()
                .ok_or_else(|| bad("a host is missing"))?;
            let id = host.name.as_deref().unwrap_or(address);
            let port = host.url.port().unwrap_or(PORT);
            Ok(Target {
                id: HostId::new(id).map_err(|error| bad(&error.to_string()))?,
                cluster: host.cluster.clone(),
                endpoint: Endpoint::new(address, port, Some(tls.clone())),
            })
        };
        let targets: Vec<Target> = self.hosts.iter().map(target).collect::<Result<_, _>>()?;
        let mut names: Vec<&HostId> = targets.iter().map(|target| &target.id).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad(&format!("two hosts are called {}", twice[0])));
        }
        if targets.is_empty() {
            return Err(bad("no hosts"));
        }
        Ok(targets)
    }

    pub(crate) fn poll_every(&self) -> Duration {
        Duration::from_secs(self.poll_s)
    }
}
