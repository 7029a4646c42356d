//! Verdicts and sightings that appliances keep and share: a trait for each, several stores.
//!
//! A [`VerdictStore`] keeps sealed entries: [`Embedded`] on the appliance's own disk, and what
//! [`Address`] opens, PostgreSQL or Redis, for a fleet. An appliance uses each
//! through [`Guarded`]: it seals and opens entries with a key that no store has, waits no longer
//! than allowed, and leaves a dead store alone. A store that is stolen or changed can make
//! verdicts be missed, never be invented.
//!
//! [`Sightings`] say which guests were seen with which content, since when: [`EmbeddedSightings`],
//! or PostgreSQL for a fleet.

mod address;
mod breaker;
mod embedded;
mod entry;
mod guarded;
mod postgres;
mod redis;
mod seal;
mod sightings;
mod store;

pub use address::{Address, AddressError, SharedSettings, SharedStores};
pub use breaker::{Breaker, BreakerSettings};
pub use embedded::{Embedded, EmbeddedSightings, OpenError};
pub use entry::{Entry, JudgedBy, VALUE_BYTES_MAX};
pub use guarded::{Guarded, StoreMetrics};
pub use seal::{BadEntry, FleetKey, KeyError, Keyring, Sealed};
pub use sightings::{HOLDERS_MAX, Holder, Holders, Seen, Sighting, Sightings};
pub use store::{BATCH_MAX, StoreError, StoreFuture, VerdictStore};
