//! Drives one connector: connect, whole inventory, what happens, and again after a failure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::log::escape;
use daemon::metrics::{Counters, Gauges, Registry};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::connector::{Connect, Observation, Session};
use crate::differ::{Differ, HOSTS_MAX, VMS_MAX};
use crate::error::ConnectorError;
use crate::event::{Change, Event};

/// How a connector is driven.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Wait after the first failure; doubled with each further one.
    pub retry_first: Duration,
    /// Longest wait between two attempts; the only one after wrong credentials.
    pub retry_max: Duration,
    /// The whole inventory is compared this often, so that an event which a hypervisor loses is
    /// made good.
    pub resync_every: Duration,
    /// Events that wait for the consumer; when there are more, the connector waits.
    pub queue_len_max: usize,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            resync_every: Duration::from_secs(900),
            queue_len_max: 1024,
        }
    }
}

/// What is counted of all connectors.
#[derive(Debug, Clone)]
pub struct WatchMetrics {
    events: Counters<2>,
    failures: Counters<2>,
    is_connected: Gauges<1>,
}

impl WatchMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            events: registry.counters(
                "lazaret_connector_events_total",
                "Changes that a connector reported.",
                ["connector", "change"],
            ),
            failures: registry.counters(
                "lazaret_connector_failures_total",
                "Lost or refused connections of a connector.",
                ["connector", "kind"],
            ),
            is_connected: registry.gauges(
                "lazaret_connector_connected",
                "1 while the connector is connected and its inventory is compared.",
                ["connector"],
            ),
        }
    }
}

/// A connector that is being watched; dropped, it stops.
#[derive(Debug)]
pub struct Watcher {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// The next event, in order. `None` never comes while the watcher lives.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches a connector from now on, as `name`.
#[must_use]
pub fn watch(
    name: &str,
    connector: Arc<dyn Connect>,
    options: WatchOptions,
    metrics: WatchMetrics,
) -> Watcher {
    let (sender, events) = mpsc::channel(options.queue_len_max.max(1));
    let driver = Driver {
        name: name.into(),
        connector,
        options,
        metrics,
        events: sender,
        differ: Differ::new(),
        failures: 0,
    };
    let task = tokio::spawn(driver.run());
    Watcher { events, task }
}

/// The consumer is gone.
struct Unwatched;

struct Driver {
    name: Arc<str>,
    connector: Arc<dyn Connect>,
    options: WatchOptions,
    metrics: WatchMetrics,
    events: mpsc::Sender<Event>,
    differ: Differ,
    /// In a row, without an inventory between.
    failures: u32,
}

enum End {
    Unwatched,
    Failed(ConnectorError),
}

impl From<Unwatched> for End {
    fn from(_: Unwatched) -> Self {
        Self::Unwatched
    }
}

impl From<ConnectorError> for End {
    fn from(error: ConnectorError) -> Self {
        Self::Failed(error)
    }
}

impl Driver {
    async fn run(mut self) {
        loop {
            let ended = self.session().await;
            self.metrics.is_connected.with([&*self.name]).set(0);
            let Err(End::Failed(error)) = ended else {
                return;
            };
            if self.failed(&error).await.is_err() {
                return;
            }
        }
    }

    /// From connecting to the failure that ends it.
    async fn session(&mut self) -> Result<(), End> {
        let connector = Arc::clone(&self.connector);
        let mut session = connector.connect().await?;
        loop {
            self.sync(&mut *session).await?;
            let resync_at = Instant::now() + self.options.resync_every;
            while Instant::now() < resync_at {
                for observation in session.next().await? {
                    self.observe(observation).await?;
                }
            }
        }
    }

    async fn sync(&mut self, session: &mut dyn Session) -> Result<(), End> {
        let snapshot = session.inventory().await?;
        check_size("hosts", snapshot.hosts.len(), HOSTS_MAX, &self.name)?;
        check_size("VMs", snapshot.vms.len(), VMS_MAX, &self.name)?;
        self.observe(Observation::Everything(snapshot)).await?;
        self.failures = 0;
        self.metrics.is_connected.with([&*self.name]).set(1);
        Ok(())
    }

    async fn observe(&mut self, observation: Observation) -> Result<(), Unwatched> {
        for change in self.differ.observe(observation) {
            self.emit(change).await?;
        }
        Ok(())
    }

    async fn emit(&self, change: Change) -> Result<(), Unwatched> {
        self.metrics
            .events
            .with([&*self.name, label(&change)])
            .inc();
        let event = Event {
            connector: Arc::clone(&self.name),
            seen_at: Instant::now(),
            change,
        };
        self.events.send(event).await.map_err(|_| Unwatched)
    }

    async fn failed(&mut self, error: &ConnectorError) -> Result<(), Unwatched> {
        self.metrics
            .failures
            .with([&*self.name, error.kind()])
            .inc();
        let reason = chain(error);
        // The first failure of a row is news; what follows is the metric's.
        if self.failures == 0 {
            tracing::warn!(
                connector = %escape(self.name.as_bytes()),
                "connection lost: {}",
                escape(reason.as_bytes())
            );
            self.emit(Change::Lost { reason }).await?;
        }
        let wait = self.retry_wait(error);
        self.failures = self.failures.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.events.closed() => Err(Unwatched),
        }
    }

    fn retry_wait(&self, error: &ConnectorError) -> Duration {
        if error.is_lasting() {
            return self.options.retry_max;
        }
        let doubled = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.options
            .retry_first
            .saturating_mul(doubled)
            .min(self.options.retry_max)
    }
}

fn check_size(
    what: &'static str,
    size: usize,
    limit: usize,
    name: &str,
) -> Result<(), ConnectorError> {
    if size <= limit {
        return Ok(());
    }
    Err(ConnectorError::TooMuch {
        endpoint: name.to_owned(),
        what,
        limit,
    })
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn label(change: &Change) -> &'static str {
    match change {
        Change::Synced => "synced",
        Change::Lost { .. } => "lost",
        Change::HostAppeared(_) => "host_appeared",
        Change::HostChanged(_) => "host_changed",
        Change::HostGone(_) => "host_gone",
        Change::VmAppeared(_) => "vm_appeared",
        Change::VmCloned { .. } => "vm_cloned",
        Change::VmChanged(_) => "vm_changed",
        Change::VmMoved { .. } => "vm_moved",
        Change::VmPowered { .. } => "vm_powered",
        Change::VmGone(_) => "vm_gone",
    }
}
