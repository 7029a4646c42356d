//! The running fleet: one placer at a time, its state in a database, appliances on streams.

mod service;
mod store;
mod stream;
mod wire;

pub use service::{Fleet, FleetConfig, Lead, NotLeading, OrderSink, Standing};
pub use store::{CommitError, Lease, Store, StoreError};
pub use stream::serve;
pub use wire::{Dialled, FleetListener, QUEUE_LEN_MAX, dial};
