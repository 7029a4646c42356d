//! The whole appliance in process: real TLS, real agents' links, doubles for engines.

mod admin;
mod link;
mod rig;
