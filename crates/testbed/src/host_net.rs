//! A network of two hypervisor hosts: a namespace for each, joined by a switch.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::{Netns, SlowWire, run};

/// Two hosts' network namespaces with a bridge `br0` in each (10.77.0.1 and 10.77.0.2), joined in a
/// third one, whose own address is 10.77.0.100. All go away with the guard.
#[derive(Debug)]
pub struct HostNet {
    /// To the second host. Goes before the namespaces.
    wire: SlowWire,
    /// What the names of its namespaces begin with.
    prefix: String,
    lan: String,
    hosts: [String; 2],
    guests: AtomicUsize,
}

/// Something that runs on one host and moves to the other: a namespace whose address comes with
/// it. It goes before the network does.
#[derive(Debug)]
pub struct MovingGuest {
    net: Netns,
    port: String,
    at: String,
}

impl HostNet {
    /// Makes it. The second host is as near as the first until [`set_distance`](Self::set_distance).
    ///
    /// # Errors
    /// Without root, iproute2 or /dev/net/tun.
    pub fn new() -> Result<Self> {
        // Two tests of a process may have one each.
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("lzt{}-net{number}", std::process::id());
        let lan = format!("{prefix}-lan");
        let hosts = [format!("{prefix}-hv1"), format!("{prefix}-hv2")];
        for name in [&lan, &hosts[0], &hosts[1]] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!(
                "-n {name} link add br0 type bridge forward_delay 0"
            ))?;
            ip(&format!("-n {name} link set br0 up"))?;
        }
        ip(&format!("-n {lan} addr add 10.77.0.100/24 dev br0"))?;
        ip(&format!(
            "-n {lan} link add v0 type veth peer name uplink netns {}",
            hosts[0]
        ))?;
        let wire = SlowWire::between([[&lan, "v1"], [&hosts[1], "uplink"]], Duration::ZERO)?;
        let net = Self {
            wire,
            prefix,
            lan,
            hosts,
            guests: AtomicUsize::new(0),
        };
        let lan = &net.lan;
        for (i, host) in net.hosts.iter().enumerate() {
            let (port, address) = (format!("v{i}"), net.address(i));
            ip(&format!("-n {lan} link set {port} master br0 up"))?;
            ip(&format!("-n {host} link set uplink master br0 up"))?;
            ip(&format!("-n {host} addr add {address}/24 dev br0"))?;
        }
        Ok(net)
    }

    /// From now on a packet takes so long from one host to the other.
    pub fn set_distance(&self, one_way: Duration) {
        self.wire.set_delay(one_way);
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

    /// A guest on the first host, 10.77.0.50 and up.
    ///
    /// # Errors
    /// Those of iproute2.
    pub fn guest(&self) -> Result<MovingGuest> {
        let number = 50 + self.guests.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-g{number}", self.prefix);
        let (port, at) = (format!("g{number}"), self.hosts[0].clone());
        ip(&format!("netns add {name}"))?;
        let guest = MovingGuest {
            net: Netns::of(&name, &self.address(0)),
            port,
            at,
        };
        let (port, at) = (&guest.port, &guest.at);
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!(
            "-n {at} link add {port} type veth peer name eth0 netns {name}"
        ))?;
        ip(&format!("-n {at} link set {port} master br0 up"))?;
        ip(&format!("-n {name} addr add 10.77.0.{number}/24 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        Ok(guest)
    }

    /// Moves a guest to this host (0 or 1), as a live migration does: its addresses and its
    /// connections go with it.
    ///
    /// # Errors
    /// Those of iproute2.
    pub fn move_guest(&self, guest: &mut MovingGuest, to: usize) -> Result<()> {
        let (port, from, to) = (&guest.port, &guest.at, &self.hosts[to]);
        if from != to {
            ip(&format!("-n {from} link set {port} netns {to}"))?;
            ip(&format!("-n {to} link set {port} master br0 up"))?;
            guest.at = to.clone();
        }
        Ok(())
    }
}

impl MovingGuest {
    /// Its namespace.
    #[must_use]
    pub fn net(&self) -> &Netns {
        &self.net
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
