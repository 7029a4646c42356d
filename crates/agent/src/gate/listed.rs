//! The gate's allowlists: loaded anew, fetched, overruled by recalls.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_core::Input;
use allowlist::{Change, InForce, Shelf};
use link::Priority;
use proto::v1::{self, envelope::Body};

use super::Gate;
use super::delivery::{Delivery, Fetched};
use crate::allow;
use crate::orders::chain;

impl Gate {
    /// Looks whether a list's file changed. What is in force is replaced only by what was
    /// verified; then the core forgets what the old one allowed.
    pub(crate) fn reload_allowlists(&self) {
        let Some(shelf) = &self.shelf else {
            return;
        };
        let reloaded = shelf.reload();
        let is_other = |change: &Change| matches!(change, Change::Taken(_) | Change::Gone);
        if reloaded.iter().any(|it| is_other(&it.change)) {
            self.input(Input::AllowlistChanged);
            self.obey(shelf);
        }
        self.tally.allowlists_refused.add(allow::log(&reloaded));
    }

    /// The appliance says which lists it has.
    pub(crate) fn offered(&self, offers: v1::AllowlistOffers) {
        self.delivery().offered(offers.offers, Instant::now());
        self.bell.ring();
    }

    /// A piece of a list came; the next one is asked for.
    pub(crate) fn part(&self, part: &v1::AllowlistPart) {
        let next = self.delivery().part(part, Instant::now());
        self.fetch(next);
        self.bell.ring();
    }

    /// A list is to be fetched: [`deliver`](Self::deliver) is wanted again soon.
    pub(crate) fn is_delivering(&self) -> bool {
        let Some(shelf) = &self.shelf else {
            return false;
        };
        let lists = shelf.in_force();
        let in_force = |name: &str| {
            let file = self.fetched_files.get(name)?;
            let list = lists.iter().find(|list| list.path == *file)?;
            Some(list.serial)
        };
        self.delivery().is_busy(in_force)
    }

    pub(crate) fn delivery_lost(&self) {
        self.delivery().link_lost();
        self.looking.link_lost();
    }

    /// Asks for a list that is wanted, some time within the spread after it was offered and where
    /// it `may`; takes one that is whole. What is not verified changes nothing. False: no list is
    /// wanted.
    pub(crate) fn deliver(&self, seed: u64, may: impl FnOnce() -> bool) -> bool {
        let Some(shelf) = &self.shelf else {
            return false;
        };
        if let Some(fetched) = { self.delivery().take_fetched() } {
            self.install(shelf, fetched);
        }
        let spread_ms = self.limits.allowlist_fetch_spread_s.saturating_mul(1000);
        let spread = Duration::from_millis(seed % (spread_ms + 1));
        let lists = shelf.in_force();
        let in_force = |name: &str| {
            let file = self.fetched_files.get(name)?;
            let list = lists.iter().find(|list| list.path == *file)?;
            Some(list.serial)
        };
        let now = Instant::now();
        if !self.delivery().is_wanted(in_force, spread, now) {
            return false;
        }
        if may() {
            let next = self.delivery().ask(in_force, spread, now);
            self.fetch(next);
        }
        true
    }

    fn install(&self, shelf: &Shelf, fetched: Fetched) {
        let Some(file) = self.fetched_files.get(&fetched.name) else {
            return;
        };
        match shelf.install(file, fetched.bytes) {
            Ok(list) => {
                self.input(Input::AllowlistChanged);
                self.obey(shelf);
                let (path, change) = (file.clone(), Change::Taken(list));
                allow::log(&[allowlist::Reloaded { path, change }]);
            }
            Err(error) => {
                self.delivery().refuse(fetched.fingerprint);
                let (path, change) = (file.clone(), Change::Refused(error));
                let refused = allow::log(&[allowlist::Reloaded { path, change }]);
                self.tally.allowlists_refused.add(refused);
            }
        }
    }

    fn fetch(&self, what: Option<v1::FetchAllowlist>) {
        let (Some(fetch), Some(client)) = (what, self.client()) else {
            return;
        };
        let envelope = v1::Envelope {
            request_id: 0,
            body: Some(Body::FetchAllowlist(fetch)),
        };
        // Where the link takes nothing now, it is asked again later.
        let _ = client.send(Priority::OnDemand, envelope);
    }

    fn delivery(&self) -> MutexGuard<'_, Delivery> {
        self.delivery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These contents are never allowed by list again. The list is told before the core, so that
    /// nothing is allowed by an earlier look into it.
    pub(crate) fn recall(&self, digests: &[allowlist::Digest]) {
        let Some(shelf) = &self.shelf else {
            return;
        };
        let new = shelf.recall(digests);
        if new.is_empty() {
            return;
        }
        let digests = new.iter().map(|it| model::Digest(*it)).collect();
        self.input(Input::Recalled { digests });
        tracing::warn!(contents = new.len(), "allowlisted content was recalled");
        if shelf.recalled_len().1 {
            self.input(Input::AllowlistChanged);
            tracing::error!("limit allowlist_recalls_max reached: no list counts any more");
        }
        self.obey(shelf);
        if let Err(error) = shelf.save_recalls() {
            tracing::error!(error = chain(&error), "recalled content is not on disk");
        }
    }

    /// What a malicious verdict says of content is stronger than any list.
    pub(crate) fn found_malicious(&self, digest: model::Digest) {
        if self.shelf.as_ref().is_some_and(|it| it.names(&digest.0)) {
            self.recall(&[digest.0]);
        }
    }

    /// The files of all lists.
    pub(crate) fn allowlist_files(&self) -> &[std::path::PathBuf] {
        self.shelf.as_deref().map_or(&[], Shelf::files)
    }

    /// The core has forgotten what the lists of before allowed: the new ones are shown.
    fn obey(&self, shelf: &Shelf) {
        let mut obeyed = self.obeyed();
        *obeyed = what_counts(Some(shelf));
    }

    /// The lists that the gate goes by, and how many contents were recalled.
    pub(crate) fn allowlists(&self) -> (Vec<InForce>, usize) {
        self.obeyed().clone()
    }

    fn obeyed(&self) -> MutexGuard<'_, (Vec<InForce>, usize)> {
        self.obeyed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lists in force, and how many contents were recalled.
pub(super) fn what_counts(shelf: Option<&Shelf>) -> (Vec<InForce>, usize) {
    shelf.map_or_else(Default::default, |it| (it.in_force(), it.recalled_len().0))
}
