//! Which appliances a guest uses, in order, and which work on shared resources may run when. No
//! I/O, no clock, no randomness: `now` (time since any fixed moment) and a seed come in, lists and
//! leases go out; equal calls give equal results.
//!
//! - [`Fleet`]: sticky, tiered, weighted rendezvous hashing with a load bound. Each VM holds an
//!   ordered list of at most three appliances with an [`Epoch`]; a later epoch replaces an earlier.
//! - [`Admission`]: leases on the processor, datastore and link of hosts, for scans, sweeps and
//!   content updates; spread within a window, done by its end, never more than the budget.
//! - [`BootStorms`]: recognises many VMs that start at once.
//!
//! Why it is made so: `docs/decisions/0017-placement.md`.

mod appliances;
mod choose;
mod explain;
mod facts;
mod fleet;
mod hosts;
mod ids;
mod lists;
mod nearness;
mod rendezvous;
mod rules;
mod settings;
mod settle;
mod storm;
mod vms;

pub use explain::{Considered, Explanation, Standing};
pub use facts::{ApplianceFacts, Availability, HostFacts, VmFacts};
pub use fleet::Fleet;
pub use ids::{ApplianceId, Epoch, HostId, VmId};
pub use lists::{ApplianceView, Cause, Placement, Totals};
pub use rules::{Condition, ConditionError, Rule};
pub use settings::{SettingError, Settings};
pub use storm::{
    Admission, Begin, BootPolicy, BootStorms, Followed, Job, Lease, LeaseId, Place, Refused,
    Resource, Resources, Started, StormPolicy, WorkKind,
};

/// Appliances in one list.
pub const LIST_LEN: usize = 3;
