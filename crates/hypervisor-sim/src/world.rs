//! The hosts and VMs of the script.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::{Host, HostId, HostState, Migration, Observation, Power, Snapshot, Vm, VmId};
use tokio::sync::Notify;

/// A script asks for what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// No such host.
    #[error("there is no host {0}")]
    NoHost(HostId),
    /// No such VM.
    #[error("there is no VM {0}")]
    NoVm(VmId),
    /// There is one with this id.
    #[error("there is a VM {0}")]
    VmExists(VmId),
    /// No move of this VM is under way.
    #[error("VM {0} is not being moved")]
    NotMoving(VmId),
}

/// The simulated hypervisor. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Sim {
    world: Arc<Mutex<World>>,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    snapshot: Snapshot,
    feeds: Vec<Arc<Queue>>,
    is_cut: bool,
    requests: u64,
}

/// What one reader has not read yet.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<Pending>,
    pub(crate) changed: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    observations: VecDeque<Observation>,
    is_broken: bool,
}

/// One reader of what happens. What it does not read is kept for it.
#[derive(Debug)]
pub struct Feed {
    pub(crate) queue: Arc<Queue>,
}

impl Feed {
    /// What happened since the last call, in order; `None` once the connection is cut.
    #[must_use]
    pub fn take(&self) -> Option<Vec<Observation>> {
        let mut pending = lock(&self.queue.state);
        if pending.is_broken {
            return None;
        }
        Some(pending.observations.drain(..).collect())
    }
}

impl Sim {
    /// An empty world.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything as it is.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.world().snapshot.clone()
    }

    /// Everything as it is, and a reader of all that happens from then on; `None` while cut.
    #[must_use]
    pub fn subscribe(&self) -> Option<(Snapshot, Feed)> {
        let mut world = self.world();
        if world.is_cut {
            return None;
        }
        let queue = Arc::<Queue>::default();
        world.feeds.retain(|feed| Arc::strong_count(feed) > 1);
        world.feeds.push(Arc::clone(&queue));
        Some((world.snapshot.clone(), Feed { queue }))
    }

    /// Adds a host that is up.
    pub fn add_host(&self, id: HostId, cluster: Option<&str>) {
        let host = Host {
            name: id.as_str().to_owned(),
            id,
            cluster: cluster.map(str::to_owned),
            state: HostState::Up,
        };
        let mut world = self.world();
        world.snapshot.add_host(host.clone());
        world.tell(Observation::Host(host));
    }

    /// Changes a host's state.
    ///
    /// # Errors
    /// No such host.
    pub fn set_host(&self, id: &HostId, state: HostState) -> Result<(), SimError> {
        let mut world = self.world();
        let host = world.snapshot.hosts.get_mut(id);
        let host = host.ok_or_else(|| SimError::NoHost(id.clone()))?;
        host.state = state;
        let host = host.clone();
        world.tell(Observation::Host(host));
        Ok(())
    }

    /// Removes a host; VMs that are on it stay in the inventory as they are.
    ///
    /// # Errors
    /// No such host.
    pub fn remove_host(&self, id: &HostId) -> Result<(), SimError> {
        let mut world = self.world();
        let gone = world.snapshot.hosts.remove(id);
        gone.ok_or_else(|| SimError::NoHost(id.clone()))?;
        world.tell(Observation::HostGone(id.clone()));
        Ok(())
    }

    /// Adds a VM as it is described.
    ///
    /// # Errors
    /// Its host does not exist, or there is a VM with its id.
    pub fn add_vm(&self, vm: Vm) -> Result<(), SimError> {
        let mut world = self.world();
        if let Some(host) = &vm.host {
            world.check_host(host)?;
        }
        if world.snapshot.vms.contains_key(&vm.id) {
            return Err(SimError::VmExists(vm.id));
        }
        world.snapshot.add_vm(vm.clone());
        world.tell(Observation::Vm(vm));
        Ok(())
    }

    /// Adds a copy of a VM, switched off, on the same host.
    ///
    /// # Errors
    /// There is no such VM, or one with the new id.
    pub fn clone_vm(&self, from: &VmId, id: VmId, name: &str) -> Result<(), SimError> {
        let source = self.world().snapshot.vms.get(from).cloned();
        let source = source.ok_or_else(|| SimError::NoVm(from.clone()))?;
        let mut copy = Vm::new(id, name);
        copy.host = source.host;
        copy.power = Power::Off;
        copy.tags = source.tags;
        copy.cloned_from = Some(from.clone());
        self.add_vm(copy)
    }

    /// Changes a VM's record in any way.
    ///
    /// # Errors
    /// No such VM.
    pub fn change(&self, id: &VmId, how: impl FnOnce(&mut Vm)) -> Result<(), SimError> {
        self.world().change(id, how)
    }

    /// Starts, stops, pauses, resumes or suspends a VM.
    ///
    /// # Errors
    /// No such VM.
    pub fn power(&self, id: &VmId, power: Power) -> Result<(), SimError> {
        self.change(id, |vm| vm.power = power)
    }

    /// Begins a move: the VM still runs where it was.
    ///
    /// # Errors
    /// No such VM or host.
    pub fn begin_move(&self, id: &VmId, to: &HostId) -> Result<(), SimError> {
        let mut world = self.world();
        world.check_host(to)?;
        let to = Some(to.clone());
        world.change(id, |vm| vm.migration = Some(Migration { to }))
    }

    /// The switch: the VM runs at the destination of the move that has begun.
    ///
    /// # Errors
    /// No such VM, or none that is being moved.
    pub fn finish_move(&self, id: &VmId) -> Result<(), SimError> {
        let mut world = self.world();
        let to = world.destination(id)?;
        world.change(id, |vm| {
            vm.host = to;
            vm.migration = None;
        })
    }

    /// The move that has begun comes to nothing.
    ///
    /// # Errors
    /// No such VM, or none that is being moved.
    pub fn fail_move(&self, id: &VmId) -> Result<(), SimError> {
        let mut world = self.world();
        world.destination(id)?;
        world.change(id, |vm| vm.migration = None)
    }

    /// Deletes a VM.
    ///
    /// # Errors
    /// No such VM.
    pub fn delete(&self, id: &VmId) -> Result<(), SimError> {
        let mut world = self.world();
        let gone = world.snapshot.vms.remove(id);
        gone.ok_or_else(|| SimError::NoVm(id.clone()))?;
        world.tell(Observation::VmGone(id.clone()));
        Ok(())
    }

    /// Breaks all connections; no new one is made before [`mend`](Self::mend). The world goes on.
    pub fn cut(&self) {
        let mut world = self.world();
        world.is_cut = true;
        for feed in std::mem::take(&mut world.feeds) {
            lock(&feed.state).is_broken = true;
            feed.changed.notify_one();
        }
    }

    /// Connections can be made again.
    pub fn mend(&self) {
        self.world().is_cut = false;
    }

    /// Counts one request of a connector; false while cut.
    pub(crate) fn request(&self) -> bool {
        let mut world = self.world();
        world.requests += 1;
        !world.is_cut
    }

    /// Requests that connectors made until now.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.world().requests
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }
}

impl World {
    fn tell(&mut self, observation: Observation) {
        self.feeds.retain(|feed| Arc::strong_count(feed) > 1);
        for feed in &self.feeds {
            lock(&feed.state)
                .observations
                .push_back(observation.clone());
            feed.changed.notify_one();
        }
    }

    fn change(&mut self, id: &VmId, how: impl FnOnce(&mut Vm)) -> Result<(), SimError> {
        let vm = self.snapshot.vms.get_mut(id);
        let vm = vm.ok_or_else(|| SimError::NoVm(id.clone()))?;
        how(vm);
        let vm = vm.clone();
        self.tell(Observation::Vm(vm));
        Ok(())
    }

    fn check_host(&self, id: &HostId) -> Result<(), SimError> {
        if self.snapshot.hosts.contains_key(id) {
            return Ok(());
        }
        Err(SimError::NoHost(id.clone()))
    }

    fn destination(&self, id: &VmId) -> Result<Option<HostId>, SimError> {
        let vm = self.snapshot.vms.get(id);
        let vm = vm.ok_or_else(|| SimError::NoVm(id.clone()))?;
        let migration = vm.migration.clone();
        let migration = migration.ok_or_else(|| SimError::NotMoving(id.clone()))?;
        Ok(migration.to)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
