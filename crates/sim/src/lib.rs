//! The whole fleet in one deterministic process: the controller's core, placement, storm control
//! and the agents' lists as they ship; hosts, VMs, network, clock and disk simulated. A seed is a
//! course of events (migrations, evacuations, deaths of appliances, partitions, clock jumps, storms
//! of starts, machines that are copied with their keys or set back, restarts and takeovers of
//! controllers at any moment), and the same seed is the same course again.
//!
//! What must hold is checked after every step ([`World::check`]) and, once everything is healed,
//! at the end ([`World::settle`]). Some moves nobody tells of: until the next comparison of the whole
//! inventory, what agents measure is all there is.

mod checks;
mod controller;
mod course;
mod disk;
mod guests;
mod identity;
mod members;
mod random;
mod sessions;
mod work;
mod world;

pub use course::{Outcome, run};
pub use world::World;
