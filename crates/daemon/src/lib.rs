//! Daemon manners: configuration, logs, metrics, signals, service manager.
//!
//! The agent links this crate, so it starts no runtime and few threads: one for signals, one for
//! metrics where they are asked for, one for the watchdog where a service manager set one.

pub mod config;
pub mod lock;
pub mod log;
pub mod manual;
pub mod metrics;
pub mod notify;
pub mod signal;
