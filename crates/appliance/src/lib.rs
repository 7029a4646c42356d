//! The appliance: takes checks and content from agents, keeps verdicts, lets engines judge, decides
//! what is removed.
//!
//! One task for each session reads its frames and answers at once what it knows (`Session`'s
//! `handle` never waits). Uploads have a task each, scans one for each place of the scheduler.
//! Guests share verdicts, never content.

mod admin;
mod answer;
mod appliance;
mod asked;
mod assembly;
mod check;
mod chunk_store;
pub mod config;
mod detections;
mod engines;
mod expected;
mod filters;
mod fleet;
mod force;
mod guests;
mod host_channels;
mod identity;
mod images;
mod listed;
mod metrics;
mod rebuild;
mod recheck;
mod rejudge;
mod released;
mod removal;
mod reported;
mod retained;
mod rule_delta;
mod scans;
mod session;
mod shared;
mod sightings;
mod state_dir;
mod upkeep;
mod upload;
mod verdicts;

pub use admin::{AdminError, AdminServer, FleetDesk, Reload, call as admin_call};
pub use appliance::{Appliance, ReloadError, Setup, StartError};
pub use config::Config;
pub use detections::LogError;
pub use engines::{
    DeltaFuture, EngineSetError, EngineSource, LoadFuture, ManifestFuture, ProcessEngines,
    SharedEngine,
};
pub use fleet::{FleetPort, NoFleet, TurnAnswer};
pub use identity::{Identity, RenewAnswer};
pub use released::ReleaseError;
pub use rule_delta::{Change, Manifest};
pub use session::Outbox;
pub use state_dir::{StateDir, StateDirError, admin_socket};
pub use verdicts::VerdictsError;

#[cfg(test)]
mod tests;
