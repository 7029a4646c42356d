//! Which cluster, and how it is reached.

use std::time::Duration;

use hypervisor::ConnectorError;
use hypervisor_transport::{Endpoint, SecretSource, Trust, tls_config};
use serde::Deserialize;
use url::Url;

/// Proxmox's port.
const PORT: u16 = 8006;
/// Shortest time between two polls.
pub const POLL_MIN_S: u64 = 1;
/// Longest.
pub const POLL_MAX_S: u64 = 300;

/// A cluster (or a single node).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxmoxConfig {
    /// `https://node.example:8006`, of any node.
    pub url: Url,
    /// An API token's name: `lazaret@pve!fleet`.
    pub token: String,
    /// The token's secret.
    pub secret: SecretSource,
    /// The CA of the node's certificate; Proxmox makes its own by default, in
    /// `/etc/pve/pve-root-ca.pem`.
    #[serde(default)]
    pub trust: Trust,
    /// Seconds between two polls.
    #[serde(default = "poll_s")]
    pub poll_s: u64,
    /// Whether VMs may be tagged; the token then needs a right to write.
    #[serde(default)]
    pub allow_tags: bool,
}

fn poll_s() -> u64 {
    2
}

impl ProxmoxConfig {
    pub(crate) fn endpoint(&self) -> Result<Endpoint, ConnectorError> {
        let bad = |why: &str| ConnectorError::Config(format!("proxmox: {}: {why}", self.url));
        if self.url.scheme() != "https" {
            return Err(bad("only https is spoken"));
        }
        if !(POLL_MIN_S..=POLL_MAX_S).contains(&self.poll_s) {
            return Err(bad(&format!("poll_s is {POLL_MIN_S} to {POLL_MAX_S}")));
        }
        if !self.token.contains('@') || !self.token.contains('!') {
            return Err(bad("token is user@realm!name"));
        }
        let host = self
            .url
            .host_str()
            .ok_or_else(|| bad("a host is missing"))?;
        let port = self.url.port().unwrap_or(PORT);
        Ok(Endpoint::new(
            host,
            port,
            Some(tls_config(&self.trust, None)?),
        ))
    }

    pub(crate) fn poll_every(&self) -> Duration {
        Duration::from_secs(self.poll_s)
    }
}
