//! A hypervisor in process that does what a script says, at once and always in the same order: no
//! clock, no randomness. Read it synchronously through a [`Feed`] (simulations), or watch it as any
//! other connector through [`Sim::connector`].

mod connector;
mod world;

pub use connector::{SimConnector, SimCredentials};
pub use world::{Feed, Sim, SimError};

#[cfg(test)]
mod tests;
