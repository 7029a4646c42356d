//! Members, tokens, pools, and who waits: records, the picture of them, and what may join. No I/O.

mod join;
mod keys;
mod pool;
mod records;
mod state;
mod told;

pub(crate) use join::{Asked, Plan, can_approve, has_room, is_over, may_wait, plan, waiting_id};
pub(crate) use keys::{Renewal, renewed, seen_with};
pub use pool::{Pool, Proof, TpmCa};
pub use records::{Decision, Ended, KeyRecord, Member, Pending, TokenInfo, ToldCopy, VmRef, Word};
pub(crate) use records::{moment, seconds};
pub(crate) use state::{MEMBER, Members, PENDING, POOL, Put, TOKEN};
pub(crate) use told::told_with;
