//! All connectors, running.

use std::collections::BTreeSet;

use daemon::metrics::{Counters, Registry};
use hypervisor::{Event, WatchMetrics, Watcher, watch};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::{CONNECTORS_MAX, ConnectorConfig, ConnectorsError};

/// Events of all connectors that wait for the consumer; when there are more, connectors wait.
const QUEUE_LEN_MAX: usize = 4096;

/// What is counted of connectors. Registered once, however often they are started.
#[derive(Debug, Clone)]
pub struct ConnectorMetrics {
    requests: Counters<1>,
    watch: WatchMetrics,
}

impl ConnectorMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.counters(
                "lazaret_connector_requests_total",
                "Requests that a connector made to its hypervisor.",
                ["connector"],
            ),
            watch: WatchMetrics::new(registry),
        }
    }
}

/// Connectors that run; dropped, they stop.
#[derive(Debug)]
pub struct Connectors {
    events: mpsc::Receiver<Event>,
    /// Keeps the stream open where there is no connector.
    _open: mpsc::Sender<Event>,
    _forwarders: JoinSet<()>,
}

impl Connectors {
    /// Starts all of them, or none. Runs on the runtime that it is called in.
    ///
    /// # Errors
    /// [`ConnectorsError`], naming the connector.
    pub fn start(
        configs: &[ConnectorConfig],
        metrics: &ConnectorMetrics,
    ) -> Result<Self, ConnectorsError> {
        if configs.len() > CONNECTORS_MAX {
            return Err(ConnectorsError::TooMany(configs.len()));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = configs.iter().find(|config| !names.insert(&config.name)) {
            return Err(ConnectorsError::Twice(twice.name.clone()));
        }
        let made: Vec<_> = configs
            .iter()
            .map(|config| config.connector(metrics.requests.with([&config.name])))
            .collect::<Result<_, _>>()?;
        let (sender, events) = mpsc::channel(QUEUE_LEN_MAX);
        let mut forwarders = JoinSet::new();
        for (config, connector) in configs.iter().zip(made) {
            let options = config.options();
            let watcher = watch(&config.name, connector, options, metrics.watch.clone());
            forwarders.spawn(forward(watcher, sender.clone()));
        }
        Ok(Self {
            events,
            _open: sender,
            _forwarders: forwarders,
        })
    }

    /// The next event of any connector; those of one connector are in order. Waits for ever where
    /// nothing happens.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

async fn forward(mut watcher: Watcher, events: mpsc::Sender<Event>) {
    while let Some(event) = watcher.next().await {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use hypervisor::Change;

    use super::*;

    fn config(name: &str) -> ConnectorConfig {
        let text = format!(
            "name = '{name}'\n[libvirt]\n\
             hosts = [{{ uri = 'qemu+unix:///system?socket=/nowhere/at/all' }}]\n"
        );
        toml::from_str(&text).expect("good")
    }

    #[test]
    fn names_are_used_once() {
        let metrics = ConnectorMetrics::new(&Registry::new());
        let error = Connectors::start(&[config("a"), config("a")], &metrics);
        assert!(matches!(error, Err(ConnectorsError::Twice(_))));
    }

    #[tokio::test]
    async fn each_connector_tells_of_its_failure() {
        let registry = Registry::new();
        let configs = [config("a"), config("b")];
        let metrics = ConnectorMetrics::new(&registry);
        let mut connectors = Connectors::start(&configs, &metrics).expect("started");
        let mut lost = BTreeSet::new();
        while lost.len() < 2 {
            let event = connectors.next().await.expect("an event");
            assert!(matches!(event.change, Change::Lost { .. }), "{event:?}");
            lost.insert(event.connector.to_string());
        }
        assert!(
            registry
                .render()
                .contains("lazaret_connector_failures_total")
        );
    }
}
