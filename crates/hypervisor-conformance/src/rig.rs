//! What a test of a connector brings: a hypervisor whose strings it can pull.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use hypervisor::{Connect, HostId, Pace, Power, VmId};

/// How a connector approaches its hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approach {
    /// With all that is right.
    Right,
    /// With a wrong password (or key).
    WrongPassword,
    /// Trusting another CA than the one that signed the hypervisor's certificate.
    WrongCertificate,
}

/// What this hypervisor, as the rig has it, can do. What it cannot do the suite does not ask for,
/// and the rig says why in a comment.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Running VMs move between two hosts.
    pub moves: bool,
    /// It tells that a move has begun before it is done.
    pub tells_start: bool,
    /// What a VM does that is paused, where it can be.
    pub pauses: Option<Power>,
    /// It says what a VM was cloned from.
    pub tells_clones: bool,
    /// The connector can tag.
    pub tags: bool,
    /// It asks for a password (or key).
    pub asks_password: bool,
    /// It is spoken to over TLS.
    pub has_tls: bool,
}

/// A hypervisor under test.
#[async_trait]
pub trait Rig: Send {
    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// A connector to it, through the place that [`cut`](Self::cut) cuts.
    fn connector(&self, approach: Approach, pace: Arc<Pace>) -> Result<Arc<dyn Connect>>;

    /// Its hosts; where [`Abilities::moves`], at least two.
    fn hosts(&self) -> Vec<HostId>;

    /// Servers that the connector speaks to, each with the whole rate limit.
    fn servers(&self) -> u32 {
        1
    }

    /// Makes a VM on the first host, and starts it.
    async fn create(&mut self, name: &str) -> Result<VmId>;

    /// Stops it at once.
    async fn power_off(&mut self, vm: &VmId) -> Result<()>;

    /// Starts it again, on the host where it was.
    async fn power_on(&mut self, vm: &VmId) -> Result<()>;

    /// Pauses it.
    async fn pause(&mut self, _vm: &VmId) -> Result<()> {
        anyhow::bail!("it cannot pause")
    }

    /// Lets it run on.
    async fn resume(&mut self, _vm: &VmId) -> Result<()> {
        anyhow::bail!("it cannot pause")
    }

    /// Begins to move it while it runs; [`migrate`](Self::migrate) finishes the move. False, and
    /// nothing has begun, where a move cannot be held halfway: `migrate` does all of it.
    async fn begin_move(&mut self, _vm: &VmId, _to: &HostId) -> Result<bool> {
        Ok(false)
    }

    /// Moves it while it runs, or finishes the move that has begun.
    async fn migrate(&mut self, _vm: &VmId, _to: &HostId) -> Result<()> {
        anyhow::bail!("it cannot move VMs")
    }

    /// Clones it, switched off.
    async fn clone_vm(&mut self, _vm: &VmId, _name: &str) -> Result<VmId> {
        anyhow::bail!("it cannot clone")
    }

    /// Deletes it, running or not.
    async fn delete(&mut self, vm: &VmId) -> Result<()>;

    /// Breaks every connection of connectors; no new one can be made.
    async fn cut(&mut self) -> Result<()>;

    /// Connections can be made again.
    async fn mend(&mut self) -> Result<()>;
}
