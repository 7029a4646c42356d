//! The hot link between agents and appliances: length-prefixed protobuf frames over mutual
//! TLS 1.3, multiplexed by request id, with priorities, flow control, cancelling, keep-alive and
//! version negotiation. Both ends:
//!
//! - [`client`]: the agent's, blocking threads, no runtime;
//! - [`server`]: the appliance's, on tokio (cargo feature `server`);
//! - [`channel`]: how a guest knows the appliance on its host, by the hypervisor itself;
//! - [`enrol`]: how a guest gets its first certificate, blocking.
//!
//! What both share is free of I/O and of clocks: the send queue, the TLS state, credit, liveness,
//! the rules for what the other side may send.

pub mod channel;
pub mod client;
pub mod enrol;
#[cfg(feature = "server")]
pub mod server;
pub mod tls;

mod inbox;
mod liveness;
mod pipe;
mod priority;
mod queue;
mod socket;
mod version;

pub use priority::Priority;
