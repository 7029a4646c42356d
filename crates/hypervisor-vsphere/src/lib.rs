//! Connector to VMware vCenter (or a single ESXi host), by the SOAP API: one property filter over
//! all hosts, clusters and VMs, and `WaitForUpdatesEx`, which pushes what changes.
//!
//! Where a VM runs is `runtime.host`, which changes at the switch of a vMotion. vSphere does not say
//! in a VM's properties that a move has begun.

mod config;
mod connector;
mod soap;
mod updates;

pub use config::VsphereConfig;
pub use connector::VsphereConnector;

#[cfg(test)]
mod tests;
