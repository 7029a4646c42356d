//! The appliance without sockets: sessions are driven by hand, engines are doubles.

mod allowlist;
mod by_chunks;
mod channels;
mod checks;
mod coalescing;
mod copies;
mod force;
mod limits;
mod recheck;
mod reports;
mod rig;
mod rules;
mod stores;
mod uploads;

use rig::{A, B, EVIL, Rig, check, clean, malicious, unscanned};
