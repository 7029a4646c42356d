//! The controller's picture of the fleet. What connectors, appliances and administrators say comes
//! in; rows to write down and lists to send out come out. No I/O, no clock: `now` comes in.
//!
//! The order is the caller's to keep: first [`Core::take_writes`] on disk, then what
//! [`Core::take_orders`] gave with them on the wire. So a list that an agent has seen is never
//! forgotten, and a restart at any moment goes on from what was written.

mod appliances;
mod channels;
mod core;
mod desktops;
mod guests;
mod identity;
mod inventory;
mod look;
mod orders;
mod rows;
mod sessions;
mod sites;
mod turns;

pub use appliances::ApplianceHello;
pub use core::{Clock, Core, CoreSettings, Loaded, Order, SilenceLimits};
pub use guests::GuestFacts;
pub use identity::{CopyOf, IsCopy, Key, KnownGuest, Note};
pub use inventory::{HostRecord, InventoryChange, MovePhase, Power, VmRecord, VmState};
pub use look::{ApplianceRow, HostRow, VmRow, VmSeen, Why, WhyAppliance};
pub use rows::{Event, InSession, Row, StoredAppliance, StoredHost, StoredPlacement, StoredVm};
pub use sites::{Area, SiteRules, SiteRulesError};
pub use turns::{TurnAnswer, TurnAsk, TurnRow};
