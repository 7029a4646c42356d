//! The controller as the appliance sees it: both run in one process here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use appliance::{Appliance, RenewAnswer};
use controller::fleet::Fleet;
use controller::{Authority, TokenTerms, VmRef};
use model::GuestId;
use proto::v1;
use proto::v1::fleet_order::Body as Told;
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;

use crate::stream::Port;

/// Answers the appliance from the fleet's authority.
pub(crate) struct InProcess {
    pub(crate) authority: Arc<Authority>,
    pub(crate) fleet: Fleet,
    pub(crate) port: Arc<Port>,
    pub(crate) runtime: Handle,
}

impl appliance::Identity for InProcess {
    /// By the stream, as of any appliance: it leads to the controller that places, which may be another,
    /// and which has heard of the session by then.
    fn renew(&self, ask: v1::RenewGuest, answer: RenewAnswer) {
        self.port.renew(ask, answer);
    }

    fn is_revoked(&self, guest: GuestId) -> bool {
        if self.authority.guest(guest).is_none() {
            // Another controller may know it; if none does, its session ends then.
            let authority = self.authority.clone();
            self.runtime
                .spawn(async move { authority.look_up(guest).await });
        }
        self.authority.is_revoked(guest)
    }

    fn join_token(&self, request: &v1::TokenRequest) -> Result<String, String> {
        self.runtime.block_on(self.token(request))
    }
}

impl InProcess {
    async fn token(&self, request: &v1::TokenRequest) -> Result<String, String> {
        let vm = match request.vm.as_str() {
            "" => None,
            name => Some(self.vm(name.to_owned()).await?),
        };
        let terms = TokenTerms {
            uses_max: request.uses_max,
            valid: Duration::from_secs(request.valid_s.into()),
            pool: (!request.pool.is_empty()).then(|| request.pool.clone()),
            vm,
        };
        let token = self.authority.issue_token(terms, SystemTime::now()).await;
        token
            .map(|token| token.to_string())
            .map_err(|error| error.to_string())
    }

    /// The one VM of a connector that is called so.
    async fn vm(&self, name: String) -> Result<VmRef, String> {
        let found = self.fleet.with(move |lead, _| {
            let found = lead.core.find_vms(&name);
            let seen: Vec<_> = found
                .iter()
                .filter_map(|id| lead.core.vm_seen(*id))
                .collect();
            (name, seen)
        });
        let (name, seen) = found.await.map_err(|error| error.to_string())?;
        match &seen[..] {
            [only] => Ok(VmRef {
                connector: only.connector.clone(),
                id: only.id.clone(),
                name: only.name.clone(),
            }),
            [] => Err(format!("no connector reports a VM {name:?}")),
            _ => Err(format!(
                "several VMs are called {name:?}; use the number of one"
            )),
        }
    }
}

/// Ends the sessions of members that end, here and at every appliance, for ever.
pub(crate) async fn end_sessions(
    authority: Arc<Authority>,
    fleet: Fleet,
    appliance: Arc<Appliance>,
) {
    let mut ended = authority.ended();
    loop {
        let guests = match ended.recv().await {
            Ok(guest) => vec![guest],
            Err(RecvError::Lagged(_)) => authority.revoked(SystemTime::now()),
            Err(RecvError::Closed) => return,
        };
        for guest in guests {
            appliance.end_guest(guest);
            // Where another controller places, that one hears of it and tells.
            let told = fleet.with(move |lead, clock| {
                lead.core.guest_ended(clock, guest);
                lead.send_all(&Told::Revoked(guest.0.to_vec()));
            });
            let _ = told.await;
        }
    }
}
