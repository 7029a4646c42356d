//! Polls all hosts at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{
    Claims, Connect, ConnectorError, Host, HostId, HostState, Inventory, Locate, Observation, Pace,
    Power, Session, Snapshot, Vm, VmId, Watch, bounded_name,
};
use hypervisor_transport::HttpClient;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::{HypervConfig, Target};
use crate::records::{COMPUTERS, Hardware, MIGRATIONS, NAMESPACE, PORTS, SETTINGS, vms};
use crate::wsman::{Login, Wsman};

/// Network cards and firmware uuids are asked for again this often, and when a VM is new.
const HARDWARE_EVERY: Duration = Duration::from_secs(300);
/// A host that did not answer is left alone this long.
const RETRY: Duration = Duration::from_secs(5);
/// After a wrong password: accounts get locked.
const RETRY_LASTING: Duration = Duration::from_secs(60);

/// Connector to any number of Hyper-V hosts.
pub struct HypervConnector {
    config: HypervConfig,
    targets: Vec<Target>,
    pace: Arc<Pace>,
    fleet: Arc<Mutex<Fleet>>,
}

/// What is known of all hosts. Outlives a session: a host that cannot be reached keeps its VMs.
#[derive(Default)]
struct Fleet {
    hosts: BTreeMap<HostId, Host>,
    claims: Claims,
}

impl HypervConnector {
    /// Checks the configuration. `pace` is for each host by itself; its counter counts all.
    ///
    /// # Errors
    /// [`ConnectorError::Config`], naming the host or file.
    pub fn new(config: HypervConfig, pace: Arc<Pace>) -> Result<Self, ConnectorError> {
        let targets = config.targets()?;
        let unreached = |target: &Target| Host {
            id: target.id.clone(),
            name: bounded_name(target.id.as_str()),
            cluster: target.cluster.as_deref().map(bounded_name),
            state: HostState::Unreachable,
        };
        let hosts = targets.iter().map(unreached);
        let fleet = Fleet {
            hosts: hosts.map(|host| (host.id.clone(), host)).collect(),
            claims: Claims::new(),
        };
        Ok(Self {
            config,
            targets,
            pace,
            fleet: Arc::new(Mutex::new(fleet)),
        })
    }

    fn login(&self) -> Result<Login, ConnectorError> {
        let whole = &self.config.user;
        let (domain, user) = whole.split_once('\\').unwrap_or(("", whole));
        Ok(Login {
            domain: domain.to_owned(),
            user: user.to_owned(),
            password: self.config.password.read()?,
        })
    }
}

#[async_trait]
impl Connect for HypervConnector {
    fn kind(&self) -> &'static str {
        "hyperv"
    }

    async fn connect(&self) -> Result<Box<dyn Session>, ConnectorError> {
        let login = self.login()?;
        let host = |target: &Target| {
            let pace = Arc::new(self.pace.fork());
            let http = HttpClient::new(target.endpoint.clone(), pace);
            Probe {
                id: target.id.clone(),
                wsman: Wsman::new(http, login.clone()),
                hardware: Hardware::default(),
                hardware_of: BTreeSet::new(),
                hardware_until: None,
                retry_at: None,
                missing: BTreeSet::new(),
            }
        };
        let mut session = HypervSession {
            probes: self.targets.iter().map(host).collect(),
            poll_every: self.config.poll_every(),
            fleet: Arc::clone(&self.fleet),
        };
        session.poll().await?;
        Ok(Box::new(session))
    }
}

/// The way to one host.
struct Probe {
    id: HostId,
    wsman: Wsman,
    hardware: Hardware,
    /// Names of the machines that were there when it was asked for.
    hardware_of: BTreeSet<String>,
    hardware_until: Option<Instant>,
    /// It did not answer; not before then again.
    retry_at: Option<Instant>,
    /// VMs that it did not name last time.
    missing: BTreeSet<VmId>,
}

type Found = Vec<(Vm, bool)>;

impl Probe {
    async fn look(&mut self) -> Result<Found, ConnectorError> {
        // Moves first: one that ends in between is told by its result.
        let migrations = self.wsman.query(NAMESPACE, MIGRATIONS).await?;
        let computers = self.wsman.query(NAMESPACE, COMPUTERS).await?;
        let names = computers
            .iter()
            .filter_map(|found| found.get("Name").cloned());
        let names: BTreeSet<String> = names.collect();
        let is_due = self
            .hardware_until
            .is_none_or(|until| until < Instant::now());
        if is_due || !names.is_subset(&self.hardware_of) {
            let settings = self.wsman.query(NAMESPACE, SETTINGS).await?;
            let ports = self.wsman.query(NAMESPACE, PORTS).await?;
            self.hardware = Hardware::read(&settings, &ports);
            self.hardware_of = names;
            self.hardware_until = Some(Instant::now() + HARDWARE_EVERY);
        }
        Ok(vms(&computers, &migrations, &self.hardware))
    }

    /// `None`: it is left alone for now.
    async fn look_if_due(&mut self) -> Option<Result<Found, ConnectorError>> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        let found = self.look().await;
        self.retry_at = found.as_ref().err().map(|error| {
            let wait = if error.is_lasting() {
                RETRY_LASTING
            } else {
                RETRY
            };
            Instant::now() + wait
        });
        Some(found)
    }
}

struct HypervSession {
    probes: Vec<Probe>,
    poll_every: Duration,
    fleet: Arc<Mutex<Fleet>>,
}

impl HypervSession {
    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks every host that is due. An error only where no host answers any more.
    async fn poll(&mut self) -> Result<Vec<Observation>, ConnectorError> {
        let mut looking = JoinSet::new();
        for mut probe in self.probes.drain(..) {
            looking.spawn(async move {
                let found = probe.look_if_due().await;
                (probe, found)
            });
        }
        let mut seen = Vec::new();
        let mut first_error = None;
        let mut answered = 0;
        while let Some(done) = looking.join_next().await {
            // A task that panicked takes its probe along: the session is of no use any more.
            let (mut probe, found) = done.map_err(|error| ConnectorError::Answer {
                endpoint: "hyperv".to_owned(),
                what: error.to_string(),
            })?;
            match found {
                Some(Ok(found)) => {
                    answered += 1;
                    self.take(&mut probe, found, &mut seen);
                }
                Some(Err(error)) => {
                    self.set_state(&probe.id, HostState::Unreachable, &mut seen);
                    first_error.get_or_insert(error);
                }
                None => {}
            }
            self.probes.push(probe);
        }
        match first_error {
            Some(error) if answered == 0 => Err(error),
            _ => Ok(seen),
        }
    }

    fn take(&self, probe: &mut Probe, mut found: Found, seen: &mut Vec<Observation>) {
        self.set_state(&probe.id, HostState::Up, seen);
        let mut fleet = self.fleet();
        let Fleet { hosts, claims } = &mut *fleet;
        // Hosts are not asked at the same moment: a VM that moves from one that is asked later to
        // one that was asked before is nowhere, once.
        let named: BTreeSet<VmId> = found.iter().map(|(vm, _)| vm.id.clone()).collect();
        let unnamed: Vec<Vm> = claims
            .of_host(&probe.id)
            .filter(|vm| !named.contains(&vm.id))
            .cloned()
            .collect();
        let ids = unnamed.iter().map(|vm| vm.id.clone());
        let missing = std::mem::replace(&mut probe.missing, ids.collect());
        let kept = unnamed.into_iter().filter(|vm| !missing.contains(&vm.id));
        found.extend(kept.map(|vm| (vm, false)));
        for (vm, _) in &mut found {
            if let Some(migration) = &mut vm.migration {
                migration.to = migration.to.take().and_then(|to| known_host(hosts, &to));
            }
        }
        seen.extend(claims.replace(&probe.id, found));
    }

    fn set_state(&self, id: &HostId, state: HostState, seen: &mut Vec<Observation>) {
        if let Some(host) = self.fleet().hosts.get_mut(id) {
            host.state = state;
            seen.push(Observation::Host(host.clone()));
        }
    }
}

/// Windows names hosts in capitals and without a domain, or not.
fn known_host(hosts: &BTreeMap<HostId, Host>, named: &HostId) -> Option<HostId> {
    let short = |id: &HostId| {
        let first = id.as_str().split('.').next().unwrap_or_default();
        first.to_lowercase()
    };
    let known = hosts.keys().find(|id| short(id) == short(named));
    known.cloned()
}

#[async_trait]
impl Inventory for HypervSession {
    async fn inventory(&mut self) -> Result<Snapshot, ConnectorError> {
        self.poll().await?;
        let fleet = self.fleet();
        let vms = fleet.claims.vms().into_iter();
        Ok(Snapshot {
            hosts: fleet.hosts.clone(),
            vms: vms.map(|vm| (vm.id.clone(), vm)).collect(),
        })
    }
}

#[async_trait]
impl Watch for HypervSession {
    async fn next(&mut self) -> Result<Vec<Observation>, ConnectorError> {
        tokio::time::sleep(self.poll_every).await;
        self.poll().await
    }
}

#[async_trait]
impl Locate for HypervSession {
    async fn locate(&mut self, vm: &VmId) -> Result<Option<HostId>, ConnectorError> {
        self.poll().await?;
        let vms = self.fleet().claims.vms();
        let found = vms.into_iter().find(|known| known.id == *vm);
        Ok(found
            .filter(|vm| matches!(vm.power, Power::Running | Power::Paused))
            .and_then(|vm| vm.host))
    }
}

impl Session for HypervSession {}
