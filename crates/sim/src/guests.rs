//! Agents: the shipped list, a connection, and a ledger of opens without a verdict.

use std::collections::BTreeMap;

use fleet_core::Key;
use link::client::Route;
use model::GuestId;

use crate::world::HOSTS;

/// One agent.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) id: GuestId,
    /// The key that its next session begins with.
    pub(crate) key: Key,
    /// It was told that it is a copy, and has no identity of its own yet.
    pub(crate) is_told: bool,
    pub(crate) route: Route,
    /// Every list that it was told while no other machine had its identity, by its epoch. A copy was
    /// told what its original was until then, and a machine that was set back nothing that came later.
    pub(crate) told: BTreeMap<u64, Vec<String>>,
    /// The appliance that it is connected to.
    pub(crate) at: Option<usize>,
    /// Opens answered without a verdict and not paid back.
    pub(crate) debt: u64,
    pub(crate) unscanned: u64,
    pub(crate) paid: u64,
}

impl Default for Agent {
    /// It has no identity yet.
    fn default() -> Self {
        Self {
            id: GuestId([0; 16]),
            key: [0; 16],
            is_told: false,
            route: Route::new(0, Vec::new()),
            told: BTreeMap::new(),
            at: None,
            debt: 0,
            unscanned: 0,
            paid: 0,
        }
    }
}

impl Agent {
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
