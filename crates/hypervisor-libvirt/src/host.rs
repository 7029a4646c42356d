//! One host: connect, list its domains, follow its events, and again after a failure.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hypervisor::{ConnectorError, HostId, Pace, Power, Vm, VmId};
use hypervisor_transport::{Secret, SecretSource};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::auth::{Login, authenticate};
use crate::config::{Address, Target};
use crate::domain::{record, vm_id};
use crate::rpc::{Events, Io, Rpc};
use crate::wire::{DomainEvent, DomainRef, Lifecycle};

/// Wait after a host's first failure; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A host that says nothing is asked for a sign of life this often.
const PING_EVERY: Duration = Duration::from_secs(10);

const EVENT_STARTED: i32 = 2;
const EVENT_SUSPENDED: i32 = 3;
const EVENT_RESUMED: i32 = 4;
const STARTED_MIGRATED: i32 = 1;

/// A domain as its host has it.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) vm: Vm,
    /// It waits here for a move to be done.
    pub(crate) is_incoming: bool,
}

/// What a host's task tells.
#[derive(Debug)]
pub(crate) enum Report {
    /// Connected; all its domains.
    Up(Vec<Claimed>),
    /// Not connected.
    Down(ConnectorError),
    /// A domain as it is now.
    Domain(Box<Claimed>),
    /// A domain is gone.
    Gone(VmId),
}

/// A host's task, and what is needed to speak to the host beside it.
pub(crate) struct HostTask {
    pub(crate) target: Target,
    pub(crate) login: Option<(String, SecretSource)>,
    pub(crate) read_only: bool,
    pub(crate) pace: Arc<Pace>,
    /// Hosts that are being connected to at the same time.
    pub(crate) connects: Arc<Semaphore>,
    pub(crate) reports: mpsc::Sender<(HostId, Report)>,
    pub(crate) door: Arc<Door>,
}

/// The way to a host from outside its task.
#[derive(Default)]
pub(crate) struct Door {
    rpc: Mutex<Option<Rpc>>,
    pub(crate) relist: Notify,
}

impl Door {
    /// The connection, while there is one.
    pub(crate) fn rpc(&self) -> Option<Rpc> {
        let rpc = self.rpc.lock().unwrap_or_else(PoisonError::into_inner);
        rpc.clone()
    }

    fn set(&self, rpc: Option<Rpc>) {
        *self.rpc.lock().unwrap_or_else(PoisonError::into_inner) = rpc;
    }
}

/// Nobody reads the reports any more.
struct Unread;

enum End {
    Unread,
    Failed(ConnectorError),
}

impl From<Unread> for End {
    fn from(_: Unread) -> Self {
        Self::Unread
    }
}

impl From<ConnectorError> for End {
    fn from(error: ConnectorError) -> Self {
        Self::Failed(error)
    }
}

impl HostTask {
    pub(crate) async fn run(self) {
        let mut wait = RETRY_FIRST;
        loop {
            let mut was_up = false;
            let ended = self.serve(&mut was_up).await;
            self.door.set(None);
            let End::Failed(error) = ended.unwrap_or_else(|end| end) else {
                return;
            };
            if was_up {
                wait = RETRY_FIRST;
            }
            if error.is_lasting() {
                wait = RETRY_MAX;
            }
            if self.report(Report::Down(error)).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.reports.closed() => return,
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn report(&self, report: Report) -> Result<(), Unread> {
        let report = (self.target.id.clone(), report);
        self.reports.send(report).await.map_err(|_| Unread)
    }

    /// From connecting to the failure that ends it.
    async fn serve(&self, was_up: &mut bool) -> Result<End, End> {
        let (rpc, events) = self.connect().await?;
        self.door.set(Some(rpc.clone()));
        let mut domains = Domains {
            host: self,
            rpc,
            events,
            known: HashMap::new(),
        };
        loop {
            let all = domains.list().await?;
            self.report(Report::Up(all)).await?;
            *was_up = true;
            domains.follow().await?;
        }
    }

    async fn connect(&self) -> Result<(Rpc, Events), ConnectorError> {
        let _permit = self.connects.acquire().await;
        let name = self.target.id.to_string();
        let (io, is_private) = self.dial(&name).await?;
        let (rpc, events) = Rpc::new(io, &name, Arc::clone(&self.pace));
        let login = self.login.as_ref().map(|(user, password)| {
            let password: Secret = password.read()?;
            let user = user.clone();
            Ok::<_, ConnectorError>(Login { user, password })
        });
        let login = login.transpose()?;
        authenticate(&rpc, login.as_ref(), is_private).await?;
        rpc.open(&self.target.driver, self.read_only).await?;
        // Events first: what happens while the list is made is not missed.
        rpc.register_events().await?;
        Ok((rpc, events))
    }

    async fn dial(&self, name: &str) -> Result<(Io, bool), ConnectorError> {
        let endpoint = match &self.target.address {
            Address::Unix(path) => {
                let connected = UnixStream::connect(path).await;
                let stream = connected.map_err(|source| ConnectorError::Unreachable {
                    endpoint: path.display().to_string(),
                    source,
                })?;
                return Ok((Box::new(stream), true));
            }
            Address::Tcp(endpoint) => endpoint,
        };
        let mut stream = endpoint.connect().await?;
        if endpoint.has_tls() {
            // The server says with one byte that it accepts our certificate.
            let mut verdict = [0];
            let read = tokio::io::AsyncReadExt::read_exact(&mut stream.io, &mut verdict).await;
            let refused = ConnectorError::Credentials {
                endpoint: name.to_owned(),
                reason: "the host does not accept our certificate".to_owned(),
            };
            match read {
                Ok(_) if verdict == [1] => {}
                Ok(_) => return Err(refused),
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(refused);
                }
                Err(error) => return Err(endpoint.unreachable(error)),
            }
        }
        Ok((Box::new(stream.io), endpoint.has_tls()))
    }
}

/// The domains of a host while it is connected.
struct Domains<'a> {
    host: &'a HostTask,
    rpc: Rpc,
    events: Events,
    known: HashMap<[u8; 16], Claimed>,
}

impl Domains<'_> {
    async fn list(&mut self) -> Result<Vec<Claimed>, ConnectorError> {
        let refs = self.rpc.domains().await?;
        let named: BTreeMap<[u8; 16], DomainRef> =
            refs.into_iter().map(|found| (found.uuid, found)).collect();
        self.known.retain(|uuid, _| named.contains_key(uuid));
        let mut all = Vec::new();
        for found in named.values() {
            all.extend(self.look(found).await?);
        }
        Ok(all)
    }

    /// Asks for a domain's state and description.
    async fn look(&mut self, domain: &DomainRef) -> Result<Option<Claimed>, ConnectorError> {
        let found = match self.rpc.state(domain).await? {
            None => None,
            Some(state) => self.rpc.xml(domain).await?.map(|xml| (state, xml)),
        };
        let Some((state, xml)) = found else {
            self.known.remove(&domain.uuid);
            return Ok(None);
        };
        let mut vm = record(domain, &xml);
        vm.power = state.power(domain);
        // A source pauses for its migration too; but a source has run the guest before.
        let before = self.known.get(&domain.uuid);
        let has_run = before.is_some_and(|claimed| !claimed.is_incoming);
        let is_incoming = state.is_paused_for_migration() && !has_run;
        let claimed = Claimed { vm, is_incoming };
        self.known.insert(domain.uuid, claimed.clone());
        Ok(Some(claimed))
    }

    /// Follows events until a whole list is asked for.
    async fn follow(&mut self) -> Result<(), End> {
        let door = Arc::clone(&self.host.door);
        loop {
            tokio::select! {
                event = self.events.next() => {
                    let Some(event) = event else {
                        // The reader knows no more than that; a call knows the error.
                        self.rpc.ping().await?;
                        return Err(self.closed().into());
                    };
                    self.take(event).await?;
                }
                () = door.relist.notified() => return Ok(()),
                () = self.host.reports.closed() => return Err(Unread.into()),
                () = tokio::time::sleep(PING_EVERY) => self.rpc.ping().await?,
            }
        }
    }

    fn closed(&self) -> ConnectorError {
        ConnectorError::Unreachable {
            endpoint: self.rpc.endpoint().to_owned(),
            source: std::io::ErrorKind::ConnectionAborted.into(),
        }
    }

    /// Takes an event, and all that have come with it: a domain that is flapping is looked at once.
    async fn take(&mut self, event: crate::rpc::ServerEvent) -> Result<(), End> {
        let mut to_look_at: BTreeMap<[u8; 16], DomainRef> = BTreeMap::new();
        let mut next = Some(event);
        while let Some(event) = next {
            let read = DomainEvent::read(event.procedure, &event.body);
            let event = read.map_err(|error| self.rpc.garbled(error))?;
            let uuid = event.domain.uuid;
            let is_waiting = to_look_at.contains_key(&uuid);
            match event.lifecycle.filter(|_| !is_waiting) {
                Some(lifecycle) if self.follows_by_itself(uuid, lifecycle) => {
                    let claimed = Box::new(self.known[&uuid].clone());
                    self.host.report(Report::Domain(claimed)).await?;
                }
                _ => {
                    to_look_at.insert(uuid, event.domain);
                }
            }
            next = self.events.next_now();
        }
        for domain in to_look_at.values() {
            let report = match self.look(domain).await? {
                Some(claimed) => Report::Domain(Box::new(claimed)),
                None => Report::Gone(vm_id(&domain.uuid)),
            };
            self.host.report(report).await?;
        }
        Ok(())
    }

    /// True where the event says it all, and what is known is set to that: the switch of a move
    /// (the destination resumes) must not wait for a question.
    fn follows_by_itself(&mut self, uuid: [u8; 16], lifecycle: Lifecycle) -> bool {
        let Some(claimed) = self.known.get_mut(&uuid) else {
            return false;
        };
        match lifecycle.event {
            EVENT_RESUMED => {
                claimed.is_incoming = false;
                claimed.vm.power = Power::Running;
                true
            }
            EVENT_SUSPENDED if !claimed.is_incoming => {
                claimed.vm.power = Power::Paused;
                true
            }
            EVENT_STARTED if lifecycle.detail == STARTED_MIGRATED => {
                // A definition that was left behind by an earlier move: it has not run here since.
                claimed.is_incoming = true;
                false
            }
            _ => false,
        }
    }
}
