//! The one stream of events.

use std::sync::Arc;
use std::time::Instant;

use crate::record::{Host, HostId, Power, Vm, VmId};

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MovePhase {
    /// It has begun; the guest still runs where it was. Not every hypervisor tells.
    Started,
    /// The guest now runs at the destination. Every hypervisor tells this, and only this counts.
    Switched,
    /// It has ended, and the guest is where it was.
    Failed,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The whole inventory has been compared: what came before this is all that changed. Comes
    /// first after every connection.
    Synced,
    /// The connection is lost: what is known may be stale, and nothing of it is taken back.
    Lost {
        /// Why, for people. Hostile text.
        reason: String,
    },
    /// A host that was not known.
    HostAppeared(Host),
    /// A host's record, where something other than its id changed.
    HostChanged(Host),
    /// A host is no longer part of the inventory.
    HostGone(HostId),
    /// A VM that was not known.
    VmAppeared(Vm),
    /// A VM that has appeared since the first inventory was made from another one. Comes after
    /// [`VmAppeared`](Self::VmAppeared), with some hypervisors a while after.
    VmCloned {
        /// The new one.
        vm: VmId,
        /// The old one.
        from: VmId,
    },
    /// A VM's name, addresses, network cards, tags, uuid or template mark: the record as it is now.
    VmChanged(Vm),
    /// A VM moves, moved, or failed to.
    VmMoved {
        /// Which.
        vm: VmId,
        /// Where it ran before the move.
        from: Option<HostId>,
        /// Where it goes, if that is known.
        to: Option<HostId>,
        /// How far it is.
        phase: MovePhase,
    },
    /// A VM was started, stopped, paused, resumed or suspended.
    VmPowered {
        /// Which.
        vm: VmId,
        /// What it did.
        from: Power,
        /// What it does now.
        to: Power,
    },
    /// A VM was deleted.
    VmGone(VmId),
}

/// A change, with whom it is from and when it was seen.
#[derive(Debug, Clone)]
pub struct Event {
    /// The connector's name in the configuration.
    pub connector: Arc<str>,
    /// When our process learnt of it.
    pub seen_at: Instant,
    /// What changed.
    pub change: Change,
}
