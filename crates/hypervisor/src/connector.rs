//! The capabilities that a connector has.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::error::ConnectorError;
use crate::record::{Host, HostId, Vm, VmId};

/// Everything that a hypervisor's management knows at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Hosts by id.
    pub hosts: BTreeMap<HostId, Host>,
    /// VMs by id.
    pub vms: BTreeMap<VmId, Vm>,
}

impl Snapshot {
    /// Adds a host, or replaces its record.
    pub fn add_host(&mut self, host: Host) {
        self.hosts.insert(host.id.clone(), host);
    }

    /// Adds a VM, or replaces its record.
    pub fn add_vm(&mut self, vm: Vm) {
        self.vms.insert(vm.id.clone(), vm);
    }
}

impl Snapshot {
    /// What is to be observed by whoever knows `before`: for connectors that can only poll.
    #[must_use]
    pub fn observations_since(&self, before: &Self) -> Vec<Observation> {
        let hosts = self.hosts.values().cloned().map(Observation::Host);
        let gone = before.vms.keys().filter(|id| !self.vms.contains_key(*id));
        let gone = gone.cloned().map(Observation::VmGone);
        let vms = self.vms.values().cloned().map(Observation::Vm);
        let gone_hosts = before
            .hosts
            .keys()
            .filter(|id| !self.hosts.contains_key(*id));
        let gone_hosts = gone_hosts.cloned().map(Observation::HostGone);
        hosts.chain(gone).chain(vms).chain(gone_hosts).collect()
    }
}

/// What a connector saw: how something *is*. What changed by that is the [`Differ`](crate::Differ)'s
/// to say, so telling the same twice is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// All there is; what is not in it does not exist.
    Everything(Snapshot),
    /// A host as it is.
    Host(Host),
    /// No such host any more.
    HostGone(HostId),
    /// A VM as it is.
    Vm(Vm),
    /// No such VM any more.
    VmGone(VmId),
}

/// Makes connections. Holds the configuration, checked when it was made.
#[async_trait]
pub trait Connect: Send + Sync {
    /// Which hypervisor: `libvirt`, `vsphere`, …
    fn kind(&self) -> &'static str;

    /// Connects and authenticates.
    ///
    /// # Errors
    /// [`ConnectorError`].
    async fn connect(&self) -> Result<Box<dyn Session>, ConnectorError>;
}

/// Tells what there is.
#[async_trait]
pub trait Inventory {
    /// All hosts and VMs. Whatever happens after it has begun is reported by [`Watch::next`].
    ///
    /// # Errors
    /// [`ConnectorError`]; the session is then of no use any more.
    async fn inventory(&mut self) -> Result<Snapshot, ConnectorError>;
}

/// Tells what happens.
#[async_trait]
pub trait Watch {
    /// Waits for what happens and gives it in order; nothing where a minute was quiet.
    ///
    /// # Errors
    /// [`ConnectorError`]; the session is then of no use any more.
    async fn next(&mut self) -> Result<Vec<Observation>, ConnectorError>;
}

/// Tells where one VM is, now and from the source, not from a snapshot.
#[async_trait]
pub trait Locate {
    /// The host that runs this VM; `None` where no host does.
    ///
    /// # Errors
    /// [`ConnectorError`].
    async fn locate(&mut self, vm: &VmId) -> Result<Option<HostId>, ConnectorError>;
}

/// Marks VMs where people and other products see it.
#[async_trait]
pub trait Tag {
    /// Puts a tag on a VM, or takes it off.
    ///
    /// # Errors
    /// [`ConnectorError`].
    async fn tag(&mut self, vm: &VmId, tag: &str, is_on: bool) -> Result<(), ConnectorError>;
}

/// An authenticated connection.
pub trait Session: Inventory + Watch + Locate + Send {
    /// The capability to tag, where there is one.
    fn tagger(&mut self) -> Option<&mut (dyn Tag + Send)> {
        None
    }
}
