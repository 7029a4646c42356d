//! What an appliance asks of the controller: it knows no keys itself.

use model::GuestId;

/// Takes certificates, leaf first, DER; or why it was refused, for people. The guest is told.
pub type RenewAnswer = Box<dyn FnOnce(Result<Vec<Vec<u8>>, String>) + Send>;

/// The controller, as far as an appliance needs it. Calls come from the tasks that serve guests,
/// so they must not wait for anything but the processor.
pub trait Identity: Send + Sync {
    /// A new certificate for a guest that has shown its old one. The answer may come at once or
    /// later, from any thread.
    fn renew(&self, guest: GuestId, csr_der: &[u8], answer: RenewAnswer);

    /// Whether a guest may have no session.
    fn is_revoked(&self, guest: GuestId) -> bool;

    /// A join token for so many guests, valid for so many seconds. May wait for the disk.
    ///
    /// # Errors
    /// Why there is none, for people.
    fn join_token(&self, uses_max: u32, valid_s: u32) -> Result<String, String>;
}
