//! The appliance's half, on tokio.

mod conn;
mod listener;
pub mod rules;

use std::time::Duration;

pub use conn::{Conn, RecvError, SendError, Sender};
pub use listener::{Accepted, Listener, ListenerStats};

/// Limits and times of a listener and its sessions, each with its default.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For TLS and Hello together. 5 s.
    pub handshake_timeout: Duration,
    /// Handshakes under way; further connections wait in the kernel. 256.
    pub handshakes_max: usize,
    /// Handshakes under way from one address; further ones are closed. 64.
    pub handshakes_per_address_max: usize,
    /// Sessions; further connections wait in the kernel. 16384.
    pub sessions_max: usize,
    /// Silence before a guest is asked whether it is there. Agents that hear nothing ask earlier, and
    /// the kernel finds dead machines after 30 s. 330 s.
    pub ping_after: Duration,
    /// Silence after that question that means death. 30 s.
    pub dead_after: Duration,
    /// A guest that takes nothing of what is queued for so long is closed. 20 s.
    pub stalled_max: Duration,
    /// After a Refused, time for the guest to take it. 1 s.
    pub farewell_max: Duration,
    /// Bytes that may wait for one guest; it is closed beyond. 4 MiB.
    pub queue_bytes_max: usize,
    /// Frames that may wait for one guest; it is closed beyond. 8192.
    pub queue_frames_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 256,
            handshakes_per_address_max: 64,
            sessions_max: 16384,
            ping_after: Duration::from_secs(330),
            dead_after: Duration::from_secs(30),
            stalled_max: Duration::from_secs(20),
            farewell_max: Duration::from_secs(1),
            queue_bytes_max: 4 << 20,
            queue_frames_max: 8192,
        }
    }
}
