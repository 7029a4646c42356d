//! The controller as the appliance sees it: both run in one process here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use appliance::RenewAnswer;
use controller::Authority;
use model::GuestId;

/// Answers the appliance from the fleet's authority.
pub(crate) struct InProcess(pub(crate) Arc<Authority>);

impl appliance::Identity for InProcess {
    fn renew(&self, guest: GuestId, csr_der: &[u8], answer: RenewAnswer) {
        let renewed = self.0.renew(guest, csr_der, SystemTime::now());
        let chain = renewed.map_err(|refusal| refusal.to_string());
        answer(chain.map(|chain| chain.iter().map(|cert| cert.to_vec()).collect()));
    }

    fn is_revoked(&self, guest: GuestId) -> bool {
        self.0.is_revoked(guest)
    }

    fn join_token(&self, uses_max: u32, valid_s: u32) -> Result<String, String> {
        let valid = Duration::from_secs(valid_s.into());
        let token = self.0.issue_token(uses_max, valid, SystemTime::now());
        token
            .map(|token| token.to_string())
            .map_err(|error| error.to_string())
    }
}
