//! The gate's allowlists: loaded anew, overruled by recalls.

use agent_core::Input;
use allowlist::{Change, InForce, Shelf};

use super::Gate;
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
        }
        self.tally.allowlists_refused.add(allow::log(&reloaded));
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
        self.input(Input::Recalled);
        tracing::warn!(contents = new.len(), "allowlisted content was recalled");
        if shelf.recalled_len().1 {
            tracing::error!("limit allowlist_recalls_max reached: no list counts any more");
        }
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

    /// The lists in force, and how many contents were recalled.
    pub(crate) fn allowlists(&self) -> (Vec<InForce>, usize) {
        self.shelf
            .as_deref()
            .map_or_else(Default::default, |it: &Shelf| {
                (it.in_force(), it.recalled_len().0)
            })
    }
}
