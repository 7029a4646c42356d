//! libvirtd's own test driver, over TLS with a password.

use std::process::{Child, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use hypervisor::{Connect, HostId, Pace, Power, VmId};
use hypervisor_conformance::{
    Abilities, Approach, Breaker, Rig, TestCertificates, Upstream, conform, counted_pace,
    write_secret,
};
use hypervisor_transport::{SecretSource, Trust};
use testbed::{LibvirtHost, LibvirtListen};

use crate::{HostConfig, LibvirtConfig, LibvirtConnector};

const DRIVER: &str = "test:///default";

struct TestDriver {
    host: LibvirtHost,
    /// The test driver forgets everything with its last connection.
    keeper: Child,
    certificates: TestCertificates,
    breaker: Breaker,
    dir: tempfile::TempDir,
}

impl TestDriver {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certificates = TestCertificates::make(dir.path())?;
        let port = testbed::free_port_on("127.0.0.1")?;
        let listen = LibvirtListen::TlsWithPassword {
            port,
            files: [
                certificates.ca(true),
                certificates.certificate(),
                certificates.key(),
            ],
            login: ["lazaret".to_owned(), "the right password".to_owned()],
        };
        write_secret(dir.path(), "right", "the right password")?;
        write_secret(dir.path(), "wrong", "another password")?;
        let host = LibvirtHost::start(&dir.path().join("host"), 1, None, &listen)?;
        let keeper = host
            .virsh_command(DRIVER)
            .args(["event", "--event", "lifecycle", "--loop"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let breaker = Breaker::start(Upstream::Tcp(([127, 0, 0, 1], port).into())).await?;
        Ok(Self {
            host,
            keeper,
            certificates,
            breaker,
            dir,
        })
    }

    fn virsh(&self, args: &[&str]) -> Result<String> {
        self.host.virsh(DRIVER, args)
    }
}

impl Drop for TestDriver {
    fn drop(&mut self) {
        let _gone = self.keeper.kill();
        let _reaped = self.keeper.wait();
    }
}

#[async_trait]
impl Rig for TestDriver {
    fn abilities(&self) -> Abilities {
        Abilities {
            // It has one host; moves are the other rig's.
            moves: false,
            tells_start: false,
            pauses: Some(Power::Paused),
            // libvirt does not know what a domain was made from.
            tells_clones: false,
            tags: true,
            asks_password: true,
            has_tls: true,
        }
    }

    fn connector(&self, approach: Approach, pace: Arc<Pace>) -> Result<Arc<dyn Connect>> {
        let port = self.breaker.addr().port();
        let password = match approach {
            Approach::WrongPassword => "wrong",
            _ => "right",
        };
        let is_right = approach != Approach::WrongCertificate;
        let config = LibvirtConfig {
            hosts: vec![HostConfig {
                uri: format!("test+tls://localhost:{port}/default").parse()?,
                name: None,
                cluster: None,
            }],
            trust: Trust::CaFile(self.certificates.ca(is_right)),
            client_certificate: None,
            user: Some("lazaret@host1.test".to_owned()),
            password: Some(SecretSource::File(self.dir.path().join(password))),
            allow_tags: true,
        };
        Ok(Arc::new(LibvirtConnector::new(config, pace)?))
    }

    fn hosts(&self) -> Vec<HostId> {
        vec![HostId::new("localhost").expect("an id")]
    }

    async fn create(&mut self, name: &str) -> Result<VmId> {
        let path = self.dir.path().join(format!("{name}.xml"));
        let xml = format!(
            "<domain type='test'><name>{name}</name><memory>1024</memory>\
             <os><type>hvm</type></os></domain>"
        );
        std::fs::write(&path, xml)?;
        self.virsh(&["define", path.to_str().context("a path")?])?;
        self.virsh(&["start", name])?;
        Ok(VmId::new(self.virsh(&["domuuid", name])?.trim())?)
    }

    async fn power_off(&mut self, vm: &VmId) -> Result<()> {
        self.virsh(&["destroy", vm.as_str()]).map(drop)
    }

    async fn power_on(&mut self, vm: &VmId) -> Result<()> {
        self.virsh(&["start", vm.as_str()]).map(drop)
    }

    async fn pause(&mut self, vm: &VmId) -> Result<()> {
        self.virsh(&["suspend", vm.as_str()]).map(drop)
    }

    async fn resume(&mut self, vm: &VmId) -> Result<()> {
        self.virsh(&["resume", vm.as_str()]).map(drop)
    }

    async fn delete(&mut self, vm: &VmId) -> Result<()> {
        if self.virsh(&["domstate", vm.as_str()])?.trim() != "shut off" {
            self.virsh(&["destroy", vm.as_str()])?;
        }
        self.virsh(&["undefine", vm.as_str()]).map(drop)
    }

    async fn cut(&mut self) -> Result<()> {
        self.breaker.cut();
        Ok(())
    }

    async fn mend(&mut self) -> Result<()> {
        self.breaker.mend();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_over_tls_with_a_password() -> Result<()> {
    conform(&mut TestDriver::start().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_connection_is_enough_and_cannot_tag() -> Result<()> {
    let rig = TestDriver::start().await?;
    let socket = rig.host.socket();
    let config = LibvirtConfig {
        hosts: vec![HostConfig {
            uri: format!("test+unix:///default?socket={}", socket.display()).parse()?,
            name: Some("h1".to_owned()),
            cluster: Some("c1".to_owned()),
        }],
        trust: Trust::System,
        client_certificate: None,
        user: None,
        password: None,
        allow_tags: false,
    };
    let pace = counted_pace(hypervisor::RateLimit::default());
    let connector = LibvirtConnector::new(config, pace)?;
    let mut session = connector.connect().await?;
    assert!(session.tagger().is_none());
    let snapshot = session.inventory().await?;
    let host = &snapshot.hosts[&HostId::new("h1")?];
    assert_eq!(host.cluster.as_deref(), Some("c1"));
    // The VM that the test driver always has.
    assert!(snapshot.vms.values().any(|vm| vm.name == "test"));
    Ok(())
}
