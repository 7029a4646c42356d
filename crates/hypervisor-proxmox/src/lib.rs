//! Connector to Proxmox VE. Its API pushes nothing, so resources and tasks are polled; what happens
//! between two polls shows by its result.

mod api;
mod config;
mod connector;
mod records;

pub use config::{POLL_MAX_S, POLL_MIN_S, ProxmoxConfig};
pub use connector::ProxmoxConnector;

#[cfg(test)]
mod tests;
