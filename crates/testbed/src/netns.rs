//! A network namespace of a test's own, joined to ours by a veth pair.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{Spawn, run};

/// A namespace that goes away with the guard. Addresses come from 198.18.0.0/15, the block kept
/// for tests (RFC 2544).
#[derive(Debug)]
pub struct Netns {
    name: String,
    host_link: String,
    host_address: String,
}

impl Netns {
    /// Makes a namespace; `index` (0 to 255) tells the test's namespaces apart.
    ///
    /// # Errors
    /// Without root or the ip program.
    pub fn new(index: u8) -> Result<Self> {
        let id = std::process::id();
        let net = Self {
            name: format!("lzt{id}-{index}"),
            host_link: format!("lz{}h{index}", id % 100_000),
            host_address: format!("198.18.{index}.1"),
        };
        let guest_link = format!("lz{}g{index}", id % 100_000);
        ip(&["netns", "add", &net.name])?;
        ip(&[
            "link",
            "add",
            &net.host_link,
            "type",
            "veth",
            "peer",
            "name",
            &guest_link,
        ])?;
        ip(&["link", "set", &guest_link, "netns", &net.name])?;
        let host_cidr = format!("{}/24", net.host_address);
        let guest_cidr = format!("198.18.{index}.2/24");
        ip(&["addr", "add", &host_cidr, "dev", &net.host_link])?;
        ip(&["link", "set", &net.host_link, "up"])?;
        ip(&[
            "-n",
            &net.name,
            "addr",
            "add",
            &guest_cidr,
            "dev",
            &guest_link,
        ])?;
        ip(&["-n", &net.name, "link", "set", &guest_link, "up"])?;
        ip(&["-n", &net.name, "link", "set", "lo", "up"])?;
        Ok(net)
    }

    /// One that is there already and joined to something else than us; it goes away with the guard.
    pub(crate) fn of(name: &str, host_address: &str) -> Self {
        Self {
            name: name.to_owned(),
            host_link: String::new(),
            host_address: host_address.to_owned(),
        }
    }

    /// Our end's address, which the namespace reaches.
    #[must_use]
    pub fn host_address(&self) -> &str {
        &self.host_address
    }

    /// A command that runs inside the namespace.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// A process to start inside the namespace.
    #[must_use]
    pub fn spawn(&self, name: &str, program: &Path, log: &Path) -> Spawn {
        Spawn::new(name, "ip", log)
            .args(["netns", "exec", &self.name])
            .arg(program)
    }

    /// Drops every packet between the namespace and us, without a word to either (no reset).
    ///
    /// # Errors
    /// Where the route cannot be set.
    pub fn cut(&self) -> Result<()> {
        ip(&[
            "-n",
            &self.name,
            "route",
            "add",
            "blackhole",
            &self.host_cidr32(),
        ])
        .context("cannot cut the link")
    }

    /// Undoes [`cut`](Self::cut).
    ///
    /// # Errors
    /// Where it was not cut.
    pub fn mend(&self) -> Result<()> {
        ip(&[
            "-n",
            &self.name,
            "route",
            "del",
            "blackhole",
            &self.host_cidr32(),
        ])
    }

    fn host_cidr32(&self) -> String {
        format!("{}/32", self.host_address)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _gone = ip(&["netns", "del", &self.name]);
        if !self.host_link.is_empty() {
            // Deleting the namespace takes the veth pair along, sooner or later.
            let _gone = ip(&["link", "del", &self.host_link]);
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args)).map(drop)
}
