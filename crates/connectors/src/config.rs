//! `[[connector]]` of the configuration.

use std::sync::Arc;
use std::time::Duration;

use daemon::metrics::Counter;
use hypervisor::{Connect, ConnectorError, Pace, RateLimit, WatchOptions};
use hypervisor_hyperv::{HypervConfig, HypervConnector};
use hypervisor_libvirt::{LibvirtConfig, LibvirtConnector};
use hypervisor_proxmox::{ProxmoxConfig, ProxmoxConnector};
use hypervisor_vsphere::{VsphereConfig, VsphereConnector};
use hypervisor_xapi::{XapiConfig, XapiConnector};
use serde::Deserialize;

/// Connectors of one controller.
pub const CONNECTORS_MAX: usize = 256;
/// Longest name of a connector.
const NAME_MAX_BYTES: usize = 64;
/// A libvirtd serves its own host alone and answers thousands of requests a second.
const LIBVIRT_RATE_LIMIT: RateLimit = RateLimit {
    requests_per_s: 200,
    burst: 400,
};
/// Shortest time between two comparisons of the whole inventory.
const RESYNC_MIN_S: u64 = 30;

/// One connector: a name, and the table of exactly one hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectorConfig {
    /// What events and metrics call it.
    pub name: String,
    /// How often the hypervisor's management may be asked.
    pub rate_limit: Option<RateLimit>,
    /// Seconds after which the whole inventory is compared again.
    #[serde(default = "resync_every_s")]
    pub resync_every_s: u64,
    /// Hosts with libvirt.
    pub libvirt: Option<LibvirtConfig>,
    /// A vCenter or ESXi host.
    pub vsphere: Option<VsphereConfig>,
    /// A Proxmox cluster.
    pub proxmox: Option<ProxmoxConfig>,
    /// A pool of XenServer or XCP-ng.
    pub xapi: Option<XapiConfig>,
    /// Hyper-V hosts.
    pub hyperv: Option<HypervConfig>,
}

fn resync_every_s() -> u64 {
    900
}

/// Connectors that cannot be started. Nothing is started then.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorsError {
    /// More than [`CONNECTORS_MAX`].
    #[error("there are {0} connectors; at most {CONNECTORS_MAX} may be configured")]
    TooMany(usize),
    /// A name that is used twice.
    #[error("two connectors are called {0}")]
    Twice(String),
    /// A connector whose configuration cannot work.
    #[error("connector {name}: {why}")]
    Unusable {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// As above, by the connector itself.
    #[error("connector {name}")]
    Refused {
        /// Which.
        name: String,
        /// What is wrong.
        source: ConnectorError,
    },
}

impl ConnectorConfig {
    /// The connector, which counts its requests in `requests`.
    pub(crate) fn connector(&self, requests: Counter) -> Result<Arc<dyn Connect>, ConnectorsError> {
        self.check()?;
        let default = match self.libvirt {
            Some(_) => LIBVIRT_RATE_LIMIT,
            None => RateLimit::default(),
        };
        let pace = Arc::new(Pace::new(self.rate_limit.unwrap_or(default), requests));
        let made = self.make(pace);
        made.map_err(|source| ConnectorsError::Refused {
            name: self.name.clone(),
            source,
        })
    }

    /// [`check`](Self::check) has seen that there is exactly one table.
    fn make(&self, pace: Arc<Pace>) -> Result<Arc<dyn Connect>, ConnectorError> {
        if let Some(config) = &self.libvirt {
            return Ok(Arc::new(LibvirtConnector::new(config.clone(), pace)?));
        }
        if let Some(config) = &self.vsphere {
            return Ok(Arc::new(VsphereConnector::new(config.clone(), pace)?));
        }
        if let Some(config) = &self.proxmox {
            return Ok(Arc::new(ProxmoxConnector::new(config.clone(), pace)?));
        }
        if let Some(config) = &self.xapi {
            return Ok(Arc::new(XapiConnector::new(config.clone(), pace)?));
        }
        if let Some(config) = &self.hyperv {
            return Ok(Arc::new(HypervConnector::new(config.clone(), pace)?));
        }
        Err(ConnectorError::Config("no hypervisor".to_owned()))
    }

    fn check(&self) -> Result<(), ConnectorsError> {
        let unusable = |why: &str| {
            Err(ConnectorsError::Unusable {
                name: self.name.clone(),
                why: why.to_owned(),
            })
        };
        if self.name.is_empty() || self.name.len() > NAME_MAX_BYTES {
            return unusable("its name has 1 to 64 bytes");
        }
        if self.resync_every_s < RESYNC_MIN_S {
            return unusable("resync_every_s is at least 30");
        }
        let tables = [
            self.libvirt.is_some(),
            self.vsphere.is_some(),
            self.proxmox.is_some(),
            self.xapi.is_some(),
            self.hyperv.is_some(),
        ];
        match tables.iter().filter(|is_there| **is_there).count() {
            1 => Ok(()),
            _ => unusable("exactly one of libvirt, vsphere, proxmox, xapi, hyperv is to be given"),
        }
    }

    pub(crate) fn options(&self) -> WatchOptions {
        WatchOptions {
            resync_every: Duration::from_secs(self.resync_every_s),
            ..WatchOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConnectorConfig, toml::de::Error> {
        toml::from_str(text)
    }

    fn refused(text: &str) -> String {
        let config = parse(text).expect("TOML");
        let made = config.connector(Counter::default());
        let error = made.err().expect("refused");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    }

    #[test]
    fn as_an_operator_writes_it() {
        let text = "name = 'rack1'\nrate_limit = { requests_per_s = 5, burst = 5 }\n\
                    [libvirt]\nhosts = [{ uri = 'qemu+unix:///system', name = 'h1' }]\n";
        let config = parse(text).expect("good");
        config.connector(Counter::default()).expect("good");
        let text = "name = 'dc1'\n[proxmox]\nurl = 'https://pve'\ntoken = 'lazaret@pve!fleet'\n\
                    secret = { file = '/etc/lazaret/pve' }\n\
                    trust = { certificate_sha256 = '0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f' }\n";
        let config = parse(text).expect("good");
        config.connector(Counter::default()).expect("good");
    }

    #[test]
    fn what_cannot_work_says_why() {
        let cases = [
            ("name = 'x'\n", "exactly one of"),
            ("name = ''\n", "1 to 64 bytes"),
            ("name = 'x'\nresync_every_s = 1\n", "at least 30"),
            ("name = 'x'\n[libvirt]\nhosts = []\n", "no hosts"),
            (
                "name = 'x'\n[vsphere]\nurl = 'http://v'\nuser = 'u'\npassword = { env = 'P' }\n",
                "only https",
            ),
        ];
        for (text, why) in cases {
            let error = refused(text);
            assert!(error.contains(why), "{error}");
        }
        parse("name = 'x'\nlibvrt = {}\n").expect_err("an unknown key");
    }
}
