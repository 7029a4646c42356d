//! Members, tokens, pools, and who waits: records, the picture of them, and what may join. No I/O.

mod join;
mod keys;
mod records;
mod state;

pub(crate) use join::{Asked, Plan, can_approve, is_over, plan};
pub(crate) use keys::{Renewal, renewed};
pub use records::{Decision, Ended, KeyRecord, Member, Pending, Pool, Proof, TokenInfo, VmRef};
pub(crate) use records::{moment, seconds};
pub(crate) use state::{Members, PENDING, POOL, Put, TOKEN};
