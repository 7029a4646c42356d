//! Connector to Hyper-V: every host is asked by itself (WMI over WS-Management, HTTPS, NTLM), in a
//! cluster too. WMI over HTTPS pushes nothing, so hosts are polled; [`hypervisor::Claims`] says where
//! a VM runs that two hosts tell of.

mod config;
mod connector;
mod ntlm;
mod records;
mod wsman;

pub use config::{HypervConfig, HypervHost, POLL_MAX_S, POLL_MIN_S};
pub use connector::HypervConnector;

#[cfg(test)]
mod tests;
