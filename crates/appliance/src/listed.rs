//! The appliance's copies of the allowlists. It allows nothing by them: it knows from them which
//! malicious content agents would let pass unseen, and recalls that from all of them.

use std::path::Path;

use allowlist::{Change, Reloaded, Shelf, Sources};
use daemon::log::escape;
use model::Digest;
use proto::v1::{self, envelope::Body};

use crate::config::Config;
use crate::session::Outbox;
use crate::shared::Shared;

/// Digests in one frame, as the contract says.
const RECALL_DIGESTS_MAX: usize = 8192;
/// Bytes of a list in one frame, as the contract says.
const PART_MAX_BYTES: usize = 256 * 1024;
/// Detections whose content a new list is compared with.
const DETECTIONS_COMPARED_MAX: usize = 1_000_000;

/// The lists as configured; `None`: there are none.
pub(crate) fn open(config: &Config, state: &Path) -> Result<Option<Shelf>, allowlist::Error> {
    if config.allowlist.files.is_empty() {
        return Ok(None);
    }
    let limits = &config.limits;
    let shelf = Shelf::open(Sources {
        files: config.allowlist.files.clone(),
        trusted: config.allowlist.trusted_keys.clone(),
        bytes_max: limits.allowlist_bytes_max.get(),
        state: state.to_owned(),
        keeps: true,
        recalls_max: limits.allowlist_recalls_max.count(),
    })?;
    Ok(Some(shelf))
}

fn log(Reloaded { path, change }: &Reloaded) {
    use std::os::unix::ffi::OsStrExt as _;
    let path = escape(path.as_os_str().as_bytes()).to_string();
    match change {
        Change::Taken(list) => {
            let name = escape(list.name.as_bytes()).to_string();
            let (serial, listed, revoked) = (list.serial, list.listed, list.revoked);
            tracing::info!(path, name, serial, listed, revoked, "allowlist in force");
        }
        Change::Gone => tracing::warn!(path, "allowlist gone: in force no more"),
        Change::Refused(error) => {
            tracing::error!(path, %error, "allowlist refused; what was in force stays");
        }
    }
}

impl Shared {
    /// Loads lists that changed; what was found malicious before is recalled if it is on one.
    /// Reads files.
    pub(crate) fn reload_allowlists(&self) {
        let Some(shelf) = &self.shelf else {
            return;
        };
        let reloaded = shelf.reload();
        reloaded.iter().for_each(log);
        let is_refused = |it: &&Reloaded| matches!(it.change, Change::Refused(_));
        let refused = reloaded.iter().filter(is_refused).count() as u64;
        self.metrics.kept.allowlists_refused.inc_by(refused);
        let is_taken = |it: &Reloaded| matches!(it.change, Change::Taken(_));
        if reloaded.iter().any(is_taken) {
            self.tell_everybody(&Body::AllowlistOffers(offers_of(shelf)));
            // Where engines read names, it may be names that were found.
            if !self.force().policy.context_sensitive {
                let found = self.detections.newest(DETECTIONS_COMPARED_MAX);
                self.recall(found.iter().map(|record| record.digest));
            }
        }
    }

    /// Whether agents may allow this content by list.
    pub(crate) fn is_allowlisted(&self, digest: &Digest) -> bool {
        let shelf = self.shelf.as_ref();
        shelf.is_some_and(|shelf| shelf.names(&digest.0))
    }

    /// Content was found malicious, by itself: whatever list has it, no agent allows it by list again.
    pub(crate) fn recall(&self, malicious: impl IntoIterator<Item = Digest>) {
        let Some(shelf) = &self.shelf else {
            return;
        };
        let malicious = malicious.into_iter().map(|digest| digest.0);
        let listed: Vec<_> = malicious.filter(|digest| shelf.names(digest)).collect();
        let mut new = shelf.recall(&listed);
        if shelf.recalled_len().1 {
            // It cannot be kept which ones were told already: better twice than never.
            new = listed;
        }
        if new.is_empty() {
            return;
        }
        for digests in new.chunks(RECALL_DIGESTS_MAX) {
            self.tell_everybody(&recall_of(digests));
        }
        for digest in &new {
            let digest = Digest(*digest);
            tracing::error!(%digest, "allowlisted content is malicious; recalled from all agents");
        }
        if shelf.recalled_len().1 {
            tracing::error!("limit allowlist_recalls_max reached: later recalls are not kept");
        }
        if let Err(error) = shelf.save_recalls() {
            tracing::error!(%error, "recalled content is not on disk");
        }
    }

    /// Tells a session what was recalled before it came, and which lists there are.
    pub(crate) fn tell_of_allowlists(&self, outbox: &dyn Outbox) {
        let Some(shelf) = &self.shelf else {
            return;
        };
        let tell = |body| {
            let envelope = v1::Envelope {
                request_id: 0,
                body: Some(body),
            };
            outbox.send(link::Priority::Control, envelope);
        };
        for digests in shelf.recalled().chunks(RECALL_DIGESTS_MAX) {
            tell(recall_of(digests));
        }
        let offers = offers_of(shelf);
        if !offers.offers.is_empty() {
            tell(Body::AllowlistOffers(offers));
        }
    }

    /// A piece of a list in force; without bytes where there is none.
    pub(crate) fn allowlist_part(&self, fetch: &v1::FetchAllowlist) -> v1::AllowlistPart {
        let fingerprint = fetch.fingerprint.as_slice().try_into().ok();
        let piece = fingerprint.and_then(|fingerprint: allowlist::Digest| {
            let shelf = self.shelf.as_ref()?;
            shelf.piece(&fingerprint, fetch.offset, PART_MAX_BYTES)
        });
        v1::AllowlistPart {
            fingerprint: fetch.fingerprint.clone(),
            offset: fetch.offset,
            bytes: piece.unwrap_or_default().into(),
        }
    }

    pub(crate) fn set_allowlist_gauges(&self) {
        use crate::metrics::gauge_of;
        let Some(shelf) = &self.shelf else {
            return;
        };
        let kept = &self.metrics.kept;
        let lists = shelf.in_force();
        for file in shelf.files() {
            let list = lists.iter().find(|list| list.path == *file);
            let serial = gauge_of(list.map_or(0, |list| list.serial));
            kept.allowlist_serial
                .with([&file.to_string_lossy()])
                .set(serial);
        }
        kept.allowlist_recalled
            .set(gauge_of(shelf.recalled_len().0));
    }
}

fn offers_of(shelf: &Shelf) -> v1::AllowlistOffers {
    let lists = shelf.in_force().into_iter();
    let offers = lists.map(|list| v1::AllowlistOffer {
        name: list.name,
        serial: list.serial,
        size: list.size as u64,
        fingerprint: list.fingerprint.to_vec(),
    });
    v1::AllowlistOffers {
        offers: offers.collect(),
    }
}

fn recall_of(digests: &[allowlist::Digest]) -> Body {
    Body::Recall(v1::Recall {
        digests: digests.iter().map(|digest| digest.to_vec()).collect(),
    })
}
