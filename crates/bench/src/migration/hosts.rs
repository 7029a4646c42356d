//! The two hosts, and an appliance on each.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use testbed::{HostNet, LibvirtHost, LibvirtListen, Server, ServerOptions, binary, run};

const DRIVER: &str = "qemu:///system";

/// Two hosts that a guest moves between.
pub(super) struct Hosts {
    pub(super) machines: [LibvirtHost; 2],
    /// Where each appliance listens.
    pub(super) links: [String; 2],
    /// The enrolled agent's state, for the guest.
    pub(super) agent_state: PathBuf,
    /// Ended before their network is.
    _servers: [Server; 2],
    net: HostNet,
}

impl Hosts {
    pub(super) fn start(dir: &Path) -> Result<Self> {
        let net = HostNet::new()?;
        let machine = |i: usize| {
            let home = dir.join(format!("host{i}"));
            let netns = Some(net.host(i));
            LibvirtHost::start(&home, i as u8 + 1, netns, &LibvirtListen::OpenTcp)
        };
        let machines = [machine(0)?, machine(1)?];
        let homes = [dir.join("appliance0"), dir.join("appliance1")];
        let options = |i: usize| ServerOptions {
            address: net.address(i),
            netns: Some(net.host(i).to_owned()),
            ..ServerOptions::default()
        };
        let first = Server::start(&homes[0], &options(0))?;
        let agent_state = enrol(dir, &net, &first)?;
        share_identities(&homes)?;
        let second = Server::start(&homes[1], &options(1))?;
        Ok(Self {
            machines,
            links: [first.link.clone(), second.link.clone()],
            agent_state,
            _servers: [first, second],
            net,
        })
    }

    /// Starts a domain on the first host.
    pub(super) fn create(&self, xml: &Path) -> Result<()> {
        let xml = xml.to_str().context("a path")?;
        self.machines[0].virsh(DRIVER, &["create", xml]).map(drop)
    }

    /// Moves a running domain to this host.
    pub(super) fn migrate(&self, domain: &str, to: usize) -> Result<()> {
        let uri = format!("qemu+tcp://{}/system", self.net.address(to));
        let how = ["migrate", "--live", "--p2p", domain, &uri];
        self.machines[1 - to].virsh(DRIVER, &how).map(drop)
    }
}

/// Enrols an agent from the first host's network, for the guest to start with.
fn enrol(dir: &Path, net: &HostNet, server: &Server) -> Result<PathBuf> {
    let state = dir.join("agent-state");
    let config = dir.join("enrol.toml");
    std::fs::write(&config, format!("state_dir = {state:?}\n"))?;
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", net.host(0)])
        .arg(binary("lazaret-agent")?)
        .args(["enrol", "--controller", &server.enrol, "--token"])
        .arg(server.token()?)
        .arg("--config")
        .arg(&config);
    run(&mut command)?;
    Ok(state)
}

/// Both appliances belong to one fleet: the second starts with the CA of the first.
fn share_identities(homes: &[PathBuf; 2]) -> Result<()> {
    let state = homes[1].join("state");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&state)?;
    run(Command::new("cp")
        .arg("-a")
        .arg(homes[0].join("state/pki"))
        .arg(state.join("pki")))
    .map(drop)
}
