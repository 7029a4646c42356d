//! Ids, digests, outcomes, verdicts and policy. Plain values: no I/O, no clock, no randomness.
//!
//! Four outcomes, never mixed: clean, malicious, unscanned(reason), error. See [`Outcome`].

mod digest;
mod filter;
mod ids;
mod machine;
mod policy;
mod ranges;
mod verdict;

pub use digest::{Digest, DigestParseError, Sha256};
pub use filter::FilterPack;
pub use ids::{ChannelId, FilterId, Generation, GuestId, ItemId, OrderId};
pub use machine::{MACS_MAX, Machine, differ};
pub use policy::{Disposition, LateAction, Policy, PolicyError, RIDE_ALONG_MAX};
pub use ranges::Ranges;
pub use verdict::{
    AccessClass, Coverage, DETECTIONS_MAX, Detection, Outcome, UnscannedReason, Verdict,
};
