//! The two hosts, an appliance on each, and the controller that watches both through its connector.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{
    Apart, ApartOptions, Cable, HostNet, LibvirtHost, LibvirtListen, Server, ServerOptions,
    wait_until,
};

const DRIVER: &str = "qemu:///system";
/// Where the controller listens for appliances, in a namespace of its own.
const STREAMS_PORT: u16 = 7445;
/// From one host to the other: as far as two cities are, so that what an agent measures tells where
/// it is even on a busy machine.
pub(super) const DISTANCE: Duration = Duration::from_millis(5);

/// Two hosts that a guest moves between.
pub(super) struct Hosts {
    pub(super) machines: [LibvirtHost; 2],
    /// The controller, and the first host's appliance.
    pub(super) server: Server,
    /// What the appliance on each host is called.
    pub(super) appliances: [String; 2],
    /// The connector's ways to the hosts.
    cables: [Cable; 2],
    /// Where each appliance looks for channels to guests.
    channels: [PathBuf; 2],
    /// Ended before the network is.
    _second: Apart,
    net: HostNet,
}

impl Hosts {
    pub(super) fn start(dir: &Path) -> Result<Self> {
        let net = HostNet::new()?;
        net.set_distance(DISTANCE);
        let machine = |i: usize| {
            let home = dir.join(format!("host{i}"));
            let netns = Some(net.host(i));
            LibvirtHost::start(&home, i as u8 + 1, netns, &LibvirtListen::OpenTcp)
        };
        let machines = [machine(0)?, machine(1)?];
        let cable = |i: usize| Cable::start(&dir.join(format!("cable{i}")), &machines[i].socket());
        let cables = [cable(0)?, cable(1)?];
        let channels = [dir.join("channels0"), dir.join("channels1")];
        let streams = format!("{}:{STREAMS_PORT}", net.address(0));
        let options = ServerOptions {
            address: net.address(0),
            netns: Some(net.host(0).to_owned()),
            extra: controller(&streams, &in_fleet(0, &channels[0]), &cables)?,
            ..ServerOptions::default()
        };
        let server = Server::start(&dir.join("appliance0"), &options)?;
        let options = ApartOptions {
            address: net.address(1),
            netns: Some(net.host(1).to_owned()),
            fleet_extra: in_fleet(1, &channels[1]),
            ..ApartOptions::of(&streams)
        };
        let second = Apart::start(&dir.join("appliance1"), "second", &server, &options)?;
        let appliances = both_in_place(&server)?;
        Ok(Self {
            machines,
            server,
            appliances,
            cables,
            channels,
            _second: second,
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

    /// From now on the appliances find the channels to the guests on their hosts.
    pub(super) fn show_channels(&self) -> Result<()> {
        for (machine, shown) in self.machines.iter().zip(&self.channels) {
            std::os::unix::fs::symlink(machine.channels(), shown)?;
        }
        Ok(())
    }

    /// From now on the connector hears of nothing.
    pub(super) fn fall_silent(&self) {
        self.cables.iter().for_each(Cable::cut);
    }

    /// The connector hears again, and compares everything: it is known on which host the domain is.
    pub(super) fn speak(&self, domain: &str, host: usize) -> Result<()> {
        self.cables.iter().for_each(Cable::mend);
        let name = host_name(host);
        let known = wait_until(super::PATIENCE, || {
            self.told_host(domain) == Some(name.clone())
        });
        ensure!(
            known,
            "{domain} is not known on {name}: {}",
            self.fleet(&["vms"])?
        );
        Ok(())
    }

    /// The host of a domain, as the connector told last.
    pub(super) fn told_host(&self, domain: &str) -> Option<String> {
        let all = self.fleet(&["vms"]).ok()?;
        let own = all.as_array()?.iter().find(|vm| vm["name"] == domain)?;
        Some(own["host"].as_str()?.to_owned())
    }

    /// What `lazaret fleet …` says.
    pub(super) fn fleet(&self, args: &[&str]) -> Result<Value> {
        fleet(&self.server, args)
    }
}

pub(super) fn host_name(index: usize) -> String {
    format!("host{index}")
}

/// An appliance's place in the fleet.
fn in_fleet(index: usize, channels: &Path) -> String {
    format!(
        "host = \"{}\"\nchannels = [{channels:?}]\n",
        host_name(index)
    )
}

/// The configuration of the controller, of its connector, and of the appliance beside it.
fn controller(streams: &str, in_fleet: &str, cables: &[Cable; 2]) -> Result<String> {
    let mut text = format!(
        "[controller]\nlisten = \"{streams}\"\n\n[fleet]\n{in_fleet}\n\
         [[connector]]\nname = \"kvm\"\n[connector.libvirt]\nhosts = [\n"
    );
    for (i, cable) in cables.iter().enumerate() {
        writeln!(
            text,
            "  {{ uri = \"qemu+unix:///system?socket={}\", name = \"{}\" }},",
            cable.path().display(),
            host_name(i)
        )?;
    }
    text.push_str("]\n");
    Ok(text)
}

/// Waits until the controller has placed an appliance on each host; their names.
fn both_in_place(server: &Server) -> Result<[String; 2]> {
    let named = |host: &str| -> Option<String> {
        let all = fleet(server, &["appliances"]).ok()?;
        let there = all
            .as_array()?
            .iter()
            .find(|it| it["host"] == host && it["availability"] == "up")?;
        Some(there["name"].as_str()?.to_owned())
    };
    let both = || Some([named(&host_name(0))?, named(&host_name(1))?]);
    let found = wait_until(super::PATIENCE, || both().is_some());
    ensure!(
        found,
        "no appliance on each host: {}\n{}",
        fleet(server, &["appliances"])?,
        fleet(server, &["events"])?
    );
    both().context("an appliance has gone")
}

fn fleet(server: &Server, args: &[&str]) -> Result<Value> {
    let mut all = vec!["fleet"];
    all.extend(args);
    all.push("--json");
    Ok(serde_json::from_str(&server.cli(&all)?)?)
}
