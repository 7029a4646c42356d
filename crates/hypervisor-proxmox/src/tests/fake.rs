use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use async_trait::async_trait;
use hypervisor::{Connect, HostId, Pace, Power, VmId};
use hypervisor_conformance::{
    Abilities, Approach, Breaker, FakeHttp, FakeRequest, FakeResponse, Rig, TestCertificates,
    TlsFront, Upstream, write_secret,
};
use hypervisor_transport::{SecretSource, Trust};
use serde_json::{Value, json};

use crate::{ProxmoxConfig, ProxmoxConnector};

const TOKEN: &str = "lazaret@pve!fleet";
const SECRET: &str = "b6a3a5f0-0d6b-4b9c-9d4a-3f1f6e2d7c11";

#[derive(Debug, Clone)]
struct FakeVm {
    name: String,
    node: String,
    /// As QEMU says: running, paused, stopped.
    status: &'static str,
    tags: String,
}

/// The cluster that the fake tells of.
#[derive(Debug, Default)]
struct Cluster {
    vms: BTreeMap<u32, FakeVm>,
    moving: Option<u32>,
    next: u32,
}

pub(super) struct Fake {
    cluster: Arc<Mutex<Cluster>>,
    breaker: Breaker,
    certificates: TestCertificates,
    dir: tempfile::TempDir,
    _servers: (FakeHttp, TlsFront),
}

impl Fake {
    pub(super) async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certificates = TestCertificates::make(dir.path())?;
        write_secret(dir.path(), "right", SECRET)?;
        write_secret(dir.path(), "wrong", "00000000-0000-0000-0000-000000000000")?;
        let cluster = Arc::new(Mutex::new(Cluster {
            next: 100,
            ..Cluster::default()
        }));
        let told = Arc::clone(&cluster);
        let http = FakeHttp::start(move |request| answer(&mut lock(&told), &request)).await?;
        let tls = TlsFront::start(http.addr(), &certificates).await?;
        let breaker = Breaker::start(Upstream::Tcp(tls.addr())).await?;
        Ok(Self {
            cluster,
            breaker,
            certificates,
            dir,
            _servers: (http, tls),
        })
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        lock(&self.cluster)
    }

    fn set(&self, vm: &VmId, status: &'static str) -> Result<()> {
        let mut cluster = self.cluster();
        let vm = cluster.vms.get_mut(&number(vm)?).context("no VM")?;
        vm.status = status;
        Ok(())
    }
}

fn lock(cluster: &Mutex<Cluster>) -> MutexGuard<'_, Cluster> {
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(vm: &VmId) -> Result<u32> {
    Ok(vm.as_str().parse()?)
}

fn answer(cluster: &mut Cluster, request: &FakeRequest) -> FakeResponse {
    let shown = format!("PVEAPIToken={TOKEN}={SECRET}");
    if request.header("authorization") != Some(&*shown) {
        return FakeResponse::status(401);
    }
    let path = request.path.trim_start_matches("/api2/json/");
    let parts: Vec<&str> = path.split('/').collect();
    let data = match (&*request.method, &parts[..]) {
        ("GET", ["cluster", "resources"]) => resources(cluster),
        ("GET", ["cluster", "tasks"]) => tasks(cluster),
        ("GET", ["nodes", node, "qemu?full=1"]) => details(cluster, node),
        ("GET", ["nodes", node, "qemu", vmid, "config"]) => match vm_at(cluster, node, vmid) {
            Some((vmid, _)) => settings(vmid),
            None => return FakeResponse::status(500),
        },
        ("PUT", ["nodes", node, "qemu", vmid, "config"]) => {
            let form = request.body.strip_prefix("tags=").unwrap_or_default();
            let tags = form.replace("%3B", ";");
            match vm_at(cluster, node, vmid) {
                Some((_, vm)) => vm.tags = tags,
                None => return FakeResponse::status(500),
            }
            Value::Null
        }
        _ => return FakeResponse::status(501),
    };
    FakeResponse::json(&json!({ "data": data }))
}

fn vm_at<'a>(cluster: &'a mut Cluster, node: &str, vmid: &str) -> Option<(u32, &'a mut FakeVm)> {
    let vmid = vmid.parse().ok()?;
    let vm = cluster.vms.get_mut(&vmid)?;
    (vm.node == node).then_some((vmid, vm))
}

fn resources(cluster: &Cluster) -> Value {
    let node = |name: &str| {
        json!({
            "id": format!("node/{name}"), "type": "node", "node": name, "status": "online",
            "cpu": 0.01, "maxcpu": 8, "mem": 1 << 30, "maxmem": 8_i64 << 30, "level": "",
        })
    };
    let vm = |(vmid, vm): (&u32, &FakeVm)| {
        let status = if vm.status == "stopped" {
            "stopped"
        } else {
            "running"
        };
        let mut row = json!({
            "id": format!("qemu/{vmid}"), "type": "qemu", "vmid": vmid, "node": vm.node,
            "name": vm.name, "status": status, "template": 0, "maxcpu": 1, "cpu": 0,
        });
        if !vm.tags.is_empty() {
            row["tags"] = json!(vm.tags);
        }
        row
    };
    let container = json!({
        "id": "lxc/900", "type": "lxc", "vmid": 900, "node": "pve1", "name": "a-container",
        "status": "running", "template": 0,
    });
    let storage = json!({
        "id": "storage/pve1/local", "type": "storage", "node": "pve1", "storage": "local",
        "status": "available", "plugintype": "dir",
    });
    let vms = cluster.vms.iter().map(vm);
    let rest = [node("pve1"), node("pve2"), container, storage];
    rest.into_iter().chain(vms).collect()
}

fn tasks(cluster: &Cluster) -> Value {
    let past = json!({
        "upid": "UPID:pve1:00001:0:66F0:qmstart:100:root@pam:", "node": "pve1", "type": "qmstart",
        "id": "100", "user": "root@pam", "starttime": 1, "endtime": 2, "status": "OK",
    });
    let running = cluster.moving.map(|vmid| {
        json!({
            "upid": format!("UPID:pve1:00002:0:66F1:qmigrate:{vmid}:root@pam:"), "node": "pve1",
            "type": "qmigrate", "id": vmid.to_string(), "user": "root@pam", "starttime": 3,
        })
    });
    [past].into_iter().chain(running).collect()
}

fn details(cluster: &Cluster, node: &str) -> Value {
    let here = cluster.vms.iter().filter(|(_, vm)| vm.node == node);
    here.map(|(vmid, vm)| {
        let status = if vm.status == "stopped" {
            "stopped"
        } else {
            "running"
        };
        let mut row = json!({
            "vmid": vmid, "name": vm.name, "status": status, "qmpstatus": vm.status,
        });
        if cluster.moving == Some(*vmid) {
            row["lock"] = json!("migrate");
        }
        row
    })
    .collect()
}

fn settings(vmid: u32) -> Value {
    json!({
        "name": "whatever", "memory": "512", "cores": 1,
        "net0": format!("virtio=BC:24:11:00:00:{:02X},bridge=vmbr0", vmid % 256),
        "smbios1": "uuid=6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "digest": "0a0b0c0d",
    })
}

#[async_trait]
impl Rig for Fake {
    fn abilities(&self) -> Abilities {
        Abilities {
            moves: true,
            tells_start: true,
            pauses: Some(Power::Paused),
            // A clone's task names the source only.
            tells_clones: false,
            tags: true,
            asks_password: true,
            has_tls: true,
        }
    }

    fn connector(&self, approach: Approach, pace: Arc<Pace>) -> Result<Arc<dyn Connect>> {
        let port = self.breaker.addr().port();
        let secret = match approach {
            Approach::WrongPassword => "wrong",
            _ => "right",
        };
        let is_right = approach != Approach::WrongCertificate;
        let config = ProxmoxConfig {
            url: format!("https://localhost:{port}").parse()?,
            token: TOKEN.to_owned(),
            secret: SecretSource::File(self.dir.path().join(secret)),
            trust: Trust::CaFile(self.certificates.ca(is_right)),
            poll_s: 1,
            allow_tags: true,
        };
        Ok(Arc::new(ProxmoxConnector::new(config, pace)?))
    }

    fn hosts(&self) -> Vec<HostId> {
        ["pve1", "pve2"]
            .map(|id| HostId::new(id).expect("an id"))
            .into()
    }

    async fn create(&mut self, name: &str) -> Result<VmId> {
        let mut cluster = self.cluster();
        let vmid = cluster.next;
        cluster.next += 1;
        let vm = FakeVm {
            name: name.to_owned(),
            node: "pve1".to_owned(),
            status: "running",
            tags: String::new(),
        };
        cluster.vms.insert(vmid, vm);
        Ok(VmId::new(&vmid.to_string())?)
    }

    async fn power_off(&mut self, vm: &VmId) -> Result<()> {
        self.set(vm, "stopped")
    }

    async fn power_on(&mut self, vm: &VmId) -> Result<()> {
        self.set(vm, "running")
    }

    async fn pause(&mut self, vm: &VmId) -> Result<()> {
        self.set(vm, "paused")
    }

    async fn resume(&mut self, vm: &VmId) -> Result<()> {
        self.set(vm, "running")
    }

    async fn begin_move(&mut self, vm: &VmId, _to: &HostId) -> Result<bool> {
        self.cluster().moving = Some(number(vm)?);
        Ok(true)
    }

    async fn migrate(&mut self, vm: &VmId, to: &HostId) -> Result<()> {
        let vmid = number(vm)?;
        let mut cluster = self.cluster();
        cluster.moving = None;
        let vm = cluster.vms.get_mut(&vmid).context("no VM")?;
        vm.node = to.as_str().to_owned();
        Ok(())
    }

    async fn delete(&mut self, vm: &VmId) -> Result<()> {
        self.cluster().vms.remove(&number(vm)?).context("no VM")?;
        Ok(())
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
