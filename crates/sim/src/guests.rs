//! Agents: the shipped list, a connection, and a ledger of opens without a verdict.

use link::client::Route;
use model::GuestId;

use crate::world::HOSTS;

/// One agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) id: GuestId,
    pub(crate) route: Route,
    /// The appliance that it is connected to.
    pub(crate) at: Option<usize>,
    /// Opens answered without a verdict and not paid back.
    pub(crate) debt: u64,
    pub(crate) unscanned: u64,
    pub(crate) paid: u64,
}

impl Agent {
    pub(crate) fn new(number: usize, appliances: Vec<String>) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
        Self {
            id: GuestId(id),
            route: Route::new(0, appliances),
            at: None,
            debt: 0,
            unscanned: 0,
            paid: 0,
        }
    }

    /// A file is opened: judged where there is a link, else entered in the ledger.
    pub(crate) fn open(&mut self) {
        if self.at.is_some() {
            self.paid += self.debt;
            self.debt = 0;
        } else {
            self.debt += 1;
            self.unscanned += 1;
        }
    }
}

/// How the appliance of this number is called and reached.
pub(crate) fn address(appliance: usize) -> String {
    format!("a{appliance}:7443")
}

pub(crate) fn appliance_of(address: &str) -> Option<usize> {
    address
        .strip_prefix('a')?
        .strip_suffix(":7443")?
        .parse()
        .ok()
}

/// The host that the appliance of this number runs on.
pub(crate) fn host_of(appliance: usize) -> usize {
    appliance * 2 % HOSTS
}
