//! Which hosts, and how they are reached.

use std::path::PathBuf;
use std::sync::Arc;

use hypervisor::{ConnectorError, HostId};
use hypervisor_transport::{ClientCertificate, Endpoint, SecretSource, Trust, tls_config};
use rustls::ClientConfig;
use serde::Deserialize;
use url::{Host, Url};

/// libvirt's port for TLS.
const TLS_PORT: u16 = 16514;
/// libvirt's port without.
const TCP_PORT: u16 = 16509;
const UNIX_SOCKET: &str = "/run/libvirt/libvirt-sock";

/// The hosts of one connector.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibvirtConfig {
    /// The hosts.
    pub hosts: Vec<HostConfig>,
    /// The CA of their certificates.
    #[serde(default)]
    pub trust: Trust,
    /// What we show them over TLS.
    pub client_certificate: Option<ClientCertificate>,
    /// For SASL.
    pub user: Option<String>,
    /// For SASL.
    pub password: Option<SecretSource>,
    /// Open connections that may write, so that VMs can be tagged. Otherwise they are read-only.
    #[serde(default)]
    pub allow_tags: bool,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// As libvirt writes it: `qemu+tls://host/system`, `qemu+unix:///system`, `xen+tls://host/system`.
    pub uri: Url,
    /// What the fleet calls it; the URI's host where it is missing.
    pub name: Option<String>,
    /// The cluster or rack it belongs to.
    pub cluster: Option<String>,
}

/// A host, checked.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) id: HostId,
    pub(crate) cluster: Option<String>,
    /// What the driver is opened with, such as `qemu:///system`.
    pub(crate) driver: String,
    pub(crate) address: Address,
}

#[derive(Debug, Clone)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(Endpoint),
}

impl LibvirtConfig {
    /// Checks everything that can be checked without a connection.
    pub(crate) fn targets(&self) -> Result<Vec<Target>, ConnectorError> {
        let tls = tls_config(&self.trust, self.client_certificate.as_ref());
        let tls = if self
            .hosts
            .iter()
            .any(|host| host.uri.scheme().ends_with("+tls"))
        {
            Some(tls?)
        } else {
            None
        };
        if self.user.is_some() != self.password.is_some() {
            let why = "libvirt: user and password belong together";
            return Err(ConnectorError::Config(why.to_owned()));
        }
        let targets: Vec<Target> = self
            .hosts
            .iter()
            .map(|host| host.target(tls.as_ref()))
            .collect::<Result<_, _>>()?;
        let mut names: Vec<&HostId> = targets.iter().map(|target| &target.id).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let why = format!("libvirt: two hosts are called {}", twice[0]);
            return Err(ConnectorError::Config(why));
        }
        if targets.is_empty() {
            return Err(ConnectorError::Config("libvirt: no hosts".to_owned()));
        }
        Ok(targets)
    }
}

impl HostConfig {
    fn target(&self, tls: Option<&Arc<ClientConfig>>) -> Result<Target, ConnectorError> {
        let bad = |why: &str| ConnectorError::Config(format!("libvirt: {}: {why}", self.uri));
        let (driver, transport) = self
            .uri
            .scheme()
            .split_once('+')
            .ok_or_else(|| bad("a transport is missing: +tls, +unix or +tcp"))?;
        let address = match transport {
            "unix" => Address::Unix(self.socket()),
            "tls" => Address::Tcp(
                self.endpoint(TLS_PORT, tls.cloned())
                    .ok_or_else(|| bad("a host is missing"))?,
            ),
            "tcp" if self.is_loopback() => Address::Tcp(
                self.endpoint(TCP_PORT, None)
                    .ok_or_else(|| bad("a host is missing"))?,
            ),
            "tcp" => return Err(bad("+tcp is not protected and for loopback only; use +tls")),
            _ => return Err(bad("this transport is not known: use +tls or +unix")),
        };
        let id = match (&self.name, self.uri.host_str()) {
            (Some(name), _) => name,
            (None, Some(host)) if !host.is_empty() => host,
            _ => "localhost",
        };
        Ok(Target {
            id: HostId::new(id).map_err(|error| bad(&error.to_string()))?,
            cluster: self.cluster.clone(),
            driver: format!("{driver}://{}", self.uri.path()),
            address,
        })
    }

    fn endpoint(&self, port: u16, tls: Option<Arc<ClientConfig>>) -> Option<Endpoint> {
        let host = self.uri.host_str().filter(|host| !host.is_empty())?;
        let port = self.uri.port().unwrap_or(port);
        Some(Endpoint::new(host, port, tls))
    }

    fn is_loopback(&self) -> bool {
        // A scheme that is not the web's: the address is not parsed as one.
        let host = self.uri.host_str().unwrap_or_default();
        match Host::parse(host) {
            Ok(Host::Ipv4(address)) => address.is_loopback(),
            Ok(Host::Ipv6(address)) => address.is_loopback(),
            Ok(Host::Domain(name)) => name == "localhost",
            Err(_) => false,
        }
    }

    fn socket(&self) -> PathBuf {
        let named = self.uri.query_pairs().find(|(key, _)| key == "socket");
        named.map_or_else(|| UNIX_SOCKET.into(), |(_, path)| (&*path).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(uris: &[&str]) -> LibvirtConfig {
        let host = |uri: &&str| HostConfig {
            uri: uri.parse().expect("a URI"),
            name: None,
            cluster: None,
        };
        LibvirtConfig {
            hosts: uris.iter().map(host).collect(),
            trust: Trust::System,
            client_certificate: None,
            user: None,
            password: None,
            allow_tags: false,
        }
    }

    #[test]
    fn uris_as_libvirt_writes_them() {
        let uris = [
            "qemu+unix:///system?socket=/run/x",
            "test+tcp://127.0.0.1:7/default",
        ];
        let targets = config(&uris).targets().expect("good");
        assert_eq!(targets[0].driver, "qemu:///system");
        assert!(matches!(&targets[0].address, Address::Unix(path) if path == "/run/x"));
        assert_eq!(targets[0].id.as_str(), "localhost");
        assert_eq!(targets[1].driver, "test:///default");
        assert_eq!(targets[1].id.as_str(), "127.0.0.1");
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_place() {
        let cases = [
            (&["qemu+tcp://192.0.2.1/system"][..], "for loopback only"),
            (&["qemu://h/system"], "a transport is missing"),
            (&["qemu+ssh://h/system"], "transport is not known"),
            (
                &["qemu+unix:///system", "test+unix:///default"],
                "two hosts",
            ),
            (&[], "no hosts"),
        ];
        for (uris, why) in cases {
            let error = config(uris).targets().expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
