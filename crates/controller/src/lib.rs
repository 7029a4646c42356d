//! The controller: who belongs to the fleet (join tokens, enrolment, renewal, revocation), and where
//! everything is ([`fleet`]: inventory, placement, the streams of appliances).
//!
//! The controller never sees a byte of any file.

mod authority;
mod endorsement;
mod enrolment;
pub mod fleet;
mod joining;
mod journal;
mod keeping;
mod members;
mod rekeying;
mod terms;
mod visitors;

pub use authority::{Authority, AuthorityError, Refusal};
pub use endorsement::{Tpm, TpmShown};
pub use enrolment::{Enrolment, EnrolmentLimits, EnrolmentStats};
pub use joining::{EPHEMERAL_LIFETIME, Enrolled};
pub use journal::JournalError;
pub use members::{
    Decision, Ended, KeyRecord, Member, Pending, Pool, Proof, TokenInfo, ToldCopy, TpmCa, VmRef,
    Word,
};
pub use rekeying::{REKEYS_PER_HOUR, Rekey};
pub use terms::{POOLS_MAX, TOKENS_MAX, TokenTerms};

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
