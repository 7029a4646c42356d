//! The allowlists: their files, what was recalled, and what the core asks of them.

use std::path::Path;
use std::sync::Arc;

use ::allowlist::{Change, Reloaded, Shelf, Sources};
use daemon::log::escape;
use model::Digest;

use crate::AgentConfig;
use crate::orders::chain;

/// The lists as they are in force. `None`: none are configured, or what is kept of them is
/// damaged; nothing is allowed by list then. `keeps`: this process writes what is kept.
pub(crate) fn open(config: &AgentConfig, keeps: bool) -> Option<Arc<Shelf>> {
    let names = config.allowlist.names.iter();
    let fetched = names.map(|name| config.fetched_allowlist(name));
    let files: Vec<_> = config
        .allowlist
        .files
        .iter()
        .cloned()
        .chain(fetched)
        .collect();
    if files.is_empty() {
        return None;
    }
    let shelf = Shelf::open(Sources {
        files,
        trusted: config.allowlist.trusted_keys.clone(),
        bytes_max: config.limits.allowlist_bytes_max,
        state: config.state_dir.clone(),
        keeps,
        recalls_max: config.limits.allowlist_recalls_max,
    });
    match shelf {
        Ok(shelf) => Some(Arc::new(shelf)),
        Err(error) => {
            // Without it nothing is unguarded: everything is asked about.
            tracing::error!(error = chain(&error), "no allowlist can be used");
            None
        }
    }
}

/// Tells the log what became of the lists' files; returns how many were refused.
pub(crate) fn log(reloaded: &[Reloaded]) -> u64 {
    let mut refused = 0;
    for Reloaded { path, change } in reloaded {
        let path = text(path);
        match change {
            Change::Taken(list) => {
                let name = escape(list.name.as_bytes()).to_string();
                let (serial, listed, revoked) = (list.serial, list.listed, list.revoked);
                tracing::info!(path, name, serial, listed, revoked, "allowlist in force");
            }
            Change::Gone => tracing::warn!(path, "allowlist gone: in force no more"),
            Change::Refused(error) => {
                refused += 1;
                let error = chain(error);
                tracing::error!(path, error, "allowlist refused; what was in force stays");
            }
        }
    }
    refused
}

fn text(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    escape(path.as_os_str().as_bytes()).to_string()
}

/// The lists as the core sees them.
#[derive(Debug)]
pub(crate) struct InForce(pub(crate) Arc<Shelf>);

impl agent_core::Allowlist for InForce {
    fn lists(&self, digest: &Digest) -> bool {
        self.0.lists(&digest.0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
