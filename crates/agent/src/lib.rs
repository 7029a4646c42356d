//! The agent of a guest: it asks an appliance about every file that is opened, and holds the
//! opener until it knows. It has no rules to judge by and parses no file.
//!
//! The way of one open: `gate::reader` takes the kernel's event, answers what needs no thought
//! and hands the rest to the core; a worker of `gate::workers` hashes the file and sends the
//! question itself; `session` gets the reply and answers the kernel on the same thread.

mod again;
mod agent;
mod allow;
mod attached;
mod bell;
mod books;
pub mod cli;
pub mod control;
pub mod credentials;
mod dialer;
mod enroller;
mod filter_file;
mod foresight;
mod gate;
mod guard;
mod guest_tpm;
mod keeper;
pub mod machine;
mod member;
mod membership;
mod metrics;
mod orders;
mod origin;
mod placed;
pub mod scan;
mod session;
mod status;
mod transfer;
mod turns;
mod unguarded;

pub use agent::{Agent, GateFailed, StartError};
pub use agent_config::{
    AgentConfig, Allowlist, Appliance, CONFIG_PATH, Enrol, Guard, Limits, Log, Metrics,
    UnusableConfig,
};
pub use guard::marks::GuardError;

/// Stack of each thread: what they do is shallow, and there are a dozen of them.
const STACK_BYTES: usize = 256 * 1024;
