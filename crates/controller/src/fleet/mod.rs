//! The running fleet: one placer at a time, its state in a database, appliances on streams.

mod service;
mod store;

pub use service::{Fleet, FleetConfig, Lead, NotLeading, OrderSink, Standing};
pub use store::{CommitError, Lease, Store, StoreError};
