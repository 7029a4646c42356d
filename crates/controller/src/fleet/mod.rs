//! The running fleet: one placer at a time, its state in a database, appliances on streams.

mod identity_rows;
mod service;
mod store;
mod stream;
mod wire;

pub(crate) use identity_rows::{IdentityRow, STALE_AFTER};
pub use service::{Fleet, FleetConfig, Lead, NotLeading, OrderSink, Retirement, Standing};
pub use store::{CommitError, Lease, Store, StoreError};
pub use stream::{renew_guest, serve};
pub use wire::{Dialled, FleetListener, QUEUE_LEN_MAX, dial};
