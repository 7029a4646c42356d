//! What an appliance asks of the controller: it knows no keys itself.

use model::GuestId;
use proto::v1;

/// Takes certificates, leaf first, DER; or why it was refused, for people. The guest is told.
pub type RenewAnswer = Box<dyn FnOnce(Result<Vec<Vec<u8>>, String>) + Send>;

/// The controller, as far as an appliance needs it. Calls come from the tasks that serve guests,
/// so they must not wait for anything but the processor.
pub trait Identity: Send + Sync {
    /// A new certificate for a guest that has shown its old one. The ticket is not used. The answer
    /// may come at once or later, from any thread.
    fn renew(&self, ask: v1::RenewGuest, answer: RenewAnswer);

    /// Whether a guest may have no session.
    fn is_revoked(&self, guest: GuestId) -> bool;

    /// A join token. May wait for the database: call it from `spawn_blocking`.
    ///
    /// # Errors
    /// Why there is none, for people.
    fn join_token(&self, request: &v1::TokenRequest) -> Result<String, String>;
}
