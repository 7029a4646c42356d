//! The simulated hypervisor as a connector like any other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{
    Connect, ConnectorError, HostId, Inventory, Locate, Observation, Pace, Session, Snapshot, Tag,
    VmId, Watch,
};

use crate::world::{Feed, Sim};

/// How long a quiet [`Watch::next`] waits.
const QUIET: Duration = Duration::from_secs(60);
const ENDPOINT: &str = "sim";

/// What the connector shows, and whether the simulated hypervisor's certificate is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimCredentials {
    /// All is right.
    Right,
    /// The password is wrong.
    WrongPassword,
    /// The hypervisor's certificate is from another CA.
    WrongCertificate,
}

/// A connector to a [`Sim`].
#[derive(Debug)]
pub struct SimConnector {
    sim: Sim,
    credentials: SimCredentials,
    pace: Arc<Pace>,
}

impl Sim {
    /// A connector to this world.
    #[must_use]
    pub fn connector(&self, credentials: SimCredentials, pace: Arc<Pace>) -> SimConnector {
        SimConnector {
            sim: self.clone(),
            credentials,
            pace,
        }
    }
}

#[async_trait]
impl Connect for SimConnector {
    fn kind(&self) -> &'static str {
        "sim"
    }

    async fn connect(&self) -> Result<Box<dyn Session>, ConnectorError> {
        self.pace.next().await;
        if !self.sim.request() {
            return Err(cut());
        }
        let endpoint = ENDPOINT.to_owned();
        match self.credentials {
            SimCredentials::Right => {}
            SimCredentials::WrongPassword => {
                let reason = "wrong password".to_owned();
                return Err(ConnectorError::Credentials { endpoint, reason });
            }
            SimCredentials::WrongCertificate => {
                let reason = "unknown issuer".to_owned();
                return Err(ConnectorError::Untrusted { endpoint, reason });
            }
        }
        let (_, feed) = self.sim.subscribe().ok_or_else(cut)?;
        Ok(Box::new(SimSession {
            sim: self.sim.clone(),
            pace: Arc::clone(&self.pace),
            feed,
        }))
    }
}

struct SimSession {
    sim: Sim,
    pace: Arc<Pace>,
    feed: Feed,
}

impl SimSession {
    async fn request(&self) -> Result<(), ConnectorError> {
        self.pace.next().await;
        self.sim.request().then_some(()).ok_or_else(cut)
    }
}

#[async_trait]
impl Inventory for SimSession {
    async fn inventory(&mut self) -> Result<Snapshot, ConnectorError> {
        self.request().await?;
        let (snapshot, feed) = self.sim.subscribe().ok_or_else(cut)?;
        self.feed = feed;
        Ok(snapshot)
    }
}

#[async_trait]
impl Watch for SimSession {
    async fn next(&mut self) -> Result<Vec<Observation>, ConnectorError> {
        self.request().await?;
        let deadline = tokio::time::Instant::now() + QUIET;
        loop {
            let seen = self.feed.take().ok_or_else(cut)?;
            if !seen.is_empty() {
                return Ok(seen);
            }
            let changed = self.feed.queue.changed.notified();
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(Vec::new());
            }
        }
    }
}

#[async_trait]
impl Locate for SimSession {
    async fn locate(&mut self, vm: &VmId) -> Result<Option<HostId>, ConnectorError> {
        self.request().await?;
        let snapshot = self.sim.snapshot();
        Ok(snapshot.vms.get(vm).and_then(|vm| vm.host.clone()))
    }
}

#[async_trait]
impl Tag for SimSession {
    async fn tag(&mut self, vm: &VmId, tag: &str, is_on: bool) -> Result<(), ConnectorError> {
        self.request().await?;
        let tagged = self.sim.change(vm, |vm| {
            if is_on {
                vm.tags.insert(tag.to_owned());
            } else {
                vm.tags.remove(tag);
            }
        });
        tagged.map_err(|error| ConnectorError::Answer {
            endpoint: ENDPOINT.to_owned(),
            what: error.to_string(),
        })
    }
}

impl Session for SimSession {
    fn tagger(&mut self) -> Option<&mut (dyn Tag + Send)> {
        Some(self)
    }
}

fn cut() -> ConnectorError {
    ConnectorError::Unreachable {
        endpoint: ENDPOINT.to_owned(),
        source: io::ErrorKind::ConnectionReset.into(),
    }
}
