//! The controller: who belongs to the fleet (join tokens, enrolment, renewal, revocation), and where
//! everything is ([`fleet`]: inventory, placement, the streams of appliances).
//!
//! The controller never sees a byte of any file.

mod authority;
mod enrolment;
pub mod fleet;
mod journal;
mod visitors;

pub use authority::{Authority, AuthorityError, Guest, Refusal, TOKENS_MAX, TokenInfo};
pub use enrolment::{Enrolment, EnrolmentLimits, EnrolmentStats};
pub use journal::JournalError;
