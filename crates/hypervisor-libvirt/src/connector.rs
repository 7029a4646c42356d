//! All hosts of a connector as one session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{
    Claims, Connect, ConnectorError, Host, HostId, HostState, Inventory, Locate, Observation, Pace,
    Session, Snapshot, Tag, VmId, Watch, bounded_name,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::{LibvirtConfig, Target};
use crate::domain::{TAGS_NAMESPACE, TAGS_PREFIX, record, tags_element, vm_id};
use crate::host::{Door, HostTask, Report};
use crate::rpc::Rpc;
use crate::wire::DomainRef;

/// How long a quiet [`Watch::next`] waits.
const QUIET: Duration = Duration::from_secs(60);
/// Hosts that are connected to at the same time.
const CONNECTS_MAX: usize = 64;
/// Reports of hosts that wait to be read.
const REPORTS_MAX: usize = 1024;
/// Reports that one [`Watch::next`] gives.
const BATCH_MAX: usize = 256;

/// Connector to any number of hosts with libvirt.
pub struct LibvirtConnector {
    config: LibvirtConfig,
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

impl LibvirtConnector {
    /// Checks the configuration. `pace` is for each host by itself; its counter counts all.
    ///
    /// # Errors
    /// [`ConnectorError::Config`], naming the host or file.
    pub fn new(config: LibvirtConfig, pace: Arc<Pace>) -> Result<Self, ConnectorError> {
        let targets = config.targets()?;
        let fleet = Fleet {
            hosts: targets.iter().map(unreached).collect(),
            claims: Claims::new(),
        };
        Ok(Self {
            config,
            targets,
            pace,
            fleet: Arc::new(Mutex::new(fleet)),
        })
    }
}

fn unreached(target: &Target) -> (HostId, Host) {
    let host = Host {
        id: target.id.clone(),
        name: bounded_name(target.id.as_str()),
        cluster: target.cluster.as_deref().map(bounded_name),
        state: HostState::Unreachable,
    };
    (target.id.clone(), host)
}

#[async_trait]
impl Connect for LibvirtConnector {
    fn kind(&self) -> &'static str {
        "libvirt"
    }

    async fn connect(&self) -> Result<Box<dyn Session>, ConnectorError> {
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        let connects = Arc::new(Semaphore::new(CONNECTS_MAX));
        let user = self.config.user.clone();
        let login = user.zip(self.config.password.clone());
        let mut tasks = JoinSet::new();
        let mut doors = BTreeMap::new();
        for target in &self.targets {
            let door = Arc::<Door>::default();
            doors.insert(target.id.clone(), Arc::clone(&door));
            let task = HostTask {
                target: target.clone(),
                login: login.clone(),
                read_only: !self.config.allow_tags,
                pace: Arc::new(self.pace.fork()),
                connects: Arc::clone(&connects),
                reports: sender.clone(),
                door,
            };
            tasks.spawn(task.run());
        }
        let mut session = LibvirtSession {
            fleet: Arc::clone(&self.fleet),
            allow_tags: self.config.allow_tags,
            reports,
            doors,
            down: BTreeMap::new(),
            _tasks: tasks,
        };
        session
            .hear_all(
                self.targets
                    .iter()
                    .map(|target| target.id.clone())
                    .collect(),
            )
            .await?;
        Ok(Box::new(session))
    }
}

struct LibvirtSession {
    fleet: Arc<Mutex<Fleet>>,
    allow_tags: bool,
    reports: mpsc::Receiver<(HostId, Report)>,
    doors: BTreeMap<HostId, Arc<Door>>,
    /// Hosts that are not connected, with the reason.
    down: BTreeMap<HostId, ConnectorError>,
    /// Ends the hosts' tasks when dropped.
    _tasks: JoinSet<()>,
}

impl LibvirtSession {
    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads reports until each of these hosts has told what it has, or that it cannot.
    async fn hear_all(&mut self, mut open: BTreeSet<HostId>) -> Result<(), ConnectorError> {
        while !open.is_empty() {
            let (host, report) = self.report().await?;
            if matches!(report, Report::Up(_) | Report::Down(_)) {
                open.remove(&host);
            }
            self.take(host, report);
        }
        self.check_any_up()
    }

    async fn report(&mut self) -> Result<(HostId, Report), ConnectorError> {
        let report = self.reports.recv().await;
        report.ok_or(ConnectorError::Unsupported("going on without hosts"))
    }

    /// A session without any host is none.
    fn check_any_up(&mut self) -> Result<(), ConnectorError> {
        if self.down.len() < self.doors.len() {
            return Ok(());
        }
        let first = self.down.pop_first();
        first.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn take(&mut self, id: HostId, report: Report) -> Vec<Observation> {
        let state = match report {
            Report::Up(_) => Some(HostState::Up),
            Report::Down(_) => Some(HostState::Unreachable),
            Report::Domain(_) | Report::Gone(_) => None,
        };
        let mut seen = Vec::new();
        let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(state), Some(host)) = (state, fleet.hosts.get_mut(&id)) {
            host.state = state;
            seen.push(Observation::Host(host.clone()));
        }
        match report {
            Report::Up(all) => {
                self.down.remove(&id);
                let all = all.into_iter().map(|found| (found.vm, found.is_incoming));
                seen.extend(fleet.claims.replace(&id, all));
            }
            Report::Down(error) => {
                self.down.insert(id, error);
            }
            Report::Domain(found) => {
                seen.push(fleet.claims.claim(&id, found.vm, found.is_incoming));
            }
            Report::Gone(vm) => seen.push(fleet.claims.release(&id, &vm)),
        }
        seen
    }

    /// The hosts to ask about a VM: those that claim it first.
    fn candidates(&self, vm: &VmId) -> Vec<(HostId, Rpc)> {
        let claiming: Vec<HostId> = self.fleet().claims.hosts_of(vm).cloned().collect();
        let others = self.doors.keys().filter(|host| !claiming.contains(host));
        let all = claiming.iter().chain(others);
        all.filter_map(|host| Some((host.clone(), self.doors.get(host)?.rpc()?)))
            .collect()
    }
}

#[async_trait]
impl Inventory for LibvirtSession {
    async fn inventory(&mut self) -> Result<Snapshot, ConnectorError> {
        let up = |host: &&HostId| !self.down.contains_key(*host);
        let open: BTreeSet<HostId> = self.doors.keys().filter(up).cloned().collect();
        for host in &open {
            self.doors[host].relist.notify_one();
        }
        self.hear_all(open).await?;
        let fleet = self.fleet();
        let vms = fleet.claims.vms().into_iter();
        Ok(Snapshot {
            hosts: fleet.hosts.clone(),
            vms: vms.map(|vm| (vm.id.clone(), vm)).collect(),
        })
    }
}

#[async_trait]
impl Watch for LibvirtSession {
    async fn next(&mut self) -> Result<Vec<Observation>, ConnectorError> {
        let Ok(first) = tokio::time::timeout(QUIET, self.report()).await else {
            return Ok(Vec::new());
        };
        let (host, report) = first?;
        let mut seen = self.take(host, report);
        while seen.len() < BATCH_MAX
            && let Ok((host, report)) = self.reports.try_recv()
        {
            seen.extend(self.take(host, report));
        }
        self.check_any_up()?;
        Ok(seen)
    }
}

#[async_trait]
impl Locate for LibvirtSession {
    async fn locate(&mut self, vm: &VmId) -> Result<Option<HostId>, ConnectorError> {
        let Some(domain) = domain_ref(vm) else {
            return Ok(None);
        };
        let mut paused_at = None;
        for (host, rpc) in self.candidates(vm) {
            match rpc.state(&domain).await? {
                Some(state) if state.power(&domain) == hypervisor::Power::Running => {
                    return Ok(Some(host));
                }
                Some(state) if state.power(&domain) == hypervisor::Power::Paused => {
                    paused_at.get_or_insert(host);
                }
                _ => {}
            }
        }
        Ok(paused_at)
    }
}

#[async_trait]
impl Tag for LibvirtSession {
    async fn tag(&mut self, vm: &VmId, tag: &str, is_on: bool) -> Result<(), ConnectorError> {
        let unknown = || ConnectorError::Answer {
            endpoint: "libvirt".to_owned(),
            what: format!("no VM {vm}"),
        };
        let domain = domain_ref(vm).ok_or_else(unknown)?;
        let candidates = self.candidates(vm);
        let (_, rpc) = candidates.first().ok_or_else(unknown)?;
        let xml = rpc.xml(&domain).await?.ok_or_else(unknown)?;
        let mut tags = record(&domain, &xml).tags;
        if is_on {
            tags.insert(tag.to_owned());
        } else {
            tags.remove(tag);
        }
        let element = tags_element(&tags);
        rpc.set_metadata(&domain, TAGS_PREFIX, TAGS_NAMESPACE, element.as_deref())
            .await
    }
}

impl Session for LibvirtSession {
    fn tagger(&mut self) -> Option<&mut (dyn Tag + Send)> {
        if self.allow_tags { Some(self) } else { None }
    }
}

/// A domain by its uuid alone: hosts look no further.
fn domain_ref(vm: &VmId) -> Option<DomainRef> {
    let uuid = crate::domain::parse_uuid(vm.as_str())?;
    let is_whole = vm_id(&uuid) == *vm;
    is_whole.then(|| DomainRef {
        name: vm.as_str().to_owned(),
        uuid,
        number: -1,
    })
}
