//! Removal orders that come with answers: checked, then carried out through the quarantine.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use model::{Detection, Digest};
use proto::v1::{self, OrderStatus, order::Action};
use quarantine::{Limits, Refusal, Vault};

/// What became of an order, for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removal {
    /// `quarantine` or `delete`.
    pub(crate) action: &'static str,
    pub(crate) status: OrderStatus,
    /// For people; may be empty.
    pub(crate) detail: String,
    /// The quarantine's item.
    pub(crate) item: Option<model::ItemId>,
}

/// Obeys orders, or says that it does not.
pub(crate) struct Hands {
    /// `None`: `--no-removal`.
    vault: Option<LazyVault>,
}

/// Opened with the first order: most scans find nothing.
struct LazyVault {
    dir: PathBuf,
    limits: Limits,
    vault: Mutex<Option<Vault>>,
}

impl Hands {
    pub(crate) fn new(vault: Option<(PathBuf, Limits)>) -> Self {
        Self {
            vault: vault.map(|(dir, limits)| LazyVault {
                dir,
                limits,
                vault: Mutex::new(None),
            }),
        }
    }

    /// Carries an order out, if it is about this very file; says how it ended.
    pub(crate) fn obey(&self, order: &v1::Order, path: &Path, digest: Digest) -> Removal {
        let (action, about, ordered, detections) = match &order.action {
            Some(Action::Quarantine(q)) => ("quarantine", &q.path, &q.blake3, &q.detections[..]),
            Some(Action::Delete(d)) => ("delete", &d.path, &d.blake3, &[][..]),
            _ => return failed("none", "a scan only quarantines and deletes"),
        };
        let Some(vault) = &self.vault else {
            return failed(action, "this scan was started with --no-removal");
        };
        if about != path.as_os_str().as_bytes() || Digest::from_slice(ordered) != Some(digest) {
            return failed(
                action,
                "the order is about another file than the one scanned",
            );
        }
        vault.with(action, |vault| match action {
            "delete" => match vault.delete(path, digest) {
                Ok(()) => done(action, None, String::new()),
                Err(error) => refused(action, error.refusal(), &error),
            },
            _ => {
                let detections: Vec<Detection> = detections
                    .iter()
                    .filter_map(|detection| detection.clone().try_into().ok())
                    .collect();
                match vault.take(path, digest, &detections, SystemTime::now()) {
                    Ok(taken) if taken.links_left > 0 => {
                        let detail = format!("{} hard links are left", taken.links_left);
                        done(action, Some(taken.id), detail)
                    }
                    Ok(taken) => done(action, Some(taken.id), String::new()),
                    Err(error) => refused(action, error.refusal(), &error),
                }
            }
        })
    }
}

impl Removal {
    /// The answer to the order.
    pub(crate) fn to_result(&self, order: &v1::Order) -> v1::OrderResult {
        v1::OrderResult {
            order_id: order.order_id.clone(),
            status: self.status as i32,
            detail: self.detail.clone(),
            item_id: self.item.map_or_else(Vec::new, |id| id.0.to_vec()),
            items: Vec::new(),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.status == OrderStatus::Done
    }
}

impl LazyVault {
    fn with(&self, action: &'static str, work: impl FnOnce(&Vault) -> Removal) -> Removal {
        let mut vault = self.vault.lock().unwrap_or_else(PoisonError::into_inner);
        if vault.is_none() {
            match Vault::open(&self.dir, self.limits) {
                Ok(opened) => *vault = Some(opened),
                Err(error) => return failed(action, &chain(&error)),
            }
        }
        match &*vault {
            Some(vault) => work(vault),
            None => failed(action, "the quarantine cannot be opened"),
        }
    }
}

fn done(action: &'static str, item: Option<model::ItemId>, detail: String) -> Removal {
    Removal {
        action,
        status: OrderStatus::Done,
        detail,
        item,
    }
}

fn failed(action: &'static str, detail: &str) -> Removal {
    Removal {
        action,
        status: OrderStatus::Failed,
        detail: detail.to_owned(),
        item: None,
    }
}

fn refused(action: &'static str, refusal: Refusal, error: &dyn std::error::Error) -> Removal {
    Removal {
        status: match refusal {
            Refusal::Changed => OrderStatus::RefusedChanged,
            Refusal::Missing => OrderStatus::RefusedMissing,
            Refusal::Conflict => OrderStatus::RefusedConflict,
            Refusal::Failed => OrderStatus::Failed,
        },
        ..failed(action, &chain(error))
    }
}

/// An error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
