//! Two hosts with QEMU: real live migrations.

use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use hypervisor::{Connect, HostId, Pace, Power, VmId};
use hypervisor_conformance::{Abilities, Approach, Breaker, Rig, Upstream, conform};
use hypervisor_transport::Trust;
use testbed::{HostNet, LibvirtHost, LibvirtListen};

use crate::{HostConfig, LibvirtConfig, LibvirtConnector};

const DRIVER: &str = "qemu:///system";

struct Qemu {
    hosts: [LibvirtHost; 2],
    breakers: [Breaker; 2],
    dir: tempfile::TempDir,
    net: HostNet,
}

impl Qemu {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let net = HostNet::new()?;
        let start = |i: usize| {
            let home = dir.path().join(format!("host{i}"));
            let netns = Some(net.host(i));
            LibvirtHost::start(&home, i as u8 + 1, netns, &LibvirtListen::OpenTcp)
        };
        let hosts = [start(0)?, start(1)?];
        let breakers = [
            Breaker::start(Upstream::Unix(hosts[0].socket())).await?,
            Breaker::start(Upstream::Unix(hosts[1].socket())).await?,
        ];
        Ok(Self {
            hosts,
            breakers,
            dir,
            net,
        })
    }

    /// The host that has this VM running or paused, or else the one that has its definition.
    fn holder(&self, vm: &VmId) -> Result<usize> {
        let has = |i: &usize, active: bool| {
            let filter = if active { "--state-running" } else { "--all" };
            let args = ["list", "--uuid", filter];
            let args = if active {
                vec![args[0], args[1], args[2], "--state-paused"]
            } else {
                args.to_vec()
            };
            let listed = self.hosts[*i].virsh(DRIVER, &args).unwrap_or_default();
            listed.lines().any(|line| line.trim() == vm.as_str())
        };
        let active = (0..2).find(|i| has(i, true));
        let defined = || (0..2).find(|i| has(i, false));
        active.or_else(defined).context("no host has it")
    }

    fn virsh(&self, vm: &VmId, command: &str) -> Result<()> {
        let holder = self.holder(vm)?;
        self.hosts[holder]
            .virsh(DRIVER, &[command, vm.as_str()])
            .map(drop)
    }
}

#[async_trait]
impl Rig for Qemu {
    fn abilities(&self) -> Abilities {
        Abilities {
            moves: true,
            tells_start: true,
            pauses: Some(Power::Paused),
            // libvirt does not know what a domain was made from.
            tells_clones: false,
            tags: true,
            // Over unix sockets, behind the relay; the other rig has TLS and a password.
            asks_password: false,
            has_tls: false,
        }
    }

    fn connector(&self, _approach: Approach, pace: Arc<Pace>) -> Result<Arc<dyn Connect>> {
        let host = |i: usize| -> Result<HostConfig> {
            let addr = self.breakers[i].addr();
            Ok(HostConfig {
                uri: format!("qemu+tcp://{addr}/system").parse()?,
                name: Some(format!("h{}", i + 1)),
                cluster: None,
            })
        };
        let config = LibvirtConfig {
            hosts: vec![host(0)?, host(1)?],
            trust: Trust::System,
            client_certificate: None,
            user: None,
            password: None,
            allow_tags: true,
        };
        Ok(Arc::new(LibvirtConnector::new(config, pace)?))
    }

    fn hosts(&self) -> Vec<HostId> {
        ["h1", "h2"]
            .map(|id| HostId::new(id).expect("an id"))
            .into()
    }

    fn servers(&self) -> u32 {
        2
    }

    async fn create(&mut self, name: &str) -> Result<VmId> {
        let path = self.dir.path().join(format!("{name}.xml"));
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
             <cpu mode='custom'><model>qemu64</model></cpu>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
             <memballoon model='none'/></devices></domain>"
        );
        std::fs::write(&path, xml)?;
        let host = &self.hosts[0];
        host.virsh(DRIVER, &["define", path.to_str().context("a path")?])?;
        host.virsh(DRIVER, &["start", name])?;
        Ok(VmId::new(host.virsh(DRIVER, &["domuuid", name])?.trim())?)
    }

    async fn power_off(&mut self, vm: &VmId) -> Result<()> {
        self.virsh(vm, "destroy")
    }

    async fn power_on(&mut self, vm: &VmId) -> Result<()> {
        self.virsh(vm, "start")
    }

    async fn pause(&mut self, vm: &VmId) -> Result<()> {
        self.virsh(vm, "suspend")
    }

    async fn resume(&mut self, vm: &VmId) -> Result<()> {
        self.virsh(vm, "resume")
    }

    async fn migrate(&mut self, vm: &VmId, to: &HostId) -> Result<()> {
        let target = usize::from(to.as_str() == "h2");
        let uri = format!("qemu+tcp://{}/system", self.net.address(target));
        let how = ["--live", "--p2p", "--persistent", "--undefinesource"];
        let holder = self.holder(vm)?;
        let args = [&["migrate"][..], &how, &[vm.as_str(), &uri]].concat();
        self.hosts[holder].virsh(DRIVER, &args).map(drop)
    }

    async fn delete(&mut self, vm: &VmId) -> Result<()> {
        let holder = self.holder(vm)?;
        let host = &self.hosts[holder];
        if host.virsh(DRIVER, &["domstate", vm.as_str()])?.trim() != "shut off" {
            host.virsh(DRIVER, &["destroy", vm.as_str()])?;
        }
        host.virsh(DRIVER, &["undefine", vm.as_str()]).map(drop)
    }

    async fn cut(&mut self) -> Result<()> {
        self.breakers.iter().for_each(Breaker::cut);
        Ok(())
    }

    async fn mend(&mut self) -> Result<()> {
        self.breakers.iter().for_each(Breaker::mend);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_with_live_migrations() -> Result<()> {
    conform(&mut Qemu::start().await?).await
}
