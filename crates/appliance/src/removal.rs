//! What is done with a malicious file: the appliance decides, the agent obeys and reports.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use model::{Detection, Digest, GuestId, OrderId};
use parking_lot::Mutex;
use proto::v1;
use tokio::sync::oneshot;

use crate::config::{RemovalAction, RemovalConfig};

/// What these detections call for. Each goes by its own name; quarantine wins over delete, since
/// it can be undone, and both over deny.
pub(crate) fn action(config: &RemovalConfig, detections: &[Detection]) -> RemovalAction {
    let rank = |action: &RemovalAction| match action {
        RemovalAction::Deny => 0,
        RemovalAction::Delete => 1,
        RemovalAction::Quarantine => 2,
    };
    let actions = detections.iter().map(|d| by_name(config, &d.name));
    actions.max_by_key(rank).unwrap_or(config.on_malicious)
}

fn by_name(config: &RemovalConfig, name: &str) -> RemovalAction {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    let fitting = config.by_name.iter().filter(|(pattern, _)| fits(pattern));
    let longest = fitting.max_by_key(|(pattern, _)| pattern.len());
    longest.map_or(config.on_malicious, |(_, action)| *action)
}

/// The order's body; `None` where the file stays.
pub(crate) fn order_action(
    action: RemovalAction,
    path: &[u8],
    digest: Digest,
    detections: &[Detection],
) -> Option<v1::order::Action> {
    let path = path.to_vec();
    let blake3 = digest.0.to_vec();
    match action {
        RemovalAction::Deny => None,
        RemovalAction::Quarantine => Some(v1::order::Action::Quarantine(v1::QuarantineFile {
            path,
            blake3,
            detections: detections.iter().map(Into::into).collect(),
        })),
        RemovalAction::Delete => Some(v1::order::Action::Delete(v1::DeleteFile { path, blake3 })),
    }
}

pub(crate) fn action_name(action: &v1::order::Action) -> &'static str {
    match action {
        v1::order::Action::Quarantine(_) => "quarantine",
        v1::order::Action::Delete(_) => "delete",
        v1::order::Action::Restore(_) => "restore",
        v1::order::Action::List(_) => "list",
        v1::order::Action::Discard(_) => "discard",
    }
}

/// What an order's result is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// The removal of this detection.
    Removal(u64),
    /// A removal whose detection was only counted.
    Unrecorded,
    /// An administrator waits.
    Admin(oneshot::Sender<v1::OrderResult>),
}

/// Of all orders that may wait, one guest's may be one in so many.
const GUEST_PARTS: usize = 10;

/// Orders whose results are not in. Removals of one guest push out only its own; what an
/// administrator waits for is kept as long as they wait.
#[derive(Debug)]
pub(crate) struct Orders {
    /// Drawn at the start, so that ids never come again after a restart.
    epoch: [u8; 8],
    next: AtomicU64,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    removals: HashMap<OrderId, (GuestId, Purpose)>,
    /// Oldest first. May hold ids that were answered; never more than the guest may have.
    by_guest: HashMap<GuestId, VecDeque<OrderId>>,
    /// As many as administrators' connections.
    admins: HashMap<OrderId, (GuestId, oneshot::Sender<v1::OrderResult>)>,
}

impl Pending {
    fn add(&mut self, id: OrderId, guest: GuestId, purpose: Purpose, pending_max: usize) {
        let purpose = match purpose {
            Purpose::Admin(waiting) => {
                self.admins.retain(|_, (_, waiting)| !waiting.is_closed());
                self.admins.insert(id, (guest, waiting));
                return;
            }
            removal => removal,
        };
        self.removals.insert(id, (guest, purpose));
        let own = self.by_guest.entry(guest).or_default();
        own.push_back(id);
        while own.len() > (pending_max / GUEST_PARTS).max(1) {
            if let Some(oldest) = own.pop_front() {
                self.removals.remove(&oldest);
            }
        }
        while self.removals.len() > pending_max && self.drop_of_longest() {}
    }

    /// Forgets the oldest order of the guest that has the most. False: there is none.
    fn drop_of_longest(&mut self) -> bool {
        let longest = self.by_guest.iter_mut().max_by_key(|(_, own)| own.len());
        let Some((guest, own)) = longest else {
            return false;
        };
        let guest = *guest;
        if let Some(oldest) = own.pop_front() {
            self.removals.remove(&oldest);
        }
        self.tidy(guest);
        true
    }

    fn tidy(&mut self, guest: GuestId) {
        let Some(own) = self.by_guest.get_mut(&guest) else {
            return;
        };
        let is_over = |id: &OrderId| !self.removals.contains_key(id);
        while own.front().is_some_and(is_over) {
            own.pop_front();
        }
        if own.is_empty() {
            self.by_guest.remove(&guest);
        }
    }
}

impl Orders {
    pub(crate) fn new(epoch: [u8; 8]) -> Self {
        Self {
            epoch,
            next: AtomicU64::new(1),
            pending: Mutex::default(),
        }
    }

    /// A fresh order; its result is expected from this guest alone.
    pub(crate) fn issue(
        &self,
        guest: GuestId,
        action: v1::order::Action,
        purpose: Purpose,
        pending_max: usize,
    ) -> v1::Order {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.epoch);
        id[8..].copy_from_slice(&number.to_be_bytes());
        let id = OrderId(id);
        self.pending.lock().add(id, guest, purpose, pending_max);
        v1::Order {
            order_id: id.0.to_vec(),
            action: Some(action),
        }
    }

    /// What a result is for; `None` where no such order was given to this guest.
    pub(crate) fn settle(&self, guest: GuestId, order_id: &[u8]) -> Option<Purpose> {
        let id = OrderId::from_slice(order_id)?;
        let mut pending = self.pending.lock();
        if pending.admins.get(&id).is_some_and(|(of, _)| *of == guest) {
            let (_, waiting) = pending.admins.remove(&id)?;
            return Some(Purpose::Admin(waiting));
        }
        if pending.removals.get(&id)?.0 != guest {
            return None;
        }
        let (_, purpose) = pending.removals.remove(&id)?;
        pending.tidy(guest);
        Some(purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Detection {
        Detection {
            name: name.into(),
            engine: "yara".into(),
            path_inside: vec![],
        }
    }

    #[test]
    fn each_name_has_its_action_and_quarantine_wins() {
        use RemovalAction::{Delete, Deny, Quarantine};
        let config = RemovalConfig {
            on_malicious: Quarantine,
            by_name: [("Pua*", Deny), ("Pua.Miner", Delete), ("Test", Deny)]
                .map(|(name, action)| (name.to_owned(), action))
                .into(),
        };
        let of = |names: &[&str]| {
            let found: Vec<_> = names.iter().copied().map(found).collect();
            action(&config, &found)
        };
        assert_eq!(of(&["Pua.Bar"]), Deny);
        assert_eq!(of(&["Pua.Miner"]), Delete);
        assert_eq!(of(&["Test2"]), Quarantine);
        assert_eq!(of(&["Test", "Pua.Miner"]), Delete);
        assert_eq!(of(&["Pua.Miner", "Trojan"]), Quarantine);
    }

    fn list() -> v1::order::Action {
        v1::order::Action::List(v1::ListQuarantine {})
    }

    #[test]
    fn ids_are_fresh_and_only_the_guest_itself_settles() {
        let orders = Orders::new([7; 8]);
        let (a, b) = (GuestId([1; 16]), GuestId([2; 16]));
        let first = orders.issue(a, list(), Purpose::Removal(5), 100);
        let second = orders.issue(a, list(), Purpose::Removal(6), 100);
        assert_ne!(first.order_id, second.order_id);
        assert!(orders.settle(b, &first.order_id).is_none());
        assert!(matches!(
            orders.settle(a, &first.order_id),
            Some(Purpose::Removal(5))
        ));
        assert!(orders.settle(a, &first.order_id).is_none(), "once");
        assert!(orders.settle(a, b"short").is_none());
    }

    #[test]
    fn pending_orders_are_bounded() {
        let orders = Orders::new([7; 8]);
        for n in 0..1000 {
            let guest = GuestId([(n % 50) as u8; 16]);
            let order = orders.issue(guest, list(), Purpose::Removal(n), 30);
            if n % 2 == 0 {
                orders.settle(guest, &order.order_id);
            }
        }
        let pending = orders.pending.lock();
        assert!(pending.removals.len() <= 30);
        let queued = pending.by_guest.values().map(VecDeque::len);
        assert!(queued.clone().all(|len| (1..=3).contains(&len)));
        assert!(queued.sum::<usize>() <= 30 * 3);
    }

    #[test]
    fn a_guest_pushes_out_only_its_own_orders() {
        let orders = Orders::new([7; 8]);
        let (a, b) = (GuestId([1; 16]), GuestId([2; 16]));
        let (tell, _wait) = oneshot::channel();
        let admin = orders.issue(a, list(), Purpose::Admin(tell), 100);
        let others = orders.issue(b, list(), Purpose::Removal(0), 100);
        let own: Vec<_> = (1..=1000)
            .map(|n| orders.issue(a, list(), Purpose::Removal(n), 100))
            .collect();
        let settled = |guest, order: &v1::Order| orders.settle(guest, &order.order_id);
        assert!(matches!(settled(b, &others), Some(Purpose::Removal(0))));
        assert!(matches!(settled(a, &admin), Some(Purpose::Admin(_))));
        let kept = own.iter().filter(|order| settled(a, order).is_some());
        assert_eq!(kept.count(), 10);
    }

    #[test]
    fn an_administrator_that_left_is_forgotten() {
        let orders = Orders::new([7; 8]);
        for _ in 0..100 {
            let (tell, _) = oneshot::channel();
            orders.issue(GuestId([1; 16]), list(), Purpose::Admin(tell), 10);
        }
        assert_eq!(orders.pending.lock().admins.len(), 1);
    }
}
