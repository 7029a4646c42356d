//! The connectors that a configuration names, started: one stream of events from all of them.

mod config;
mod running;

pub use config::{CONNECTORS_MAX, ConnectorConfig, ConnectorsError};
pub use running::{ConnectorMetrics, Connectors};
