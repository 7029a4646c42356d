//! The controller: who belongs to the fleet. Join tokens, enrolment, renewal, revocation.
//!
//! The controller never sees a byte of any file.

mod authority;
mod enrolment;
mod journal;
mod visitors;

pub use authority::{Authority, AuthorityError, Guest, Refusal, TOKENS_MAX, TokenInfo};
pub use enrolment::{Enrolment, EnrolmentLimits, EnrolmentStats};
pub use journal::JournalError;
