//! Verdicts that appliances keep and share: one trait, several stores.
//!
//! A [`VerdictStore`] keeps sealed entries: [`Embedded`] on the appliance's own disk, and what
//! [`Address`] opens, PostgreSQL or Redis, for a fleet. An appliance uses each
//! through [`Guarded`]: it seals and opens entries with a key that no store has, waits no longer
//! than allowed, and leaves a dead store alone. A store that is stolen or changed can make
//! verdicts be missed, never be invented.

mod address;
mod breaker;
mod embedded;
mod entry;
mod guarded;
mod postgres;
mod redis;
mod seal;
mod store;

pub use address::{Address, AddressError, SharedSettings};
pub use breaker::{Breaker, BreakerSettings};
pub use embedded::{Embedded, OpenError};
pub use entry::{Entry, JudgedBy, VALUE_BYTES_MAX};
pub use guarded::{Guarded, StoreMetrics};
pub use seal::{BadEntry, FleetKey, KeyError, Keyring, Sealed};
pub use store::{BATCH_MAX, StoreError, StoreFuture, VerdictStore};
