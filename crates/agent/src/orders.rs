//! The removal hands: orders of the appliance, carried out one at a time through the quarantine.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crossbeam_channel::Receiver;
use daemon::log::escape;
use model::{DETECTIONS_MAX, Detection, Digest, ItemId};
use proto::v1::{self, OrderStatus, envelope::Body, order::Action};
use quarantine::{Listed, Refusal, TakeError, Vault};

use crate::gate::Gate;

/// Items in one answer to a list: it must fit one frame.
const LISTED_BYTES_MAX: usize = 900 * 1024;

/// What became of an order.
struct Ended {
    status: OrderStatus,
    detail: String,
    item_id: Option<ItemId>,
    items: Vec<v1::QuarantineItem>,
    /// The quarantine has no room: somebody has to make some.
    is_full: bool,
}

/// Carries orders out.
pub(crate) struct Hands {
    vault: Vault,
    /// The first results, for orders that come again.
    results: VecDeque<v1::OrderResult>,
    results_max: usize,
}

impl Hands {
    pub(crate) fn new(vault: Vault, results_max: usize) -> Self {
        Self {
            vault,
            results: VecDeque::new(),
            results_max,
        }
    }

    /// Obeys until nobody can give orders any more.
    pub(crate) fn run(&mut self, gate: &Gate, orders: &Receiver<v1::Order>) {
        for order in orders {
            let (result, is_full) = self.result_of(&order);
            if is_full {
                gate.send_alert("quarantine_full", &result.detail, b"");
            }
            if result.status == OrderStatus::Done as i32 {
                gate.tally.orders_done.add(1);
            } else {
                gate.tally.orders_refused.add(1);
            }
            // Without a link the appliance asks again, and gets this same result.
            gate.send_control(0, Body::OrderResult(result));
        }
    }

    /// The result, and whether it was for want of room.
    fn result_of(&mut self, order: &v1::Order) -> (v1::OrderResult, bool) {
        let known = self.results.iter().find(|r| r.order_id == order.order_id);
        if let Some(result) = known {
            return (result.clone(), false);
        }
        let ended = catch_unwind(AssertUnwindSafe(|| self.obey(order)))
            .unwrap_or_else(|_| failed("the agent panicked"));
        let is_full = ended.is_full;
        let result = v1::OrderResult {
            order_id: order.order_id.clone(),
            status: ended.status as i32,
            detail: ended.detail,
            item_id: ended.item_id.map_or_else(Vec::new, |id| id.0.to_vec()),
            items: ended.items,
        };
        // A list changes nothing, so it may be asked for anew; it would also be large.
        if !matches!(order.action, Some(Action::List(_))) {
            self.results.push_back(result.clone());
            if self.results.len() > self.results_max {
                self.results.pop_front();
            }
        }
        (result, is_full)
    }

    fn obey(&self, order: &v1::Order) -> Ended {
        let ended = match &order.action {
            Some(Action::Quarantine(order)) => self.quarantine(order),
            Some(Action::Delete(order)) => self.delete(order),
            Some(Action::Restore(order)) => self.restore(order),
            Some(Action::Discard(order)) => self.discard(order),
            Some(Action::List(_)) => return self.list(),
            None => failed("the order names no action"),
        };
        let status = ended.status.as_str_name();
        tracing::info!(status, detail = ended.detail, "removal order");
        ended
    }

    fn quarantine(&self, order: &v1::QuarantineFile) -> Ended {
        let Some(digest) = Digest::from_slice(&order.blake3) else {
            return failed("the order names no digest");
        };
        let detections = order.detections.iter().take(DETECTIONS_MAX).cloned();
        let detections: Vec<Detection> = detections
            .filter_map(|detection| Detection::try_from(detection).ok())
            .collect();
        let path = path_of(&order.path);
        match self
            .vault
            .take(path, digest, &detections, SystemTime::now())
        {
            Ok(taken) => Ended {
                item_id: Some(taken.id),
                ..done(match taken.links_left {
                    0 => format!("{} is in quarantine", escape(&order.path)),
                    more => format!(
                        "{} is in quarantine; {more} other names of the file are left",
                        escape(&order.path)
                    ),
                })
            },
            Err(error) => Ended {
                is_full: matches!(error, TakeError::Full { .. } | TakeError::NoSpace { .. }),
                ..refused(error.refusal(), &error)
            },
        }
    }

    fn delete(&self, order: &v1::DeleteFile) -> Ended {
        let Some(digest) = Digest::from_slice(&order.blake3) else {
            return failed("the order names no digest");
        };
        match self.vault.delete(path_of(&order.path), digest) {
            Ok(()) => done(format!("{} is deleted", escape(&order.path))),
            Err(error) => refused(error.refusal(), &error),
        }
    }

    fn restore(&self, order: &v1::RestoreItem) -> Ended {
        let Some(id) = ItemId::from_slice(&order.item_id) else {
            return failed("the order names no item");
        };
        let target = (!order.path.is_empty()).then(|| path_of(&order.path));
        match self.vault.restore(id, target) {
            Ok(restored) => Ended {
                item_id: Some(id),
                ..done(format!(
                    "restored to {}",
                    escape(restored.path.as_os_str().as_bytes())
                ))
            },
            Err(error) => refused(error.refusal(), &error),
        }
    }

    fn discard(&self, order: &v1::DiscardItem) -> Ended {
        let Some(id) = ItemId::from_slice(&order.item_id) else {
            return failed("the order names no item");
        };
        match self.vault.discard(id) {
            Ok(()) => Ended {
                item_id: Some(id),
                ..done("discarded".to_owned())
            },
            Err(error @ quarantine::DiscardError::NoSuchItem(_)) => {
                refused(Refusal::Missing, &error)
            }
            Err(error) => refused(Refusal::Failed, &error),
        }
    }

    fn list(&self) -> Ended {
        let listed = match self.vault.list() {
            Ok(listed) => listed,
            Err(error) => return failed(&chain(&error)),
        };
        let total = listed.len();
        let mut room = LISTED_BYTES_MAX;
        let mut items = Vec::new();
        for item in listed.into_iter().map(item_message) {
            // An estimate that is never too small: strings, and a few bytes for each field.
            let detections = item.detections.iter();
            let len = detections.fold(item.path.len() + 128, |len, d| {
                let inside: usize = d.path_inside.iter().map(|part| part.len() + 8).sum();
                len + d.name.len() + d.engine.len() + inside + 32
            });
            let Some(left) = room.checked_sub(len) else {
                break;
            };
            room = left;
            items.push(item);
        }
        let detail = match total - items.len() {
            0 => String::new(),
            more => format!("{more} items more than fit one answer"),
        };
        Ended {
            items,
            ..done(detail)
        }
    }
}

fn item_message(listed: Listed) -> v1::QuarantineItem {
    match listed {
        Listed::Item(item) => v1::QuarantineItem {
            item_id: item.id.0.to_vec(),
            path: item.path.as_os_str().as_bytes().to_vec(),
            blake3: item.digest.0.to_vec(),
            size: item.size,
            taken_at_s: u64::try_from(item.taken.s).unwrap_or(0),
            detections: item.detections.iter().map(Into::into).collect(),
        },
        Listed::Damaged { id, .. } => v1::QuarantineItem {
            item_id: id.0.to_vec(),
            ..v1::QuarantineItem::default()
        },
    }
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn done(detail: String) -> Ended {
    Ended {
        status: OrderStatus::Done,
        detail,
        item_id: None,
        items: Vec::new(),
        is_full: false,
    }
}

fn failed(detail: &str) -> Ended {
    Ended {
        status: OrderStatus::Failed,
        ..done(detail.to_owned())
    }
}

fn refused(refusal: Refusal, error: &dyn std::error::Error) -> Ended {
    let status = match refusal {
        Refusal::Changed => OrderStatus::RefusedChanged,
        Refusal::Missing => OrderStatus::RefusedMissing,
        Refusal::Conflict => OrderStatus::RefusedConflict,
        Refusal::Failed => OrderStatus::Failed,
    };
    Ended {
        status,
        ..done(chain(error))
    }
}

/// An error and what it came from, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Opens the quarantine and tells what it found unfinished.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn open_vault(dir: PathBuf, bytes_max: u64) -> Result<Vault, quarantine::OpenError> {
    let limits = quarantine::Limits {
        bytes_max,
        ..quarantine::Limits::default()
    };
    let vault = Vault::open(&dir, limits)?;
    tracing::debug!(recovery = ?vault.recovery(), "quarantine opened");
    Ok(vault)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        hands: Hands,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let vault = open_vault(dir.path().join("vault"), 1 << 30).unwrap();
        let hands = Hands::new(vault, 2);
        Bench { dir, hands }
    }

    impl Bench {
        fn order(&mut self, id: u8, action: Action) -> v1::OrderResult {
            let order = v1::Order {
                order_id: vec![id; 16],
                action: Some(action),
            };
            self.hands.result_of(&order).0
        }

        fn file(&self, content: &[u8]) -> Vec<u8> {
            let path = self.dir.path().join("bad");
            std::fs::write(&path, content).unwrap();
            path.as_os_str().as_bytes().to_vec()
        }
    }

    fn quarantine(path: &[u8], content: &[u8]) -> Action {
        Action::Quarantine(v1::QuarantineFile {
            path: path.to_vec(),
            blake3: Digest::of(content).0.to_vec(),
            detections: Vec::new(),
        })
    }

    #[test]
    fn into_quarantine_listed_and_back() {
        let mut bench = bench();
        let path = bench.file(b"bad");
        let taken = bench.order(1, quarantine(&path, b"bad"));
        assert_eq!(taken.status(), OrderStatus::Done, "{}", taken.detail);
        assert!(!path_of(&path).exists());
        let list = bench.order(2, Action::List(v1::ListQuarantine {}));
        assert_eq!(list.items.len(), 1);
        assert_eq!(list.items[0].path, path);
        let restored = bench.order(
            3,
            Action::Restore(v1::RestoreItem {
                item_id: taken.item_id,
                path: Vec::new(),
            }),
        );
        assert_eq!(restored.status(), OrderStatus::Done, "{}", restored.detail);
        assert_eq!(std::fs::read(path_of(&path)).unwrap(), b"bad");
    }

    #[test]
    fn other_content_is_not_touched() {
        let mut bench = bench();
        let path = bench.file(b"good");
        let refused = bench.order(1, quarantine(&path, b"bad"));
        assert_eq!(refused.status(), OrderStatus::RefusedChanged);
        let delete = Action::Delete(v1::DeleteFile {
            path: path.clone(),
            blake3: Digest::of(b"bad").0.to_vec(),
        });
        let refused = bench.order(2, delete);
        assert_eq!(refused.status(), OrderStatus::RefusedChanged);
        assert!(path_of(&path).exists());
    }

    #[test]
    fn a_repeated_order_gets_its_first_result_as_long_as_it_is_remembered() {
        let mut bench = bench();
        let path = bench.file(b"bad");
        let first = bench.order(1, quarantine(&path, b"bad"));
        assert_eq!(bench.order(1, quarantine(&path, b"bad")), first);
        bench.order(2, quarantine(&path, b"bad"));
        bench.order(3, quarantine(&path, b"bad"));
        let forgotten = bench.order(1, quarantine(&path, b"bad"));
        assert_eq!(forgotten.status(), OrderStatus::RefusedMissing);
    }

    #[test]
    fn a_full_quarantine_says_so_and_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let vault = open_vault(dir.path().join("vault"), 1 << 10).unwrap();
        let hands = Hands::new(vault, 2);
        let mut bench = Bench { dir, hands };
        let content = vec![1; 4096];
        let path = bench.file(&content);
        let order = v1::Order {
            order_id: vec![1; 16],
            action: Some(quarantine(&path, &content)),
        };
        let (result, is_full) = bench.hands.result_of(&order);
        assert!(is_full, "{}", result.detail);
        assert_eq!(result.status(), OrderStatus::Failed);
        assert!(path_of(&path).exists());
    }

    #[test]
    fn nonsense_is_refused() {
        let mut bench = bench();
        let no_action = bench.hands.result_of(&v1::Order::default());
        assert_eq!(no_action.0.status(), OrderStatus::Failed);
        let no_item = Action::Restore(v1::RestoreItem::default());
        assert_eq!(bench.order(1, no_item).status(), OrderStatus::Failed);
        let missing = Action::Discard(v1::DiscardItem {
            item_id: vec![1; 16],
        });
        let missing = bench.order(2, missing);
        assert_eq!(missing.status(), OrderStatus::RefusedMissing);
    }
}
