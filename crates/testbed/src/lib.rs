//! Starts the real programs on real file systems, and cleans up after them: for benches, the demo
//! and end-to-end tests. Everything here is a guard: dropped, it ends what it started and nothing
//! else.

mod agent;
mod cable;
mod clam;
mod console;
mod daemons;
mod databases;
mod debian;
mod guest;
mod host_net;
mod libvirt;
mod mount;
mod netns;
mod ports;
mod process;
mod relay;
pub mod samples;
mod slow_wire;
mod tap;
mod test_driver;
mod tpm;
mod usage;
mod vm;

pub use agent::{Agent, AgentOptions, AgentPids};
pub use cable::Cable;
pub use clam::{Clamd, ClamdListen, Clamonacc};
pub use console::Console;
pub use daemons::{Apart, ApartOptions, Server, ServerOptions, binary, rules_dir};
pub use databases::{Postgres, Redis};
pub use debian::debian_root;
pub use guest::{GuestAgent, GuestImage, GuestTree};
pub use host_net::{HostNet, MovingGuest};
pub use libvirt::{LibvirtHost, LibvirtListen};
pub use mount::{FileSystem, LoopMount};
pub use netns::Netns;
pub use ports::{free_address, free_port_on};
pub use process::{Pin, Process, Spawn, run, wait_until};
pub use relay::{Relay, RelayBytes};
pub use slow_wire::SlowWire;
pub use test_driver::TestDriver;
pub use tpm::{TpmCa, TpmSocket, VirtualTpm};
pub use usage::Usage;
pub use vm::{Vm, VmOptions};
