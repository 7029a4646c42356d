//! Verdicts and sightings that a fleet shares: one trait, several stores.
//!
//! An appliance asks through [`Fleet`]: it seals and opens entries with the fleet's key, waits no
//! longer than its caller allows, and leaves a dead store alone. Behind it is a [`VerdictStore`]
//! and a [`Sightings`]: [`Embedded`], [`Postgres`] or [`Redis`], which see sealed bytes only. A
//! store that is stolen or changed can make verdicts be missed, never be invented.
//!
//! [`RuleDelta`] and [`decide`] say what a verdict of the last rules is worth under the next.

mod breaker;
mod connection;
mod delta;
mod embedded;
mod encoding;
mod entry;
mod fleet;
mod postgres;
mod redis;
mod seal;
mod store;

pub use breaker::{Breaker, BreakerSettings};
pub use delta::{Decision, Manifest, RuleDelta, RuleId, carried, decide};
pub use embedded::{Embedded, EmbeddedSettings};
pub use encoding::VALUE_BYTES_MAX;
pub use entry::{EngineVersion, Entry, Judged};
pub use fleet::{CountsSnapshot, Fleet, Log, Observer};
pub use postgres::{Postgres, PostgresSettings};
pub use redis::{Redis, RedisSettings};
pub use seal::{BadEntry, FleetKey, KeyError, Keyring, Sealed};
pub use store::{
    BATCH_MAX, HOLDERS_MAX, Holder, Holders, Sighting, Sightings, StoreError, StoreFuture,
    VerdictStore,
};
