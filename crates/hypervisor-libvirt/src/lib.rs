//! Connector to libvirt: QEMU/KVM and Xen hosts, each with its own libvirtd.
//!
//! It speaks libvirt's RPC (XDR over a unix socket or TLS) itself, so that one process can hold
//! thousands of hosts without a thread for each. A VM is known by its uuid and may be told of by two
//! hosts at a time; [`hypervisor::Claims`] says where it runs. The switch of a live migration is the
//! moment in which the destination resumes the guest.

mod auth;
mod config;
mod connector;
mod domain;
mod host;
mod rpc;
mod scram;
mod wire;
mod xdr;

pub use config::{HostConfig, LibvirtConfig};
pub use connector::LibvirtConnector;
pub use rpc::{CALL_TIME, MESSAGE_MAX_BYTES};

#[cfg(test)]
mod tests;
