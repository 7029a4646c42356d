use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use hypervisor::{Connect, HostId, Pace, Power, RateLimit, VmId};
use hypervisor_conformance::{
    Abilities, Approach, Breaker, Rig, TestCertificates, Upstream, counted_pace, write_secret,
};
use hypervisor_transport::{REQUEST_TIME, SecretSource, Trust};

use crate::connector::VsphereSession;
use crate::soap::{Ref, child, children};
use crate::{VsphereConfig, VsphereConnector};

const FAST: RateLimit = RateLimit {
    requests_per_s: 1000,
    burst: 1000,
};
const USER: &str = "lazaret@vsphere.local";
const PASSWORD: &str = "the <right> password";

/// A running vcsim, spoken to through a relay, and by the rig itself without one.
pub(super) struct Vcsim {
    child: Child,
    direct: VsphereSession,
    breaker: Breaker,
    certificates: TestCertificates,
    dir: tempfile::TempDir,
    hosts: Vec<String>,
    pool: String,
    folder: String,
}

impl Drop for Vcsim {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Built once, kept in the cache that `./x` names.
fn program() -> Result<PathBuf> {
    let cache = std::env::var_os("LAZARET_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/lazaret"));
    let dir = cache
        .or_else(home)
        .context("neither LAZARET_CACHE nor HOME")?
        .join("vcsim");
    std::fs::create_dir_all(&dir)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("vcsim");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(dir.join("vcsim"))
        .arg(".")
        .current_dir(source)
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", dir.join("go-build"))
        .status()
        .context("go: install golang-go and golang-github-vmware-govmomi-dev")?;
    ensure!(built.success(), "vcsim does not build");
    Ok(dir.join("vcsim"))
}

impl Vcsim {
    pub(super) async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certificates = TestCertificates::make(dir.path())?;
        write_secret(dir.path(), "right", PASSWORD)?;
        write_secret(dir.path(), "wrong", "another password")?;
        let mut child = Command::new(program()?)
            .arg("-cert")
            .arg(certificates.certificate())
            .arg("-key")
            .arg(certificates.key())
            .args(["-user", USER, "-password", PASSWORD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut address)?;
        let addr: std::net::SocketAddr = address.trim().parse()?;
        let config = config(&certificates, dir.path(), addr.port(), Approach::Right)?;
        let direct = VsphereConnector::new(config, counted_pace(FAST))?
            .login()
            .await?;
        let breaker = Breaker::start(Upstream::Tcp(addr)).await?;
        let mut rig = Self {
            child,
            direct,
            breaker,
            certificates,
            dir,
            hosts: Vec::new(),
            pool: String::new(),
            folder: String::new(),
        };
        rig.hosts = rig.find("HostSystem", "DC0_C0_H").await?;
        rig.pool = rig
            .find("ResourcePool", "Resources")
            .await?
            .pop()
            .context("a pool")?;
        rig.folder = rig.find("Folder", "vm").await?.pop().context("a folder")?;
        Ok(rig)
    }

    /// Objects of a type whose name begins so.
    async fn find(&mut self, kind: &str, name: &str) -> Result<Vec<String>> {
        let root = self.direct.services.root.clone();
        let views = Ref {
            kind: "ViewManager",
            id: "ViewManager",
        };
        let arguments = format!(
            "<container type=\"Folder\">{root}</container><type>{kind}</type>\
             <recursive>true</recursive>"
        );
        let soap = &mut self.direct.soap;
        let view = soap
            .call(
                "CreateContainerView",
                views,
                &arguments,
                REQUEST_TIME,
                |values| Some(values.first()?.text()?.to_owned()),
            )
            .await?;
        let spec = format!(
            "<specSet><propSet><type>{kind}</type><pathSet>name</pathSet></propSet><objectSet>\
             <obj type=\"ContainerView\">{view}</obj><skip>true</skip>\
             <selectSet xsi:type=\"TraversalSpec\"><type>ContainerView</type><path>view</path>\
             </selectSet></objectSet></specSet>"
        );
        let collector = Ref {
            kind: "PropertyCollector",
            id: "propertyCollector",
        };
        let found = soap
            .call(
                "RetrieveProperties",
                collector,
                &spec,
                REQUEST_TIME,
                |values| {
                    let named = values.iter().filter_map(|object| {
                        let shown = child(children(*object, "propSet").next()?, "val")?.text()?;
                        let id = child(*object, "obj")?.text()?;
                        shown.starts_with(name).then(|| id.to_owned())
                    });
                    Some(named.collect())
                },
            )
            .await?;
        Ok(found)
    }

    /// Runs a task to its end and gives its result.
    async fn task(
        &mut self,
        method: &str,
        kind: &str,
        id: &str,
        arguments: &str,
    ) -> Result<String> {
        let this = Ref { kind, id };
        let soap = &mut self.direct.soap;
        let task = soap
            .call(method, this, arguments, REQUEST_TIME, |values| {
                Some(values.first()?.text()?.to_owned())
            })
            .await?;
        let spec = format!(
            "<specSet><propSet><type>Task</type><pathSet>info</pathSet></propSet>\
             <objectSet><obj type=\"Task\">{task}</obj></objectSet></specSet>"
        );
        let collector = Ref {
            kind: "PropertyCollector",
            id: "propertyCollector",
        };
        for _ in 0..500 {
            let (state, result) = soap
                .call(
                    "RetrieveProperties",
                    collector,
                    &spec,
                    REQUEST_TIME,
                    |values| {
                        let info = child(child(*values.first()?, "propSet")?, "val")?;
                        let text = |name| Some(child(info, name)?.text()?.to_owned());
                        Some((text("state")?, text("result").unwrap_or_default()))
                    },
                )
                .await?;
            match &*state {
                "success" => return Ok(result),
                "error" => anyhow::bail!("{method} failed"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        anyhow::bail!("{method} does not end")
    }

    async fn vm_task(&mut self, method: &str, vm: &VmId, arguments: &str) -> Result<String> {
        self.task(method, "VirtualMachine", vm.as_str(), arguments)
            .await
    }
}

fn config(
    certificates: &TestCertificates,
    dir: &Path,
    port: u16,
    approach: Approach,
) -> Result<VsphereConfig> {
    let password = match approach {
        Approach::WrongPassword => "wrong",
        _ => "right",
    };
    let is_right = approach != Approach::WrongCertificate;
    Ok(VsphereConfig {
        url: format!("https://localhost:{port}").parse()?,
        user: USER.to_owned(),
        password: SecretSource::File(dir.join(password)),
        trust: Trust::CaFile(certificates.ca(is_right)),
    })
}

#[async_trait]
impl Rig for Vcsim {
    fn abilities(&self) -> Abilities {
        Abilities {
            moves: true,
            // vSphere does not tell in a VM's properties.
            tells_start: false,
            // Its pause writes the memory to disk.
            pauses: Some(Power::Suspended),
            tells_clones: true,
            // Tags are another API's (vAPI), which the connector does not speak.
            tags: false,
            asks_password: true,
            has_tls: true,
        }
    }

    fn connector(&self, approach: Approach, pace: Arc<Pace>) -> Result<Arc<dyn Connect>> {
        let port = self.breaker.addr().port();
        let config = config(&self.certificates, self.dir.path(), port, approach)?;
        Ok(Arc::new(VsphereConnector::new(config, pace)?))
    }

    fn hosts(&self) -> Vec<HostId> {
        let ids = self.hosts.iter();
        ids.map(|id| HostId::new(id).expect("an id")).collect()
    }

    async fn create(&mut self, name: &str) -> Result<VmId> {
        let arguments = format!(
            "<config><name>{name}</name><guestId>otherGuest</guestId>\
             <files><vmPathName>[LocalDS_0]</vmPathName></files></config>\
             <pool type=\"ResourcePool\">{}</pool><host type=\"HostSystem\">{}</host>",
            self.pool, self.hosts[0]
        );
        let folder = self.folder.clone();
        let id = self
            .task("CreateVM_Task", "Folder", &folder, &arguments)
            .await?;
        let vm = VmId::new(&id)?;
        self.power_on(&vm).await?;
        Ok(vm)
    }

    async fn power_off(&mut self, vm: &VmId) -> Result<()> {
        self.vm_task("PowerOffVM_Task", vm, "").await.map(drop)
    }

    async fn power_on(&mut self, vm: &VmId) -> Result<()> {
        self.vm_task("PowerOnVM_Task", vm, "").await.map(drop)
    }

    async fn pause(&mut self, vm: &VmId) -> Result<()> {
        self.vm_task("SuspendVM_Task", vm, "").await.map(drop)
    }

    async fn resume(&mut self, vm: &VmId) -> Result<()> {
        self.power_on(vm).await
    }

    async fn migrate(&mut self, vm: &VmId, to: &HostId) -> Result<()> {
        let to = to.as_str();
        let spec = format!("<spec><host type=\"HostSystem\">{to}</host></spec>");
        self.vm_task("RelocateVM_Task", vm, &spec).await.map(drop)
    }

    async fn clone_vm(&mut self, vm: &VmId, name: &str) -> Result<VmId> {
        let arguments = format!(
            "<folder type=\"Folder\">{}</folder><name>{name}</name><spec><location>\
             <pool type=\"ResourcePool\">{}</pool></location><powerOn>false</powerOn>\
             <template>false</template></spec>",
            self.folder, self.pool
        );
        Ok(VmId::new(
            &self.vm_task("CloneVM_Task", vm, &arguments).await?,
        )?)
    }

    async fn delete(&mut self, vm: &VmId) -> Result<()> {
        // It refuses where the VM is off already.
        let _off = self.power_off(vm).await;
        self.vm_task("Destroy_Task", vm, "").await.map(drop)
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
