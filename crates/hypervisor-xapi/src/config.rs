//! Which pool, and how it is reached.

use hypervisor::ConnectorError;
use hypervisor_transport::{Endpoint, SecretSource, Trust, tls_config};
use serde::Deserialize;
use url::Url;

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XapiConfig {
    /// `https://master.example`: the pool's master (coordinator).
    pub url: Url,
    /// An account of the pool; the role Read Only is enough.
    pub user: String,
    /// Its password.
    pub password: SecretSource,
    /// The CA of the master's certificate, or the certificate that it made for itself.
    #[serde(default)]
    pub trust: Trust,
    /// Whether VMs may be tagged; the account then needs the role VM Operator.
    #[serde(default)]
    pub allow_tags: bool,
}

impl XapiConfig {
    pub(crate) fn endpoint(&self) -> Result<Endpoint, ConnectorError> {
        let bad = |why: &str| ConnectorError::Config(format!("xapi: {}: {why}", self.url));
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
