//! A network of two hypervisor hosts: a namespace for each, joined by a switch.

use std::process::Command;

use anyhow::Result;

use crate::run;

/// Two hosts' network namespaces with a bridge `br0` in each (10.77.0.1 and 10.77.0.2), joined in a
/// third one, whose own address is 10.77.0.100. All go away with the guard.
#[derive(Debug)]
pub struct HostNet {
    lan: String,
    hosts: [String; 2],
}

impl HostNet {
    /// Makes it.
    ///
    /// # Errors
    /// Without root or iproute2.
    pub fn new() -> Result<Self> {
        let id = std::process::id();
        let net = Self {
            lan: format!("lzt{id}-lan"),
            hosts: [format!("lzt{id}-hv1"), format!("lzt{id}-hv2")],
        };
        for name in [&net.lan, &net.hosts[0], &net.hosts[1]] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!(
                "-n {name} link add br0 type bridge forward_delay 0"
            ))?;
            ip(&format!("-n {name} link set br0 up"))?;
        }
        let lan = &net.lan;
        ip(&format!("-n {lan} addr add 10.77.0.100/24 dev br0"))?;
        for (i, host) in net.hosts.iter().enumerate() {
            let (port, address) = (format!("v{i}"), net.address(i));
            ip(&format!(
                "-n {lan} link add {port} type veth peer name uplink netns {host}"
            ))?;
            ip(&format!("-n {lan} link set {port} master br0 up"))?;
            ip(&format!("-n {host} link set uplink master br0 up"))?;
            ip(&format!("-n {host} addr add {address}/24 dev br0"))?;
        }
        Ok(net)
    }

    /// The name of a host's namespace (0 or 1).
    #[must_use]
    pub fn host(&self, index: usize) -> &str {
        &self.hosts[index]
    }

    /// The name of the namespace between them.
    #[must_use]
    pub fn lan(&self) -> &str {
        &self.lan
    }

    /// A host's address (0 or 1).
    #[must_use]
    pub fn address(&self, index: usize) -> String {
        format!("10.77.0.{}", index + 1)
    }
}

impl Drop for HostNet {
    fn drop(&mut self) {
        for name in self.hosts.iter().chain([&self.lan]) {
            let _gone = ip(&format!("netns del {name}"));
        }
    }
}

fn ip(args: &str) -> Result<()> {
    run(Command::new("ip").args(args.split(' '))).map(drop)
}
