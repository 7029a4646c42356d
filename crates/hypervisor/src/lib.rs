//! What every connector tells, whatever the hypervisor: hosts, virtual machines, and one stream of
//! changes.
//!
//! A connector implements small capabilities: [`Connect`] gives a [`Session`], which has an
//! [`Inventory`], can [`Watch`] and [`Locate`], and perhaps [`Tag`]. What it observes are *records*,
//! never changes: the [`Differ`] alone compares them with what is known and says what changed. So
//! an event cannot be invented, doubled or lost: after a lost connection the whole inventory is
//! compared in the same way. [`watch`] drives a connector and reconnects.
//!
//! Connectors know no policy, and names from a hypervisor are hostile text.

mod claims;
mod connector;
mod differ;
mod error;
mod event;
mod pace;
mod record;
mod watcher;

pub use claims::Claims;
pub use connector::{Connect, Inventory, Locate, Observation, Session, Snapshot, Tag, Watch};
pub use differ::{Differ, HOSTS_MAX, VMS_MAX};
pub use error::ConnectorError;
pub use event::{Change, Event, MovePhase};
pub use pace::{Pace, RateLimit};
pub use record::{
    ADDRESSES_MAX, Host, HostId, HostState, ID_MAX_BYTES, IdError, MACS_MAX, Mac, Migration,
    NAME_MAX_BYTES, Power, TAGS_MAX, Vm, VmId, bounded_name,
};
pub use watcher::{WatchMetrics, WatchOptions, Watcher, watch};
