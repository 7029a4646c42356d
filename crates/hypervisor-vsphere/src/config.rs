//! Which vCenter, and how it is reached.

use hypervisor::ConnectorError;
use hypervisor_transport::{Endpoint, SecretSource, Trust, tls_config};
use serde::Deserialize;
use url::Url;

/// A vCenter or ESXi host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsphereConfig {
    /// `https://vcenter.example`.
    pub url: Url,
    /// Such as `lazaret@vsphere.local`. Reading is all it needs.
    pub user: String,
    /// Its password.
    pub password: SecretSource,
    /// The CA of the vCenter's certificate.
    #[serde(default)]
    pub trust: Trust,
}

impl VsphereConfig {
    pub(crate) fn endpoint(&self) -> Result<Endpoint, ConnectorError> {
        let bad = |why: &str| ConnectorError::Config(format!("vsphere: {}: {why}", self.url));
        if self.url.scheme() != "https" {
            return Err(bad("only https is spoken"));
        }
        let host = self
            .url
            .host_str()
            .ok_or_else(|| bad("a host is missing"))?;
        let port = self.url.port().unwrap_or(443);
        Ok(Endpoint::new(
            host,
            port,
            Some(tls_config(&self.trust, None)?),
        ))
    }
}
