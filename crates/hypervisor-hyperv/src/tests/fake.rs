use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hypervisor::{Connect, HostId, Pace, Power, VmId};
use hypervisor_conformance::{
    Abilities, Approach, Breaker, FakeHttp, FakeRequest, FakeResponse, Rig, TestCertificates,
    TlsFront, Upstream, write_secret,
};
use hypervisor_transport::{SecretSource, Trust};

use crate::ntlm::{Account, server};
use crate::{HypervConfig, HypervConnector, HypervHost};

pub(super) const PASSWORD: &str = "the <right> password";
const NAMES: [&str; 2] = ["hv1", "hv2"];
const SOAP: &str = "application/soap+xml;charset=UTF-8";
/// Stands for the id of the message that is answered.
const ASKED: &str = "@asked@";
/// Instances in one answer: few, so that there are several.
const PAGE: usize = 2;

#[derive(Debug, Clone)]
struct FakeVm {
    name: String,
    state: u16,
    operational: u16,
}

/// One host.
#[derive(Debug, Default)]
struct Machine {
    name: &'static str,
    vms: BTreeMap<String, FakeVm>,
    /// The VM that moves away, and where to.
    moving: Option<(String, &'static str)>,
    /// Connections that are authenticated.
    known: BTreeSet<u64>,
    /// Enumerations that go on.
    open: BTreeMap<String, Vec<String>>,
    opened: u32,
}

struct Host {
    machine: Arc<Mutex<Machine>>,
    http: FakeHttp,
    _tls: TlsFront,
    breaker: Breaker,
}

pub(super) struct Fakes {
    hosts: Vec<Host>,
    certificates: TestCertificates,
    dir: tempfile::TempDir,
    made: u32,
}

impl Fakes {
    pub(super) async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certificates = TestCertificates::make(dir.path())?;
        write_secret(dir.path(), "right", PASSWORD)?;
        write_secret(dir.path(), "wrong", "another password")?;
        let mut hosts = Vec::new();
        for name in NAMES {
            let machine = Machine {
                name,
                ..Machine::default()
            };
            let machine = Arc::new(Mutex::new(machine));
            let told = Arc::clone(&machine);
            let http = FakeHttp::start(move |request| lock(&told).answer(&request)).await?;
            let tls = TlsFront::start(http.addr(), &certificates).await?;
            let breaker = Breaker::start(Upstream::Tcp(tls.addr())).await?;
            hosts.push(Host {
                machine,
                http,
                _tls: tls,
                breaker,
            });
        }
        Ok(Self {
            hosts,
            certificates,
            dir,
            made: 0,
        })
    }

    /// The first host's port without TLS, for the check of the fake itself.
    pub(super) fn plain_port(&self) -> u16 {
        self.hosts[0].http.addr().port()
    }

    fn machine(&self, index: usize) -> MutexGuard<'_, Machine> {
        lock(&self.hosts[index].machine)
    }

    fn holder(&self, vm: &VmId) -> Result<usize> {
        let holds = |i: &usize| self.machine(*i).vms.contains_key(vm.as_str());
        (0..self.hosts.len()).find(holds).context("no host has it")
    }

    fn set(&self, vm: &VmId, state: u16) -> Result<()> {
        let holder = self.holder(vm)?;
        let mut machine = self.machine(holder);
        let found = machine.vms.get_mut(vm.as_str()).context("no VM")?;
        found.state = state;
        Ok(())
    }
}

fn target(to: &HostId) -> usize {
    usize::from(to.as_str() == NAMES[1])
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    fn answer(&mut self, request: &FakeRequest) -> FakeResponse {
        if let Some(refused) = self.authenticate(request) {
            return refused;
        }
        if request.path != "/wsman" {
            return FakeResponse::status(404);
        }
        let body = &request.body;
        let between = |from: &str, to: &str| -> Option<String> {
            let at = body.find(from)? + from.len();
            let rest = &body[at..];
            let rest = &rest[rest.find('>')? + 1..];
            Some(rest[..rest.find(to)?].to_owned())
        };
        let made = if let Some(context) = between("EnumerationContext", "<") {
            self.pull(&context)
        } else if let Some(wql) = between("Filter", "<") {
            self.enumerate(&wql)
        } else {
            fault("The request is not supported.")
        };
        let asked = between("MessageID", "<").unwrap_or_default();
        FakeResponse {
            body: made.body.replace(ASKED, &asked),
            ..made
        }
    }

    /// `Some`: what is answered to whoever is not known yet.
    fn authenticate(&mut self, request: &FakeRequest) -> Option<FakeResponse> {
        let token = request
            .header("authorization")
            .and_then(|shown| shown.strip_prefix("Negotiate "))
            .and_then(|token| BASE64.decode(token).ok());
        let Some(token) = token else {
            let is_known = self.known.contains(&request.connection);
            return (!is_known).then(|| challenged("Negotiate".to_owned()));
        };
        if token.get(8) == Some(&1) {
            let challenge = BASE64.encode(server::challenge());
            return Some(challenged(format!("Negotiate {challenge}")));
        }
        let account = Account {
            domain: "DOMAIN",
            user: "lazaret",
            password: PASSWORD,
        };
        if !server::accepts(&account, &token) {
            return Some(challenged("Negotiate".to_owned()));
        }
        self.known.insert(request.connection);
        None
    }

    fn enumerate(&mut self, wql: &str) -> FakeResponse {
        let instances = match wql.split_whitespace().nth(3) {
            Some("Msvm_ComputerSystem") => self.computers(),
            Some("Msvm_MigrationJob") => self.jobs(),
            Some("Msvm_VirtualSystemSettingData") => self.settings(),
            Some("Msvm_SyntheticEthernetPortSettingData") => self.ports(),
            _ => {
                return fault(
                    "The WS-Management service cannot process the request: no such class.",
                );
            }
        };
        self.opened += 1;
        let context = format!("uuid:{:08}", self.opened);
        self.open.insert(context.clone(), instances);
        // Not optimised: WinRM may ignore that wish, and then every instance is pulled.
        respond(&format!(
            "<n:EnumerateResponse><n:EnumerationContext>{context}</n:EnumerationContext>\
             </n:EnumerateResponse>"
        ))
    }

    fn pull(&mut self, context: &str) -> FakeResponse {
        let Some(mut left) = self.open.remove(context) else {
            return fault("The enumeration context is not valid.");
        };
        let rest = left.split_off(left.len().min(PAGE));
        let items = left.concat();
        let next = if rest.is_empty() {
            "<n:EndOfSequence/>".to_owned()
        } else {
            self.open.insert(context.to_owned(), rest);
            format!("<n:EnumerationContext>{context}</n:EnumerationContext>")
        };
        respond(&format!(
            "<n:PullResponse>{next}<n:Items>{items}</n:Items></n:PullResponse>"
        ))
    }

    fn computers(&self) -> Vec<String> {
        let host = instance(
            "Msvm_ComputerSystem",
            &[("Name", &self.name.to_uppercase()), ("EnabledState", "2")],
        );
        let vm = |(guid, vm): (&String, &FakeVm)| {
            instance(
                "Msvm_ComputerSystem",
                &[
                    ("Caption", "Virtual Machine"),
                    ("ElementName", &vm.name),
                    ("EnabledState", &vm.state.to_string()),
                    ("Name", guid),
                    ("OperationalStatus", &vm.operational.to_string()),
                ],
            )
        };
        [host].into_iter().chain(self.vms.iter().map(vm)).collect()
    }

    fn jobs(&self) -> Vec<String> {
        let job = |(vm, to): &(String, &'static str)| {
            instance(
                "Msvm_MigrationJob",
                &[
                    ("DestinationHost", &to.to_uppercase()),
                    ("JobState", "4"),
                    ("VirtualSystemName", vm),
                ],
            )
        };
        self.moving.iter().map(job).collect()
    }

    fn settings(&self) -> Vec<String> {
        let setting = |guid: &String| {
            instance(
                "Msvm_VirtualSystemSettingData",
                &[
                    ("BIOSGUID", "{6BA7B810-9DAD-11D1-80B4-00C04FD430C8}"),
                    ("VirtualSystemIdentifier", guid),
                ],
            )
        };
        self.vms.keys().map(setting).collect()
    }

    fn ports(&self) -> Vec<String> {
        let port = |guid: &String| {
            let id = format!("Microsoft:{guid}\\0");
            instance(
                "Msvm_SyntheticEthernetPortSettingData",
                &[("Address", "00155D010203"), ("InstanceID", &id)],
            )
        };
        self.vms.keys().map(port).collect()
    }
}

fn challenged(with: String) -> FakeResponse {
    FakeResponse {
        status: 401,
        headers: vec![("www-authenticate", with)],
        body: String::new(),
    }
}

fn instance(class: &str, properties: &[(&str, &str)]) -> String {
    let properties: String = properties
        .iter()
        .map(|(name, value)| format!("<p:{name}>{value}</p:{name}>"))
        .collect();
    format!(
        "<p:{class} xmlns:p=\"http://schemas.microsoft.com/wbem/wsman/1/wmi/\
         root/virtualization/v2/{class}\">{properties}<p:Description xmlns:xsi=\
         \"http://www.w3.org/2001/XMLSchema-instance\" xsi:nil=\"true\"/></p:{class}>"
    )
}

fn respond(body: &str) -> FakeResponse {
    FakeResponse::body(SOAP, envelope(body))
}

fn fault(text: &str) -> FakeResponse {
    let body = format!(
        "<s:Fault><s:Code><s:Value>s:Sender</s:Value></s:Code><s:Reason>\
         <s:Text xml:lang=\"en-US\">{text}</s:Text></s:Reason></s:Fault>"
    );
    FakeResponse {
        status: 500,
        ..FakeResponse::body(SOAP, envelope(&body))
    }
}

fn envelope(body: &str) -> String {
    format!(
        "<s:Envelope xml:lang=\"en-US\" xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
         xmlns:n=\"http://schemas.xmlsoap.org/ws/2004/09/enumeration\" \
         xmlns:w=\"http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd\"><s:Header>\
         <a:MessageID>uuid:1</a:MessageID><a:RelatesTo>{ASKED}</a:RelatesTo></s:Header><s:Body>{body}</s:Body></s:Envelope>"
    )
}

#[async_trait]
impl Rig for Fakes {
    fn abilities(&self) -> Abilities {
        Abilities {
            moves: true,
            tells_start: true,
            pauses: Some(Power::Paused),
            // Hyper-V does not say what a VM was made from.
            tells_clones: false,
            // It has notes, not tags.
            tags: false,
            asks_password: true,
            has_tls: true,
        }
    }

    fn connector(&self, approach: Approach, pace: Arc<Pace>) -> Result<Arc<dyn Connect>> {
        let password = match approach {
            Approach::WrongPassword => "wrong",
            _ => "right",
        };
        let is_right = approach != Approach::WrongCertificate;
        let host = |(host, name): (&Host, &&str)| -> Result<HypervHost> {
            let port = host.breaker.addr().port();
            Ok(HypervHost {
                url: format!("https://localhost:{port}").parse()?,
                name: Some((*name).to_owned()),
                cluster: None,
            })
        };
        let hosts = self.hosts.iter().zip(&NAMES).map(host);
        let config = HypervConfig {
            hosts: hosts.collect::<Result<_>>()?,
            user: "DOMAIN\\lazaret".to_owned(),
            password: SecretSource::File(self.dir.path().join(password)),
            trust: Trust::CaFile(self.certificates.ca(is_right)),
            poll_s: 1,
        };
        Ok(Arc::new(HypervConnector::new(config, pace)?))
    }

    fn hosts(&self) -> Vec<HostId> {
        NAMES.map(|id| HostId::new(id).expect("an id")).into()
    }

    fn servers(&self) -> u32 {
        2
    }

    async fn create(&mut self, name: &str) -> Result<VmId> {
        self.made += 1;
        let guid = format!("AAAAAAAA-0000-0000-0000-{:012}", self.made);
        let vm = FakeVm {
            name: name.to_owned(),
            state: 2,
            operational: 2,
        };
        self.machine(0).vms.insert(guid.clone(), vm);
        Ok(VmId::new(&guid)?)
    }

    async fn power_off(&mut self, vm: &VmId) -> Result<()> {
        self.set(vm, 3)
    }

    async fn power_on(&mut self, vm: &VmId) -> Result<()> {
        self.set(vm, 2)
    }

    async fn pause(&mut self, vm: &VmId) -> Result<()> {
        self.set(vm, 32768)
    }

    async fn resume(&mut self, vm: &VmId) -> Result<()> {
        self.set(vm, 2)
    }

    async fn begin_move(&mut self, vm: &VmId, to: &HostId) -> Result<bool> {
        let from = self.holder(vm)?;
        self.machine(from).moving = Some((vm.as_str().to_owned(), NAMES[target(to)]));
        Ok(true)
    }

    async fn migrate(&mut self, vm: &VmId, to: &HostId) -> Result<()> {
        let from = self.holder(vm)?;
        let target = target(to);
        let guid = vm.as_str().to_owned();
        let moved = self.machine(from).vms[&guid].clone();
        self.machine(target).vms.insert(guid.clone(), moved);
        let mut source = self.machine(from);
        source.moving = None;
        source.vms.remove(&guid);
        Ok(())
    }

    async fn delete(&mut self, vm: &VmId) -> Result<()> {
        let holder = self.holder(vm)?;
        self.machine(holder)
            .vms
            .remove(vm.as_str())
            .context("no VM")?;
        Ok(())
    }

    async fn cut(&mut self) -> Result<()> {
        self.hosts.iter().for_each(|host| host.breaker.cut());
        Ok(())
    }

    async fn mend(&mut self) -> Result<()> {
        self.hosts.iter().for_each(|host| host.breaker.mend());
        Ok(())
    }
}
